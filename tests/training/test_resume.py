"""A run that was killed goes on to the same bytes: in real processes that die by SIGKILL, and for every optimiser."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.killed_runs import DYING, RESULTS, SETTINGS
from helpers.small_tasks import FAST, TEMPLATE, Recorder, answers, command, noise, reviews, reviews_task, write_data
from helpers.tiny_models import save_tiny, tiny_base
from safetensors import safe_open

import softprompt.training.loop as training
from softprompt.data.task import Task
from softprompt.errors import OutputError, TrainingError
from softprompt.store.prompt_loading import load_prompt
from softprompt.training.fit import fit


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, data and settings."""
    folder = tmp_path_factory.mktemp("runs")
    save_tiny(folder / "model", "llama")
    write_data(folder / "data", reviews())
    (folder / "run.toml").write_text(SETTINGS)
    (folder / "dying").mkdir()
    (folder / "dying" / "sitecustomize.py").write_text(DYING)
    return folder


def arguments(place: Path, out: Path, *more: str) -> list[str]:
    settings = ["--config", str(place / "run.toml"), "--template", TEMPLATE, "--dtype", "float32", "--device", "cpu"]
    return [
        "train",
        "--model",
        str(place / "model"),
        "--data",
        str(place / "data"),
        "--out",
        str(out),
        *settings,
        *more,
    ]


def started(place: Path, out: Path, *more: str, **dying: object) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if dying:
        environment |= {name.upper(): str(value) for name, value in dying.items()}
        environment["PYTHONPATH"] = str(place / "dying")
    process = [sys.executable, "-m", "softprompt", *arguments(place, out, *more)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        process, cwd=root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    _, err = process.communicate(timeout=120)
    assert "Traceback" not in err
    return process.returncode, err


def step_of(run: Path) -> int:
    """Of the checkpoint of a run; 0 if there is none."""
    if not (run / "checkpoint.safetensors").exists():
        return 0
    with safe_open(run / "checkpoint.safetensors", framework="pt") as stream:
        return int(stream.metadata()["softprompt"].split('"step": ')[1].split(",")[0])


@pytest.fixture(scope="module")
def unbroken(place: Path) -> Path:
    assert ended(started(place, place / "unbroken" / "p"))[0] == 0
    return place / "unbroken" / "p"


def assert_same(one: Path, other: Path) -> None:
    for name in RESULTS:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


class TestKilled:
    def test_at_several_points_ends_with_the_same_bytes(self, place: Path, unbroken: Path, tmp_path: Path) -> None:
        out, run = tmp_path / "p", tmp_path / "p.run"

        # when the first checkpoint is written, but not yet in its place
        assert ended(started(place, out, die_at=2))[0] == -signal.SIGKILL
        assert step_of(run) == 0
        assert sorted(path.name for path in run.iterdir()) == [".checkpoint.safetensors.tmp", ".lock"]

        # from outside, at whatever it is doing
        process = started(place, out)
        deadline = time.monotonic() + 100
        while step_of(run) < 16:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        assert ended(process)[0] == -signal.SIGKILL
        reached = step_of(run)

        # when the prompt itself is written: two operations a checkpoint are left, then three or four files
        left = 2 * (60 // 4 - reached // 4)
        code, err = ended(started(place, out, "--resume", die_at=left + 3))
        assert f"resumed at step {reached}" in err
        assert code == -signal.SIGKILL
        assert step_of(run) == 60
        assert [path.name for path in tmp_path.iterdir()] == ["p.run"]

        code, err = ended(started(place, out, "--resume"))
        assert code == 0
        assert "resumed at step 60" in err
        assert [path.name for path in tmp_path.iterdir()] == ["p"]
        assert sorted(path.name for path in out.iterdir()) == sorted([*RESULTS, "run.json"])
        assert_same(out, unbroken)

    def test_once_the_prompt_is_in_its_place_no_run_is_left(self, place: Path, unbroken: Path, tmp_path: Path) -> None:
        out = tmp_path / "p"
        assert ended(started(place, out, die_once_there=out))[0] == -signal.SIGKILL
        assert [path.name for path in tmp_path.iterdir()] == ["p"]
        assert load_prompt(out).length == 4
        done = command(*arguments(place, out))
        assert (done.code, done.error) == (2, f"'{out}' exists already: give another --out, or remove it first")

        # nothing stands in the way of training anew, and nothing is resumed
        shutil.rmtree(out)
        code, err = ended(started(place, out))
        assert code == 0
        assert "resumed" not in err
        assert_same(out, unbroken)


class TestTwoProcesses:
    def test_the_second_ends_at_once_and_the_first_goes_on(self, place: Path, unbroken: Path, tmp_path: Path) -> None:
        out, run = tmp_path / "p", tmp_path / "p.run"
        first = started(place, out, stop_at=2)  # as above, the first checkpoint is written then
        waited = os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert waited is not None
        assert waited.si_code == os.CLD_STOPPED, first.communicate()
        words = f"another process is training in '{run}' now: wait until it ends, or give another --out"
        try:
            for flags in ([], ["--resume"], ["--restart"]):
                done = command(*arguments(place, out, *flags))
                assert (done.code, done.error) == (2, words)
                assert "loading" not in done.err
            with pytest.raises(OutputError, match="another process is training in"):
                fit(tiny_base("llama"), reviews_task(), out=out, **FAST)
        finally:
            first.send_signal(signal.SIGCONT)
        assert ended(first)[0] == 0
        assert [path.name for path in tmp_path.iterdir()] == ["p"]
        assert_same(out, unbroken)


@pytest.fixture(scope="module")
def left_behind(place: Path) -> Path:
    """An unfinished run."""
    out = place / "left" / "p"

    class Stop(Recorder):
        def on_step_end(self, step: int, *rest: Any) -> None:
            if step == 10:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tiny_base("llama"), reviews_task(), out=out, checkpoint_every=4, callback=Stop(), **FAST)
    return out


class TestFlags:
    """What may be said of an unfinished run; these start in this process, where nothing needs to be killed."""

    @pytest.fixture
    def out(self, left_behind: Path, tmp_path: Path) -> Path:
        shutil.copytree(left_behind.with_name("p.run"), tmp_path / "p.run")
        return tmp_path / "p"

    def test_neither_resume_nor_restart(self, place: Path, out: Path) -> None:
        before = (out.with_name("p.run") / "checkpoint.safetensors").read_bytes()
        done = command(*arguments(place, out))
        assert done.code == 2
        assert done.error == (
            f"'{out}.run' holds an unfinished run for '{out}': --resume goes on with it, --restart drops it"
        )
        assert "loading" not in done.err
        assert (out.with_name("p.run") / "checkpoint.safetensors").read_bytes() == before
        with pytest.raises(OutputError, match="holds an unfinished run"):
            fit(tiny_base("llama"), reviews_task(), out=out, checkpoint_every=4, **FAST)

    def test_both(self, place: Path, out: Path) -> None:
        done = command(*arguments(place, out, "--resume", "--restart"))
        assert done.code == 2
        assert done.error == "--resume and --restart exclude each other: give one of them"

    def test_resume_with_other_settings(self, place: Path, out: Path) -> None:
        done = command(*arguments(place, out, "--resume", "--seed", "3"))
        assert done.code == 2
        assert done.error.startswith(f"the unfinished run in '{out}.run' is another one (")
        assert "seed was 0, is 3" in done.error
        assert done.error.endswith("give the same settings, or start again with --restart")
        assert (out.with_name("p.run") / "checkpoint.safetensors").exists()

    def test_resume_names_only_what_differs(self, out: Path) -> None:
        settings = {**FAST, "checkpoint_every": 4, "learning_rate": 0.25}
        with pytest.raises(TrainingError, match=r"is another one \(learning_rate was 0\.3, is 0\.25\): give the same"):
            fit(tiny_base("llama"), reviews_task(), out=out, resume=True, **settings)

    @pytest.mark.parametrize("what", ["data", "template", "labels"])
    def test_resume_with_another_task(self, out: Path, what: str) -> None:
        task = {
            "data": Task.classification(noise(), template=TEMPLATE),
            "template": Task.classification(reviews(), template="{{ text }} is"),
            "labels": Task.classification(reviews(), template=TEMPLATE, labels=["good", "bad"]),
        }[what]
        with pytest.raises(TrainingError, match=rf"is another one \({what} was "):
            fit(tiny_base("llama"), task, out=out, resume=True, checkpoint_every=4, **FAST)

    def test_resume_on_another_base(self, out: Path) -> None:
        with pytest.raises(TrainingError, match=r"is another one \(config was '.*weights was '"):
            fit(tiny_base("qwen3"), reviews_task(), out=out, resume=True, checkpoint_every=4, **FAST)

    def test_restart(self, out: Path, tmp_path: Path) -> None:
        seen = Recorder()
        fit(tiny_base("llama"), reviews_task(), out=out, restart=True, seed=3, callback=seen, **FAST)
        assert seen.first_step == 0
        assert [path.name for path in out.parent.iterdir()] == ["p"]
        fit(tiny_base("llama"), reviews_task(), out=tmp_path / "other", seed=3, **FAST)
        assert_same(out, tmp_path / "other")

    @pytest.mark.parametrize("flag", ["--resume", "--restart", None])
    def test_after_completion_says_that_it_exists(self, place: Path, unbroken: Path, flag: str | None) -> None:
        done = command(*arguments(place, unbroken, *([flag] if flag else [])))
        assert done.code == 2
        assert done.error == f"'{unbroken}' exists already: give another --out, or remove it first"
        assert "loading" not in done.err

    def test_resume_where_nothing_was_begun_begins(self, tmp_path: Path) -> None:
        seen = Recorder()
        fit(tiny_base("llama"), reviews_task(), out=tmp_path / "p", resume=True, callback=seen, **FAST)
        assert seen.first_step == 0
        assert f"'{tmp_path / 'p.run'}' holds no unfinished run: beginning at step 0" in seen.notes

    def test_place_of_the_run_is_a_file(self, place: Path, tmp_path: Path) -> None:
        (tmp_path / "p.run").write_text("mine")
        done = command(*arguments(place, tmp_path / "p"))
        assert done.code == 2
        assert done.error.endswith("is where the unfinished run is kept, but it is a file: give another --out")


VARIANTS: dict[str, dict[str, Any]] = {
    "adam": {},
    "lester": {"optimizer": "adafactor", "rate_unit": "raw", "schedule": "constant", "weight_decay": 1e-5},
    "averaged": {"averaging": 0.9},
    "accumulated": {"micro_batch_size": 3},
    "soft verbalizer": {"soft_verbalizer": "always", "averaging": 0.5},
    "stops early": {"patience": 2, "learning_rate": 1e-12, "steps": 20, "eval_every": 3},
}


@pytest.mark.parametrize(
    ("kind", "variant", "at"),
    [
        *(("classification", "adam", at) for at in (1, 2, 3, 8, 12)),
        *(("classification", variant, 7) for variant in VARIANTS),
        *(("generation", variant, 7) for variant in ("adam", "accumulated")),
    ],
)
def test_every_kind_of_run_goes_on_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, variant: str, at: int
) -> None:
    base = tiny_base("llama")
    task = (
        reviews_task()
        if kind == "classification"
        else Task.generation(answers(validation=2, test=1), template=TEMPLATE)
    )
    settings = {**FAST, "init": "random", "checkpoint_every": 2, "alarm_after": 5, **VARIANTS[variant]}
    calls = []
    whole = training._accumulate_gradients

    def interrupted(*arguments: Any) -> list[float]:
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return whole(*arguments)

    first, rest, seen = Recorder(), Recorder(), Recorder()
    fit(base, task, out=tmp_path / "unbroken", callback=seen, **settings)
    monkeypatch.setattr(training, "_accumulate_gradients", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(base, task, out=tmp_path / "p", callback=first, **settings)
    fit(base, task, out=tmp_path / "p", callback=rest, resume=True, **settings)
    assert rest.first_step == max(0, (at - 2) // 2 * 2)
    assert first.losses[: rest.first_step] + rest.losses == seen.losses
    assert_same(tmp_path / "p", tmp_path / "unbroken")
