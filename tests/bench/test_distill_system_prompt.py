"""bench/distill_system_prompt.py: its pages and inputs, and a run on a tiny model."""

import json
from pathlib import Path

import distill_system_prompt as bench
import pytest
from helpers.chat_models import save_chat_model

from softprompt.errors import DataError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small data of both tasks."""
    folder = tmp_path_factory.mktemp("data")
    for name in bench.TASKS:
        (folder / name).mkdir()
        for split in ("train", "validation", "test"):
            path = folder / name / f"{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(name, split)), encoding="utf-8")
    return folder


def rows_of(name: str, split: str) -> list[dict[str, object]]:
    if name == "trec":
        labels = ("entity", "human", "number")
        return [{"text": f"{split} question {i} ?", "label": labels[i % 3]} for i in range(24)]
    answer = {"target": "It is there."} if split == "train" else {"references": ["It is there.", "There it is."]}
    return [{"text": f"name[{split} {i // 2}]", **answer} for i in range(180)]


@pytest.mark.parametrize("name", sorted(bench.TASKS))
def test_each_page_is_about_six_hundred_tokens_of_words(name: str) -> None:
    assert 380 < len((bench.PAGES / f"{name}.md").read_text(encoding="utf-8").split()) < 500


def test_labels_and_references_only_judge(data: Path) -> None:
    trec = bench.write_inputs("trec", data / "trec", "A page.", 5, 4)
    assert {split: len(rows) for split, rows in trec.items()} == {"train": 5, "validation": 4, "test": 4}
    assert all(row["messages"][0] == {"role": "system", "content": "A page."} for row in trec["train"])
    assert all("label" not in row for row in trec["train"])
    assert all("label" in row for row in trec["test"])
    e2e = bench.write_inputs("e2e", data / "e2e", "A page.", None, None)
    assert all(set(row) == {"text"} for row in e2e["train"])
    texts = [row["text"] for split in ("train", "validation") for row in e2e[split]]
    assert len(set(texts)) == len(texts) == 180
    assert len(e2e["validation"]) == bench.HELD_OUT


def test_other_data_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected JSON lines of train, validation and test in"):
        bench.write_inputs("trec", tmp_path, "A page.", None, None)


@pytest.mark.slow
def test_both_are_distilled_and_told(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_chat_model("qwen2_5", tmp_path / "model")
    sizes = ("--steps", 1, "--inputs", 16, "--held-out", 4, "--lengths", 4)
    options = ("--model", folder, "--data", data, *sizes, "--out", tmp_path / "out", "--json")
    assert bench.main([*map(str, options)]) == 0
    report = json.loads(capsys.readouterr().out)
    for name in bench.TASKS:
        one = report["tasks"][name]["lengths"]["4"]
        assert one["tokens"]["before"] > one["tokens"]["after"]
        assert (tmp_path / "out" / name / "4" / "prompt.json").exists()
    assert "ms saved a request, pays" in bench.text_report(report)
