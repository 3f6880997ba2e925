"""Which saved prompts are good starts for another task (Vu, Lester, Constant, Al-Rfou and Cer 2022, "SPoT: Better
Frozen Model Adaptation through Soft Prompt Transfer").

A learned prompt stands for its task. With virtual tokens a_i of one prompt and b_j of another, all of size H:

    average tokens = cos(mean_i a_i, mean_j b_j)
    per token      = mean_ij cos(a_i, b_j)

Keys and values: the same in every layer, a token flattened over [2, kv_heads, head_dim], and the mean over layers.
Ensembles: the mean over all pairs of members. Both figures lie in -1..1; a prompt has 1 with itself in the first only.
A vector of zeros has no direction and counts as 0.

What the figures cannot tell is how much of the likeness was learned. A prompt is its start plus what was learned, and
the start (the base model's embeddings of some words, or random numbers in their scale) is neither saved nor to be had
without loading the base, so the cosine of what was learned is not given. Prompts that began at the same words are alike
for that reason alone: ``SimilarPrompt.same_start`` says where that is so. Weigh figures of one start alone.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from softprompt.data.task import TaskSpec
from softprompt.errors import ConfigError, PromptFileError
from softprompt.prompts.methods.initializers import default_instruction
from softprompt.prompts.methods.method_registry import METHODS
from softprompt.prompts.saved_prompt import MANIFEST_FILE, Prompt
from softprompt.prompts.state import PromptState
from softprompt.store.prompt_loading import load_prompt

Layers = list[Tensor]  # of one prompt, [P, size] each
Members = list[Layers]  # of an ensemble; most prompts have one


@dataclass(frozen=True, kw_only=True)
class SimilarPrompt:
    """A saved prompt beside the one that others were compared with.

    Attributes:
        folder: where it is saved.
        reason: why it cannot be compared; ``None`` if it is ranked.
        average_tokens, per_token: the two similarities, -1..1; ``None`` if it is not ranked.
        same_start: whether both began at the same words or random numbers, hence are alike for that reason too; no
            for starts that only share some words; ``None`` where the manifests cannot tell (a start from another
            prompt, an ensemble, a prompt that was not learned by a method of ``METHODS``).
        spec: its task; ``None`` if it is damaged, as are all fields below.
        validation: its metric on validation, as the manifest has it.
        init: how it was initialised.
        length: virtual tokens, of the longest where there are several.
        members: prompts in it; more than one is an ensemble.
        start: options with which ``softprompt train`` starts from it; empty if it is not ranked or an ensemble, which
            no training can start from.
    """

    folder: Path
    reason: str | None = None
    average_tokens: float | None = None
    per_token: float | None = None
    same_start: bool | None = None
    spec: TaskSpec | None = None
    validation: Mapping[str, Any] | None = None
    init: str | None = None
    length: int | None = None
    members: int | None = None
    start: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that ``softprompt similar --json`` lists; a reason in place of figures if it is not ranked.

        ``task`` is the kind: classification or generation.
        """
        spec = self.spec
        figures = {name: getattr(self, name) for name in ("average_tokens", "per_token", "same_start")}
        return {
            "folder": str(self.folder),
            **({"reason": self.reason} if self.reason is not None else figures),
            "task": None if spec is None else spec.kind,
            "labels": None if spec is None else list(spec.labels),
            "template": None if spec is None else spec.template,
            "validation": None if self.validation is None else dict(self.validation),
            "init": self.init,
            "length": self.length,
            "members": self.members,
            "start": list(self.start),
        }


def rank_similar(prompt: Prompt, folder: Path) -> list[SimilarPrompt]:
    """Compare the saved prompts below ``folder`` with ``prompt``.

    Hidden folders are left out, as is ``prompt`` itself: the same virtual tokens for the same task on the same base. A
    link to a saved prompt counts, once; links to other folders are not followed.

    Returns:
        First those of the same base and kind, the most similar by average tokens on top; then those that cannot be
        compared or read, by folder.

    Raises:
        ConfigError: no such folder, or no saved prompts in it but ``prompt`` itself.
    """
    unreadable: list[SimilarPrompt] = []

    def failed(error: OSError) -> None:
        place = folder if error.filename is None else Path(error.filename)
        if place == folder:
            raise ConfigError(
                f"expected a folder of saved prompts, got '{folder}' ({error.strerror}): give --among the folder that "
                "holds them"
            ) from error
        unreadable.append(SimilarPrompt(folder=place, reason=f"it cannot be read: {error.strerror}"))

    places = _find_prompt_folders(folder, failed)
    compared = [_compare_saved(prompt, place) for place in places]
    others = [other for other in compared if other is not None] + unreadable
    if not others:
        found = "only the prompt itself" if places else "none"
        within = ", which is a saved prompt itself" if os.access(folder / MANIFEST_FILE, os.F_OK) else ""
        raise ConfigError(
            f"expected saved prompts to compare with below '{folder}'{within}, got {found}: "
            "give --among the folder that holds them"
        )
    return sorted(others, key=_rank)


def measure_similarity(prompt: Prompt, other: Prompt) -> tuple[float, float] | str:
    """Of average tokens, and per token, each -1..1; or why the two cannot be compared."""
    tokens, others = _list_members(prompt), _list_members(other)
    if (reason := _find_hindrance(prompt, tokens, other, others)) is not None:
        return reason
    pairs = [_compare_layers(one, another) for one, another in product(tokens, others)]
    return fmean(average for average, _ in pairs), fmean(per_token for _, per_token in pairs)


def measure_nearness(prompt: Prompt, other: Prompt) -> tuple[float, float] | str:
    """Of average tokens, and of each token to the nearest one of the other prompt, both ways: 1 for equal prompts.

    Or why the two cannot be compared.
    """
    tokens, others = _list_members(prompt), _list_members(other)
    if (reason := _find_hindrance(prompt, tokens, other, others)) is not None:
        return reason
    # members of two ensembles belong together by their places
    pairs = list(zip(tokens, others, strict=True) if len(tokens) == len(others) else product(tokens, others))
    average = fmean(_compare_layers(one, another)[0] for one, another in pairs)
    return average, fmean(_compare_nearest(a, b) for one, another in pairs for a, b in zip(one, another, strict=True))


def _compare_nearest(tokens: Tensor, others: Tensor) -> float:
    cosines = _normalize(tokens) @ _normalize(others).T
    return _clip((cosines.amax(1).mean() + cosines.amax(0).mean()) / 2)


def _rank(other: SimilarPrompt) -> tuple[bool, float, float, str]:
    ranked = other.reason is None
    return not ranked, -(other.average_tokens or 0.0), -(other.per_token or 0.0), str(other.folder)


def _find_prompt_folders(folder: Path, failed: Callable[[OSError], None]) -> list[Path]:
    """Folders below ``folder`` with a manifest, each once; ``failed`` is called with the error of an unreadable one."""
    found: dict[Path, Path] = {}
    links: list[Path] = []
    for parent, folders, files in os.walk(folder, onerror=failed):
        # a prompt that is being written lies in a hidden folder
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        place = Path(parent)
        if MANIFEST_FILE in files and place != folder:
            found[place.resolve()] = place
        links += [place / name for name in folders if (place / name).is_symlink()]
    for link in links:
        if os.access(link / MANIFEST_FILE, os.F_OK):
            found.setdefault(link.resolve(), link)
    return list(found.values())


def _compare_saved(prompt: Prompt, folder: Path) -> SimilarPrompt | None:
    """The prompt of ``folder`` beside ``prompt``; ``None`` if it is the same one."""
    try:
        other = load_prompt(folder)
    except PromptFileError as error:
        return SimilarPrompt(folder=folder, reason=str(error))
    if _is_same(prompt, other):
        return None
    init, validation = other.training.get("init"), other.metrics.get("validation")
    facts: dict[str, Any] = {
        "folder": folder,
        "spec": other.spec,
        "validation": validation if isinstance(validation, Mapping) else None,
        "init": init if isinstance(init, str) else None,
        "length": other.length,
        "members": len(other.states),
    }
    alike = measure_similarity(prompt, other)
    if isinstance(alike, str):
        return SimilarPrompt(reason=alike, **facts)
    starts = _describe_start(prompt), _describe_start(other)
    return SimilarPrompt(
        average_tokens=alike[0],
        per_token=alike[1],
        same_start=None if None in starts else starts[0] == starts[1],
        start=_list_start_options(other, folder) if len(other.states) == 1 else (),
        **facts,
    )


def _list_members(prompt: Prompt) -> Members:
    """``[P, size]`` in float64 for each layer of each member; embeddings have one layer."""

    def list_layers(state: PromptState) -> Layers:
        tensors = [tensor.detach().cpu().double() for tensor in state.tensors]
        # [2, kv_heads, P, head_dim] to [P, 2 * kv_heads * head_dim]
        return tensors if state.kind == "embeddings" else [one.permute(2, 0, 1, 3).flatten(1) for one in tensors]

    return [list_layers(state) for state in prompt.states]


def _is_same(prompt: Prompt, other: Prompt) -> bool:
    """Whether both are the same virtual tokens for the same task on the same base."""
    facts, of_other = ((one.spec, dict(one.base_fingerprint), one.states[0].kind) for one in (prompt, other))
    tensors, others = ([tensor for state in one.states for tensor in state.numbers] for one in (prompt, other))
    return facts == of_other and len(tensors) == len(others) and all(map(torch.equal, tensors, others))


def _find_hindrance(prompt: Prompt, tokens: Members, other: Prompt, others: Members) -> str | None:
    """Why two prompts cannot be compared, if they cannot."""
    expected, got = dict(prompt.base_fingerprint), dict(other.base_fingerprint)
    differing = sorted(part for part in {**expected, **got} if expected.get(part) != got.get(part))
    if differing or not expected:
        return (
            f"it was learned on '{other.base_name}', expected '{prompt.base_name}' "
            f"(differing: {', '.join(differing) or 'no fingerprint saved'})"
        )
    kind = prompt.states[0].kind
    if other.states[0].kind != kind:
        return f"it is of the kind {other.states[0].kind}, expected {kind}"
    sizes = {tuple(layer.shape[1] for layer in layers) for layers in (*tokens, *others)}
    if len(sizes) > 1:
        return "its virtual tokens have other sizes or layers, though it names the same base model"
    return None


def _compare_layers(tokens: Layers, others: Layers) -> tuple[float, float]:
    """Cosine of average tokens, and mean cosine of all pairs of tokens; of layers ``[P, size]`` and ``[Q, size]``."""
    average = [_clip(_normalize(a.mean(0)) @ _normalize(b.mean(0))) for a, b in zip(tokens, others, strict=True)]
    # the mean of all pairs' products is the product of the means
    per_token = [_clip(_normalize(a).mean(0) @ _normalize(b).mean(0)) for a, b in zip(tokens, others, strict=True)]
    return fmean(average), fmean(per_token)


def _normalize(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)


def _clip(cosine: Tensor) -> float:
    return min(1.0, max(-1.0, cosine.item()))


def _describe_start(prompt: Prompt) -> tuple[str, ...] | None:
    """What the prompt began at, equal for equal starts on one base; ``None`` if the manifest cannot tell."""
    how, spec = prompt.training.get("init"), prompt.spec
    # learned otherwise, on several tasks at once say, a prompt need not start at the words of its own task
    if not isinstance(how, str) or len(prompt.states) > 1 or prompt.method not in METHODS:
        return None
    if how == "text":
        return "text", default_instruction(spec)
    if how == "labels":
        return "labels", *spec.verbalizers
    if how in ("vocab", "random"):
        return how, str(prompt.seed)
    name, _, words = how.partition(":")
    return ("text", words) if name == "text" else None


def _list_start_options(prompt: Prompt, folder: Path) -> tuple[str, ...]:
    options = ("--init", f"prompt:{folder}", "--length", str(prompt.length))
    if prompt.state.kind == "embeddings":
        return options
    # the default method learns virtual tokens, which cannot start from keys and values
    able = next(name for name, method in METHODS.items() if method.kind == prompt.state.kind)
    return (*options, "--method", able)
