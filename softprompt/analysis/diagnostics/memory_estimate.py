"""What a plan of memory is made of: what was wished for, parts with their formulas, and bills."""

from dataclasses import asdict, dataclass
from typing import Any

from softprompt.config import TrainConfig
from softprompt.errors import ConfigError
from softprompt.models.quantization import SCHEMES
from softprompt.prompts.methods.method_registry import check_method

GB = 10**9
ROOM = 0.9  # share of a GPU's memory to plan with: CUDA itself, its libraries and gaps between tensors take the rest


@dataclass(frozen=True)
class Workload:
    """What is planned for.

    Attributes:
        gpus: of one machine; 0: its processor.
        memory: bytes of one GPU, or of the machine.
        length, text_length: virtual tokens, and tokens of template and text.
        batch_size: examples of a step.
        tasks: prompts to serve.
        sharding: ``fsdp``, ``none``, or ``None``: what is needed.
        generation: whether prompts complete texts, not label them.
    """

    gpus: int
    memory: int
    length: int = 100
    text_length: int = 128
    batch_size: int = 16
    tasks: int = 1000
    method: str = "prompt-tuning"
    sharding: str | None = None
    quantize: str | None = None
    checkpointing: bool = False
    generation: bool = False
    dtype: str | None = None

    def check(self) -> None:
        """Raise ConfigError for what cannot be."""
        check_method(self.method)
        TrainConfig.build(length=self.length, batch_size=self.batch_size, max_length=self.text_length)
        if self.sharding not in (None, "fsdp", "none"):
            raise ConfigError(f"unknown sharding '{self.sharding}': expected fsdp, or none")
        if self.sharding == "fsdp" and self.gpus < 2:
            raise ConfigError(f"sharding fsdp is for several GPUs, got {self.gpus}: give --gpus, or leave it out")
        if self.sharding == "fsdp" and self.quantize is not None:
            raise ConfigError(f"sharding fsdp shares plain weights: leave the quantization {self.quantize} out")
        if self.quantize is not None and self.quantize not in SCHEMES:
            raise ConfigError(f"unknown quantization '{self.quantize}': expected one of {', '.join(SCHEMES)}")


@dataclass(frozen=True)
class MemoryPart:
    """One part of what is needed: bytes, and how they come about."""

    name: str
    bytes: int
    formula: str


@dataclass(frozen=True)
class MemoryEstimate:
    """What one GPU, or the machine, needs for one purpose.

    Attributes:
        title: the purpose.
        parts: what is there at the same time.
        room: bytes that may be used.
        at_once: how many texts a pass, or requests, fit; ``None`` where nothing fits.
        notes: what to know of it, a line each.
        commands: that do it.
    """

    title: str
    parts: tuple[MemoryPart, ...]
    room: int
    at_once: int | None
    notes: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    @property
    def fits(self) -> bool:
        return self.bytes <= self.room

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "bytes": self.bytes, "fits": self.fits}


@dataclass(frozen=True)
class MemoryPlan:
    """What was planned for which model.

    Attributes:
        facts: of the model.
        training: one prompt.
        serving: the tasks, one bill for each engine that can.
    """

    workload: Workload
    facts: dict[str, Any]
    training: MemoryEstimate
    serving: tuple[MemoryEstimate, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "workload": asdict(self.workload),
            "model": self.facts,
            "training": self.training.to_dict(),
            "serving": [estimate.to_dict() for estimate in self.serving],
        }
