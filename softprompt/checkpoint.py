"""Checkpoints: everything a run needs to go on to the same bytes, in one file that is replaced atomically."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softprompt.errors import OutputError, TrainingError, writing
from softprompt.store import replace_file

CHECKPOINT_FILE = "checkpoint.safetensors"


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read.

    Attributes:
        progress: fields of ``train.Progress``.
    """

    progress: dict[str, Any]
    _tensors: Mapping[str, Tensor]
    _optimizer: dict[str, Any]

    def tensors(self, group: str) -> dict[str, Tensor]:
        """The tensors saved under ``group``, by name."""
        start = f"{group}/"
        return {name.removeprefix(start): tensor for name, tensor in self._tensors.items() if name.startswith(start)}

    def optimizer(self) -> dict[str, Any]:
        """The optimiser's state, as its ``load_state_dict`` takes it."""
        state: dict[int, dict[str, Any]] = {}
        for index, values in self._optimizer["state"].items():
            state[int(index)] = dict(values)
        for name, tensor in self.tensors("optimizer").items():
            index, key = name.split("/", 1)
            state.setdefault(int(index), {})[key] = tensor
        return {"state": state, "param_groups": self._optimizer["param_groups"]}


class Checkpoint:
    """The checkpoint of one run, in a folder of its own beside the prompt's place.

    Attributes:
        folder: of the unfinished run.
        identity: what the run is: settings and fingerprints of base, data and task.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, restart: bool = False) -> None:
        """``restart``: do not read what an earlier run left; it stays until there is something to put in its place."""
        self.folder, self.identity = folder, dict(identity)
        self._ignored = restart
        self._path = folder / CHECKPOINT_FILE

    def save(
        self,
        method: nn.Module,
        optimizer: torch.optim.Optimizer,
        averaged: Mapping[str, Tensor],
        best: Tensor,
        progress: Any,
    ) -> None:
        """Write the run as it stands; a crash leaves the checkpoint before or this one, whole.

        Raises:
            OutputError: no space, or no permission.
        """
        from safetensors.torch import save

        state = optimizer.state_dict()
        tensors = {f"method/{name}": tensor for name, tensor in method.state_dict().items()}
        tensors |= {f"averaged/{name}": tensor for name, tensor in averaged.items()}
        tensors["best/prompt"] = best
        numbers: dict[str, dict[str, Any]] = {}
        for index, values in state["state"].items():
            for key, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{index}/{key}"] = value
                else:
                    numbers.setdefault(str(index), {})[key] = value
        described = {
            "identity": self.identity,
            "progress": asdict(progress),
            "optimizer": {"state": numbers, "param_groups": state["param_groups"]},
        }
        content = save(
            {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()},
            metadata={"run": json.dumps(described)},
        )
        try:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                replace_file(self._path, content)
            self._ignored = False
        except OutputError:
            # a folder that holds an earlier checkpoint stays
            with suppress(OSError):
                self.folder.rmdir()
            raise

    def exists(self) -> bool:
        """Whether a run was left unfinished here."""
        return not self._ignored and self._path.exists()

    def load(self) -> Saved | None:
        """Read the checkpoint, or ``None`` if there is none.

        Raises:
            TrainingError: it is damaged, or of a run with other settings, data or base model.
        """
        from safetensors import SafetensorError, safe_open

        if not self.exists():
            return None
        try:
            with safe_open(self._path, framework="pt") as stream:
                described = json.loads(stream.metadata()["run"])
                tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (no mapping)
            identity = dict(described["identity"])
            saved = Saved(described["progress"], tensors, described["optimizer"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(
                f"the checkpoint '{self._path}' is damaged: {error}; start again with --restart"
            ) from error
        # JSON turns tuples into lists, so both sides are compared as JSON
        expected = json.loads(json.dumps(self.identity))
        if differing := _differences(identity, expected):
            raise TrainingError(
                f"the unfinished run in '{self.folder}' is another one ({', '.join(differing)}): give the same "
                "settings, or start again with --restart"
            )
        return saved

    def remove(self) -> None:
        """Delete the unfinished run.

        Raises:
            OutputError: it cannot be deleted.
        """
        import shutil

        try:
            shutil.rmtree(self.folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise OutputError(f"cannot remove '{self.folder}': {error}") from error


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs, by name; within mappings only the entries that do."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        was, now = old.get(key), new.get(key)
        if was == now:
            continue
        if isinstance(was, dict) and isinstance(now, dict):
            found += _differences(was, now)
        else:
            found.append(f"{key} was {was!r}, is {now!r}")
    return found
