"""Planted faults are found: each is learned by a tiny model, inspected, and named; a sound prompt is not accused."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from helpers.planted_faults import FAMILY, OTHER, SETTINGS, data, inspected, learned, rows, shuffled
from helpers.small_tasks import TEMPLATE
from helpers.tiny_models import tiny_base

from softprompt.analysis.inspection.inspect_prompt import InspectionLimits, inspect
from softprompt.analysis.inspection.inspection_records import Inspection
from softprompt.data.task import Task
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState
from softprompt.training.fit import fit


def names(found: Inspection, *severities: str) -> set[str]:
    return {one.name for one in found.findings if one.severity in (severities or ("problem", "warning", "note"))}


def test_a_sound_prompt_is_not_accused() -> None:
    found = inspected(learned())
    assert found.answers is not None
    assert found.answers.metric.value > 0.85
    assert found.same_data
    assert names(found, "problem", "warning") == set()


def test_shuffled_labels() -> None:
    splits = data(shuffled(rows(240, 1)), shuffled(rows(80, 2)))
    prompt = fit(tiny_base(FAMILY), Task.classification(splits, template=TEMPLATE), **SETTINGS)
    found = inspected(prompt, splits)
    assert "nothing-learned" in names(found, "problem")
    assert found.prior_loss is not None
    assert found.fit is not None
    assert found.fit.validation_loss.value > 0.95 * found.prior_loss
    # what has learned nothing accuses no rows
    assert "mislabelled-rows" not in names(found)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ text }} :", "a blank more or less"),
        ("{{ text }}:\n", "other white space"),
        ("Review of a film. {{ text }}\nIt is", "other words"),
        ("{{ title }} {{ text }}:", "further column 'title'"),
    ],
)
def test_another_template_when_served(template: str, words: str) -> None:
    found = inspected(learned(), served_template=template)
    assert "template-mismatch" in names(found, "problem", "warning")
    assert words in " ".join(found.serving.differences)
    if "title" not in template:
        assert found.serving.cost is not None
        assert found.serving.cost.n == 60
    else:
        assert found.serving.cost is None
        assert "columns: text" in found.serving.differences[-1]


def test_the_own_template_is_no_mismatch() -> None:
    assert "template-mismatch" not in names(inspected(learned(), served_template=TEMPLATE))


def test_a_template_that_was_changed_after_learning() -> None:
    """The manifest then tells an accuracy that the prompt no longer reaches."""
    prompt = learned()
    spec = replace(prompt.spec, template="{{ text }} is what they said of it, and so on")
    assert "not-reproduced" in names(inspected(replace(prompt, spec=spec)), "problem")


@pytest.mark.parametrize("rate", [3.0, 10.0])
def test_a_rate_ten_times_too_high(rate: float) -> None:
    found = inspected(learned(learning_rate=rate))
    assert {"rate-too-high", "norms-far"} <= names(found)
    assert "standard deviations of the embeddings" in next(
        one.evidence for one in found.findings if one.name == "rate-too-high"
    )


def test_no_rate_at_all() -> None:
    found = inspected(learned(learning_rate=1e-7))
    assert "at-initialisation" in names(found, "problem")
    assert max(token.moved or 0.0 for token in found.tokens) < 1e-4


def test_half_of_the_tokens_zeroed() -> None:
    prompt = learned()
    tokens = prompt.state.tensor.clone()
    tokens[::2] = 0
    found = inspected(replace(prompt, states=(PromptState.of_embeddings(tokens),)))
    (finding,) = [one for one in found.findings if one.name == "empty-tokens"]
    assert finding.severity == "problem"
    assert finding.evidence.endswith(": 0, 2, 4, 6")
    assert "not-reproduced" in names(found, "problem")


def test_labels_flipped_in_five_per_cent_of_the_training_rows() -> None:
    train = list(rows(400, 1))
    flipped = set(random.Random(9).sample(range(400), 20))
    noisy = [replace(one, label=OTHER[str(one.label)]) if i in flipped else one for i, one in enumerate(train)]
    splits = data(noisy)
    prompt = fit(tiny_base(FAMILY), Task.classification(splits, template=TEMPLATE), **SETTINGS)
    found = inspected(prompt, splits)
    assert found.label_errors is not None
    listed = [one.index for one in found.label_errors.listed]
    precision, recall = len(flipped & set(listed)) / len(listed), len(flipped & set(listed)) / len(flipped)
    assert precision >= 0.8
    assert recall >= 0.8
    assert "mislabelled-rows" in names(found)
    assert listed[0] in flipped
    assert found.label_errors.listed[0].instead == train[listed[0]].label


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: f" {text}\n", "begin or end with white space"),
        (lambda text: text.upper(), "have capital letters"),
        (lambda text: text + " and so on" * 20, "training texts 9"),
    ],
)
def test_texts_that_are_not_as_in_training(spoil: Callable[[str], str], words: str) -> None:
    splits = data()
    served = replace(splits, test=tuple(replace(one, text=spoil(one.text)) for one in splits.test))
    found = inspected(learned(), served)
    assert "texts-unlike-training" in names(found, "warning")
    assert words in " ".join(found.serving.texts)


def test_texts_that_bring_the_words_of_the_template() -> None:
    template = "Review: {{ text }}\nSentiment:"
    prompt = fit(tiny_base(FAMILY), Task.classification(data(), template=template), **{**SETTINGS, "steps": 8})
    splits = data()
    served = replace(splits, test=tuple(replace(one, text=f"Review: {one.text}") for one in splits.test))
    assert "100% of the texts begin with the template's own words, 'Review:'" in inspected(prompt, served).serving.texts


def test_texts_that_are_cut() -> None:
    splits = data()
    served = replace(splits, test=tuple(replace(one, text=" ".join([one.text] * 9)) for one in splits.test))
    prompt = learned()
    short = replace(prompt, spec=replace(prompt.spec, max_length=40))
    found = inspected(short, served)
    assert found.answers is not None
    assert found.answers.truncated == 80
    assert "truncation" in names(found, "warning")


def test_held_out_rows_in_train() -> None:
    validation = [replace(one, text=one.text.replace(" ", "  ").title()) for one in rows(240, 1)[:20]]
    found = inspected(learned(), data(validation=[*validation, *rows(60, 2)]))
    assert found.duplicates is not None
    assert found.duplicates.leaked >= 20
    assert "leaking-duplicates" in names(found, "warning")


def test_virtual_tokens_added_where_nobody_reads_them_are_dead() -> None:
    """Far behind a sliding window, the first of many virtual tokens reach no layer's answer."""
    base = tiny_base("mistral")
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(24, base.embedding_size, generator=generator) * base.embedding_std
    spec = learned().spec
    prompt = Prompt((PromptState.of_embeddings(tokens),), spec, base.name, base.fingerprint, "elsewhere")
    found = inspect(base, prompt, Task.matching(spec, data()), limits=InspectionLimits.of(20))
    (finding,) = [one for one in found.findings if one.name == "dead-tokens"]
    assert "0, 1, 2" in finding.evidence
    assert any(note.startswith("movement: its method, 'elsewhere'") for note in found.notes)
