"""Checkpoints: everything a run needs to go on to the same bytes, in one file that is replaced atomically."""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, Self

from filelock import FileLock
from torch import Tensor

from softprompt.errors import OutputError, TrainingError, map_write_errors
from softprompt.models.distributed import SINGLE_PROCESS, ProcessGroup
from softprompt.utils.files import acquire_lock, check_free, replace_file
from softprompt.utils.run_folder import list_differences
from softprompt.utils.sealed_tensors import read_sealed_tensors, seal_tensors

CHECKPOINT_FILE, LOCK_FILE = "checkpoint.safetensors", ".lock"


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint that was read.

    Attributes:
        learners: of each learner, its optimiser's settings and its progress.
        processes: how many processes it was written by, and how they shared the model.
    """

    learners: list[dict[str, Any]]
    processes: str
    _tensors: Mapping[str, Tensor]

    @property
    def step(self) -> int:
        """Steps made."""
        return max(int(learner["progress"]["step"]) for learner in self.learners)

    def learner(self, index: int) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
        """Tensors, optimiser's state and progress of one learner, as its ``restore`` takes them."""
        described = self.learners[index]
        start, own = f"{index}/", {}
        state = {int(number): dict(values) for number, values in described["optimizer"]["state"].items()}
        for name, tensor in self._tensors.items():
            if not name.startswith(start):
                continue
            name = name.removeprefix(start)
            if name.startswith("optimizer/"):
                _, number, key = name.split("/", 2)
                state.setdefault(int(number), {})[key] = tensor
            else:
                own[name] = tensor
        optimizer = {"state": state, "param_groups": described["optimizer"]["param_groups"]}
        return own, optimizer, described["progress"]


class Checkpoint:
    """The checkpoint of one run, in a folder of its own beside the prompt's place; ``with`` keeps other processes out.

    Attributes:
        folder: of the unfinished run.
        identity: what the run is: settings and fingerprints of base, data and task.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, restart: bool = False) -> None:
        """``restart``: do not read what an earlier run left; it stays until there is something to put in its place."""
        self.folder, self.identity = folder, dict(identity)
        self._ignored = restart
        self._path, self._lock = folder / CHECKPOINT_FILE, FileLock(folder / LOCK_FILE)

    def __enter__(self) -> Self:
        """Have the run's folder for this process alone.

        Raises:
            OutputError: another process has it, or it cannot be written.
        """
        with map_write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            acquire_lock(self._lock, self.folder, "training")
        return self

    def __exit__(self, *_: object) -> None:
        # nothing to remove after ``publish``; a folder that holds a checkpoint stays
        with suppress(OSError):
            (self.folder / LOCK_FILE).unlink()
            self.folder.rmdir()
        self._lock.release()

    def save(self, learners: Sequence[Any]) -> None:
        """Write the run as its ``learners`` stand; a crash leaves the checkpoint before or this one, whole.

        Raises:
            OutputError: no space, or no permission.
        """
        tensors: dict[str, Tensor] = {}
        described: dict[str, Any] = {"identity": self.identity, "learners": []}
        for place, learner in enumerate(learners):
            tensors |= {f"{place}/{name}": tensor for name, tensor in learner.tensors().items()}
            state = {"state": {}, "param_groups": []} if learner.optimizer is None else learner.optimizer.state_dict()
            numbers: dict[str, dict[str, Any]] = {}
            for index, values in state["state"].items():
                for key, value in values.items():
                    if isinstance(value, Tensor):
                        tensors[f"{place}/optimizer/{index}/{key}"] = value
                    else:
                        numbers.setdefault(str(index), {})[key] = value
            optimizer = {"state": numbers, "param_groups": state["param_groups"]}
            described["learners"].append({"progress": asdict(learner.progress), "optimizer": optimizer})
        content = seal_tensors(tensors, described)
        try:
            with map_write_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                replace_file(self._path, content)
        except OutputError as error:
            kept = f"; --resume goes on from the checkpoint before, in '{self.folder}'" if self.exists() else ""
            raise OutputError(f"{error}{kept}") from error
        self._ignored = False

    def exists(self) -> bool:
        """Whether a run was left unfinished here."""
        return not self._ignored and self._path.exists()

    def load(self) -> SavedCheckpoint | None:
        """Read the checkpoint, or ``None`` if there is none.

        Raises:
            TrainingError: it is damaged, or of a run with other settings, data or base model.
        """
        if not self.exists():
            return None
        try:
            tensors, described = read_sealed_tensors(self._path)
            if not described:
                raise ValueError("it was not written by this release")
            identity, learners = dict(described["identity"]), list(described["learners"])
        except (OSError, ValueError) as error:
            raise TrainingError(
                f"the checkpoint '{self._path}' is damaged: {error}; start again with --restart"
            ) from error
        saved = SavedCheckpoint(learners, str(identity.get("processes", SINGLE_PROCESS)), tensors)
        # JSON turns tuples into lists, so both sides are compared as JSON
        expected = json.loads(json.dumps(self.identity))
        if saved.processes != expected.get("processes", str(SINGLE_PROCESS)):
            # another number of them adds up in another order, whatever the threads: it goes on, to rounding; weights
            # that several share are not compiled
            for name in ("processes", "threads", "compiled"):
                identity.pop(name, None), expected.pop(name, None)
        if differing := list_differences(identity, expected):
            raise TrainingError(
                f"the unfinished run in '{self.folder}' is another one ({', '.join(differing)}): give the same "
                "settings, or start again with --restart"
            )
        return saved

    def day(self) -> date:
        """The day when the run that was left unfinished began, or today."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            if self.exists() and (described := read_sealed_tensors(self._path)[1]):
                return date.fromisoformat(described["identity"]["day"])
        return date.today()

    def stage(self) -> Path:
        """A new folder within the run's, to write in what ``publish`` shall put in place."""
        staged = self.folder / "finished"
        with map_write_errors(self.folder):
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir()
        return staged

    def publish(self, finished: Path, out: Path, *working: str) -> None:
        """Turn the run's folder into ``out``, with the content of ``finished``, which lies in it.

        ``working``: files of the run that go with the checkpoint.

        One rename does it: wherever the process is killed, there is the unfinished run or its result, never both. At
        worst the result has the checkpoint in it, as a file that nobody reads.

        Raises:
            OutputError: ``out`` exists by now, or cannot be written; the run is kept.
        """
        try:
            with map_write_errors(out):
                check_free(out)
                for path in sorted(finished.iterdir()):
                    target = self.folder / path.name
                    # what an earlier try left
                    if target.is_dir():
                        shutil.rmtree(target)
                    path.rename(target)
                shutil.rmtree(self.folder / "finished")
                self.folder.rename(out)
        except OutputError as error:
            raise OutputError(f"{error}; what was learned is kept in '{self.folder}', --resume saves it") from error
        for name in (CHECKPOINT_FILE, LOCK_FILE, *working):
            (out / name).unlink(missing_ok=True)


def load_for_all(checkpoint: Checkpoint | None, processes: ProcessGroup) -> SavedCheckpoint | None:
    """The checkpoint that the main process reads, in all of them; the others are given none. Raises as ``load``."""
    saved = checkpoint.load() if checkpoint is not None else None
    if processes.world_size == 1:
        return saved
    facts = processes.broadcast(None if saved is None else [saved.learners, saved.processes])
    if facts is None:
        return None
    learners, written_by = facts
    return SavedCheckpoint(learners, written_by, processes.broadcast_tensors({} if saved is None else saved._tensors))
