"""One run over several processes: each works on its share of every step's examples, and sums join what they find.

``torchrun`` and ``accelerate launch`` start the processes and tell them of each other by environment variables. All of
them read the same data and draw the same order; of a step's examples each takes its part, with the loss divided by what
the whole step counts. Summed over the processes, gradients are those of one process, to rounding.
"""

import gc
import json
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from softprompt.errors import ConfigError, TrainingError

Items = TypeVar("Items", bound=Sequence[Any])

TIMEOUT = timedelta(minutes=30)  # waited for a process that still lives; one that ended is known at once
_FAILED = "softprompt/failed"  # in the store that all share: the first process that failed
_PATIENCE = timedelta(seconds=1)  # what all get wrong is told by the main process, if it comes to it soon
_GOES_ON = "--resume goes on from the last checkpoint"


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of one run.

    Attributes:
        rank: of this one, from 0. That one is the main one, which alone writes and prints.
        world_size: how many there are.
        local_rank: of this one among those of its machine.
        in_lockstep: each holds a part of the weights (sharding.py), so all make every forward pass together.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    in_lockstep: bool = False
    _store: Any = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        number = "1 process" if self.world_size == 1 else f"{self.world_size} processes"
        return f"{number} that share the weights" if self.in_lockstep else number

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def check_alone(self, what: str) -> None:
        """Raise ConfigError for ``what`` each process would do whole."""
        if self.world_size > 1:
            raise ConfigError(f"{what} is for one process, got {self}: load the base model without processes")

    def device(self, name: str | None) -> str | None:
        """The name of the device that this process uses, where the run is to use ``name``.

        Raises:
            ConfigError: several processes cannot share it.
        """
        if self.world_size == 1:
            return name
        chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
        if chosen not in ("cpu", "cuda"):
            raise ConfigError(f"--device {chosen}: several processes take cpu, or cuda, each a GPU of its own")
        if chosen == "cpu":
            return chosen
        if self.local_rank >= (found := torch.cuda.device_count()):
            raise ConfigError(f"expected a GPU for each process of a machine, found {found}: start no more than that")
        return f"cuda:{self.local_rank}"

    def parts(self, items: Sequence[Any]) -> list[list[Any]]:
        """Items with ``ids`` dealt to the processes, so that each has as many and as long ones."""
        if self.world_size == 1:
            return [list(items)]
        dealt = sorted(items, key=lambda item: len(item.ids), reverse=True)
        return [dealt[index :: self.world_size] for index in range(self.world_size)]

    def share_passes(self, passes: Sequence[Sequence[list[Any]]]) -> list[list[Any]]:
        """The forward passes of this process among those of each.

        In step, all make as many: a pass too many reads an item and asks nothing of it.
        """
        own = list(passes[self.rank])
        if self.in_lockstep:
            first = next(chunk[0] for chunks in passes for chunk in chunks)
            idle = replace(first, positions=(), targets=(), decisions=())
            own += [[idle]] * (max(map(len, passes)) - len(own))
        return own

    def take_turns(self, chunks: Sequence[list[Any]]) -> list[list[Any]]:
        """The forward passes of this process where they are taken in turn."""
        return self.share_passes([chunks[index :: self.world_size] for index in range(self.world_size)])

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, the same in each; ``tensor`` becomes it."""
        if self.world_size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def sum_numbers(self, *numbers: float) -> list[float]:
        """The sum of each number over all processes."""
        if self.world_size == 1:
            return list(numbers)
        summed: list[float] = self.sum(torch.tensor(numbers, dtype=torch.float64)).tolist()
        return summed

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Put in place of each gradient its sum over all processes; a process without examples has none to add."""
        if self.world_size == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        # one message: there are few numbers, and much to wait for with every message
        flat = self.sum(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        for parameter, summed in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = summed.view_as(parameter)

    def broadcast_in_place(self, tensors: Sequence[Tensor]) -> None:
        """Give ``tensors`` the values that they have in the main process."""
        if self.world_size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, src=0)

    def broadcast(self, value: Any) -> Any:
        """What the main process has for ``value``, which JSON must have words for."""
        return value if self.world_size == 1 else json.loads(self._bytes_of_main(json.dumps(value).encode()))

    def broadcast_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the main process has for ``tensors``, by name."""
        from safetensors.torch import load, save

        return load(self._bytes_of_main(save(dict(tensors)) if self.is_main else b""))

    def all_gather(self, value: Any) -> list[Any]:
        """What each process has for ``value``, which JSON must have words for."""
        if self.world_size == 1:
            return [value]
        content = json.dumps(value).encode()
        sizes = [0] * self.world_size
        sizes[self.rank] = len(content)
        sizes = [int(size) for size in self.sum_numbers(*sizes)]
        own = torch.zeros(max(sizes), dtype=torch.uint8)
        own[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        received = [torch.zeros_like(own) for _ in sizes]
        torch.distributed.all_gather(received, own)
        return [json.loads(bytes(one[:size].tolist())) for one, size in zip(received, sizes, strict=True)]

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.world_size > 1:
            self.sum_numbers(0.0)

    def is_first_to_fail(self) -> bool:
        """Whether this process is the one to say what went wrong, one alone being to say it."""
        if self._store is None:
            return True
        try:
            if not self.is_main:
                with suppress(torch.distributed.DistStoreError):
                    self._store.wait([_FAILED], _PATIENCE)
            return int(self._store.compare_set(_FAILED, "", str(self.rank))) == self.rank
        except RuntimeError:  # where the store was, there is nobody to say it any more
            return True

    def _bytes_of_main(self, content: bytes) -> bytes:
        (size,) = self.sum_numbers(len(content) if self.is_main else 0)
        sent = torch.zeros(int(size), dtype=torch.uint8)
        if self.is_main:
            sent = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        torch.distributed.broadcast(sent, src=0)
        return sent.numpy().tobytes()


SINGLE_PROCESS = ProcessGroup()


@contextmanager
def join_process_group(device: str | None = None) -> Iterator[ProcessGroup]:
    """Join the processes that a launcher has started beside this one; alone where none has.

    Where one fails, all end: the first one with its error, the others with ``SystemExit``.

    Raises:
        ConfigError: several processes cannot share ``device``.
        TrainingError: another process has ended, or the launcher ends this one.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        yield SINGLE_PROCESS
        return
    from torch.distributed.rendezvous import rendezvous

    # not accelerate's PartialState: it takes its device from the machine, not from the user, and keeps the store,
    # which here tells who is to speak when the run fails
    store, index, size = next(rendezvous("env://", timeout=TIMEOUT))
    processes = ProcessGroup(index, size, int(os.environ.get("LOCAL_RANK", index)), _store=store)
    chosen = processes.device(device)  # as all know it, so all refuse it
    on_gpu = chosen is not None and chosen.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(processes.local_rank)
    else:
        # a process that waits on NCCL would not hear it, and is better ended at once
        signal.signal(signal.SIGTERM, _raise_ended)
    try:
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo", store=store, rank=index, world_size=size, timeout=TIMEOUT
        )
        yield processes
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not processes.is_first_to_fail():
            raise SystemExit(2) from error
        if isinstance(error, _Ended):
            raise TrainingError(f"ended from outside, or because another process ended: {_GOES_ON}") from None
        if isinstance(error, RuntimeError) and _comes_of_others(error):
            raise TrainingError(f"another process of this run has ended: {_GOES_ON}") from error
        if isinstance(error, Exception) and not processes.is_main:
            error.args = (f"rank {index}: {error}",)
        raise
    # shared layers hold the group in cycles: let go as the interpreter ends, its threads abort the process
    gc.collect()
    # only now: a process that fails must not wait for the others
    torch.distributed.destroy_process_group()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Ended(BaseException):
    """A signal asks the process to end."""


def _raise_ended(*_: object) -> None:
    raise _Ended


def _comes_of_others(error: RuntimeError) -> bool:
    """Whether it comes of a process that is not there any more; gloo has no class for that."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
