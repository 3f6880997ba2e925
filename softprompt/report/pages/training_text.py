"""Results as lines of plain text, for a terminal or a log."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softprompt.data.split_assignment import Subsample
from softprompt.errors import printable
from softprompt.experiments.demo import DemoResult
from softprompt.inference.evaluation import Evaluation, cut_notes
from softprompt.inference.predictor import Prediction
from softprompt.metrics.registry import metric_digits
from softprompt.prompts.saved_prompt import Prompt


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns padded to their widest cell; the first row is the heading. Cells may come out of somebody else's file."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def figure(metric: Mapping[str, Any]) -> str:
    """A metric's value with its interval, in the digits that its scale deserves."""
    digits = metric_digits(str(metric["metric"]))
    value, low, high = (f"{metric[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def demo_lines(result: DemoResult) -> list[str]:
    """The story of the demo."""
    training = result.prompt.training
    learned, frozen = training["learned_parameters"], training["base_parameters"]
    n = result.results["learned prompt"].metric.n
    rows = [("on the test split", f"accuracy [95% interval], n={n:,}")]
    rows += [(name, figure(evaluation.metric.model_dump())) for name, evaluation in result.results.items()]
    return [
        "",
        *table(rows),
        "",
        f"learned: {learned:,} parameters ({result.prompt.length} virtual tokens), "
        f"{learned / frozen:.4%} of the model's {frozen:,}, which stayed as they were",
        f"against zero-shot it corrected {result.fixed} sentences and broke {result.broken}; corrected, for example:",
        *(f"  {label}: {text}" for text, label in result.corrected),
        "",
        f"saved in {result.folder}; try next:",
        *(f"  {command}" for command in result.next_commands),
    ]


def training_lines(prompt: Prompt, folder: Path) -> list[str]:
    """What a training run gave."""
    return [
        "",
        *_metrics_table(prompt),
        *_population_lines(prompt),
        "",
        f"best at step {prompt.training['best_step']} of {prompt.training['steps_made']}, chosen on validation",
        f"saved in {folder}",
    ]


def imported_lines(prompt: Prompt, folder: Path) -> list[str]:
    """What an import gave."""
    measured = ["", *_metrics_table(prompt), ""] if prompt.metrics else []
    return [*measured, f"{_what(prompt)} from {prompt.training['imported_from']}, saved in {folder}"]


def _metrics_table(prompt: Prompt) -> list[str]:
    rows = [("split", "metric", "value [95% interval]", "n")]
    for split, result in prompt.metrics.items():
        for metric in (result, *result["others"].values()):
            rows.append((split, metric["metric"], figure(metric), f"{metric['n']:,}"))
    drawn = [f"{split}: {words}" for split, result in prompt.metrics.items() if (words := drawn_words(split, result))]
    # a count of somebody else's file may be anything
    cut = [
        f"{split}: {told}"
        for split, result in prompt.metrics.items()
        if isinstance(count := result.get("cut"), int)
        for told in cut_notes(count, result["n"])
    ]
    return [*table(rows), *drawn, *cut]


def drawn_words(split: str, result: Mapping[str, Any]) -> str:
    """Of how many rows a saved result is a sample, if it is one; it may come out of somebody else's file."""
    try:
        found = result["sample"]
        return Subsample(int(found["rows"]), int(found["of"]), int(found["seed"])).words(split)
    except (KeyError, TypeError, ValueError):
        return ""


def _population_lines(prompt: Prompt) -> list[str]:
    """What each of several prompts that learned together reached on validation."""
    population = prompt.training.get("population", [])
    if not population:
        return []
    metric = prompt.metrics["validation"]["metric"]
    keys = [metric, "loss"] if metric in population[0] else ["loss"]
    rows = [("prompt", f"validation {keys[0]}", *keys[1:], "best step")]
    for one in population:
        figures = [f"{one[key]:.4f}" if one[key] is not None else "-" for key in keys]
        mark = " (failed)" if one["failed"] else " (best)" if one["name"] == prompt.training["chosen"] else ""
        rows.append((one["name"] + mark, *figures, str(one["best_step"])))
    kept = [f"all {len(prompt.states)} are kept, they answer by vote"] if len(prompt.states) > 1 else []
    return ["", *table(rows), *kept]


def _what(prompt: Prompt) -> str:
    """Kind and size of a prompt, or of each of an ensemble's."""
    sizes = []
    for state in prompt.states:
        if state.kind == "embeddings":
            sizes.append(f"{state.length} virtual tokens of {state.tensor.shape[1]}")
        else:
            sizes.append(f"{state.length} virtual tokens as keys and values of {len(state.tensors)} layers")
    counted = [f"{sizes.count(size)} times {size}" if len(sizes) > 1 else size for size in dict.fromkeys(sizes)]
    return f"{'; '.join(counted)}, {prompt.method}"


def evaluation_lines(result: Evaluation, facts: Mapping[str, Any]) -> list[str]:
    """Every metric of an evaluation."""
    rows = [("metric", "value [95% interval]", "n")]
    rows += [(m.metric, figure(m.model_dump()), f"{m.n:,}") for m in (result.metric, *result.others)]
    cut = [f"{result.truncated} texts were cut to the length limit"] if result.truncated else []
    cut += result.cut_notes
    drawn = result.drawn.words(str(facts["split"])) if result.drawn else ""
    where = f"{facts['prompt'] or 'written prompt'} on {facts['data']}, {facts['split']} split"
    return [f"{where}, {drawn}" if drawn else where, "", *table(rows), *cut]


def prediction_line(prediction: Prediction) -> tuple[str, ...]:
    """One answer, in columns: the completion, or the label with its probability."""
    if prediction.probabilities is None or prediction.label is None:
        return (prediction.completion or "",)
    return prediction.label, f"{prediction.probabilities[prediction.label]:.4f}"


def prompt_lines(prompt: Prompt) -> list[str]:
    """A saved prompt at a glance."""
    spec, training = prompt.spec, prompt.training
    facts = [
        ("task", f"{spec.kind}, template {spec.template!r}"),
        ("labels", ", ".join(f"{a} ({b!r})" for a, b in zip(spec.labels, spec.verbalizers, strict=True)) or "-"),
        ("prompt", _what(prompt)),
        (
            "base model",
            f"{prompt.base_name}, weights {prompt.base_fingerprint.get('weights', '')[:12]}"
            + (f", quantised as {prompt.quantisation}" if prompt.quantisation else "")
            + (f", learned in {prompt.base_dtype}" if prompt.base_dtype else ""),
        ),
        ("data", f"{prompt.data.get('source', '-')}, {prompt.data.get('examples', {})}"),
        (
            "learned with",
            ", ".join(f"{k} {training[k]}" for k in ("steps", "batch_size", "learning_rate") if k in training),
        ),
        ("seed", str(prompt.seed)),
        ("parent", prompt.parent or "-"),
        *((split, _metrics_of(split, result)) for split, result in prompt.metrics.items()),
    ]
    return aligned(facts)


def aligned(facts: Sequence[tuple[str, str]]) -> list[str]:
    """A name and its value a line, the values below each other; both may come out of somebody else's file."""
    width = max(len(printable(name)) for name, _ in facts)
    return [f"{printable(name).ljust(width)}  {printable(value)}" for name, value in facts]


def _metrics_of(split: str, result: Any) -> str:
    try:
        metrics = (result, *result["others"].values())
        told = ", ".join(f"{one['metric']} {figure(one)} n={one['n']:,}" for one in metrics)
        return f"{told}, {drawn}" if (drawn := drawn_words(split, result)) else told
    except (AttributeError, KeyError, TypeError, ValueError):
        return "?"
