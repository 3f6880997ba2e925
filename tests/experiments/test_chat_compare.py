"""A comparison on chats from one end to the other: by command, and beside what each method gives alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.chat_models import chat_base, save_chat_model
from helpers.small_tasks import command

from softprompt.data.chats.chat_resolution import resolve_chat
from softprompt.data.task import Task
from softprompt.errors import ConfigError
from softprompt.experiments.comparison.compare import compare
from softprompt.inference.evaluation import evaluate
from softprompt.prompts.written_prompt import choose_shots, write_prompt

SYSTEM = "Was the film liked?"
METHODS = "zero-shot,few-shot:2,prompt-tuning:length=4,prefix-tuning:length=4,lora,full"
STUDY: dict[str, Any] = {"seeds": 1, "steps": 2, "batch_size": 4, "progress": False}


def rows(form: str, count: int = 40) -> list[dict[str, Any]]:
    words = ("dull", "fine")
    first = {"role": "system", "content": SYSTEM}
    made: list[dict[str, Any]] = []
    for index in range(count):
        text, label = f"a {words[index % 2]} film {index}", ("no", "yes")[index % 2]
        user = {"role": "user", "content": text}
        made.append(
            {
                "texts": {"text": text, "label": label},
                "labelled": {"messages": [first, user], "label": label},
                "answered": {"messages": [first, user, {"role": "assistant", "content": label}]},
            }[form]
        )
    return made


@pytest.mark.parametrize("form", ["texts", "labelled", "answered"])
def test_every_method_learns_and_answers_the_same_turns(form: str, tmp_path: Path) -> None:
    base = chat_base("qwen2_5")
    task = Task.of(rows(form), **({"system": SYSTEM} if form == "texts" else {}))
    task = task.with_room(4) if form == "answered" else task
    study = compare(base, task, METHODS, tmp_path / "study", **STUDY)
    assert {row.method: row.failed for row in study.rows} == dict.fromkeys(METHODS.split(","), 0)
    assert SYSTEM in str(study.settings["conversations"])
    known = resolve_chat(base, task)
    results = {one.method: one for one in study.results}
    for method, count in (("zero-shot", 0), ("few-shot:2", 2)):
        spec, state = write_prompt(base, known.spec, "", choose_shots(known.train, count, 0))
        alone = evaluate(base, known.test, state, spec=spec)
        assert list(results[method].predictions) == alone.answers
    added = {name: one.speed.added_tokens for name, one in results.items() if one.speed is not None}
    assert added["prompt-tuning:length=4"] == added["zero-shot"] + 4
    assert added["lora"] == added["full"] == added["zero-shot"]
    assert added["few-shot:2"] > added["zero-shot"]


def test_an_instruction_in_place_of_the_rows_own_is_refused_before_anything_is_learned(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave --instruction out, or the system messages"):
        compare(
            chat_base("qwen2_5"), rows("labelled"), METHODS, tmp_path / "study", instruction="Another one.", **STUDY
        )


def test_the_command_compares_and_inspects_chats(tmp_path: Path) -> None:
    save_chat_model("llama3_1", tmp_path / "llama")
    data = tmp_path / "chats.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows("labelled")))
    places = ["--model", tmp_path / "llama", "--data", data, "--device", "cpu", "--dtype", "float32"]
    how = ["--steps", "2", "--seeds", "1", "--batch-size", "4", "--keep"]
    done = command("compare", *places, *how, "--methods", METHODS, "--out", tmp_path / "study")
    assert done.code == 0, done.err
    assert "Every run ended." in done.out
    assert "system prompt" in (tmp_path / "study" / "report.html").read_text()
    kept = tmp_path / "study" / "artifacts"
    assert "apply_chat_template" in (kept / "lora" / "README.md").read_text()
    told = command("inspect", kept / "prompt-tuning_length=4", *places, "--html", tmp_path / "page.html")
    assert told.code == 0, told.err
    assert f"written prompt '{SYSTEM}'" in told.out
    assert "system prompt" in (tmp_path / "page.html").read_text()


def test_the_written_prompt_is_evaluated_by_command(tmp_path: Path) -> None:
    save_chat_model("qwen2_5", tmp_path / "qwen")
    data = tmp_path / "chats.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows("texts")))
    places = ["--model", tmp_path / "qwen", "--data", data, "--device", "cpu", "--dtype", "float32", "--json"]
    base = chat_base("qwen2_5")
    task = resolve_chat(base, Task.of(data))
    for options, words, count in ((["--instruction", SYSTEM], SYSTEM, 0), (["--shots", "2"], "", 2)):
        done = command("eval", *places, *options)
        assert done.code == 0, done.err
        spec, _ = write_prompt(base, task.spec, words, choose_shots(task.train, count, 0))
        assert json.loads(done.out)["value"] == evaluate(base, task.test, spec=spec).metric.value
    named = command("eval", *places, "--system", SYSTEM)
    spec, state = write_prompt(base, task.spec, SYSTEM)
    assert json.loads(named.out)["value"] == evaluate(base, task, state, spec=spec).metric.value
