"""Multitask prompt tuning: shared and own parts, teachers, and a prompt for each task at the end."""

from pathlib import Path

import pytest
import torch
from helpers.runs import train
from helpers.small_tasks import FAST, Recorder, answers, command, reviews, reviews_task, write_data
from helpers.tiny_models import save_tiny, tiny_base

from softprompt.config import TrainConfig
from softprompt.data.encoding.batching import collate
from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.examples import Example
from softprompt.data.splits import Splits
from softprompt.data.task import Task
from softprompt.errors import ConfigError, TrainingError
from softprompt.inference.scoring import AnswerScorer
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.methods.multitask_prompt_tuning import FACTOR_RATE, MultitaskPrompt
from softprompt.prompts.prefix import make_prefix
from softprompt.prompts.state import PromptState
from softprompt.store.prompt_loading import load_prompt
from softprompt.training.checkpoint import Checkpoint
from softprompt.training.fit import fit
from softprompt.training.multitask import distance_from_teacher, train_multitask
from softprompt.training.optimization import make_optimizer

CONFIG = TrainConfig(**FAST)


def flipped() -> Task:
    """The same sentences under the opposite labels: what one prompt cannot do for both tasks."""
    other = {"good": "bad", "bad": "good"}

    def turn(examples: tuple[Example, ...]) -> tuple[Example, ...]:
        return tuple(Example(one.text, other[str(one.label)]) for one in examples)

    splits = reviews()
    return Task.classification(
        Splits(turn(splits.train), turn(splits.validation), turn(splits.test), "flipped", ()), template="{{ text }}:"
    )


def tasks() -> dict[str, Task]:
    return {"a": reviews_task(), "b": flipped(), "words": Task.generation(answers(), template="{{ text }}:")}


def distance(base: FrozenLM, task: Task, teacher: PromptState, student: PromptState, count: int) -> float:
    """Summed over the scored positions of the first ``count`` training examples."""
    encoder = ExampleEncoder(base, task.spec, CONFIG.length)
    batch = collate(encoder.training_items(task.train)[:count], base.device)
    hidden = make_prefix(base, student).hidden(batch.input_ids, batch.mask)[batch.row, batch.column]
    objective = AnswerScorer(base, encoder.verbalizer)
    return float(distance_from_teacher(objective, make_prefix(base, teacher), hidden, batch).sum())


class TestParametrisation:
    def test_every_task_starts_at_the_start(self) -> None:
        init = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
        method = MultitaskPrompt(init, 0.5, tasks=2)
        for task in range(2):
            assert torch.equal(method.read_state(task).tensor, init)

    def test_it_is_the_shared_prompt_times_a_rank_one_matrix(self) -> None:
        generator = torch.Generator().manual_seed(0)
        method = MultitaskPrompt(torch.randn(3, 5, generator=generator), 0.5, tasks=2)
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        shared = method.init + 0.5 * method.theta
        for task in range(2):
            matrix = method.read_state(task).tensor / shared
            assert int(torch.linalg.matrix_rank(matrix, rtol=1e-4)) == 1
            torch.testing.assert_close(matrix, torch.outer(1 + method.rows[task], 1 + method.columns[task]))
        assert not torch.equal(method.read_state(0).tensor, method.read_state(1).tensor)

    def test_factors_learn_in_smaller_steps(self) -> None:
        method = MultitaskPrompt(torch.ones(3, 5), 0.5, tasks=2)
        groups = make_optimizer(method, CONFIG).param_groups
        found = {group["factor"]: sum(p.numel() for p in group["params"]) for group in groups}
        assert found == {1.0: 15, FACTOR_RATE: 2 * (3 + 5)}


class TestLearning:
    def test_tasks_that_contradict_each_other_both_learn(self) -> None:
        seen = Recorder()
        config = CONFIG.model_copy(update={"steps": 60, "eval_every": 20})
        found = train_multitask(tiny_base("gemma3"), tasks(), config, seen)
        assert set(found) == {"a", "b", "words"}
        # with one prompt for both the two would add up to 1
        assert found["a"].value + found["b"].value > 1.25
        assert seen.losses[-1] < 0.7 * seen.losses[0]
        assert {metric for _, metric, *_ in seen.evaluations} == {
            "accuracy of a",
            "accuracy of b",
            "negative loss of words",
        }
        assert seen.ended == 1

    def test_the_base_stays_as_it_is_and_a_seed_gives_the_same_bytes(self) -> None:
        base = tiny_base("llama")
        before = [parameter.clone() for parameter in base.model.parameters()]
        first, again = (train_multitask(base, tasks(), CONFIG, Recorder()) for _ in range(2))
        other = train_multitask(base, tasks(), CONFIG.model_copy(update={"seed": 1}), Recorder())
        assert all(torch.equal(a, b) for a, b in zip(before, base.model.parameters(), strict=True))
        for name in first:
            assert torch.equal(first[name].state.tensor, again[name].state.tensor)
        assert not torch.equal(first["a"].state.tensor, other["a"].state.tensor)

    def test_resumes_to_the_same_bytes(self, tmp_path: Path) -> None:
        class Killed(Exception):
            pass

        class Killer(Recorder):
            def on_step_end(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
                if step == 8:
                    raise Killed

        base, config = tiny_base("llama"), CONFIG.model_copy(update={"checkpoint_every": 3})
        unbroken = train_multitask(base, tasks(), config, Recorder())
        with pytest.raises(Killed):
            train_multitask(base, tasks(), config, Killer(), checkpoint=Checkpoint(tmp_path / "run", {}))
        seen = Recorder()
        resumed = train_multitask(base, tasks(), config, seen, checkpoint=Checkpoint(tmp_path / "run", {}))
        assert "resumed at step 6" in seen.notes
        for name in unbroken:
            assert torch.equal(unbroken[name].state.tensor, resumed[name].state.tensor)
            assert unbroken[name].history == resumed[name].history

    def test_a_loss_that_is_no_number_stops_it(self) -> None:
        config = CONFIG.model_copy(update={"learning_rate": 1e30})
        with pytest.raises(TrainingError, match=r"loss is not a number at step \d+ .*lower rate"):
            train_multitask(tiny_base("llama"), tasks(), config, Recorder())


class TestTeachers:
    def test_there_is_no_distance_from_oneself(self) -> None:
        base = tiny_base("gemma3")
        teacher = PromptState.of_embeddings(torch.randn(4, 32, generator=torch.Generator().manual_seed(1)))
        other = PromptState.of_embeddings(torch.randn(4, 32, generator=torch.Generator().manual_seed(2)))
        for name, task in tasks().items():
            assert distance(base, task, teacher, teacher, 8) == pytest.approx(0, abs=1e-4), name
            assert distance(base, task, teacher, other, 8) > 0.1, name

    def test_students_come_nearer_to_their_teacher(self) -> None:
        base, task = tiny_base("gemma3"), reviews_task()
        teacher = train(base, task, CONFIG.model_copy(update={"steps": 40}), Recorder()).state
        distances = {}
        for weight in (0.0, 5.0):
            two = {"a": task, "b": flipped()}
            config = CONFIG.model_copy(update={"steps": 40})
            learned = train_multitask(base, two, config, Recorder(), teachers={"a": teacher}, distillation=weight)
            distances[weight] = distance(base, task, teacher, learned["a"].state, 32)
        assert distances[5.0] < 0.8 * distances[0.0]


class TestMistakes:
    def test_one_task(self) -> None:
        with pytest.raises(ConfigError, match="needs at least two tasks, got 1: learn a single one by train"):
            fit(tiny_base("llama"), {"a": reviews_task()}, config=CONFIG)

    def test_a_teacher_of_no_task(self) -> None:
        with pytest.raises(ConfigError, match="a teacher for 'z': expected one of the tasks a, b, words"):
            fit(tiny_base("llama"), tasks(), config=CONFIG, teachers={"z": "prompts/z"})

    @pytest.mark.parametrize("name", ["", "../a", "a/b", ".a", "a b", "x" * 65])
    def test_names_that_are_no_folders(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="expected at most 64 letters, digits"):
            fit(tiny_base("llama"), {"a": reviews_task(), name: flipped()}, out=tmp_path / "out")
        assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and two tasks."""
    folder = tmp_path_factory.mktemp("multitask")
    save_tiny(folder / "model", "llama")
    write_data(folder / "a", reviews())
    write_data(folder / "b", flipped().splits)
    return folder


class TestTheCommand:
    def arguments(self, place: Path, out: Path) -> list[object]:
        given = ["--model", place / "model", "--task", f"a={place / 'a'}", "--task", f"b={place / 'b'}", "--out", out]
        settings = ["--steps", "6", "--length", "4", "--batch-size", "8", "--dtype", "float32", "--device", "cpu"]
        return ["multitask", *given, *settings]

    def test_each_task_ends_with_a_prompt_that_others_verbs_take(self, place: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        ended = command(*self.arguments(place, out))
        assert ended.code == 0, ended.err
        assert sorted(entry.name for entry in out.iterdir()) == ["a", "b"]
        assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
        prompt = load_prompt(out / "b")
        assert prompt.method == "multitask"
        assert prompt.training["tasks"] == ["a", "b"]
        assert "test" in prompt.metrics
        again = command("eval", out / "b", "--data", place / "b", "--dtype", "float32", "--json")
        assert again.code == 0, again.err
        taught = tmp_path / "taught"
        ended = command(*self.arguments(place, taught), "--teacher", f"a={out / 'a'}", "--json")
        assert ended.code == 0, ended.err
        assert load_prompt(taught / "a").training["teachers"] == ["a"]

    def test_mistakes_end_in_one_line(self, place: Path, tmp_path: Path) -> None:
        given = self.arguments(place, tmp_path / "out")
        cases = {
            "--task 'b': expected NAME=DATA, as in reviews=data/reviews": ["--task", "b"],
            "--task 'a=x': expected another name": ["--task", "a=x"],
            "--teacher 'b': expected NAME=PROMPT": ["--teacher", "b"],
            "is no saved prompt": ["--teacher", f"a={tmp_path / 'nothing'}"],
        }
        for words, more in cases.items():
            ended = command(*given, *more)
            assert ended.code == 2
            assert words in ended.error
        assert list(tmp_path.iterdir()) == []
