"""What a prompt is and has reached: after training, import and evaluation, at a glance, and the story of the demo."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softprompt.inference.evaluation import Evaluation, truncation_notes
from softprompt.metrics.baseline_gain import describe_gain
from softprompt.metrics.formatting import format_count, format_fixed, metric_heading
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import describe_state
from softprompt.report.pages.cells import (
    format_saved_metric,
    format_setting,
    format_subsample,
    make_metric_cell,
    make_settings_table,
)
from softprompt.report.render.document import Block, Code, Document, Points, Section, Table, Text

if TYPE_CHECKING:
    from softprompt.experiments.demo import DemoResult

GAIN = "gain over the written prompt"
_RESULT = ("Metric", "Value [95% interval]", "n")


def make_demo_document(result: "DemoResult") -> Document:
    """The story of the demo."""
    training = result.prompt.training
    learned, frozen = training["learned_parameters"], training["base_parameters"]
    metric = result.results["learned prompt"].metric
    rows = [(name, make_metric_cell(evaluation.metric.model_dump())) for name, evaluation in result.results.items()]
    return Document(
        "Demo",
        "A prompt was learned",
        (
            f"learned: {learned:,} parameters ({result.prompt.length} virtual tokens), "
            f"{learned / frozen:.4%} of the model's {frozen:,}, which stayed as they were",
        ),
        (
            Section(
                "results",
                "On the test split",
                (
                    Table.of("", ("", f"{metric.metric} [95% interval], n={metric.n:,}"), rows),
                    Text(
                        f"against zero-shot it corrected {result.fixed} sentences and broke {result.broken}; "
                        "corrected, for example:"
                    ),
                    Points(tuple(f"{label}: {text}" for text, label in result.corrected)),
                ),
            ),
            Section("next", f"saved in {result.folder}; try next", (Code("\n".join(result.next_commands)),)),
        ),
    )


def make_training_document(prompts: Mapping[str, Prompt], out: Path) -> Document:
    """What a training run gave: a prompt in ``out``, named ``""``, or several in its folders."""
    sections = []
    for name, prompt in prompts.items():
        training = prompt.training
        best = f"best at step {training['best_step']} of {training['steps_made']}, chosen on validation"
        blocks = (*_results(prompt), *_population(prompt), Text(f"{best}; saved in {out / name}"))
        sections.append(Section(f"results-{name}", name or "Results", blocks))
    return Document("Training", f"{next(iter(prompts.values())).method} learned", (), tuple(sections))


def make_import_document(prompt: Prompt, folder: Path) -> Document:
    """What an import gave."""
    results = (Section("results", "Results", _results(prompt)),) if prompt.metrics else ()
    closing = f"{_state(prompt)} from {prompt.training['imported_from']}, saved in {folder}"
    return Document("Import", f"Imported as {prompt.method}", (), results, closing=(closing,))


def make_evaluation_document(result: Evaluation, facts: Mapping[str, Any]) -> Document:
    """Every metric of an evaluation; ``facts``: prompt, data and split."""
    rows = [(m.metric, make_metric_cell(m.model_dump()), format_count(m.n)) for m in (result.metric, *result.others)]
    notes = [f"{result.truncated} texts were cut to the length limit"] if result.truncated else []
    drawn = result.drawn.describe(str(facts["split"])) if result.drawn else ""
    where = f"{facts['prompt'] or 'written prompt'} on {facts['data']}, {facts['split']} split"
    blocks: list[Block] = [Table.of("", _RESULT, rows)]
    told = describe_gain(str(facts["split"]), result.to_dict())
    if notes := [*notes, *result.truncation_notes, *([f"{GAIN}: {told}"] if told else [])]:
        blocks.append(Points(tuple(notes)))
    results = Section("results", "Results", tuple(blocks))
    return Document("Evaluation", f"{where}, {drawn}" if drawn else where, (), (results,))


def make_prompt_document(prompt: Prompt) -> Document:
    """A saved prompt at a glance."""
    spec, training = prompt.spec, prompt.training
    labels = ", ".join(f"{a} ({b!r})" for a, b in zip(spec.labels, spec.verbalizers, strict=True))
    facts = {
        "task": f"{spec.kind}, template {spec.template!r}",
        **({} if spec.chat is None else {"conversations": str(spec.chat)}),
        "labels": labels or None,
        "prompt": _state(prompt),
        "base model": f"{prompt.base_name}, weights {prompt.base_fingerprint.get('weights', '')[:12]}"
        + (f", quantized as {prompt.quantization}" if prompt.quantization else "")
        + (f", learned in {prompt.base_dtype}" if prompt.base_dtype else ""),
        "data": f"{prompt.data.get('source', '-')}: {format_setting(prompt.data.get('examples'))}",
        "learned with": ", ".join(
            f"{key} {training[key]}" for key in ("steps", "batch_size", "learning_rate") if key in training
        ),
        "seed": str(prompt.seed),
        "parent": prompt.parent or None,
    }
    facts |= {split: _split_words(split, result) for split, result in prompt.metrics.items()}
    gains = [words for split, result in prompt.metrics.items() if (words := describe_gain(split, result))]
    facts |= {GAIN: "; ".join(gains)} if gains else {}
    return Document(
        "Prompt", spec.kind, (), (Section("prompt", "Prompt", (make_settings_table("", facts, ("", "")),)),)
    )


def _results(prompt: Prompt) -> tuple[Block, ...]:
    rows, notes = [], []
    for split, result in prompt.metrics.items():
        for metric in (result, *result["others"].values()):
            rows.append((split, metric["metric"], make_metric_cell(metric), format_count(metric["n"])))
        notes += [f"{split}: {words}"] if (words := format_subsample(split, result)) else []
        notes += [f"{GAIN}: {words}"] if (words := describe_gain(split, result)) else []
        # a count of somebody else's file may be anything
        if isinstance(count := result.get("cut"), int):
            notes += [f"{split}: {told}" for told in truncation_notes(count, result["n"])]
    table = Table.of("", ("Split", *_RESULT), rows, words=2)
    return (table, Points(tuple(notes))) if notes else (table,)


def _population(prompt: Prompt) -> tuple[Block, ...]:
    """What each of several prompts that learned together reached on validation."""
    population = prompt.training.get("population", [])
    if not population:
        return ()
    metric = prompt.metrics["validation"]["metric"]
    keys = [metric, "loss"] if metric in population[0] else ["loss"]
    rows = []
    for one in population:
        mark = " (failed)" if one["failed"] else " (best)" if one["name"] == prompt.training["chosen"] else ""
        rows.append((one["name"] + mark, *(format_fixed(one[key], 4) for key in keys), str(one["best_step"])))
    headings = ("Prompt", *(f"Validation {metric_heading(key)}" for key in keys), "Best step")
    kept = f"all {len(prompt.states)} are kept, they answer by vote" if len(prompt.states) > 1 else ""
    return (Table.of("The population", headings, rows, kept),)


def _state(prompt: Prompt) -> str:
    """Kind and size of a prompt, or of each of an ensemble's."""
    sizes = [describe_state(state) for state in prompt.states]
    counted = [f"{sizes.count(size)} times {size}" if len(sizes) > 1 else size for size in dict.fromkeys(sizes)]
    return f"{'; '.join(counted)}, {prompt.method}"


def _split_words(split: str, result: Any) -> str:
    try:
        told = ", ".join(f"{one['metric']} {format_saved_metric(one)}" for one in (result, *result["others"].values()))
        return f"{told}, {drawn}" if (drawn := format_subsample(split, result)) else told
    except (AttributeError, KeyError, TypeError, ValueError):
        return "?"
