"""A task, its parts and its examples, as a notebook shows them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from softprompt.data.chats.plain_text import plain_text
from softprompt.data.column_values import format_value
from softprompt.data.examples import Example
from softprompt.data.splits import Splits
from softprompt.data.task import Task, TaskSpec
from softprompt.errors import TemplateError
from softprompt.metrics.formatting import format_count, metric_heading
from softprompt.report.pages.cells import make_settings_table
from softprompt.report.render.document import Block, Code, Document, Fold, Points, Section, Table, Text

SPLITS = ("train", "validation", "test")
MOST_LABELS, MOST_COLUMNS = 12, 20  # that are shown one by one
BEGINNING, END = 900, 300  # characters of an example that is longer


def make_task_document(task: Task) -> Document:
    """Counts by split and label, and the first example as the model reads it."""
    facts = [_describe_kind(task.spec), f"from {task.splits.source}"]
    blocks: list[Block] = [_count_examples(task.splits, task.spec.labels), *_show_first(task)]
    return Document("Task", task.name, tuple(facts), (_section([*blocks, *_fold_notes(task.splits)]),))


def make_spec_document(spec: TaskSpec) -> Document:
    """Everything that a prompt keeps of its task."""
    words = {label: words for label, words in zip(spec.labels, spec.verbalizers, strict=True) if words != label}
    facts = {
        "labels": _list_some(spec.labels) or None,
        "verbalizers": _list_some([f"{label}: {one}" for label, one in words.items()]) or None,
        "metric": None if spec.metric is None else metric_heading(spec.metric),
        "longest text": f"{spec.max_length:,} tokens",
        "longest completion": None if spec.max_new_tokens is None else f"{spec.max_new_tokens:,} tokens",
        "conversations": None if spec.chat is None else str(spec.chat),
        "columns": ", ".join(f"{name}: {column}" for name, column in spec.columns.others().items()) or None,
    }
    told = make_settings_table("", {name: one for name, one in facts.items() if one is not None}, ("", ""))
    return Document("Task", _describe_kind(spec), (), (_section([Code(_shorten(spec.template)), told]),))


def make_splits_document(splits: Splits) -> Document:
    """Counts by split and label, and what was decided for the user."""
    labels = sorted({one.label for split in SPLITS for one in getattr(splits, split) if one.label is not None})
    return Document(
        "Splits", splits.source, (), (_section([_count_examples(splits, labels), *_fold_notes(splits, is_open=True)]),)
    )


def make_example_document(example: Example) -> Document:
    """A row by its columns."""
    answer = {"label": example.label} if example.label is not None else {"references": " | ".join(example.references)}
    columns = {name: format_value(value) for name, value in list(example.columns.items())[:MOST_COLUMNS]}
    values = {"text": example.text, **{name: one for name, one in answer.items() if one}, **columns}
    more = len(example.columns) - MOST_COLUMNS
    blocks: list[Block] = [Table.of("", ("", ""), values.items(), words=2)]
    return Document(
        "Example",
        example.place,
        (),
        (_section([*blocks, *([Text(f"and {more:,} more columns")] if more > 0 else [])]),),
    )


def _section(blocks: Sequence[Block]) -> Section:
    return Section("content", "", tuple(blocks))


def _describe_kind(spec: TaskSpec) -> str:
    judged = f", judged by {metric_heading(spec.metric)}" if spec.metric is not None else ""
    return f"{spec.kind.capitalize()}{f' into {len(spec.labels):,} labels' if spec.labels else ''}{judged}"


def _count_examples(splits: Splits, labels: Sequence[str]) -> Table:
    """A row for each of the most frequent labels and one for all examples; a column for each split."""
    shown = {split: getattr(splits, split) for split in SPLITS}
    counts = {split: Counter(one.label for one in examples) for split, examples in shown.items()}
    total = sum(counts.values(), Counter[str | None]())
    frequent = sorted(labels, key=lambda label: -total[label])[:MOST_LABELS] if len(labels) > MOST_LABELS else labels
    rows = [(label, *(format_count(counts[split][label]) for split in SPLITS)) for label in frequent]
    if rest := len(labels) - len(frequent):
        others = set(labels) - set(frequent)
        sums = (sum(counts[split][label] for label in others) for split in SPLITS)
        rows.append((f"{rest:,} other labels", *map(format_count, sums)))
    rows.append(("all" if rows else "examples", *(format_count(len(examples)) for examples in shown.values())))
    note = "train: the first rows of a stream, which is read as it is learned from" if splits.stream else ""
    return Table.of("", ("Label" if labels else "", *map(str.capitalize, SPLITS)), rows, note)


def _show_first(task: Task) -> list[Block]:
    """The first example, filled into the template, with its answer behind it."""
    examples = task.train or task.validation or task.test
    if not examples:
        return []
    spec, example = task.spec, examples[0]
    try:
        filled = spec.compiled.render(example) if example.conversation is None else plain_text(example.conversation)
        filled = _shorten(filled)
    except TemplateError as error:
        return [Text(f"The template does not fit its examples: {error}")]
    answer = next(iter(example.references), None)
    if example.label is not None and spec.labels:
        answer = spec.verbalizers[spec.label_index[example.label]]
    how = "as the model reads it"
    if example.conversation is not None or spec.chat is not None:
        how = "which the model's chat template writes as turns"
    if answer is None:
        return [Text(f"The first example, {how}:"), Code(filled)]
    told = Text(f"The first example, {how}, and below it the answer that it is to give:")
    return [told, Code(filled), Code(_shorten(spec.answer_separator + answer).lstrip(" "))]


def _fold_notes(splits: Splits, *, is_open: bool = False) -> list[Block]:
    if not splits.notes:
        return []
    points = Points(splits.notes[:MOST_LABELS])
    return [points] if is_open else [Fold("What was decided for you", (points,))]


def _list_some(names: Sequence[str]) -> str:
    more = f", and {len(names) - MOST_LABELS:,} more" if len(names) > MOST_LABELS else ""
    return ", ".join(names[:MOST_LABELS]) + more


def _shorten(text: str) -> str:
    """Beginning and end of a long text: the end of a template is what asks."""
    if len(text) <= BEGINNING + END:
        return text
    left_out = len(text) - BEGINNING - END
    return f"{text[:BEGINNING]}\n… {left_out:,} characters …\n{text[-END:]}"


DOCUMENTS: Mapping[type, Callable[[Any], Document]] = {
    Task: make_task_document,
    TaskSpec: make_spec_document,
    Splits: make_splits_document,
    Example: make_example_document,
}
