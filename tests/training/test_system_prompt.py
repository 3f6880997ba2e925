"""A system prompt distilled in chats: teachers against plain transformers, students beside them token by token."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.chat_models import WITH_TOOLS, chat_base, chat_model, chat_tokenizer

import softprompt as sp
from softprompt.config import DistillConfig
from softprompt.data.chats.chat_template import find_chat_template
from softprompt.data.chats.conversation import Conversation, Message
from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.examples import Example
from softprompt.data.task import Task
from softprompt.errors import ConfigError, DataError
from softprompt.inference.predictor import Predictor
from softprompt.training.distillation.distill import Distillation, distill
from softprompt.training.distillation.given_answers import find_given, given_item
from softprompt.training.distillation.student_initialization import choose_sentences, split_sentences
from softprompt.training.distillation.system_prompt import cut_inputs, write_teacher
from softprompt.training.distillation.teacher import Teacher, ask_teacher
from softprompt.training.distillation.teacher_answers import Completions, LabelAnswers

PAGE = "You count things.\nSay the number, and nothing else. Never guess: ask."
FAMILIES = ("qwen2_5", "qwen3", "llama3_1", "gemma3", "mistral_v3", "phi3_5", "gptoss")
FAST: dict[str, Any] = {"steps": 2, "batch_size": 4, "eval_every": 1, "measure": False, "progress": False}
HOW = DistillConfig(max_new_tokens=6, teacher_top_k=5)
SOME = slice(5)


def chats(system: str | None = None, *, answered: bool = True, count: int = 40) -> list[dict[str, Any]]:
    first = [{"role": "system", "content": system}] if system else []
    found = []
    for index in range(count):
        turns = [
            {"role": "user", "content": f"Number {index}?"},
            {"role": "assistant", "content": f"It is {index}."},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": f"Yes, {index}."},
        ]
        found.append({"messages": [*first, *(turns if answered else turns[:-1])]})
    return found


def prepared(family: str, rows: Any, text: str = PAGE, **options: Any) -> tuple[Task, Teacher]:
    shots = options.pop("shots", ())
    task = Task.of_inputs(rows, **options)
    return write_teacher(chat_base(family), task, text, shots, None)


def asked(family: str, task: Task, teacher: Teacher, settings: DistillConfig = HOW) -> Any:
    examples = task.splits["all"][SOME]
    return ask_teacher(chat_base(family), task.spec, teacher, settings, {"train": examples}, lambda text: None)["train"]


def plain_ids(family: str, messages: list[dict[str, Any]], **options: Any) -> list[int]:
    ids = chat_tokenizer(family).apply_chat_template(messages, return_dict=True, **options)["input_ids"]
    return list(ids)


@torch.no_grad()
def plain_rows(family: str, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of what follows each token, by transformers alone."""
    return chat_model(family)(torch.tensor([ids])).logits[0].float().log_softmax(-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_teacher_reads_turns_as_transformers_does_behind_the_system_message(family: str) -> None:
    task, teacher = prepared(family, chats())
    found = asked(family, task, teacher)
    assert isinstance(found, Completions)
    assert found.given.tolist() == [1] * 5
    row = 0
    for example, answer in zip(task.splits["all"][SOME], found.answers, strict=True):
        assert example.conversation is not None
        turns = [one.to_dict() for one in example.conversation.messages]
        ids = plain_ids(family, [{"role": "system", "content": PAGE}, *turns], enable_thinking=False)
        logs, text = plain_rows(family, ids), list(answer)
        end = max(at for at in range(len(ids)) if ids[at] == text[-1])
        places = _last_places(ids[: end + 1], text)
        for place in places:
            at = row + len(text) - (places[-1] - place) - 1
            torch.testing.assert_close(logs[place - 1][found.top_ids[at].long()], found.top[at], atol=2e-3, rtol=2e-3)
        row += len(text)


def _last_places(ids: list[int], text: list[int]) -> list[int]:
    """Where the last tokens of ``text`` stand: as many as end ``ids``."""
    count = 0
    while count < len(text) and ids[len(ids) - 1 - count] == text[len(text) - 1 - count]:
        count += 1
    assert count > 3
    return list(range(len(ids) - count, len(ids)))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_teacher_completes_what_lacks_an_answer_behind_the_system_message(family: str) -> None:
    task, teacher = prepared(family, [{"text": f"a film {index}"} for index in range(40)])
    found = asked(family, task, teacher)
    assert isinstance(found, Completions)
    assert not found.given.any()
    example = task.splits["all"][0]
    messages = [{"role": "system", "content": PAGE}, {"role": "user", "content": example.text}]
    ids = plain_ids(family, messages, add_generation_prompt=True, enable_thinking=False)
    for at, token in enumerate(found.answers[0]):
        logs = plain_rows(family, ids)[-1]
        torch.testing.assert_close(logs[found.top_ids[at].long()], found.top[at], atol=2e-3, rtol=2e-3)
        ids.append(token)


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_told_by_the_probabilities_behind_the_system_message(family: str) -> None:
    rows = [{"text": f"a film {index}", "label": ("no", "yes")[index % 2]} for index in range(40)]
    task, teacher = prepared(family, rows)
    found = asked(family, task, teacher)
    assert isinstance(found, LabelAnswers)
    opening = Predictor(chat_base(family), task.spec).encoder
    example = task.splits["all"][0]
    messages = [{"role": "system", "content": PAGE}, {"role": "user", "content": example.text}]
    ids = plain_ids(family, messages, add_generation_prompt=True, enable_thinking=False)
    assert task.spec.chat is not None
    # what an answer without thoughts begins with
    said = find_chat_template(chat_tokenizer(family), task.spec.chat).opening
    ids += chat_tokenizer(family).encode(said, add_special_tokens=False)
    assert opening.verbalizer is not None
    total = torch.zeros(2)
    for index, words in enumerate(opening.verbalizer.sequences):
        for decision in opening.verbalizer.decisions_of(index):
            logs = plain_rows(family, [*ids, *decision.path])[-1][list(decision.choices)].log_softmax(-1)
            total[index] += logs[decision.choice_of_label[index]]
        assert words
    torch.testing.assert_close(found.log_probabilities[0], total, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_student_is_asked_for_the_tokens_that_the_teacher_read(family: str) -> None:
    task, teacher = prepared(family, chats())
    base = chat_base(family)
    assert teacher.spec is not None
    own, theirs = (ExampleEncoder(base, spec, 4) for spec in (task.spec, teacher.spec))
    some = [found for one in task.splits["all"][SOME] if (found := find_given(task.spec, one)) is not None]
    items = own.training_items(some), theirs.training_items(some)
    for example, student, read in zip(some, *items, strict=True):
        if family == "mistral_v3":  # the system prompt stands in the last turn of the user: that alone is learned
            student = given_item(own, example, read.targets)
        assert student.targets == read.targets
        gaps = [[b - a for a, b in zip(one.positions, one.positions[1:], strict=False)] for one in (student, read)]
        assert gaps[0] == gaps[1]
        said = chat_tokenizer(family).decode(list(student.targets))
        assert "Yes, " in said
        assert PAGE not in chat_tokenizer(family).decode(list(student.ids))
    assert task.spec.chat is not None
    assert (task.spec.chat.system, task.spec.chat.replaces) == (None, PAGE)


def same_words(family: str, rows: Any, **options: Any) -> tuple[Distillation, Teacher]:
    """A student that begins as all of its teacher's words, and learns nothing."""
    task, teacher = prepared(family, rows, options.pop("text", PAGE), **options)
    settings = {**FAST, "length": teacher.start.length, "learning_rate": 1e-12, "max_new_tokens": 5}
    return distill(chat_base(family), task, teacher, **settings), teacher


@pytest.mark.parametrize("kind", ["chats", "unanswered", "texts", "labels"])
@pytest.mark.parametrize("family", ["qwen2_5", "qwen3", "llama3_1", "phi3_5", "gptoss"])
def test_a_student_of_the_teachers_words_is_the_teacher(family: str, kind: str) -> None:
    rows: Any = {
        "chats": chats(),
        "unanswered": chats(answered=False),
        "texts": [{"text": f"a film {index}", "target": f"it is {index}"} for index in range(40)],
        "labels": [{"text": f"a film {index}", "label": ("no", "yes")[index % 2]} for index in range(40)],
    }[kind]
    done, teacher = same_words(family, rows)
    for near in done.report.held_out.values():
        assert near.agreement.value == 1
        assert near.kl.value == pytest.approx(0, abs=1e-4)
        assert near.agreement.n == near.kl.n == near.n
        assert near.token_agreement is None or near.token_agreement.value == 1
        assert near.kept is None or near.kept.value == pytest.approx(1)
    tokens = done.report.tokens
    assert (tokens.teacher, tokens.times_fewer) == (tokens.student, 1)
    assert teacher.source == "system prompt"


def test_solved_examples_are_turns_behind_the_system_message() -> None:
    rows = [{"text": f"a film {index}", "label": ("no", "yes")[index % 2]} for index in range(40)]
    shots = Task.of(rows).train[:2]
    done, teacher = same_words("qwen2_5", rows, shots=shots)
    assert done.report.held_out["test"].agreement.value == 1
    assert teacher.source == "system prompt and 2 solved examples"
    said = chat_tokenizer("qwen2_5").decode(list(teacher.ids))
    for shot in shots:
        turns = f"<|im_start|>user\n{shot.text}<|im_end|>\n<|im_start|>assistant\n{shot.label}<|im_end|>"
        assert turns in said


@pytest.mark.parametrize("family", FAMILIES)
def test_logged_chats_bring_the_system_message_that_is_distilled(family: str, tmp_path: Path) -> None:
    """Without a word of the user's the page is what all rows begin with; what is saved answers rows with it too."""
    base = chat_base(family)
    done = distill(base, chats(PAGE), length=4, out=tmp_path / "p", **FAST)
    again = distill(base, chats(), PAGE, length=4, **FAST)
    third = distill(base, chats(f"{PAGE}\n"), system=PAGE, length=4, **FAST)
    assert third.report.teacher == done.report.teacher == "system prompt"
    for name, near in done.report.held_out.items():
        assert near.kl.n == near.n > 0, name
    assert done.report.held_out["test"].kl.value >= 0
    saved = json.loads((tmp_path / "p" / "prompt.json").read_text())
    assert saved["task"]["chat"]["replaces"] == PAGE
    assert "system" not in saved["task"]["chat"]
    assert again.prompt.spec == done.prompt.spec
    predictor = sp.Predictor.of_prompt(base, tmp_path / "p")
    asked_of = [chats(system, answered=False)[0] for system in (None, PAGE)]
    one, other = predictor.predict(asked_of)
    assert one.completion == other.completion
    if family in WITH_TOOLS:
        tool = {"type": "function", "function": {"name": "count", "description": "Counts.", "parameters": {}}}
        asked_of = [{**row, "tools": [tool]} for row in asked_of]
        one, other = predictor.predict(asked_of)
        assert one.completion == other.completion
    with pytest.raises(DataError, match="it has a system message, and the prompt was learned without one"):
        predictor.predict([chats("Another.")[0]])
    evaluation = sp.evaluate(base, chats(PAGE), tmp_path / "p")
    assert evaluation.metric.n > 0


def test_a_kept_system_prompt_stays_beside_the_virtual_tokens() -> None:
    done = distill(chat_base("qwen2_5"), chats(PAGE), length=4, keep_system="Be kind.", **FAST)
    chat = done.prompt.spec.chat
    assert chat is not None
    assert (chat.system, chat.replaces) == ("Be kind.", PAGE)
    behind = chat_tokenizer("qwen2_5").decode(list(done.prompt.state.placement.behind))
    assert behind.startswith("Be kind.<|im_end|>")
    with pytest.raises(ConfigError, match="a kept system prompt stands in the system turn of a chat"):
        distill(chat_base("qwen2_5"), chats(), PAGE, chat_template="none", keep_system="Be kind.", **FAST)


@pytest.mark.parametrize("method", ["prefix-tuning", "p-tuning"])
def test_other_methods_learn_a_system_prompt_too(method: str) -> None:
    done = distill(chat_base("qwen2_5"), chats(PAGE), length=4, method=method, init="text", **FAST)
    assert done.prompt.method == method


def test_a_model_without_a_chat_template_has_the_words_in_front() -> None:
    done = distill(chat_base("qwen2_5"), chats(), system=PAGE, chat_template="none", length=4, **FAST)
    assert done.prompt.spec.chat is None
    assert done.report.teacher == "text"


class TestRowsAndWords:
    def test_a_row_with_another_system_message_is_named(self) -> None:
        rows = [*chats(PAGE), *chats("Another.", count=1)]
        with pytest.raises(DataError, match="row 41: its system message is not the one to distil"):
            distill(chat_base("qwen2_5"), rows, PAGE, length=4, **FAST)
        with pytest.raises(DataError, match="it has a system message of its own: expected the same"):
            distill(chat_base("qwen2_5"), rows, length=4, **FAST)

    def test_no_words_are_an_error_before_a_model_is_loaded(self) -> None:
        with pytest.raises(ConfigError, match="expected a teacher: a system prompt"):
            distill("no/model", chats(), length=4, **FAST)

    def test_words_are_given_once(self) -> None:
        with pytest.raises(ConfigError, match="the teacher's text is its system prompt: give it once"):
            distill("no/model", chats(), PAGE, system=PAGE, length=4, **FAST)

    def test_a_template_without_a_place_for_it_says_so(self) -> None:
        with pytest.raises(sp.SoftpromptError, match="this chat template has no place for a system message"):
            distill(chat_base("gemma"), chats(), PAGE, length=4, **FAST)

    @pytest.mark.parametrize("learn", ["all", "last"])
    def test_turns_that_count(self, learn: str) -> None:
        task, _ = prepared("qwen2_5", chats(), learn=learn)
        spec = task.spec

        def given(*turns: Message, references: tuple[str, ...] = ()) -> int | None:
            one = find_given(spec, Example("", references=references, conversation=Conversation(turns)))
            return None if one is None or one.conversation is None else len(one.conversation.messages)

        user, said = Message("user", "a"), Message("assistant", "b")
        muted = Message("assistant", "b", learned=False)
        assert given(user) is None
        assert given(user, said, references=("b",)) == 2
        assert given(user, said, user) == (2 if learn == "all" else None)
        assert given(user, muted, user, said, references=("b",)) == 4
        assert given(user, said, user, muted, references=("b",)) == 4


@pytest.mark.parametrize("family", ["qwen2_5", "gemma3"])
def test_conversations_too_long_for_the_teacher_are_cut_for_both(family: str) -> None:
    base = chat_base(family, 700)
    rows = chats(count=20)
    long = [{"role": "user", "content": "Count. " * 20}, {"role": "assistant", "content": "One. " * 8}] * 4
    rows[0]["messages"] = [*long, *rows[0]["messages"]]
    task = Task.of_inputs(rows)
    task, teacher = write_teacher(base, task, PAGE, (), None)
    cut = cut_inputs(base, task, teacher, 4, 5)
    before, after = (one.splits["all"] for one in (task, cut))
    changed = [one for one, other in zip(before, after, strict=True) if one.conversation != other.conversation]
    assert len(changed) == 1
    assert any("turns were left out, the oldest of conversations that were too long" in one for one in cut.splits.notes)
    done = distill(base, Task.of_inputs(rows), PAGE, length=4, max_new_tokens=5, **FAST)
    assert done.report.held_out


class TestSentences:
    def test_are_lines_and_what_punctuation_ends(self) -> None:
        tokenizer = chat_tokenizer("qwen2_5")
        ids = tokenizer.encode(PAGE, add_special_tokens=False)
        found = split_sentences(tokenizer, ids)
        assert [place for sentence in found for place in sentence] == list(range(len(ids)))
        words = [tokenizer.decode([ids[place] for place in sentence]) for sentence in found]
        assert words[0].strip() == "You count things."
        assert len(words) > 2

    def test_are_chosen_by_their_rank_in_the_order_of_the_text(self) -> None:
        ranked = [[4, 5], [0, 1, 2, 3], [6, 7, 8]]
        assert choose_sentences(ranked, 6) == [0, 1, 2, 3, 4, 5]
        assert choose_sentences(ranked, 5) == [4, 5, 6, 7, 8]
        assert choose_sentences(ranked, 4) == [0, 1, 4, 5]
