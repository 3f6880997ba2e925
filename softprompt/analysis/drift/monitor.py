"""Live traffic beside what each prompt saw: which prompt drifts, in what, how surely, and which texts show it."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

from softprompt.analysis.drift.drift_findings import RULES, format_time, select_examples
from softprompt.analysis.drift.drift_records import DriftReport, PromptDrift, Signal, Verdict
from softprompt.analysis.drift.signals import (
    LEAST,
    LEAST_TRAINED,
    SIGNIFICANCE,
    ComparedSignal,
    compare_signals,
    judge_signal,
)
from softprompt.data.chats.chat_format import keeps_shared_turns
from softprompt.data.chats.message_parsing import is_messages, parse_conversation
from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.examples import Example
from softprompt.data.split_assignment import sample_examples, sample_indices
from softprompt.data.splits import Splits
from softprompt.data.task import Task
from softprompt.errors import ConfigError, DataError, SoftpromptError, StoreError
from softprompt.inference.chat_answers import find_beginning
from softprompt.inference.evaluation import score
from softprompt.inference.predictions import Prediction
from softprompt.inference.predictor import Predictor
from softprompt.metrics.hypothesis_tests import holm_adjust
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.text_encoder import make_text_encoder
from softprompt.serving.request_log.request_records import RequestRecord
from softprompt.serving.request_log.sample_files import RecordedRequests
from softprompt.store.input_profile import InputProfile
from softprompt.store.prompt_sources import PromptSource, read_served_profile
from softprompt.training.input_profiling import STATES, compute_hidden_states, count_rare_tokens, profile_inputs
from softprompt.training.training_run import TEST_LIMIT

Model = Callable[[Prompt], FrozenLM]


@dataclass(frozen=True)
class UnadjustedDrift:
    """One prompt, before what was found is corrected for all that was looked at."""

    prompt: str
    kind: str
    profile: str
    samples: Sequence[RequestRecord]
    compared: Sequence[ComparedSignal]
    notes: tuple[str, ...]


def monitor(
    read: RecordedRequests,
    source: PromptSource,
    *,
    place: str = "samples",
    since: float = 0.0,
    data: Splits | str | None = None,
    columns: Mapping[str, str] | None = None,
    model: Model | None = None,
    states: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> DriftReport:
    """Compare samples of each prompt with its profile.

    Args:
        source: where the prompts are.
        place: what the samples are called.
        since: seconds since 1970; where the samples begin.
        data: what a prompt without a profile was learned on, or its place: its profile is then measured now.
        columns: names of the columns, as ``read_splits`` takes them.
        model: gives the base model of a prompt.
        states: compare hidden states, for which sampled texts are read by the model.

    Raises:
        ConfigError: data for several prompts without a profile.
        DataError: data without validation rows, or not for this prompt.
        StoreError, PromptFileError: the prompts cannot be read.
    """
    by_prompt: dict[str, list[RequestRecord]] = defaultdict(list)
    for sample in read.samples:
        by_prompt[sample.prompt].append(sample)
    stock = source.read_catalog({})
    there = {f"{name}@{number}" for name, one in stock.names.items() for number in one.numbers}
    unread = sorted({which.partition("@")[0] for which in by_prompt} - stock.names.keys())
    if stock.troubles and unread:
        raise StoreError(f"{', '.join(unread)}: sampled, and not found; in the store, {'; '.join(stock.troubles)}")
    gone = {which: len(some) for which, some in by_prompt.items() if which not in there}
    notes = [*stock.troubles]
    notes += [f"{which}: {count:,} samples of a prompt that is not here" for which, count in sorted(gone.items())]
    profiles = {which: read_served_profile(source, which) for which in sorted(by_prompt.keys() & there)}
    without = [which for which, profile in profiles.items() if profile is None]
    if data is not None and len(without) > 1:
        raise ConfigError(
            f"--data is for one prompt without a profile, there are {len(without)} ({', '.join(without[:8])}): give "
            "one of them with --prompt"
        )
    measured = []
    for which, profile in profiles.items():
        progress(f"{which}: {len(by_prompt[which]):,} samples")
        asked = _PromptSamples(source, which, by_prompt[which], model)
        if profile is None and data is None:
            notes.append(f"{which}: it has no profile, having been saved without one: give --data, what it learned on")
            continue
        measured.append(asked.look(profile, data, columns or {}, states=states))
    return DriftReport(
        samples=place,
        since=format_time(since) if since else "",
        read=len(read.samples),
        damaged=read.damaged,
        left_out=read.left_out,
        least=LEAST,
        least_trained=LEAST_TRAINED,
        significance=SIGNIFICANCE,
        prompts=tuple(adjust_and_judge(measured)),
        notes=tuple(notes),
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


class _PromptSamples:
    """One prompt and its samples; the model is loaded when something needs it."""

    def __init__(self, source: PromptSource, which: str, samples: list[RequestRecord], model: Model | None) -> None:
        self._which, self._samples, self._model = which, samples, model
        name, _, number = which.rpartition("@")
        self._prompt, _ = source.load(name, int(number))
        self._base: FrozenLM | None = None

    def look(
        self, profile: InputProfile | None, data: Splits | str | None, columns: Mapping[str, str], *, states: bool
    ) -> UnadjustedDrift:
        made, notes = "saved with it", []
        if profile is None:
            assert data is not None
            task = Task.matching(self._prompt.spec, data, **columns)
            profile, made = self._measured(task), f"measured now, on {task.splits.source}"
        if self._base is not None and any(one.rare is None for one in self._samples):
            self._count_rare(profile)
        if not any(one.rare is not None for one in self._samples):
            notes.append("rare tokens: the server had no profile to count them by, and kept no texts to count them in")
        distances: dict[int, float] = {}
        if not states:
            notes.append("hidden states: not looked at without --model, for texts have to be read again")
        elif profile.hidden is None:
            notes.append("hidden states: its profile has none")
        else:
            distances = self._distances(profile)
            if not distances:
                notes.append("hidden states: no texts were kept (softprompt serve --sample-text)")
        compared = compare_signals(profile, self._samples, distances)
        if self._prompt.spec.kind == "generation":
            notes.append("answers and confidence: told for classification, this prompt generates")
        return UnadjustedDrift(self._which, self._prompt.spec.kind, made, self._samples, compared, tuple(notes))

    def _loaded(self) -> FrozenLM:
        if self._base is None:
            if self._model is None:
                raise ConfigError(f"'{self._which}' has to be read by its base model: give --model")
            self._base = self._model(self._prompt)
            self._prompt.check_base(self._base)
        return self._base

    def _measured(self, task: Task) -> InputProfile:
        prompt, base = self._prompt, self._loaded()
        rows = sample_examples(task.validation, TEST_LIMIT[prompt.spec.kind])
        answered: tuple[Prediction, ...] = ()
        if rows and prompt.spec.kind == "classification":
            answered = score(Predictor(base, prompt.spec, prompt.states), rows).predictions
        profile = profile_inputs(base, prompt.spec, prompt.states, task, answered)
        if profile is None:
            raise DataError(f"{task.splits.source}: expected a validation split to compare with, got none")
        return profile

    def _count_rare(self, profile: InputProfile) -> None:
        """Of samples with a text that the server could not count them in."""
        prompt, base, known = self._prompt, self._loaded(), profile.known
        encoders: dict[str, ExampleEncoder] = {}
        for index, one in enumerate(self._samples):
            if one.rare is None and one.text is not None:
                try:
                    example = _example(prompt, one)
                    found = find_beginning(base, prompt.spec, prompt.states, example.conversation)
                    if found.name not in encoders:
                        encoders[found.name] = make_text_encoder(base, found.spec, prompt.states)
                    (ids,) = encoders[found.name].encode_texts([example])
                except SoftpromptError:
                    continue
                counted = {"tokens": len(ids), "rare": count_rare_tokens(ids, known)}
                self._samples[index] = one.model_copy(update=counted)

    def _distances(self, profile: InputProfile) -> dict[int, float]:
        """By the index of the sample, of some of those with a text."""
        assert profile.hidden is not None
        prompt = self._prompt
        kept = [index for index, one in enumerate(self._samples) if one.text is not None and _readable(prompt, one)]
        if not kept:
            return {}
        examples = {index: _example(prompt, self._samples[index]) for index in kept}
        chosen = [kept[place] for place in sample_indices([examples[index] for index in kept], STATES)]
        found, size = compute_hidden_states(
            self._loaded(), prompt.spec, prompt.states, [examples[index] for index in chosen]
        )
        if size != profile.hidden.size:
            return {}
        apart = profile.hidden.distances_of(found)
        return {index: float(one) for index, one in zip(chosen, apart, strict=True) if np.isfinite(one)}


def _example(prompt: Prompt, sample: RequestRecord) -> Example:
    """As it was asked; raises DataError for a conversation that is none."""
    columns, conversation = dict(sample.columns or {}), None
    if prompt.spec.chat is not None and is_messages(columns.get("messages")):
        conversation = parse_conversation(columns.pop("messages"), columns.pop("tools", None))
    return Example(sample.text or "", columns=columns, conversation=conversation)


def _readable(prompt: Prompt, sample: RequestRecord) -> bool:
    """Whether its template can be filled, columns that were too large not being kept, and it begins as all do."""
    try:
        example = _example(prompt, sample)
        if (chat := prompt.spec.chat) is not None and (said := example.conversation) is not None:
            return not chat.shared or keeps_shared_turns(chat, said)
        prompt.spec.compiled.fill(example)
    except SoftpromptError:
        return False
    return True


def adjust_and_judge(measured: Sequence[UnadjustedDrift]) -> list[PromptDrift]:
    """Verdicts, with p-values adjusted for all signals of all prompts; those that drift first."""
    tested = [
        (row, column, one.signal.p_value)
        for row, each in enumerate(measured)
        for column, one in enumerate(each.compared)
        if one.signal.p_value is not None
    ]
    adjusted = {
        (row, column): value
        for (row, column, _), value in zip(tested, holm_adjust([value for _, _, value in tested]), strict=True)
    }
    found = []
    for row, each in enumerate(measured):
        compared = [
            replace(one, signal=judge_signal(one.signal, adjusted.get((row, column))))
            for column, one in enumerate(each.compared)
        ]
        found.append(_told(each, compared))
    order: dict[Verdict, int] = {"drift": 0, "small": 1, "none": 2, "too few": 3}
    return sorted(found, key=lambda one: (order[one.verdict], -len(one.findings), one.prompt))


def _told(each: UnadjustedDrift, compared: Sequence[ComparedSignal]) -> PromptDrift:
    drifting = sorted(
        (one for one in compared if one.signal.verdict == "drift"), key=lambda one: -(one.signal.effect or 0.0)
    )
    times = [one.time for one in each.samples]
    return PromptDrift(
        prompt=each.prompt,
        kind=each.kind,
        verdict=_verdict([one.signal for one in compared]),
        profile=each.profile,
        samples=len(each.samples),
        texts=sum(one.text is not None for one in each.samples),
        errors=dict(Counter(one.error for one in each.samples if one.error)),
        first=format_time(min(times)),
        last=format_time(max(times)),
        milliseconds=round(float(np.median([one.milliseconds for one in each.samples])), 1),
        signals=tuple(one.signal for one in compared),
        findings=tuple(found for one in drifting if (found := RULES[one.signal.name].judge(one.signal))),
        examples=tuple(found for one in drifting for found in select_examples(one, each.samples)),
        notes=each.notes,
    )


def _verdict(signals: Sequence[Signal]) -> Verdict:
    verdicts = {one.verdict for one in signals}
    names: tuple[Verdict, ...] = ("drift", "small", "none")
    return next((name for name in names if name in verdicts), "too few")
