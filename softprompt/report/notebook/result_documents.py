"""Results, prompts and models as a notebook shows them: the main parts of their pages."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from softprompt.analysis.drift.drift_records import DriftReport
from softprompt.analysis.inspection.inspection_records import Inspection, Pruning
from softprompt.analysis.inspection.pruning import PrunedPrompt
from softprompt.errors import SoftpromptError
from softprompt.experiments.comparison.study_records import SizeStudy, Study
from softprompt.experiments.sweep.sweep_folder import SweepResult, SweepSummary
from softprompt.inference.evaluation import Evaluation
from softprompt.inference.predictions import Prediction, Predictions
from softprompt.inference.predictor import Predictor
from softprompt.metrics.formatting import MISSING, format_count, format_fixed, metric_heading
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState, describe_state
from softprompt.prompts.training_history import TrainingHistory
from softprompt.report.pages import comparison_figures, comparison_tables
from softprompt.report.pages.cells import make_confusion_table, make_metric_cell, make_settings_table
from softprompt.report.pages.comparison_page import make_comparison_document
from softprompt.report.pages.distillation_page import make_distillation_document
from softprompt.report.pages.drift_page import make_drift_document
from softprompt.report.pages.inspection_figures import plot_history
from softprompt.report.pages.inspection_page import make_inspection_document, make_pruning_document
from softprompt.report.pages.model_sizes_page import make_model_sizes_document
from softprompt.report.pages.store_page import make_names_document
from softprompt.report.pages.sweep_page import make_sweep_document
from softprompt.report.pages.training_page import make_prompt_document
from softprompt.report.render.document import Block, Cell, Column, Document, Fold, Points, Section, Table, Text
from softprompt.store.version_store import Store
from softprompt.training.distillation.distill import Distillation
from softprompt.training.distillation.distillation_records import DistillationReport
from softprompt.utils.messages import excerpt

MOST_LABELS = 12  # of a prediction
MOST_ANSWERS, BEGINNING = 10, 160  # of predictions; characters of each text
MOST_RECORDS = 12  # of a history


def make_evaluation_document(found: Evaluation) -> Document:
    """Every metric with its interval, and which labels are taken for which."""
    scores = (found.metric, *found.others)
    rows = [(metric_heading(one.metric), make_metric_cell(one.model_dump()), format_count(one.n)) for one in scores]
    blocks: list[Block] = [Table.of("", ("Metric", "Value [95% interval]", "n"), rows)]
    notes = [f"{found.truncated:,} texts were cut to the length limit"] if found.truncated else []
    if drawn := found.drawn.describe("given") if found.drawn else "":
        notes.append(f"scored {drawn}")
    if notes := [*notes, *found.truncation_notes]:
        blocks.append(Points(tuple(notes)))
    if all(isinstance(gold, str) for gold in found.gold):
        confusion = _tabulate_confusion(found)
        blocks += [confusion] if confusion.rows else []
    return Document("Evaluation", str(found.metric), (), (Section("content", "", tuple(blocks)),))


def _tabulate_confusion(found: Evaluation) -> Table:
    answered = [str(one.label) for one in found.predictions]
    counts = Counter(zip(found.gold, answered, strict=True))
    known = found.predictions[0].probabilities or {}
    gold, given = ([name for name in known if name in set(names)] for names in (found.gold, answered))
    gold += sorted(set(found.gold) - set(gold))
    given = list(dict.fromkeys([*gold, *given, *sorted(set(answered) - set(given))]))
    return make_confusion_table("What was answered, by gold label", "Most frequent mistakes", gold, given, counts)


def make_prediction_document(found: Prediction) -> Document:
    """The probability of each label, the likeliest first; or the completion."""
    blocks: list[Block] = []
    if found.probabilities is not None:
        ranked = sorted(found.probabilities.items(), key=lambda one: -one[1])
        rows = [(label, Cell(format_fixed(share, 3), heat=share)) for label, share in ranked[:MOST_LABELS]]
        more = f"and {len(ranked) - MOST_LABELS:,} more labels" if len(ranked) > MOST_LABELS else ""
        blocks.append(Table.of("", ("Label", "Probability"), rows, more))
    if found.completion is not None:
        blocks.append(Text(found.completion))
    if found.at_limit:
        blocks.append(Points(("it was cut at the limit of tokens",)))
    title = found.label if found.label is not None else "a completion"
    return Document("Prediction", title, (), (Section("content", "", tuple(blocks)),))


def make_predictions_document(found: Predictions) -> Document:
    """The first answers beside what was asked, and how often each label was given."""
    answered = found[0].label is not None if found else False
    shown = list(zip(found.asked, found, strict=False))[:MOST_ANSWERS]
    rows = [
        (
            excerpt(row.example.text, BEGINNING),
            excerpt(one.answer, BEGINNING),
            *([format_fixed(one.probability, 3)] if answered else []),
            *([MISSING if row.gold is None else str(row.gold)] if _has_gold(found) else []),
        )
        for row, one in shown
    ]
    more = f"and {len(found) - len(shown):,} more: to_pandas() has them all" if len(found) > len(shown) else ""
    texts = (Column("Text", False, data=True), Column("Answer", False, data=True))
    gold = (Column("Gold", False, data=True),) if _has_gold(found) else ()
    blocks: list[Block] = [Table.of("", (*texts, *(("Probability",) if answered else ()), *gold), rows, more)]
    if answered and len(found) > 1:
        counts = Counter(one.answer for one in found).most_common(MOST_LABELS)
        blocks.append(Table.of("Answers", ("Label", "Times"), ((label, format_count(n)) for label, n in counts)))
    title = f"{len(found):,} answer{'' if len(found) == 1 else 's'}"
    return Document("Predictions", title, (), (Section("content", "", tuple(blocks)),))


def _has_gold(found: Predictions) -> bool:
    return any(row.gold is not None for row in found.asked)


def make_history_document(history: TrainingHistory) -> Document:
    """The losses as a figure, the evaluations as a table."""
    figure = plot_history(history)
    metric = (f"Validation {metric_heading(history.metric)}",) if history.metric else ()
    rows = [
        (
            Cell(format_count(one.get("step")), tags=("best",) if one.get("step") == history.best_step else ()),
            *(format_fixed(one.get(name), 4) for name in ("train_loss", "validation_loss")),
            *([format_fixed(one.get("value"), 4)] if history.metric else []),
        )
        for one in history.records[-MOST_RECORDS:]
    ]
    more = f"the last {MOST_RECORDS} of {len(history):,}" if len(history) > MOST_RECORDS else ""
    table = Table.of("", ("Step", "Training loss", "Validation loss", *metric), rows, more)
    blocks: tuple[Block, ...] = (table,) if figure is None else (figure, Fold("The evaluations", (table,)))
    return Document("Training history", f"{len(history):,} evaluations", (), (Section("content", "", blocks),))


def make_prompt_card(prompt: Prompt) -> Document:
    """What ``softprompt show`` tells, and how it learned."""
    document = make_prompt_document(prompt)
    figure = plot_history(prompt.history)
    learned = () if figure is None else (Section("history", "", (Fold("How it learned", (figure,)),)),)
    return replace(
        document, title=f"{prompt.method}, {describe_state(prompt.states[0])}", sections=(*document.sections, *learned)
    )


def make_state_document(state: PromptState) -> Document:
    """Kind and sizes."""
    facts = {
        "tensors": ", ".join(f"{count} of {shape}" for shape, count in Counter(map(_shape, state.numbers)).items()),
        "stands": "behind BOS" if state.behind_bos else "first of all",
        "made of": "written text" if state.words else None,
    }
    return _settings("Prompt", describe_state(state), facts)


def _shape(tensor: Any) -> str:
    return " \N{MULTIPLICATION SIGN} ".join(map(str, tensor.shape))


def make_base_document(base: FrozenLM) -> Document:
    """What it is and where it is."""
    facts = {
        "parameters": f"{base.parameter_count:,}, all frozen",
        "computes in": f"{base.precision} on {base.device}",
        "quantized as": base.quantization,
        "context": None if base.context_length is None else f"{base.context_length:,} tokens",
        "vocabulary": f"{base.vocabulary_size:,} tokens of {base.embedding_size:,} numbers",
        "architecture": f"{base.architecture}, {type(base.model).__name__}",
    }
    return _settings("Frozen language model", base.name, facts)


def make_predictor_document(predictor: Predictor) -> Document:
    """What answers, and what it is asked."""
    states = Counter(map(describe_state, predictor.states))
    told = "; ".join(f"{count} times {one}" if count > 1 else one for one, count in states.items())
    spec = predictor.spec
    labels = ", ".join(spec.labels[:MOST_LABELS]) + (", …" if len(spec.labels) > MOST_LABELS else "")
    facts = {"base model": predictor.base.name, "prompt": told or "none: the bare template", "template": spec.template}
    facts |= {} if spec.chat is None else {"conversations": str(spec.chat)}
    return _settings("Predictor", spec.kind.capitalize(), {**facts, "labels": labels or None})


def _settings(kind: str, title: str, facts: dict[str, str | None]) -> Document:
    table = make_settings_table("", {name: one for name, one in facts.items() if one}, ("", ""))
    return Document(kind, title, (), (Section("content", "", (table,)),))


def make_study_document(study: Study) -> Document:
    """The recommendation, the quality of every method, and what each costs."""
    whole = make_comparison_document(study)
    recommended = [section for section in whole.sections if section.name == "recommendation"]
    figure = comparison_figures.plot_quality(study)
    costs = (comparison_tables.tabulate_learning_cost(study), comparison_tables.tabulate_serving_cost(study))
    tables = (
        Fold("Quality in numbers", (comparison_tables.tabulate_quality(study),)),
        Fold("What it takes to learn, to keep and to answer", tuple(one for one in costs if len(one.columns) > 1)),
    )
    failed = [section for section in whole.sections if section.name == "failures" and _has_table(section)]
    methods = Section("methods", "The methods", (*(() if figure is None else (figure,)), *tables))
    return replace(whole, sections=(*recommended, methods, *failed), created="")


def _has_table(section: Section) -> bool:
    return any(isinstance(block, Table) for block in section.blocks)


def make_sweep_summary_document(summary: SweepSummary) -> Document:
    """The winner."""
    document = make_sweep_document(summary, [])
    return replace(document, sections=document.sections[:1])


def make_sweep_result_document(result: SweepResult) -> Document:
    """The winner and the trials."""
    return make_sweep_document(result.summary, result.trials)


def make_inspection_summary(found: Inspection) -> Document:
    """Its health, and what the prompt changed."""
    document = make_inspection_document(found)
    kept = tuple(section for section in document.sections if section.name in ("recommendation", "answers"))
    others = [section.title for section in document.sections if section not in kept]
    told = f"softprompt inspect --html PAGE shows the rest of it: {', '.join(others)}" if others else ""
    return replace(document, sections=kept, closing=(told,) if told else (), created="")


def make_report_document(report: DistillationReport) -> Document:
    """How near the student is, and what it costs."""
    return replace(make_distillation_document({"": report}, Path()), closing=())


def make_distillation_summary(found: Distillation) -> Document:
    """The same, of a student with its report."""
    return make_report_document(found.report)


def make_pruning_summary(report: Pruning) -> Document:
    """What stayed, and what that costs."""
    kept = Fold("The virtual tokens that stay", (Text(", ".join(map(str, report.kept))),))
    document = make_pruning_document(report, report.length, Path())
    sections = tuple(replace(section, blocks=(*section.blocks, kept)) for section in document.sections)
    return replace(document, title=f"{report.length:,} virtual tokens stay", sections=sections, closing=())


def make_pruned_document(found: PrunedPrompt) -> Document:
    """The same, of a prompt with its report."""
    return make_pruning_summary(found.report)


def make_store_document(store: Store) -> Document:
    """Its names, or why they cannot be told."""
    try:
        return make_names_document(store.url, store.list())
    except SoftpromptError as error:
        return Document("Store", store.url, (str(error),), ())


DOCUMENTS: Mapping[type, Callable[[Any], Document]] = {
    FrozenLM: make_base_document,
    Predictor: make_predictor_document,
    Prediction: make_prediction_document,
    Predictions: make_predictions_document,
    Evaluation: make_evaluation_document,
    Prompt: make_prompt_card,
    PromptState: make_state_document,
    TrainingHistory: make_history_document,
    Study: make_study_document,
    SizeStudy: make_model_sizes_document,
    SweepResult: make_sweep_result_document,
    SweepSummary: make_sweep_summary_document,
    Inspection: make_inspection_summary,
    Distillation: make_distillation_summary,
    DistillationReport: make_report_document,
    Pruning: make_pruning_summary,
    PrunedPrompt: make_pruned_document,
    DriftReport: make_drift_document,
    Store: make_store_document,
}
