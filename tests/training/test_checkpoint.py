"""The folder of a run: for one process at a time, and turned into the result in one step."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.small_tasks import FAST, Recorder, reviews_task
from helpers.tiny_models import tiny_base

from softprompt.errors import OutputError
from softprompt.training.checkpoint import Checkpoint
from softprompt.training.fit import fit

# places a result again and again, each time in a process that is killed one operation on the disk later
PLACING = """
import os, shutil, signal, sys
from pathlib import Path
from softprompt.training.checkpoint import Checkpoint

root = Path(sys.argv[1])

def place(die_at):
    left = die_at
    def dying(operation):
        def counted(*arguments, **options):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **options)
        return counted
    with Checkpoint(root / "p.run", {}) as checkpoint:
        for name in ("rename", "rmdir", "unlink", "mkdir"):
            setattr(os, name, dying(getattr(os, name)))
        staged = checkpoint.stage()
        for name in ("a", "b/c"):
            (staged / "p" / name).parent.mkdir(parents=True, exist_ok=True)
            (staged / "p" / name).write_text(name)
        checkpoint.publish(staged / "p", root / "p")

ended, die_at = signal.SIGKILL, 0
while ended == signal.SIGKILL:
    die_at += 1
    # what the last one left stays, unless it is the result
    (root / "p.run").mkdir(exist_ok=True)
    (root / "p.run" / "checkpoint.safetensors").touch()
    child = os.fork()
    if child == 0:
        place(die_at)
        os._exit(0)
    ended = os.waitpid(child, 0)[1]
    found = [path.name for path in root.iterdir()]
    if found == ["p"]:
        content = {str(path.relative_to(root / "p")) for path in (root / "p").rglob("*") if path.is_file()}
        assert content >= {"a", "b/c"}, content
        assert ended or content == {"a", "b/c"}, content
        shutil.rmtree(root / "p")
    else:
        assert found == ["p.run"], found
        assert Checkpoint(root / "p.run", {}).exists()
assert ended == 0, ended
print(die_at)
"""


def test_killed_at_any_point_there_is_the_run_or_its_result(tmp_path: Path) -> None:
    process = [sys.executable, "-c", PLACING, str(tmp_path)]
    done = subprocess.run(process, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 8


def test_a_result_that_cannot_be_placed_keeps_the_run(tmp_path: Path) -> None:
    with Checkpoint(tmp_path / "p.run", {}) as checkpoint:
        (tmp_path / "p.run" / "checkpoint.safetensors").touch()
        staged = checkpoint.stage()
        (staged / "a").touch()
        (tmp_path / "p").mkdir()
        with pytest.raises(OutputError) as caught:
            checkpoint.publish(staged, tmp_path / "p")
    assert str(caught.value) == (
        f"'{tmp_path}/p' exists already: give another --out, or remove it first; what was learned is kept in "
        f"'{tmp_path}/p.run', --resume saves it"
    )
    assert Checkpoint(tmp_path / "p.run", {}).exists()
    assert list((tmp_path / "p").iterdir()) == []


def test_the_lock_lasts_as_long_as_the_with_statement(tmp_path: Path) -> None:
    folder = tmp_path / "p.run"
    with Checkpoint(folder, {}):
        for _ in range(2):
            with pytest.raises(OutputError, match=r"another process is training in '.*p\.run' now: wait until it ends"):
                Checkpoint(folder, {}).__enter__()
    assert not folder.exists()
    with Checkpoint(folder, {}):
        (folder / "checkpoint.safetensors").touch()
    assert [path.name for path in folder.iterdir()] == ["checkpoint.safetensors"]


def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write '.*p\.run': Not a directory; give another --out"):
        Checkpoint(tmp_path / "file" / "p.run", {}).__enter__()


def test_a_run_that_was_interrupted_can_be_resumed_in_the_same_process(tmp_path: Path) -> None:
    class Stop(Recorder):
        def on_step_end(self, step: int, *rest: object) -> None:
            if step == 10:
                raise KeyboardInterrupt

    # a notebook keeps the error, and with it all that the run had open
    with pytest.raises(KeyboardInterrupt) as kept:
        fit(tiny_base("llama"), reviews_task(), out=tmp_path / "p", checkpoint_every=4, callback=Stop(), **FAST)
    fit(tiny_base("llama"), reviews_task(), out=tmp_path / "p", checkpoint_every=4, resume=True, **FAST)
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
    assert kept.value.__traceback__ is not None


def test_no_space_for_the_next_checkpoint_names_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "full")

    with Checkpoint(tmp_path / "p.run", {}) as checkpoint:
        checkpoint.save([])
        monkeypatch.setattr("softprompt.training.checkpoint.replace_file", full)
        with pytest.raises(
            OutputError, match=r"no space left to write .*; --resume goes on from the checkpoint before"
        ):
            checkpoint.save([])
    with Checkpoint(tmp_path / "q.run", {}) as checkpoint, pytest.raises(OutputError) as caught:
        checkpoint.save([])
    assert "--resume" not in str(caught.value)
