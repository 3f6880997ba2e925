"""``prune``: virtual tokens that nothing needs go, those that carry the task stay, within the tolerance."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.html_page import Page
from helpers.planted_faults import FAMILY, SETTINGS, data, inspected, learned
from helpers.tiny_models import as_state, random_prompt, tiny_base
from helpers.told import told_lines

from softprompt.analysis.inspection.ablation import rebuild_starts
from softprompt.analysis.inspection.pruning import prune
from softprompt.analysis.inspection.score_records import score_states
from softprompt.data.task import Task
from softprompt.errors import ConfigError, DataError
from softprompt.inference.evaluation import evaluate
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState
from softprompt.report.pages.inspection_page import make_inspection_document, make_pruning_document
from softprompt.report.render.html import render_html
from softprompt.store.prompt_loading import load_prompt
from softprompt.training.fit import fit


def pruned(prompt: Prompt, tolerance: float = 0.0, **options: Any) -> tuple[Prompt, Any]:
    return prune(tiny_base(FAMILY), prompt, options.pop("splits", data()), tolerance=tolerance, **options)


def accuracy(prompt: Prompt) -> float:
    task = Task.matching(prompt.spec, data())
    scored = score_states(tiny_base(FAMILY), prompt.spec, prompt.states, task.validation)
    gold = [prompt.spec.label_index[str(one.label)] for one in task.validation]
    assert scored.answers is not None
    return float((scored.answers[0] == gold).mean())


def test_within_the_tolerance_and_shorter() -> None:
    prompt = learned()
    told: list[str] = []
    shorter, report = pruned(prompt, 0.02, progress=told.append)
    assert shorter.length == report.length < prompt.length
    assert report.before == pytest.approx(accuracy(prompt))
    assert report.after == pytest.approx(accuracy(shorter))
    assert report.after >= report.before - 0.02 - 1e-9
    assert torch.equal(shorter.state.tensor, prompt.state.tensor[list(report.kept)])
    assert len(told) == prompt.length - shorter.length
    assert report.test_difference is not None


def test_no_tolerance_takes_only_what_costs_nothing() -> None:
    _, report = pruned(learned(), 0.0)
    assert report.after >= report.before


def test_everything_may_go_but_one() -> None:
    shorter, report = pruned(learned(), 1.0)
    assert (shorter.length, report.length) == (1, 1)


def test_fewer_passes_than_measuring_all_every_time() -> None:
    _, report = pruned(learned(length=16), 1.0)
    everything = sum(range(2, 17)) * 80
    assert report.measured < 0.8 * (everything + 16 * 80)


def test_tokens_put_in_the_way_are_taken_out_first() -> None:
    """Far-off numbers between learned tokens: the first to go, and the prompt does better without."""
    prompt = learned()
    noise = 6 * random_prompt(tiny_base(FAMILY), 2).detach()
    tokens = torch.cat([prompt.state.tensor[:4], noise, prompt.state.tensor[4:]])
    spoilt = replace(prompt, states=(PromptState.of_embeddings(tokens),))
    _, report = pruned(spoilt, 0.0)
    assert not {4, 5} <= set(report.kept)


def test_keys_and_values_too(tmp_path: Path) -> None:
    task = Task.classification(data(), template="{{ text }}:")
    prompt = fit(tiny_base(FAMILY), task, **{**SETTINGS, "method": "prefix-tuning"})
    shorter, report = pruned(prompt, 0.05)
    assert shorter.state.kind == "key_values"
    assert shorter.length < prompt.length
    assert report.after == pytest.approx(accuracy(shorter))
    shorter.save(tmp_path / "q")
    assert load_prompt(tmp_path / "q").length == shorter.length


def test_what_is_saved_knows_where_it_comes_from(tmp_path: Path) -> None:
    prompt = learned()
    prompt.save(tmp_path / "p")
    shorter, report = pruned(prompt, 0.02, place=str(tmp_path / "p"))
    shorter.save(tmp_path / "q")
    manifest = json.loads((tmp_path / "q" / "prompt.json").read_text())
    assert manifest["parent"] == str(tmp_path / "p")
    assert manifest["metrics"]["test"]["value"] == pytest.approx(report.test_after)
    assert (tmp_path / "q" / "rows.json").exists()
    assert manifest["length"] == report.length
    assert manifest["training"]["pruned"]["kept"] == list(report.kept)
    # its start is that of the tokens that stayed
    task = Task.matching(prompt.spec, data())
    whole, part = (rebuild_starts(one, tiny_base(FAMILY), task.train) for one in (prompt, shorter))
    assert not isinstance(whole, str)
    assert not isinstance(part, str)
    assert torch.equal(part[0].tensor, whole[0].tensor[list(report.kept)])
    again, second = pruned(shorter, 1.0)
    assert again.training["pruned"]["kept"] == [report.kept[index] for index in second.kept]


def test_an_ensemble_is_refused() -> None:
    prompt = learned()
    with pytest.raises(ConfigError, match="prune shortens a single prompt, got an ensemble of 2: learn a single one"):
        pruned(replace(prompt, states=prompt.states * 2))


def test_mistakes() -> None:
    prompt = learned()
    with pytest.raises(ConfigError, match="expected a tolerance of 0 or more"):
        pruned(prompt, -0.1)
    with pytest.raises(DataError, match="expected validation examples to judge by, got none"):
        pruned(prompt, 0.1, splits=replace(data(), validation=()))


def test_one_token_stays_one() -> None:
    base = tiny_base(FAMILY)
    state = as_state(random_prompt(base, 1))
    assert state is not None
    prompt = Prompt((state.detached(),), learned().spec, base.name, base.fingerprint, "prompt-tuning")
    shorter, report = pruned(prompt, 1.0)
    assert shorter.length == 1
    assert report.difference.value == 0


MEAN = """
def cautious(prediction, reference):
    return {("good", "bad"): -2.0}.get((prediction, reference), float(prediction == reference))
"""
OF_ALL = """
def worst_class(predictions, references):
    pairs = list(zip(predictions, references))
    right = {b: [a == b for a, c in pairs if b == c] for b in references}
    return min(sum(one) / len(one) for one in right.values())
"""


@pytest.mark.parametrize(("source", "name"), [(MEAN, "cautious"), (OF_ALL, "worst_class")])
def test_a_metric_of_the_users_own_judges_as_a_built_in_one_does(
    source: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inspection, page and pruning: the figure is the function's, with its interval."""
    (tmp_path / f"own_{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    metric = f"own_{name}:{name}"
    prompt = learned().judged_by(metric)
    expected = evaluate(tiny_base(FAMILY), data().test, prompt).metric
    found = inspected(prompt)
    assert found.answers is not None
    assert found.answers.metric == expected
    assert found.answers.comparison is not None
    assert found.answers.comparison.before.metric == metric
    change = expected.value - found.answers.comparison.before.value
    assert found.answers.comparison.difference.value == pytest.approx(change)
    heading = name.replace("_", " ").capitalize()
    text = Page(render_html(make_inspection_document(found))).text
    assert f"{heading} on test" in text
    assert ("Mean score of a row" in text) == (source is OF_ALL)
    shorter, report = pruned(prompt, 0.05)
    assert report.metric == metric
    assert report.after >= report.before - 0.05
    assert shorter.metrics["test"]["metric"] == metric
    assert shorter.metrics["test"]["value"] == pytest.approx(report.test_after)
    assert heading in "\n".join(told_lines(make_pruning_document(report, prompt.length, tmp_path)))


def test_a_foreign_metric_is_not_imported() -> None:
    """A file may name any function: only who asks for it by name has it called."""
    foreign = replace(learned(), spec=replace(learned().spec, metric="os:getcwd"))
    for verb in (pruned, inspected):
        with pytest.raises(ConfigError, match="give --metric os:getcwd if you trust it"):
            verb(foreign)
