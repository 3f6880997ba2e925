"""Who takes part in a comparison: the names that ``--methods`` takes, behind one protocol.

A name may have options behind colons: ``few-shot:8``, ``prompt-tuning:length=50:init=labels``.
"""

import difflib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from softprompt.config import TrainConfig
from softprompt.data.task import Task
from softprompt.errors import ConfigError, MissingExtraError, SoftpromptError
from softprompt.experiments.baselines import full_finetuning, lora
from softprompt.experiments.baselines.few_shot_prompting import fit_few_shot
from softprompt.experiments.baselines.finetuning import FinetuningConfig
from softprompt.experiments.baselines.fitted_baseline import PACKAGES, FittedBaseline
from softprompt.experiments.baselines.label_calibration import calibrate
from softprompt.experiments.baselines.linear_probe import fit_linear_probe
from softprompt.experiments.baselines.tfidf import fit_tfidf
from softprompt.experiments.sweep.sweep_folder import SweepSummary, SweepTrial, read_sweep
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.methods.method_registry import METHODS, check_method
from softprompt.training.callbacks import Callback
from softprompt.utils.files import expand_user

Family: TypeAlias = Literal["written", "classical", "soft prompt", "adapter", "full"]
SHOTS = 8  # examples of few-shot where no number is given
EVALUATIONS = 3  # at least, in a run of few steps
COMMON = ("steps", "seconds", "batch_size", "eval_every", "seed", "max_length", "method")  # no method has its own


@dataclass(frozen=True)
class RunSettings:
    """What methods have in common.

    Attributes:
        steps, batch_size: of all that learn by steps.
        instruction: words that written prompts have in front of everything.
    """

    steps: int
    batch_size: int = 16
    instruction: str = ""

    @property
    def eval_every(self) -> int:
        """Steps between evaluations on validation: as ``train`` has it, or less in a short run."""
        usual: int = TrainConfig.model_fields["eval_every"].default
        return max(1, min(usual, -(-self.steps // EVALUATIONS)))


@dataclass(frozen=True)
class Run:
    """One learning run; ``learning_rate`` is ``None`` for the method's own."""

    seed: int
    learning_rate: float | None = None

    def settings(self, plan: RunSettings, default_rate: float) -> dict[str, Any]:
        """What a method's own settings are completed with."""
        return {
            "seed": self.seed,
            "learning_rate": self.learning_rate or default_rate,
            "steps": plan.steps,
            "batch_size": plan.batch_size,
            "eval_every": plan.eval_every,
        }


class Candidate(Protocol):
    """A method that a comparison can run.

    Attributes:
        name: as given to ``--methods``.
        family: for grouping.
        seeded: whether another seed gives another result.
        uses_base: whether it needs the language model.
        learning_rate: its default, where it learns by gradient steps; else ``None``.
        together: whether several runs learn in the same forward passes, each to what it would reach alone.
    """

    @property
    def name(self) -> str: ...
    @property
    def family(self) -> Family: ...
    @property
    def seeded(self) -> bool: ...
    @property
    def uses_base(self) -> bool: ...
    @property
    def learning_rate(self) -> float | None: ...
    @property
    def together(self) -> bool: ...

    def learn(
        self, base: FrozenLM, task: Task, runs: Sequence[Run], plan: RunSettings, callback: Callback, folder: Path
    ) -> list[FittedBaseline | SoftpromptError]:
        """Learn each of ``runs`` (one, unless ``together``); an error in place of one that failed beside others.

        ``folder`` is the runs' own, to keep what they need to go on after the process ended; it may not exist.
        """


Fit: TypeAlias = Callable[[FrozenLM, Task, int, str], FittedBaseline]  # of a seed and an instruction


@dataclass(frozen=True)
class DirectCandidate:
    """A method without gradient steps: written prompts, and classifiers whose optimum is found directly."""

    name: str
    family: Family
    fit: Fit
    seeded: bool = True
    uses_base: bool = True
    learning_rate: None = field(default=None, init=False)
    together: bool = field(default=False, init=False)

    def learn(
        self, base: FrozenLM, task: Task, runs: Sequence[Run], plan: RunSettings, callback: Callback, folder: Path
    ) -> list[FittedBaseline | SoftpromptError]:
        return [self.fit(base, task, run.seed, plan.instruction) for run in runs]


@dataclass(frozen=True)
class SoftPromptCandidate:
    """A method of softprompt's own, with what was set behind its name."""

    name: str
    config: TrainConfig
    family: Family = field(default="soft prompt", init=False)
    seeded: bool = field(default=True, init=False)
    uses_base: bool = field(default=True, init=False)
    together: bool = field(default=True, init=False)

    @property
    def learning_rate(self) -> float:
        return self.config.learning_rate

    def learn(
        self, base: FrozenLM, task: Task, runs: Sequence[Run], plan: RunSettings, callback: Callback, folder: Path
    ) -> list[FittedBaseline | SoftpromptError]:
        from softprompt.experiments.baselines.soft_prompts import learn_prompts

        configs = {
            f"seed {run.seed} rate {run.learning_rate or self.learning_rate:.3g}": self.config.model_copy(
                update={**run.settings(plan, self.learning_rate), "max_length": task.spec.max_length}
            )
            for run in runs
        }
        return learn_prompts(base, task, configs, callback, folder)


@dataclass(frozen=True)
class SweepCandidate(SoftPromptCandidate):
    """The winning settings of a sweep, learned anew with the comparison's seeds and steps."""

    summary: SweepSummary
    trials: tuple[SweepTrial, ...]

    def learn(
        self, base: FrozenLM, task: Task, runs: Sequence[Run], plan: RunSettings, callback: Callback, folder: Path
    ) -> list[FittedBaseline | SoftpromptError]:
        """ConfigError if the sweep was of another model or data: it may have seen what is held out here."""
        for what, same in (
            ("model", self.summary.base == base.fingerprint),
            ("data", self.summary.data == task.splits.fingerprint),
        ):
            if not same:
                raise ConfigError(f"'{self.name}' was on another {what}: expected a sweep on those of the comparison")
        default = self.learning_rate
        searched = tuple(
            {
                "learning_rate": trial.settings.get("learning_rate", default),
                "settings": {name: value for name, value in trial.settings.items() if name != "learning_rate"},
                "value": trial.value,
                "loss": trial.loss,
                "chosen": trial.number == self.summary.winner,
            }
            for trial in self.trials
            if trial.value is not None and trial.status != "repeated"
        )
        return [
            replace(one, searched=searched, search_seconds=self.summary.seconds)
            if isinstance(one, FittedBaseline)
            else one
            for one in super().learn(base, task, runs, plan, callback, folder)
        ]


FitTuned: TypeAlias = Callable[[FrozenLM, Task, FinetuningConfig, Callback], FittedBaseline]


@dataclass(frozen=True)
class FinetuningCandidate:
    """A method that changes what the model computes, with what was set behind its name."""

    name: str
    family: Family
    config: FinetuningConfig
    learning_rate: float
    fit: FitTuned
    seeded: bool = field(default=True, init=False)
    uses_base: bool = field(default=True, init=False)
    together: bool = field(default=False, init=False)

    def learn(
        self, base: FrozenLM, task: Task, runs: Sequence[Run], plan: RunSettings, callback: Callback, folder: Path
    ) -> list[FittedBaseline | SoftpromptError]:
        return [
            self.fit(base, task, self.config.model_copy(update=run.settings(plan, self.learning_rate)), callback)
            for run in runs
        ]


@dataclass(frozen=True)
class CandidateKind:
    """What can be named.

    Attributes:
        make: the name as given and what stands behind its first colon, to a contestant.
        package: what has to be installed, as Python imports it.
    """

    make: Callable[[str, str], Candidate]
    package: str | None = None

    def check_installed(self) -> None:
        """Raise MissingExtraError unless its package is there."""
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            raise MissingExtraError(*PACKAGES[self.package])


def parse_methods(names: str | Sequence[str | Candidate]) -> list[Candidate]:
    """``few-shot:8,prompt-tuning,...``, or a list of such names, to who takes part, in this order.

    Raises:
        ConfigError: an unknown name or option, or the same name twice.
        MissingExtraError: a package that one of them needs is not installed.
    """
    found: list[Candidate] = []
    for name in names.split(",") if isinstance(names, str) else names:
        if not isinstance(name, str):
            found.append(name)
            continue
        if not (name := name.strip()):
            raise ConfigError(f"--methods '{names}': expected names with commas between them, as in zero-shot,tfidf")
        if any(other.name == name for other in found):
            raise ConfigError(f"--methods names '{name}' twice: expected each method once")
        kind, _, options = name.partition(":")
        if kind == "sweep":
            found.append(_swept(name, options))
            continue
        if kind not in CANDIDATE_KINDS:
            raise ConfigError(f"unknown method '{kind}': {suggest_names(kind, CANDIDATE_KINDS)}")
        CANDIDATE_KINDS[kind].check_installed()
        found.append(CANDIDATE_KINDS[kind].make(name, options))
    return found


def suggest_names(name: str, known: Sequence[str] | dict[str, Any]) -> str:
    """What may have been meant by ``name``."""
    near = difflib.get_close_matches(name.lower(), list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"expected one of {', '.join(known)}"


def parse_options(name: str, options: str) -> dict[str, Any]:
    """``NAME=VALUE:NAME=VALUE`` behind a method's name to settings; ``lr`` stands for ``learning_rate``.

    Raises:
        ConfigError: it is not of this form, or sets what all methods of a comparison have in common.
    """
    import yaml

    settings: dict[str, Any] = {}
    for part in filter(None, options.split(":")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        key = "learning_rate" if key == "lr" else key
        if not equals or not value or key in settings:
            raise ConfigError(f"method '{name}': expected options as NAME=VALUE, each once, got '{part}'")
        if key in COMMON:
            raise ConfigError(f"method '{name}' sets {key}, which all methods of a comparison share: leave it out")
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"method '{name}': expected a plain value for {key}, got '{value}'") from error
    return settings


def _soft_prompt(name: str, options: str) -> Candidate:
    method = name.partition(":")[0]
    settings = parse_options(name, options)
    own = {key: settings.pop(key) for key in tuple(settings) if key in METHODS[method].options.model_fields}
    check_method(method, own)
    try:
        return SoftPromptCandidate(name, TrainConfig.build(method=method, method_options=own, **settings))
    except ConfigError as error:
        raise ConfigError(f"method '{name}': {error}") from error


def _swept(name: str, place: str) -> Candidate:
    if not place:
        raise ConfigError(f"method '{name}': expected the folder of a sweep, as in sweep:runs/sweep")
    summary, trials = read_sweep(expand_user(place))
    if shared := sorted(set(summary.settings) & set(COMMON) - {"seed", "method"}):
        raise ConfigError(
            f"method '{name}' searched {shared[0]}, which all methods of a comparison share: leave it out"
        )
    settings = {key: value for key, value in summary.config.items() if key not in set(COMMON) - {"method"}}
    return SweepCandidate(name, TrainConfig.build(**settings), summary, tuple(trials))


def _shots(name: str, options: str) -> int:
    if not options:
        return SHOTS
    if not options.isdecimal() or int(options) < 1:
        kind = name.partition(":")[0]
        raise ConfigError(f"method '{name}': expected a number of examples, as in {kind}:{SHOTS}, got '{options}'")
    return int(options)


def _without_options(make: Callable[[str], Candidate]) -> Callable[[str, str], Candidate]:
    def checked(name: str, options: str) -> Candidate:
        if options or name.endswith(":"):
            raise ConfigError(f"method '{name}' has no options: expected '{name.partition(':')[0]}'")
        return make(name)

    return checked


def _few_shot(name: str, options: str, *, nearest: bool = False) -> Candidate:
    count = _shots(name, options)
    return DirectCandidate(name, "written", partial(_written, count=count, nearest=nearest), seeded=not nearest)


def _written(
    base: FrozenLM, task: Task, seed: int, instruction: str, *, count: int = 0, nearest: bool = False
) -> FittedBaseline:
    return fit_few_shot(base, task, count, seed, nearest, instruction=instruction)


def _calibrated(base: FrozenLM, task: Task, seed: int, instruction: str) -> FittedBaseline:
    """The written prompt without its bias; what it reaches on validation is measured anew by whoever compares."""
    fitted = _written(base, task, seed, instruction)
    return replace(fitted, answers=calibrate(fitted.answers, like=next(iter(task.train), None)))


def _fixed(family: Family, fit: Fit, *, uses_base: bool = True) -> Callable[[str, str], Candidate]:
    """A method without options whose result no seed changes."""
    return _without_options(lambda name: DirectCandidate(name, family, fit, seeded=False, uses_base=uses_base))


def _tuned(
    family: Family, rate: float, fit: Callable[..., FittedBaseline], own: Sequence[str], name: str, options: str
) -> Candidate:
    """``own``: what ``fit`` takes beside the settings of FinetuningConfig, positive whole numbers."""
    settings = parse_options(name, options)
    more = {key: settings.pop(key) for key in own if key in settings}
    for key, value in more.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"method '{name}': expected a positive whole number for {key}, got {value!r}")
    try:
        config = FinetuningConfig.build(**settings)
    except ConfigError as error:
        raise ConfigError(f"method '{name}': {error}") from error
    return FinetuningCandidate(name, family, config, config.learning_rate or rate, partial(fit, **more))


CANDIDATE_KINDS: dict[str, CandidateKind] = {
    "zero-shot": CandidateKind(_fixed("written", _written)),
    "zero-shot-calibrated": CandidateKind(_fixed("written", _calibrated)),
    "few-shot": CandidateKind(_few_shot),
    "few-shot-nearest": CandidateKind(partial(_few_shot, nearest=True), "sklearn"),
    "tfidf": CandidateKind(
        _fixed("classical", lambda base, task, seed, _: fit_tfidf(task, seed), uses_base=False), "sklearn"
    ),
    "linear-probe": CandidateKind(
        _fixed("classical", lambda base, task, seed, _: fit_linear_probe(base, task, seed)), "sklearn"
    ),
    **{name: CandidateKind(_soft_prompt) for name in METHODS},
    "lora": CandidateKind(partial(_tuned, "adapter", lora.RATE, lora.fit_lora, ("rank", "alpha")), "peft"),
    "full": CandidateKind(partial(_tuned, "full", full_finetuning.RATE, full_finetuning.fit_full, ())),
}
