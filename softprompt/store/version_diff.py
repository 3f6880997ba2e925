"""What tells two saved prompts apart: their settings, their results, their vectors."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from softprompt.prompts.saved_prompt import Prompt
from softprompt.store.similarity import measure_nearness
from softprompt.utils.summaries import summarize_fields


@dataclass(frozen=True)
class PromptDifference:
    """Of a prompt A and a prompt B.

    Attributes:
        settings: by dotted name, the values in A and B of what differs; ``None`` where one does not have it.
        metrics: by split and name, the metric of each as the manifest has it.
        average_tokens, nearest_tokens: similarity of the vectors, 1 where they are equal (see ``measure_nearness``).
        reason: why the vectors cannot be compared.
    """

    settings: Mapping[str, tuple[Any, Any]]
    metrics: Mapping[str, tuple[Any, Any]]
    average_tokens: float | None = None
    nearest_tokens: float | None = None
    reason: str | None = None

    def __repr__(self) -> str:
        return summarize_fields(self)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that ``softprompt diff --json`` prints."""
        alike = {"average_tokens": self.average_tokens, "nearest_tokens": self.nearest_tokens}
        return {
            "settings": {name: list(pair) for name, pair in self.settings.items()},
            "metrics": {name: list(pair) for name, pair in self.metrics.items()},
            "similarity": alike if self.reason is None else {"reason": self.reason},
        }


def compare_prompts(a: Prompt, b: Prompt) -> PromptDifference:
    """Compare two prompts, of whatever tasks and models."""
    alike = measure_nearness(a, b)
    figures: dict[str, Any] = (
        {"reason": alike} if isinstance(alike, str) else {"average_tokens": alike[0], "nearest_tokens": alike[1]}
    )
    settings = _pair(*(dict(_list_settings(prompt)) for prompt in (a, b)))
    return PromptDifference(
        settings={name: pair for name, pair in settings.items() if pair[0] != pair[1]},
        metrics=_pair(*(dict(_list_metrics(prompt)) for prompt in (a, b))),
        **figures,
    )


def _pair(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (a.get(name), b.get(name)) for name in dict.fromkeys([*a, *b])}


def _list_settings(prompt: Prompt) -> Iterator[tuple[str, Any]]:
    facts = prompt.manifest()
    # the first says the same as the states, the second is compared on its own
    for name in ("schema_version", "metrics"):
        del facts[name]
    return _flatten("", facts)


def _flatten(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flatten(f"{name}.{key}" if name else str(key), inner)
    else:
        yield name, value


def _list_metrics(prompt: Prompt) -> Iterator[tuple[str, Any]]:
    for split, result in prompt.metrics.items():
        if not isinstance(result, Mapping):
            continue
        others = result.get("others")
        for metric in (result, *(others.values() if isinstance(others, Mapping) else ())):
            if isinstance(metric, Mapping):
                facts = {key: metric[key] for key in ("value", "low", "high", "n") if key in metric}
                yield f"{split} {metric.get('metric')}", facts
