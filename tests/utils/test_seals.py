"""Files that a later step takes for the truth: a changed byte is noticed in one clear line, or changes nothing."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.saved_prompts import a_prompt
from helpers.small_tasks import FAST, reviews_task
from helpers.tiny_models import tiny_base

from softprompt.config import TrainConfig
from softprompt.errors import SoftpromptError
from softprompt.experiments.comparison.study_folder import StudyFolder
from softprompt.experiments.comparison.study_records import Result
from softprompt.experiments.sweep.sweep_folder import SweepFolder, SweepTrial
from softprompt.serving.request_log.request_records import RequestRecord, Retention
from softprompt.serving.request_log.sample_files import open_samples, read_samples
from softprompt.store.prompt_loading import load_prompt
from softprompt.store.version_store import Store
from softprompt.training.checkpoint import Checkpoint
from softprompt.training.distillation.teacher_answers import LabelAnswers
from softprompt.training.distillation.teacher_cache import load_answers, save_answers
from softprompt.training.learner import PromptLearner
from softprompt.utils.sealed_tensors import read_sealed_tensors, seal_tensors
from softprompt.utils.seals import seal, unseal
from softprompt.utils.version import read_versions

TRIES = 200  # flipped bytes a file, evenly spaced


def flips(path: Path, read: Callable[[], Any], same: Callable[[Any], bool] | None = None) -> int:
    """Flip bytes of a file one by one; each is refused in one line, or what is read is the same. How many were refused.

    The files are small, so that nearly every byte has its turn.
    """
    whole = path.read_bytes()
    expected, refused = read(), 0
    same = same or (lambda found: bool(found == expected))
    for place in range(0, len(whole), max(1, len(whole) // TRIES)):
        for bit in (1, 0x80) if place % 2 else (4, 0x20):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            try:
                found = read()
            except SoftpromptError:  # one line, as all of them
                refused += 1
            else:
                assert same(found), (place, bit, whole[max(0, place - 20) : place + 20])
    path.write_bytes(whole)
    assert read() is not None
    return refused


def tensors_equal(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class TestFlippedBytes:
    def test_checkpoint(self, tmp_path: Path) -> None:
        base, task = tiny_base("llama"), reviews_task()
        with Checkpoint(tmp_path / "p.run", {"config": "c", "versions": read_versions()}) as checkpoint:
            learner = PromptLearner(base, task, TrainConfig.build(**FAST))
            checkpoint.save([learner])

            def read() -> Any:
                saved = checkpoint.load()
                assert saved is not None
                return saved

            whole = read()
            assert flips(
                tmp_path / "p.run" / "checkpoint.safetensors",
                read,
                lambda found: found.learners == whole.learners and tensors_equal(found._tensors, whole._tensors),
            )

    def test_teachers_answers(self, tmp_path: Path) -> None:
        answers = LabelAnswers(log_probabilities=torch.randn(20, 2))
        path = tmp_path / "answers"
        save_answers(path, {"train": answers}, "this", 2.5)

        def same(found: Any) -> bool:
            return found[1] == 2.5 and torch.equal(found[0]["train"].log_probabilities, answers.log_probabilities)

        assert flips(path, lambda: load_answers(path, "this"), same) > TRIES

    def test_results_trials_and_notes(self, tmp_path: Path) -> None:
        result = Result(method="m", family="classical", seed=0, status="failed", error="no", predictions=("a", "b"))
        with StudyFolder(tmp_path / "study", {"model": "m", "seeds": 2}) as folder:
            folder.land(result)
            folder.note("m", steps=12, trials={"0.1": {"value": 0.5}})
            known = folder.notes("m").items()

            def notes(found: dict[str, Any]) -> bool:
                return found.items() >= known  # the name of the digest is nobody's

            assert flips(tmp_path / "study" / "results" / "m-0.json", lambda: folder.result("m", 0)) > TRIES
            assert flips(tmp_path / "study" / "learning" / "m.json", lambda: folder.notes("m"), notes) > 100
        setup = tmp_path / "study" / "setup.json"

        def again() -> bool:
            with StudyFolder(tmp_path / "study", {"model": "m", "seeds": 2}):
                return True

        assert flips(setup, again) > 100
        trial = SweepTrial(number=0, status="finished", settings={"length": 8}, metric="accuracy", value=0.5, loss=1.0)
        with SweepFolder(tmp_path / "sweep", {}) as sweep:
            sweep.land_trial(trial)
            assert flips(next((tmp_path / "sweep" / "trials").iterdir()), lambda: sweep.trial(0)) > TRIES

    @pytest.mark.parametrize("file", ["prompt.json", "prompt.safetensors"])
    def test_saved_prompt(self, tmp_path: Path, file: str) -> None:
        prompt = a_prompt(parent="q@1")
        prompt.save(tmp_path / "p")

        def same(found: Any) -> bool:
            return found.manifest() == prompt.manifest() and torch.equal(found.state.tensor, prompt.state.tensor)

        assert flips(tmp_path / "p" / file, lambda: load_prompt(tmp_path / "p"), same) > 100

    def test_a_prompt_of_an_earlier_release_is_read(self, tmp_path: Path) -> None:
        prompt = a_prompt()
        prompt.save(tmp_path / "p")
        path = tmp_path / "p" / "prompt.json"
        manifest = json.loads(path.read_text())
        assert {"description_sha256", "history_sha256"} <= manifest.keys()
        path.write_text(json.dumps({name: value for name, value in manifest.items() if "_sha256" not in name}))
        assert load_prompt(tmp_path / "p").manifest() == prompt.manifest()

    def test_history_is_checked_before_it_goes_to_a_store(self, tmp_path: Path) -> None:
        a_prompt().save(tmp_path / "p")
        (tmp_path / "p" / "history.jsonl").write_text('{"step": 2}\n')
        with pytest.raises(SoftpromptError, match=r"history.jsonl' is damaged: its SHA-256"):
            Store(tmp_path / "store").put(tmp_path / "p", "p")

    @pytest.mark.parametrize("file", ["p/1/version.json", "p/aliases/prod/1.json"])
    def test_records_of_a_store(self, tmp_path: Path, file: str) -> None:
        store = Store(tmp_path / "store")
        store.put(a_prompt(parent="somewhere"), "p")
        store.promote("p@1", "prod")
        assert flips(tmp_path / "store" / file, lambda: (store.version("p@prod"), store.history("p@prod"))) > 100

    @pytest.mark.parametrize("name", ["s.jsonl", "s.db"])
    def test_samples(self, tmp_path: Path, name: str) -> None:
        """A row that was changed is counted as damaged."""
        path = tmp_path / name
        samples = tuple(
            RequestRecord(
                time=1.5e9 + i,
                request=f"r{i}",
                prompt="p@1",
                characters=12,
                answer="good",
                text="a fine film",
                columns={"a": "ß"},
                probabilities={"good": 0.75, "bad": 0.25},
                milliseconds=5.0,
            )
            for i in range(20)
        )
        file = open_samples(path, Retention(rows=100))
        file.write(samples)
        file.close()
        assert read_samples(path).samples == samples

        def sound(found: Any) -> bool:
            return all(one in samples for one in found.samples)

        def read() -> Any:
            for more in ("-wal", "-shm"):
                path.with_name(name + more).unlink(missing_ok=True)
            return read_samples(path)

        flips(path, read, sound)
        if name == "s.db":
            with sqlite3.connect(path) as connection:
                connection.execute("UPDATE samples SET answer = 'bad' WHERE id = 3")
            connection.close()
            found = read()
            assert (len(found.samples), found.damaged) == (19, 1)


def test_samples_of_an_earlier_release_are_read_and_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    sample = RequestRecord(time=1.5e9, request="r", prompt="p@1", characters=12, milliseconds=5.0)
    file = open_samples(path, Retention(rows=100))
    file.write([sample])
    file.close()
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE samples DROP COLUMN sha256")
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    assert read_samples(path).samples == (sample,)
    file = open_samples(path, Retention(rows=100))
    file.write([sample])
    file.close()
    assert read_samples(path).samples == (sample, sample)


class TestSeals:
    def test_layout_and_order_do_not_matter(self) -> None:
        values = {"b": [1, 2.5, "ü"], "a": {"x": None}}
        assert unseal(json.loads(json.dumps(seal(values), indent=4, sort_keys=True))) == values

    def test_tensors_of_all_kinds(self, tmp_path: Path) -> None:
        tensors = {
            "scalar": torch.tensor(3.0),
            "half": torch.randn(2, 3).bfloat16(),
            "none": torch.zeros(0, 4),
            "whole": torch.arange(5),
            "turned": torch.randn(3, 4).T,
        }
        (tmp_path / "t").write_bytes(seal_tensors(tensors, {"a": 1}))
        found, facts = read_sealed_tensors(tmp_path / "t")
        assert facts == {"a": 1}
        assert tensors_equal(found, tensors)
