"""What a drift means and what to try, in words, with the samples that show it most."""

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from softprompt.analysis.drift.drift_records import DriftExample, Signal
from softprompt.analysis.drift.signals import ComparedSignal
from softprompt.analysis.finding_rules import Rule
from softprompt.serving.request_log.request_records import RequestRecord

SHOWN = 5  # texts that show a drift


def describe_drift(signal: Signal) -> dict[str, str] | None:
    """What is to be said of a signal that drifts; ``None`` of others."""
    if signal.verdict != "drift" or signal.effect is None:
        return None
    return {
        "evidence": f"{describe_values(signal)}; {describe_significance(signal)}",
        "title": f"{signal.title.capitalize()} {'differ' if signal.title.endswith('s') else 'differs'} from validation",
        "severity": "problem" if signal.effect >= signal.large else "warning",
    }


def describe_values(signal: Signal) -> str:
    """Both sides, in a few words."""
    if signal.moved is not None:
        label, before, now = signal.moved
        return f"'{label}' {before:.1%} on validation, {now:.1%} live"
    if signal.trained is None or signal.live is None:
        return "nothing to compare"
    if signal.name == "rare":
        return f"{signal.trained:.1%} on validation, {signal.live:.1%} live"
    digits = 0 if signal.name == "length" else 2
    return f"median {signal.trained:.{digits}f} on validation, {signal.live:.{digits}f} live"


def describe_significance(signal: Signal) -> str:
    """How large, and how sure."""
    if signal.effect is None or signal.adjusted is None:
        return "too few samples to tell"
    sure = "p<0.0001" if signal.adjusted < 1e-4 else f"p={signal.adjusted:.2g}"
    return f"{signal.measure} {signal.effect:.2f}, {sure}"


def select_examples(one: ComparedSignal, samples: Sequence[RequestRecord]) -> list[DriftExample]:
    """The samples that show a drift most, the newest first among equals; no text twice."""
    newest = np.array([samples[index].time for index in one.rows])
    found: list[DriftExample] = []
    known: set[str] = set()
    for place in np.lexsort((-newest, -one.weights)):
        sample = samples[one.rows[int(place)]]
        if len(found) == SHOWN or one.weights[place] <= 0:
            break
        if sample.text is not None and sample.text in known:
            continue
        known.add(sample.text or "")
        found.append(
            DriftExample(
                signal=one.signal.name,
                why=_why(one, sample, int(place)),
                time=format_time(sample.time),
                request=sample.request,
                text=sample.text,
                tokens=sample.tokens,
                answer=sample.answer,
                confidence=sample.confidence,
            )
        )
    return found


def format_time(seconds: float) -> str:
    """A time as people write it, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _why(one: ComparedSignal, sample: RequestRecord, place: int) -> str:
    name = one.signal.name
    if name == "length":
        return f"{sample.tokens} tokens"
    if name == "rare":
        return f"{sample.rare} of {sample.tokens} tokens are rare"
    if name == "labels":
        return f"answered '{sample.answer}'"
    if name == "confidence":
        return f"confidence {sample.confidence:.2f}"
    return f"distance {one.values[place]:.2f}"


RULES = {
    name: Rule(f"drift-{name}", "warning", "", describe_drift, meaning, advice)
    for name, meaning, advice in (
        (
            "length",
            "Texts are longer or shorter than those that the prompt was measured on: another source, or other "
            "preparation of the texts. What it reached on validation need not hold for them.",
            (
                "look at the texts below: are they cut, joined, or wrapped in something that was not there in "
                "training?",
                "if longer texts are to stay, learn again with such rows, and with a --max-length that holds them",
            ),
        ),
        (
            "rare",
            "The texts have other words, or another spelling or language, than those that the prompt learned from.",
            (
                "look for another language, markup, or a broken encoding in the texts below",
                "label some of these texts, and learn again with them: softprompt train --init prompt:NAME@VERSION",
            ),
        ),
        (
            "labels",
            "Labels are answered in other shares than on validation. Either the world has changed, or the prompt errs "
            "in one direction on these texts; only labelled samples tell which.",
            (
                "label a hundred recent samples, and measure: softprompt eval PROMPT --data samples.jsonl --split all",
                "if the new shares are right, nothing is wrong with the prompt; if not, learn again with these rows",
            ),
        ),
        (
            "confidence",
            "The prompt is surer, or less sure, of its answers than on validation. Less sure often goes with more "
            "mistakes; surer on unlike texts is no proof of being right.",
            (
                "label the samples below, those that it is least sure of first",
                "learn again with them, or send what it is not sure of to a person",
            ),
        ),
        (
            "hidden",
            "To the base model, texts behind this prompt look unlike those of validation, whatever their length and "
            "words.",
            (
                "look at the farthest texts below: do they belong to this task at all?",
                "if they do, label some, and learn again with them; if not, do not send them to this prompt",
            ),
        ),
    )
}
