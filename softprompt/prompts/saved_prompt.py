"""A saved prompt: a folder with ``prompt.safetensors`` (folded state) and ``prompt.json`` (all that is known).

A prompt is written to a temporary folder beside its place and renamed, so it is there whole or not at all. Nothing is
ever unpickled. A prompt of a versioned store (see ``versions``) is read by its reference, ``STORE#NAME@WHICH``.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from softprompt.data.encoding.placement import Placement
from softprompt.data.task import TaskSpec
from softprompt.data.task_manifest import validate_saved
from softprompt.errors import PromptFileError
from softprompt.metrics.scores import read_score
from softprompt.metrics.user_metrics import import_metric
from softprompt.models.fingerprint import UnloadedModel
from softprompt.prompts.manifest import SavedPrompt
from softprompt.prompts.prompt_tensors import name_tensors, parse_states
from softprompt.prompts.state import PromptState, describe_state
from softprompt.prompts.training_history import TrainingHistory, parse_history
from softprompt.utils.files import check_free, expand_user, write_folder
from softprompt.utils.notebook_display import Displayed
from softprompt.utils.place_kinds import describe_mistaken_place
from softprompt.utils.safe_io import TEXT_LIMIT, check_header, parse_json, read_file
from softprompt.utils.seals import BROKEN, seal, unseal
from softprompt.utils.summaries import describe_value, summarize

SCHEMA_VERSION = 1
LONGEST_EXAMPLE = 2_000  # characters
SEAL = "description_sha256"  # of the manifest; prompts of earlier releases have none
TENSOR_FILE, MANIFEST_FILE, HISTORY_FILE = "prompt.safetensors", "prompt.json", "history.jsonl"

_RENAMED = {"quantisation": "quantization"}  # parts of a fingerprint, as version 0.1 wrote them


class IdentifiedModel(Protocol):
    """What tells a base model from others: a ``FrozenLM``, or what an export says of the one it was made of."""

    @property
    def name(self) -> str: ...
    @property
    def quantization(self) -> str | None: ...
    @property
    def precision(self) -> str | None: ...
    @property
    def fingerprint(self) -> Mapping[str, str]: ...
    @property
    def embedding_size(self) -> int: ...


@dataclass(frozen=True)
class Prompt(Displayed):
    """A learned prompt with what it was learned for, on and from.

    Attributes:
        states: what reaches the frozen model: one, or several prompts of one task that answer together (an ensemble).
        spec: the task: kind, template, labels.
        base_name: what the base model was called when it was learned.
        base_fingerprint: of configuration, tokenizer and weights.
        base_dtype: what the base model computed in when it was learned; not known of older prompts.
        method: how it was parametrised while learning.
        metrics: results with intervals, by split and name.
        training: the settings of the run.
        data: source, fingerprint and sizes of the data.
        seed: of the run.
        versions: of the libraries that learned it.
        parent: the prompt it started from, if any.
        extra_files: further files of the folder, by name, as text.
    """

    states: tuple[PromptState, ...]
    spec: TaskSpec
    base_name: str
    base_fingerprint: Mapping[str, str]
    method: str
    metrics: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    parent: str | None = None
    base_dtype: str | None = None
    extra_files: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        members = f"{len(self.states)} times " if len(self.states) > 1 else ""
        scores = [f"{split} {score}" for split, one in self.metrics.items() if (score := read_score(one)) is not None]
        task = f"{self.spec.kind} on {describe_value(self.base_name)}"
        size = f"{members}{describe_state(self.states[0])}"
        return summarize(self, self.method, size, task, *reversed(scores), labels=self.spec.labels)

    @property
    def state(self) -> PromptState:
        """The prompt, where there is one; raises PromptFileError for an ensemble."""
        if len(self.states) != 1:
            raise PromptFileError(f"expected a single prompt, got an ensemble of {len(self.states)}: give one of them")
        return self.states[0]

    @property
    def length(self) -> int:
        """Virtual tokens, of the longest where there are several."""
        return max(state.length for state in self.states)

    @property
    def quantization(self) -> str | None:
        """How the weights of the base model were stored, if they were quantized."""
        return self.base_fingerprint.get("quantization")

    @property
    def history(self) -> TrainingHistory:
        """The evaluations while it learned; none where they were not kept with it."""
        text, training = self.extra_files.get(HISTORY_FILE, ""), self.training
        best, result = training.get("best_step"), read_score(self.metrics.get("validation"))
        metric = None if result is None or self.spec.kind == "generation" else result.metric
        if "distillation" in training:
            metric = "agreement" if self.spec.kind == "classification" else "token_agreement"
        records = parse_history(text.encode(), training.get("chosen"))
        return TrainingHistory(tuple(records), metric, best if isinstance(best, int) else None)

    def judged_by(self, metric: str | None) -> "Prompt":
        """The same prompt, judged by another metric; by its own, if none is given. Raises ConfigError."""
        return self if metric is None else replace(self, spec=replace(self.spec, metric=import_metric(metric)))

    def check_base(self, base: IdentifiedModel | UnloadedModel) -> None:
        """Raise PromptFileError unless ``base`` is the model that this prompt was learned on, as far as it is known."""
        if self.quantization != base.quantization:
            learned, got = (
                f"quantized as {one}" if one else "not quantized" for one in (self.quantization, base.quantization)
            )
            raise PromptFileError(
                f"this prompt was learned on '{self.base_name}', {learned}, but the base model given is '{base.name}', "
                f"{got}, which has other weights: load it as it was (--quantize), or learn the prompt again"
            )
        # before the weights are loaded there is no digest of them yet
        parts = set(base.fingerprint) if isinstance(base, UnloadedModel) else set(self.base_fingerprint)
        differing = [
            part
            for part, digest in self.base_fingerprint.items()
            if part in parts and base.fingerprint.get(part) != digest
        ]
        if differing or not self.base_fingerprint:
            raise PromptFileError(
                f"this prompt was learned on '{self.base_name}', but the base model given is '{base.name}' "
                f"(differing: {', '.join(differing) or 'no fingerprint saved'}): load it on the model it was learned on"
            )
        if isinstance(base, UnloadedModel):
            return
        sizes = {state.tensor.shape[1] for state in self.states if state.kind == "embeddings"}
        if sizes - {base.embedding_size}:
            raise PromptFileError(
                f"this prompt has virtual tokens of {max(sizes - {base.embedding_size})} numbers, '{base.name}' has "
                f"{base.embedding_size}, though its fingerprint is the same: it is damaged, learn it again"
            )

    def precisions(self, base: IdentifiedModel) -> dict[str, str]:
        """``learned`` and ``loaded``, where the prompt was learned in another precision than ``base`` computes in."""
        if None in (self.base_dtype, base.precision) or self.base_dtype == base.precision:
            return {}
        return {"learned": str(self.base_dtype), "loaded": str(base.precision)}

    def precision_note(self, base: IdentifiedModel, *, fixed: bool = False) -> str | None:
        """What to say where ``precisions`` differ; ``fixed`` where the base model is loaded in no other precision."""
        if not (found := self.precisions(base)):
            return None
        return (
            f"this prompt was learned in {found['learned']}, the base model is loaded in {found['loaded']}: answers "
            "and scores may differ from those it was chosen by"
            + ("" if fixed else f" (--dtype {found['learned']} loads it as it was)")
        )

    @property
    def example(self) -> str | None:
        """A text that shows what to ask, given by whoever had it learned; none of the data."""
        said = self.training.get("example")
        return said if isinstance(said, str) and said.strip() and len(said) <= LONGEST_EXAMPLE else None

    @property
    def digest(self) -> str:
        """See ``hash_prompt``."""
        return hash_prompt(self.spec, self.states)

    def manifest(self) -> dict[str, Any]:
        """What ``prompt.json`` holds, without the digest of the tensor file."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": self.states[0].kind,
            "method": self.method,
            "length": self.length,
            **({"members": len(self.states)} if len(self.states) > 1 else {}),
            **self.states[0].placement.to_dict(),
            "base": {
                "name": self.base_name,
                "fingerprint": dict(self.base_fingerprint),
                **({} if self.base_dtype is None else {"dtype": self.base_dtype}),
            },
            "task": self.spec.to_dict(),
            "metrics": dict(self.metrics),
            "training": dict(self.training),
            "data": dict(self.data),
            "seed": self.seed,
            "versions": dict(self.versions),
            "parent": self.parent,
        }

    def save(self, folder: str | Path) -> Path:
        """Write the prompt; the folder must not exist yet.

        Raises:
            PromptFileError: prompts of two kinds, or none.
            OutputError: it exists, there is no space, or it may not be written.
        """
        folder = expand_user(folder)
        check_free(folder)
        write_folder(folder, self.files())
        return folder

    def files(self) -> dict[str, bytes]:
        """What the folder of a saved prompt holds, by name; raises PromptFileError for prompts of two kinds, or none.

        The same prompt has the same bytes.
        """
        from safetensors.torch import save

        if len({(state.kind, state.placement, state.label_rows is None) for state in self.states}) != 1:
            raise PromptFileError("the prompts of an ensemble are of one kind: save them one by one")
        tensor_bytes = save(name_tensors(self.states))
        others = {name: text.encode() for name, text in self.extra_files.items()}
        digests = {"sha256": hashlib.sha256(tensor_bytes).hexdigest()}
        # what else is read of a prompt has its own; run.json is for people, and has the time in it
        if HISTORY_FILE in others:
            digests["history_sha256"] = hashlib.sha256(others[HISTORY_FILE]).hexdigest()
        manifest = seal({**self.manifest(), **digests}, SEAL)
        return {
            TENSOR_FILE: tensor_bytes,
            MANIFEST_FILE: (json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode(),
            **others,
        }


def hash_prompt(spec: TaskSpec, states: Sequence[PromptState]) -> str:
    """SHA-256 of all that an answer depends on: the task and the prompt's numbers, not its name, history or judge."""
    facts = {name: value for name, value in spec.to_dict().items() if name != "metric"}
    digest = hashlib.sha256(json.dumps(facts).encode())
    for state in states:
        digest.update(f"{state.kind}{state.behind_bos}".encode())
        if state.placement.added:
            digest.update(f"{state.placement.before}{state.placement.behind}".encode())
        for tensor in state.numbers:
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def parse_prompt(files: Mapping[str, bytes], where: str) -> Prompt:
    """The prompt that ``files``, by name, make up; ``where`` is what errors call it.

    Raises:
        PromptFileError: anything about it is wrong.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if missing := [name for name in (MANIFEST_FILE, TENSOR_FILE) if name not in files]:
        raise PromptFileError(f"'{where}' is no saved prompt, it holds no {missing[0]}")
    manifest, content = parse_manifest(files[MANIFEST_FILE], f"{where}/{MANIFEST_FILE}"), files[TENSOR_FILE]
    said = validate_saved(SavedPrompt, manifest)
    try:
        if hashlib.sha256(content).hexdigest() != said.sha256:
            raise PromptFileError(f"'{where}/{TENSOR_FILE}' is damaged: its SHA-256 is not the one in {MANIFEST_FILE}")
        known = manifest.get("history_sha256")
        if known is not None and HISTORY_FILE in files and hashlib.sha256(files[HISTORY_FILE]).hexdigest() != known:
            raise PromptFileError(f"'{where}/{HISTORY_FILE}' is damaged: {BROKEN}")
        check_header(content)
        prompt = Prompt(
            states=parse_states(
                load(content), manifest["kind"], manifest.get("members", 1), Placement.from_dict(manifest)
            ),
            spec=TaskSpec.from_dict(manifest["task"]),
            base_name=said.base.name,
            base_fingerprint={_RENAMED.get(part, part): digest for part, digest in said.base.fingerprint.items()},
            base_dtype=said.base.dtype,
            method=said.method,
            metrics=said.metrics,
            training=said.training,
            data=said.data,
            seed=said.seed,
            versions=said.versions,
            parent=said.parent,
            extra_files=_read_history_file(files),
        )
        if prompt.length != manifest.get("length"):
            raise ValueError(f"{prompt.length} virtual tokens, its length says {manifest.get('length')!r}")
        rows = {len(state.label_rows) for state in prompt.states if state.label_rows is not None}
        if rows - {len(prompt.spec.labels)}:
            raise ValueError(f"rows of {max(rows)} labels for a task of {len(prompt.spec.labels)}")
        if not all(torch.isfinite(tensor).all() for state in prompt.states for tensor in state.numbers):
            raise ValueError("it has values that are not numbers")
        return prompt
    except KeyError as error:
        raise PromptFileError(f"the saved prompt '{where}' is damaged: it lacks {error}") from error
    except (SafetensorError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise PromptFileError(f"the saved prompt '{where}' is damaged: {error}") from error


def _read_history_file(files: Mapping[str, bytes]) -> dict[str, str]:
    return {HISTORY_FILE: files[HISTORY_FILE].decode(errors="replace")} if HISTORY_FILE in files else {}


def read_manifest_bytes(folder: Path) -> bytes:
    try:
        return read_file(folder / MANIFEST_FILE, TEXT_LIMIT)
    except (FileNotFoundError, NotADirectoryError) as error:
        if told := describe_mistaken_place(folder, "prompt"):
            raise PromptFileError(f"expected a saved prompt; {told}") from error
        what = "is a file" if folder.is_file() else f"holds no {MANIFEST_FILE}" if folder.exists() else "does not exist"
        raise PromptFileError(f"'{folder}' is no saved prompt, it {what}: give the folder that train wrote") from error
    except (OSError, ValueError) as error:
        raise PromptFileError(f"'{folder / MANIFEST_FILE}' is damaged: {error}") from error


def parse_manifest(content: bytes, where: str) -> dict[str, Any]:
    """The values of a manifest; raises PromptFileError if they are none."""
    try:
        manifest = parse_json(content)
    except ValueError as error:
        raise PromptFileError(f"'{where}' is damaged: {error}") from error
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise PromptFileError(
            f"'{where}' has schema version {version!r}, expected {SCHEMA_VERSION}: "
            "use the release of softprompt that wrote it, or learn the prompt again"
        )
    try:
        values = unseal(manifest, SEAL)
        saved = validate_saved(SavedPrompt, values)
    except ValueError as error:
        raise PromptFileError(f"'{where}' is damaged: {error}") from error
    for result in saved.metrics.values():
        read_score(result)  # whose scale is known from here on
    return values
