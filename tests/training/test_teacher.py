"""Teachers: what stands in front, what they answer, and the file in which the answers are kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small_tasks import TEMPLATE, answers, reviews
from helpers.tiny_models import plain_logits, random_prompt, tiny_base

from softprompt.config import DistillConfig
from softprompt.data.task import TaskSpec
from softprompt.errors import ConfigError, TrainingError
from softprompt.inference.generation import GenerationConfig
from softprompt.inference.predictor import Predictor
from softprompt.prompts.state import PromptState
from softprompt.prompts.written_prompt import written_prompt
from softprompt.training.distillation.teacher import Teacher, ask_teacher
from softprompt.training.distillation.teacher_answers import Completions, LabelAnswers
from softprompt.training.distillation.teacher_cache import load_answers, save_answers
from softprompt.utils.safe_io import read_text

TEXT = "Is the film good or bad?"
CLASSES = TaskSpec("classification", TEMPLATE, ("bad", "good"), ("bad", "good"))
WORDS = TaskSpec("generation", TEMPLATE)
INPUTS = answers().train[:4]


def asked(spec: TaskSpec, teacher: Teacher, family: str = "llama", **settings: Any) -> Any:
    how = DistillConfig(**{"max_new_tokens": 8, "teacher_top_k": 5, **settings})
    return ask_teacher(tiny_base(family), spec, teacher, how, {"train": INPUTS}, lambda text: None)["train"]


class TestWritten:
    def test_is_what_eval_has_in_front(self) -> None:
        base, shots = tiny_base("llama"), reviews().train[:2]
        teacher = Teacher.written(base, CLASSES, f"\n{TEXT}\n\n", shots)
        state = written_prompt(base, CLASSES, TEXT, shots)
        assert state is not None
        assert torch.equal(teacher.start.tensor, state.tensor)
        assert teacher.tokens == len(teacher.ids) == state.length
        assert torch.equal(base.embed(torch.tensor(teacher.ids)), state.tensor)
        assert teacher.source == "text and 2 solved examples"

    def test_of_nothing_is_an_error(self) -> None:
        with pytest.raises(ConfigError, match="expected a text or solved examples for the teacher, got neither"):
            Teacher.written(tiny_base("llama"), CLASSES, " \n")

    def test_completions_behind_solved_examples_end_where_the_next_would_begin(self) -> None:
        base, shots = tiny_base("llama"), answers().train[:2]
        assert Teacher.written(base, WORDS, TEXT, shots).stop == ("\n\n",)
        assert Teacher.written(base, WORDS, TEXT).stop == ()
        assert Teacher.written(base, CLASSES, TEXT, reviews().train[:2]).stop == ()
        teacher = Teacher.written(base, WORDS, TEXT, shots)
        assert teacher.generation(DistillConfig(stop=("x",))).stop == ("x",)

    def test_teachers_are_told_apart(self) -> None:
        base = tiny_base("llama")
        found = [Teacher.written(base, CLASSES, text).digest for text in (TEXT, TEXT + "!", TEXT)]
        assert found[0] == found[2] != found[1]


class TestReadingText:
    def test_gives_the_text(self, tmp_path: Path) -> None:
        (tmp_path / "p.txt").write_bytes("Größe?\r\n".encode())
        assert read_text(tmp_path / "p.txt") == "Größe?\r\n"

    @pytest.mark.parametrize(
        ("content", "words"),
        [(None, "does not exist"), (b" \n", "is empty: expected the text"), (b"\xff\xfe", "expected text in UTF-8")],
    )
    def test_mistakes_are_one_line(self, tmp_path: Path, content: bytes | None, words: str) -> None:
        if content is not None:
            (tmp_path / "p.txt").write_bytes(content)
        with pytest.raises(ConfigError, match=words):
            read_text(tmp_path / "p.txt")

    def test_a_folder_is_no_text(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot be read: expected a regular file"):
            read_text(tmp_path)


class TestAnswers:
    def test_labels_are_those_of_a_predictor(self) -> None:
        base = tiny_base("gemma3")
        states = tuple(PromptState.of_embeddings(random_prompt(base, 4, seed).detach()) for seed in range(2))
        found = asked(CLASSES, Teacher(states), "gemma3")
        assert torch.equal(found.log_probabilities, Predictor(base, CLASSES, states).label_log_probabilities(INPUTS))

    def test_an_ensemble_cannot_complete(self) -> None:
        states = tuple(PromptState.of_embeddings(random_prompt(tiny_base("llama"), 4, s).detach()) for s in range(2))
        with pytest.raises(ConfigError, match="an ensemble answers by vote, expected a classification task"):
            asked(WORDS, Teacher(states))

    @pytest.mark.parametrize("family", ["llama", "gemma3", "mamba"])
    def test_completions_are_those_of_predict_with_the_probabilities_of_the_model(self, family: str) -> None:
        base = tiny_base(family)
        prompt = random_prompt(base, 4, 1).detach()
        found = asked(WORDS, Teacher((PromptState.of_embeddings(prompt),)), family)
        predictor = Predictor(base, WORDS, PromptState.of_embeddings(prompt), GenerationConfig(max_new_tokens=8))
        expected = {one.index: one.completion for one in predictor.predict(INPUTS)}
        assert found.texts(base.tokenizer) == [expected[index] for index in range(len(INPUTS))]
        rows = iter(range(len(found.tokens)))
        for text, answer in zip(predictor.encoder.encode_inputs(INPUTS), found.answers, strict=True):
            logits = plain_logits(base, prompt, [*text, *answer[:-1]])[len(text) - 1 :].log_softmax(-1)
            for place in logits:
                row = next(rows)
                torch.testing.assert_close(place[found.top_ids[row].long()], found.top[row], atol=1e-3, rtol=1e-3)
                assert int(place.argmax()) == int(found.tokens[row])
                rest = 1 - float(found.top[row].exp().sum())
                assert float(found.rest[row].exp()) == pytest.approx(rest, abs=1e-4)

    def test_an_end_of_sequence_is_a_place_but_no_word(self, monkeypatch: pytest.MonkeyPatch) -> None:
        base = tiny_base("llama")
        logits, boost = base.logits, torch.zeros(base.vocabulary_size)
        boost[base.tokenizer.eos_token_id] = 1e4
        monkeypatch.setattr(base, "logits", lambda hidden: logits(hidden) + boost)
        found = asked(WORDS, Teacher((PromptState.of_embeddings(random_prompt(base, 4).detach()),)))
        assert found.answers == [(base.tokenizer.eos_token_id,)] * len(INPUTS)
        assert found.ended.tolist() == [1] * len(INPUTS)
        assert found.texts(base.tokenizer) == [""] * len(INPUTS)

    def test_samples_follow_their_seed_and_validation_is_greedy(self) -> None:
        teacher = Teacher((PromptState.of_embeddings(random_prompt(tiny_base("llama"), 4).detach()),))
        one, same, other = (asked(WORDS, teacher, samples=2, greedy=False, sample_seed=seed) for seed in (1, 1, 2))
        assert one.answers == same.answers != other.answers
        assert len(one.answers) == 2 * len(INPUTS)
        assert one.answers[0] != one.answers[len(INPUTS)]
        how = DistillConfig(max_new_tokens=8, samples=2)
        both = ask_teacher(
            tiny_base("llama"), WORDS, teacher, how, {"train": INPUTS, "test": INPUTS}, lambda text: None
        )
        plain = asked(WORDS, teacher)
        assert both["test"].answers == plain.answers  # type: ignore[union-attr]
        assert both["train"].answers[: len(INPUTS)] == plain.answers  # type: ignore[union-attr]

    def test_a_stop_string_becomes_the_end_of_the_answer(self) -> None:
        base = tiny_base("llama")
        prompt = PromptState.of_embeddings(random_prompt(base, 4, 1).detach())
        plain = asked(WORDS, Teacher((prompt,)))
        # what the third token of the first completion adds to it
        words = [base.tokenizer.decode(list(plain.answers[0][:count])) for count in (2, 3)]
        stop = words[1][len(words[0]) :]
        assert stop
        assert stop not in words[0]
        found = asked(WORDS, Teacher((prompt,), stop=(stop,)))
        end = base.tokenizer.eos_token_id
        assert found.answers[0] == (*plain.answers[0][:2], end)
        assert int(found.ended[0]) == 1
        predictor = Predictor(base, WORDS, prompt, GenerationConfig(max_new_tokens=8, stop=(stop,)))
        expected = {one.index: one.completion for one in predictor.predict(INPUTS)}
        assert found.texts(base.tokenizer) == [expected[index] for index in range(len(INPUTS))]
        # the end has the probability of going on to the stop, and all else stays as it was
        assert int(found.top_ids[2][0]) == end
        assert torch.equal(found.top[2], plain.top[2])
        assert not (found.top_ids[2][1:] == end).any()
        assert int(found.counts.sum()) == len(found.tokens) == len(found.top) == len(found.rest)


class TestFile:
    @pytest.fixture(params=["classification", "generation"])
    def answers(self, request: pytest.FixtureRequest) -> Any:
        spec = CLASSES if request.param == "classification" else WORDS
        return asked(spec, Teacher((PromptState.of_embeddings(random_prompt(tiny_base("llama"), 4).detach()),)))

    def test_gives_back_what_was_written(self, tmp_path: Path, answers: LabelAnswers | Completions) -> None:
        save_answers(tmp_path / "run" / "t", {"train": answers, "test": answers}, "this", 2.5)
        read = load_answers(tmp_path / "run" / "t", "this")
        assert read is not None
        found, seconds = read
        assert seconds == 2.5
        assert set(found) == {"train", "test"}
        for one in found.values():
            assert type(one) is type(answers)
            for name, tensor in vars(answers).items():
                if isinstance(tensor, torch.Tensor):
                    assert torch.equal(getattr(one, name), tensor), name
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["t"]

    def test_of_another_run_is_none(self, tmp_path: Path, answers: LabelAnswers | Completions) -> None:
        save_answers(tmp_path / "t", {"train": answers}, "this", 1)
        assert load_answers(tmp_path / "t", "other") is None
        assert load_answers(tmp_path / "nothing", "this") is None

    @pytest.mark.parametrize("harm", ["cut", "flipped", "empty", "text"])
    def test_damage_is_one_line(self, tmp_path: Path, answers: LabelAnswers | Completions, harm: str) -> None:
        path = tmp_path / "t"
        save_answers(path, {"train": answers}, "this", 1)
        whole = path.read_bytes()
        flipped = whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]
        path.write_bytes({"cut": whole[:-5], "flipped": flipped, "empty": b"", "text": b"not this" * 50}[harm])
        with pytest.raises(
            TrainingError, match=r"the teacher's answers in '.*' are damaged: .* with --restart"
        ) as error:
            load_answers(path, "this")
        assert "\n" not in str(error.value)

    def test_some_of_them(self, answers: LabelAnswers | Completions) -> None:
        some = answers.at([0, 2])
        if isinstance(answers, Completions) and isinstance(some, Completions):
            assert some.answers == [answers.answers[0], answers.answers[2]]
            assert some.example.tolist() == [0, 1]
            assert len(some.top) == len(some.tokens) == len(some.scale)
            begin = int(answers.counts[:2].sum())
            assert torch.equal(some.scale[int(answers.counts[0]) :], answers.scale[begin:][: int(answers.counts[2])])
        elif isinstance(some, LabelAnswers) and isinstance(answers, LabelAnswers):
            assert torch.equal(some.log_probabilities, answers.log_probabilities[[0, 2]])
