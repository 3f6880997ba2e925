"""What softprompt can do with a model: the parity contract measured on it, and verdicts."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from softprompt.analysis.diagnostics import parity
from softprompt.analysis.diagnostics.parity import ParityErrors, measure_rounding
from softprompt.analysis.diagnostics.parity_cases import ParityCase, make_cases
from softprompt.analysis.diagnostics.tiny_models import FAMILIES, make_family_model
from softprompt.errors import BaseModelError
from softprompt.models.devices import choose_device
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.methods.method_registry import METHODS
from softprompt.prompts.prefix import shares_prefix

Verdict = Literal["exact", "fallback", "refused"]
Way = Literal["shared prefix", "concatenation (fallback)", "encoder input", "refused"]

EXACT = 1e-4  # relative error, in float32
ROUNDINGS = 4  # in other dtypes: times what rounding the input embeddings once more does

RIGHT, LEFT, SHARED = "right-padded batch", "left-padded batch", "shared prefix"
MIXED, KEYS_AND_VALUES, STEP = "mixed prompts", "keys and values", "generation step"

MEANINGS = {
    RIGHT: "texts of different lengths, padding behind them: each gets the numbers it gets alone",
    LEFT: "the same with padding in front",
    SHARED: "keys and values of the prompt, computed once, stand for it in front of every text",
    MIXED: "prompts of different lengths side by side in one batch",
    KEYS_AND_VALUES: "keys and values given as they are, in place of the embeddings they came from",
    STEP: "new tokens one by one behind the cache, padded texts side by side",
}
# an encoder sees both ways: what it makes of a prompt is not the same for every text, and cannot be shared
_MEASURES: dict[str, dict[str, Callable[[FrozenLM, ParityCase], ParityErrors]]] = {
    "decoder-only": {
        RIGHT: parity.measure_right_padded,
        LEFT: parity.measure_left_padded,
        SHARED: parity.measure_shared_prefix,
        MIXED: parity.measure_mixed_prompts,
        KEYS_AND_VALUES: parity.measure_keys_and_values,
        STEP: parity.measure_generation,
    },
    "encoder-decoder": {
        RIGHT: parity.measure_right_padded,
        LEFT: parity.measure_left_padded,
        MIXED: parity.measure_mixed_prompts,
        KEYS_AND_VALUES: parity.measure_encoder_keys_and_values,
        STEP: parity.measure_decoder_answers,
    },
}


@dataclass(frozen=True)
class ParityCheck:
    """One way to put a prompt in front of texts, against plain concatenation.

    Attributes:
        error: relative, of the logits; ``None`` if there are none to compare.
        gradient_error: relative, of the gradient to the prompt; ``None`` if there is none to compare.
        verdict: ``exact``; ``fallback``: not exact, but softprompt goes another way; ``refused``: not exact, and
            softprompt has no other way.
        reason: why it is not exact, in one line; empty if it is.
    """

    name: str
    meaning: str
    error: float | None
    gradient_error: float | None
    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What softprompt can do with one model.

    Attributes:
        family: the ``model_type`` of its configuration.
        tolerance, gradient_tolerance: relative errors up to these count as exact.
        longest_text: tokens of the longest text measured.
        sliding_window: tokens that the narrowest layer sees, if any sees fewer than all.
        batch_independent_length: tokens beyond which the model reads texts by the longest of a
            batch; none is longer, prompt and all.
        way: how softprompt runs the model.
        reason: why not with a shared prefix, in one line; empty if with one.
        methods: of each method, why it does not work, in one line; empty if it does.
    """

    model: str
    family: str
    dtype: str
    device: str
    tolerance: float
    gradient_tolerance: float
    longest_text: int
    sliding_window: int | None
    batch_independent_length: int | None
    checks: tuple[ParityCheck, ...]
    way: Way
    reason: str
    methods: Mapping[str, str]

    @property
    def largest_error(self) -> float | None:
        """Of the checks that are exact, if any is."""
        errors = [(c.error, c.gradient_error) for c in self.checks if c.verdict == "exact"]
        return max((error for pair in errors for error in pair if error is not None), default=None)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class FamilyDiagnosis:
    """One family: its diagnosis, or ``None`` where softprompt does not take the model at all; the reason if any."""

    family: str
    diagnosis: Diagnosis | None
    reason: str

    @property
    def way(self) -> Way:
        """How softprompt runs the family."""
        return "refused" if self.diagnosis is None else self.diagnosis.way

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "way": self.way}


def diagnose(base: FrozenLM, seed: int = 0) -> Diagnosis:
    """Measure on ``base`` whether every way to put a prompt in front of texts gives the model's own numbers.

    float32 is held to 1e-4. In bfloat16 and float16 the order of the same operations alone makes a difference, of
    hundredths in deep models: there, what rounding does to this model is measured, and allowed four times, so that
    only gross faults show. To see fine ones, load the model in float32.
    """
    facts: dict[str, Any] = {
        "model": base.name,
        "family": str(getattr(base.config, "model_type", "unknown")),
        "dtype": str(base.dtype).removeprefix("torch."),
        "device": base.device.type,
        "sliding_window": base.sliding_window,
        "batch_independent_length": base.batch_independent_length,
    }
    try:
        alone, together = make_cases(base, seed)
        tolerances = _tolerances(base, alone, seed)
        shares = shares_prefix(base)
    except Exception as error:  # what models raise is not of one kind
        reason = f"its forward pass takes no virtual tokens: {_one_line(error)}"
        facts |= {"tolerance": EXACT, "gradient_tolerance": EXACT, "longest_text": 0, "checks": ()}
        return Diagnosis(**facts, way="refused", reason=reason, methods=dict.fromkeys(METHODS, reason))
    # what there is no other way for
    relied_on = (SHARED, STEP) if shares else (RIGHT, STEP) if base.architecture == "encoder-decoder" else (RIGHT,)
    checks = {
        name: _check(name, base, together if name == MIXED else alone, tolerances, relied_on)
        for name in _MEASURES[base.architecture]
    }
    way, why = _way(base, checks, relied_on)
    methods = {
        name: why if way == "refused" else checks[KEYS_AND_VALUES].reason if method.kind == "key_values" else ""
        for name, method in METHODS.items()
    }
    facts |= {"tolerance": tolerances[0], "gradient_tolerance": tolerances[1], "checks": tuple(checks.values())}
    facts["longest_text"] = max(len(item.ids) for case in alone for item in case.items)
    return Diagnosis(**facts, way=way, reason=why, methods=methods)


def diagnose_families(progress: Callable[[str], None] | None = None, device: str = "cpu") -> list[FamilyDiagnosis]:
    """Diagnose the tiny model of every family; ``progress`` receives a line before each.

    Raises:
        BaseModelError: ``device`` cannot be used here.
    """
    place = choose_device(device)
    rows = []
    for family in FAMILIES:
        if progress is not None:
            progress(f"measuring {family}")
        model, tokenizer = make_family_model(family)
        rows.append(diagnose_family(family, model.to(place), tokenizer))
    return rows


def diagnose_family(family: str, model: Any, tokenizer: Any) -> FamilyDiagnosis:
    """Diagnose a family's model, or catch why ``FrozenLM`` refuses it."""
    try:
        diagnosis = diagnose(FrozenLM(model, tokenizer, f"tiny {family}"))
    except BaseModelError as error:
        return FamilyDiagnosis(family, None, str(error))
    return FamilyDiagnosis(family, diagnosis, diagnosis.reason)


def _tolerances(base: FrozenLM, among: Sequence[ParityCase], seed: int) -> tuple[float, float]:
    """Relative errors of logits and gradient up to which they count as exact."""
    if base.dtype == torch.float32:
        return EXACT, EXACT
    once = measure_rounding(base, among, seed)
    # half of the length of a vector is a fault, however coarse the rounding
    return min(0.5, ROUNDINGS * once.logits), min(0.5, ROUNDINGS * (once.gradient or 0.0))


def _check(
    name: str, base: FrozenLM, among: Sequence[ParityCase], tolerances: tuple[float, float], relied_on: Sequence[str]
) -> ParityCheck:
    meaning, measure = MEANINGS[name], _MEASURES[base.architecture][name]
    logits = gradient = None
    try:
        found = [measure(base, case) for case in among]
        logits = parity.largest([errors.logits for errors in found])
        gradients = [errors.gradient for errors in found if errors.gradient is not None]
        gradient = parity.largest(gradients) if gradients else None
        reason = _reason(logits, gradient, tolerances)
    except BaseModelError as refusal:
        reason = str(refusal)
    except Exception as failure:  # what models raise is not of one kind
        reason = f"the model does not take it: {_one_line(failure)}"
    if not reason:
        return ParityCheck(name, meaning, logits, gradient, "exact")
    verdict: Verdict = "refused" if name in (*relied_on, MIXED, KEYS_AND_VALUES) else "fallback"
    known = [error if error is not None and math.isfinite(error) else None for error in (logits, gradient)]
    return ParityCheck(name, meaning, known[0], known[1], verdict, reason)


def _reason(logits: float, gradient: float | None, tolerances: tuple[float, float]) -> str:
    """Why errors are not exact; empty if they are."""
    if not math.isfinite(logits) or not math.isfinite(gradient or 0.0):
        return "gives numbers that are not finite"
    parts = [("logits", logits, tolerances[0])]
    parts += [] if gradient is None else [("gradient", gradient, tolerances[1])]
    wrong = [f"{name} by {format_error(error)}" for name, error, most in parts if error > most]
    return f"differs from plain concatenation, {', '.join(wrong)}" if wrong else ""


def _way(base: FrozenLM, checks: Mapping[str, ParityCheck], relied_on: Sequence[str]) -> tuple[Way, str]:
    """How softprompt runs the model, and why not with a shared prefix where a prefix could be shared."""
    for name in relied_on:
        if checks[name].verdict == "refused":
            return "refused", f"{name}: {checks[name].reason}"
    if base.architecture == "encoder-decoder":
        return "encoder input", ""
    if SHARED in relied_on:
        return "shared prefix", ""
    causes = [f"{name}: {checks[name].reason}" for name in (SHARED, STEP) if checks[name].reason]
    return "concatenation (fallback)", causes[0] if causes else "its layers keep more than keys and values"


def format_error(error: float | None) -> str:
    """A relative error in one digit; a dash where there is none."""
    return "-" if error is None else f"{error:.1g}"


def _one_line(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 200 else f"{text[:197]}..."
