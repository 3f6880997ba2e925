"""Several prompts that answer together: one folder, one pass over the texts, and the vote of each."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small_tasks import reviews
from helpers.tiny_models import NOT_SHARING, as_state, random_prompt, tiny_base
from safetensors.torch import load, save
from torch import Tensor

from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.errors import ConfigError, PromptFileError
from softprompt.inference import scoring as objective_module
from softprompt.inference.evaluation import evaluate
from softprompt.inference.predictor import Predictor, Vote
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.prefix import compute_keys_and_values
from softprompt.prompts.saved_prompt import MANIFEST_FILE, SEAL, TENSOR_FILE, Prompt
from softprompt.prompts.state import PromptState
from softprompt.store.prompt_loading import load_prompt
from softprompt.utils.seals import unseal

# one word begins another
SPEC = TaskSpec("classification", "{{ text }}\nLabel:", ("a", "b", "c"), ("bad", "bad film", "film"))
EXAMPLES = [Example(example.text, "abc"[index % 3]) for index, example in enumerate(reviews(train=25).train)]
LENGTHS = (3, 12, 1, 5)  # virtual tokens; the window is 8


def members(base: FrozenLM, kind: str = "embeddings") -> tuple[PromptState, ...]:
    tokens = [random_prompt(base, length, seed).detach() for seed, length in enumerate(LENGTHS)]
    if kind == "key_values":
        return tuple(compute_keys_and_values(base, one) for one in tokens)
    return tuple(PromptState.of_embeddings(one) for one in tokens)


def ensemble(base: FrozenLM, states: tuple[PromptState, ...], spec: TaskSpec = SPEC) -> Prompt:
    return Prompt(states, spec, base.name, base.fingerprint, "prompt-tuning")


def one_by_one(base: FrozenLM, states: tuple[PromptState, ...]) -> Tensor:
    """Probabilities ``[M, examples, C]`` by a predictor for each."""
    return torch.stack([Predictor(base, SPEC, state).label_log_probabilities(EXAMPLES).exp() for state in states])


def probabilities(predictor: Predictor) -> Tensor:
    """As predicted: ``[examples, C]``."""
    found = list(predictor.predict(EXAMPLES))
    assert [one.index for one in found] == list(range(len(EXAMPLES)))
    for one in found:
        assert one.probabilities is not None
        assert one.label == max(one.probabilities, key=one.probabilities.__getitem__)
    return torch.tensor([list((one.probabilities or {}).values()) for one in found])


WAYS = [
    *((family, kind) for family in ("gemma3", "bart") for kind in ("embeddings", "key_values")),
    *(("gpt2", "key_values"), ("mamba", "embeddings"), ("mt5", "embeddings")),
]


class TestVotes:
    @pytest.mark.parametrize(("family", "kind"), WAYS)
    def test_mean_of_the_members_probabilities(self, family: str, kind: str) -> None:
        base = tiny_base(family)
        states = members(base, kind)
        alone = one_by_one(base, states)
        assert (alone - alone.mean(0)).abs().max() > 0.05
        found = probabilities(Predictor(base, SPEC, states))
        torch.testing.assert_close(found, alone.mean(0), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.sum(1), torch.ones(len(EXAMPLES)))

    @pytest.mark.parametrize(("family", "kind"), WAYS)
    def test_majority_of_the_members_labels(self, family: str, kind: str) -> None:
        base = tiny_base(family)
        states = members(base, kind)
        alone = one_by_one(base, states)
        expected, ties, overruled = [], 0, 0
        for of_example, mean in zip(alone.unbind(1), alone.mean(0), strict=True):
            votes = [int(row.argmax()) for row in of_example]
            counts = [votes.count(label) for label in range(3)]
            most = [label for label in range(3) if counts[label] == max(counts)]
            expected.append(max(most, key=lambda label: float(mean[label])))
            ties += len(most) > 1
            overruled += expected[-1] != int(mean.argmax())
        found = probabilities(Predictor(base, SPEC, states, vote="majority"))
        assert found.argmax(1).tolist() == expected
        torch.testing.assert_close(found.sum(1), torch.ones(len(EXAMPLES)))
        # else this would not show how a tie is broken
        assert ties > 0

    def test_majority_may_overrule_the_mean(self) -> None:
        predictor = Scripted([[0.4, 0.35, 0.25], [0.4, 0.35, 0.25], [0.01, 0.98, 0.01]])
        assert predictor.labels("mean") == "b"
        assert predictor.labels("majority") == "a"

    def test_ties_go_to_the_higher_mean_probability(self) -> None:
        rows = [[0.5, 0.4, 0.1], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5]]
        assert Scripted(rows).labels("majority") == "b"
        assert Scripted([rows[0], rows[2]]).labels("majority") == "a"
        assert Scripted([rows[1], [0.01, 0.0, 0.99]]).labels("majority") == "c"
        # two votes beat one, however sure that one is
        assert Scripted([rows[0], rows[0], [0.0, 0.0, 1.0]]).labels("majority") == "a"

    def test_scores_do_not_depend_on_how_the_items_are_batched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        base = tiny_base("gemma3")
        predictor = Predictor(base, SPEC, members(base))
        whole = predictor.member_log_probabilities(EXAMPLES)
        assert whole.shape == (len(LENGTHS), len(EXAMPLES), 3)
        monkeypatch.setattr(objective_module, "EVALUATION_TOKENS", 60)
        torch.testing.assert_close(predictor.member_log_probabilities(EXAMPLES), whole, atol=1e-5, rtol=0)
        torch.testing.assert_close(whole.exp(), one_by_one(base, predictor.states), atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("vote", ["mean", "majority"])
    def test_one_member_answers_as_it_does_alone(self, vote: Vote) -> None:
        base = tiny_base("gpt2")
        state = members(base)[1]
        alone = Predictor(base, SPEC, state).label_log_probabilities(EXAMPLES)
        assert torch.equal(Predictor(base, SPEC, [state], vote=vote).label_log_probabilities(EXAMPLES), alone)

    def test_no_examples_no_answers(self) -> None:
        base = tiny_base("gpt2")
        predictor = Predictor(base, SPEC, members(base), vote="majority")
        assert list(predictor.predict([])) == []
        assert predictor.member_log_probabilities([]).shape == (len(LENGTHS), 0, 3)


class Scripted(Predictor):
    """Members that are as sure of each label as said."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__(tiny_base("gpt2"), SPEC, members(tiny_base("gpt2"))[: len(rows)])
        self._rows = torch.tensor(rows)

    def member_log_probabilities(self, examples: Any) -> Tensor:
        return self._rows.log()[:, None]

    def labels(self, vote: Vote) -> str | None:
        self.vote = vote
        (found,) = self.predict(EXAMPLES[:1])
        return found.label


class TestPrompt:
    def test_evaluation_is_that_of_the_predictor(self) -> None:
        base = tiny_base("gpt2")
        prompt = ensemble(base, members(base))
        for vote in ("mean", "majority"):
            expected = [one.label for one in Predictor(base, SPEC, prompt.states, vote=vote).predict(EXAMPLES)]
            result = evaluate(base, EXAMPLES, prompt, vote=vote)
            assert [one.label for one in result.predictions] == expected
            right = sum(label == one.label for label, one in zip(expected, EXAMPLES, strict=True))
            assert result.metric.value == pytest.approx(right / len(EXAMPLES))

    def test_room_is_made_for_the_longest(self) -> None:
        base = tiny_base("gpt2")
        prompt = ensemble(base, members(base))
        assert prompt.length == 12
        assert Predictor(base, SPEC, prompt.states).encoder._room == 160 - 12

    def test_there_is_no_single_state(self) -> None:
        base = tiny_base("gpt2")
        with pytest.raises(PromptFileError) as caught:
            _ = ensemble(base, members(base)).state
        assert str(caught.value) == "expected a single prompt, got an ensemble of 4: give one of them"
        assert ensemble(base, members(base)[:1]).state is not None

    def test_generation_is_refused(self) -> None:
        base, spec = tiny_base("gpt2"), TaskSpec("generation", "{{ text }}:")
        prompt = ensemble(base, members(base), spec)
        for refused in (
            lambda: Predictor(base, spec, prompt.states),
            lambda: Predictor.of_prompt(base, prompt),
            lambda: evaluate(base, [Example("a", references=("b",))], prompt),
        ):
            with pytest.raises(ConfigError) as caught:
                refused()
            assert str(caught.value) == ("an ensemble answers by vote, expected a classification task, got generation")
        assert Predictor(base, spec, prompt.states[:1]).spec.kind == "generation"


def uneven(layers: int = 3) -> PromptState:
    """Keys and values whose layers differ in heads and sizes, as in some families."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(2, 1 + layer, 5, 4 + 2 * layer) for layer in range(layers)]
    return PromptState("key_values", tuple(torch.randn(shape, generator=generator) for shape in shapes))


def stored(kind: str) -> tuple[PromptState, ...]:
    if kind == "embeddings":
        return members(tiny_base("gpt2"))
    if kind == "many layers":
        return (uneven(12),)
    if kind == "many members":
        base = tiny_base("gpt2")
        return tuple(as_state(random_prompt(base, 2, seed)) for seed in range(12))  # type: ignore[misc]
    return (uneven(), replace(uneven(), tensors=tuple(-tensor[:, :, :2] for tensor in uneven().tensors)))


class TestFolder:
    @pytest.mark.parametrize("kind", ["embeddings", "key_values", "many layers", "many members"])
    def test_comes_back_to_the_bit(self, kind: str, tmp_path: Path) -> None:
        before = stored(kind)
        prompt = ensemble(tiny_base("gpt2"), before)
        after = load_prompt(prompt.save(tmp_path / "p")).states
        assert len(after) == len(before)
        for one, other in zip(after, before, strict=True):
            assert (one.kind, one.length, len(one.tensors)) == (other.kind, other.length, len(other.tensors))
            assert all(map(torch.equal, one.tensors, other.tensors))
            assert all(tensor.dtype == torch.float32 and not tensor.requires_grad for tensor in one.tensors)
        manifest = json.loads((tmp_path / "p" / MANIFEST_FILE).read_text())
        assert manifest.get("members", 1) == len(before)
        assert manifest["kind"] == before[0].kind
        assert manifest["length"] == max(state.length for state in before)

    def test_the_tensors_have_plain_names(self, tmp_path: Path) -> None:
        base = tiny_base("gpt2")
        names = {}
        for kind, states in {"one": stored("many layers"), "two": stored("key_values"), "text": members(base)}.items():
            folder = ensemble(base, states).save(tmp_path / kind)
            names[kind] = sorted(load((folder / TENSOR_FILE).read_bytes()))
        assert names["one"] == sorted(f"layer.{layer}" for layer in range(12))
        assert names["two"] == [f"member.{member}.layer.{layer}" for member in range(2) for layer in range(3)]
        assert names["text"] == [f"member.{member}.prompt" for member in range(4)]

    def test_members_that_share_memory_are_saved(self, tmp_path: Path) -> None:
        base = tiny_base("gpt2")
        state = members(base)[0]
        whole = torch.arange(64.0).view(2, 32)
        parts = tuple(PromptState.of_embeddings(part) for part in (whole[:1], whole[1:], whole))
        after = load_prompt(ensemble(base, (state, state, *parts)).save(tmp_path / "p")).states
        for one, other in zip(after, (state, state, *parts), strict=True):
            assert torch.equal(one.tensor, other.tensor)

    def test_answers_the_same_when_loaded(self, tmp_path: Path) -> None:
        base = tiny_base("gemma3")
        prompt = ensemble(base, members(base, "key_values"))
        loaded = load_prompt(prompt.save(tmp_path / "p"))
        one, other = (Predictor.of_prompt(base, some).label_log_probabilities(EXAMPLES) for some in (prompt, loaded))
        assert torch.equal(one, other)


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / MANIFEST_FILE
    values = {**unseal(json.loads(path.read_text(encoding="utf-8")), SEAL), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}), encoding="utf-8")


def edit_tensors(folder: Path, **changes: Any) -> None:
    """Change, add or (``...``) remove; the digest is made to fit."""
    tensors = {**load((folder / TENSOR_FILE).read_bytes()), **changes}
    content = save({name: tensor for name, tensor in tensors.items() if tensor is not ...})
    (folder / TENSOR_FILE).write_bytes(content)
    edit_manifest(folder, sha256=hashlib.sha256(content).hexdigest())


Damage = Callable[[Path], object]
DAMAGE: dict[str, tuple[str, Damage, str]] = {
    "a member under another name": (
        "embeddings",
        lambda folder: edit_tensors(folder, **{"member.2.prompt": ..., "member.9.prompt": torch.ones(2, 32)}),
        "it lacks 'member.2.prompt'",
    ),
    "a member is missing": (
        "embeddings",
        lambda folder: edit_tensors(folder, **{"member.2.prompt": ...}),
        "kind 'embeddings' with 4 members in 3 tensors",
    ),
    "one member too many": (
        "embeddings",
        lambda folder: edit_tensors(folder, **{"member.4.prompt": torch.ones(2, 32)}),
        "5 tensors, expected 4",
    ),
    "another tensor": (
        "embeddings",
        lambda folder: edit_tensors(folder, theta=torch.ones(2, 32)),
        "5 tensors, expected 4",
    ),
    "one dimension": (
        "embeddings",
        lambda folder: edit_tensors(folder, **{"member.1.prompt": torch.ones(32)}),
        r"kind 'embeddings' with shape \(32,\)",
    ),
    "no virtual tokens": (
        "embeddings",
        lambda folder: edit_tensors(folder, **{"member.1.prompt": torch.ones(0, 32)}),
        r"kind 'embeddings' with shape \(0, 32\)",
    ),
    "NaN in the last member": (
        "embeddings",
        lambda folder: edit_tensors(folder, **{"member.3.prompt": torch.full((5, 32), float("nan"))}),
        "values that are not numbers",
    ),
    "fewer members said": (
        "embeddings",
        lambda folder: edit_manifest(folder, members=3),
        "4 tensors, expected 3",
    ),
    "more members said": (
        "embeddings",
        lambda folder: edit_manifest(folder, members=5),
        "kind 'embeddings' with 5 members in 4 tensors",
    ),
    "members unsaid": ("embeddings", lambda folder: edit_manifest(folder, members=...), "it lacks 'prompt'"),
    "members a word": (
        "embeddings",
        lambda folder: edit_manifest(folder, members="4"),
        "kind 'embeddings' with '4' members in 4 tensors",
    ),
    "members a fraction": (
        "embeddings",
        lambda folder: edit_manifest(folder, members=4.0),
        "kind 'embeddings' with 4.0 members in 4 tensors",
    ),
    "members nothing": ("embeddings", lambda folder: edit_manifest(folder, members=None), "with None members"),
    "no members": ("embeddings", lambda folder: edit_manifest(folder, members=0), "with 0 members in 4 tensors"),
    "length of another member": (
        "embeddings",
        lambda folder: edit_manifest(folder, length=3),
        "12 virtual tokens, its length says 3",
    ),
    "the other kind": (
        "embeddings",
        lambda folder: edit_manifest(folder, kind="key_values"),
        "it lacks 'member.0.layer.0'",
    ),
    "keys and values as embeddings": (
        "key_values",
        lambda folder: edit_manifest(folder, kind="embeddings"),
        "it lacks 'member.0.prompt'",
    ),
    "a layer is missing": (
        "key_values",
        lambda folder: edit_tensors(folder, **{"member.1.layer.1": ...}),
        "it lacks 'member.1.layer.1'",
    ),
    "a layer too many": (
        "key_values",
        lambda folder: edit_tensors(folder, **{"member.0.layer.7": torch.ones(2, 1, 5, 4)}),
        "it lacks 'member.0.layer.3'",
    ),
    "no pair": (
        "key_values",
        lambda folder: edit_tensors(folder, **{"member.0.layer.1": torch.ones(3, 2, 5, 6)}),
        r"kind 'key_values' with shape \(3, 2, 5, 6\)",
    ),
    "three dimensions": (
        "key_values",
        lambda folder: edit_tensors(folder, **{"member.0.layer.0": torch.ones(2, 5, 4)}),
        r"kind 'key_values' with shape \(2, 5, 4\)",
    ),
    "a layer of another length": (
        "key_values",
        lambda folder: edit_tensors(folder, **{"member.0.layer.2": torch.ones(2, 3, 4, 8)}),
        r"kind 'key_values' with shape \(2, 3, 4, 8\)",
    ),
    "infinite values": (
        "key_values",
        lambda folder: edit_tensors(folder, **{"member.1.layer.2": torch.full((2, 3, 2, 8), float("inf"))}),
        "values that are not numbers",
    ),
}


class TestDamage:
    @pytest.mark.parametrize("how", DAMAGE)
    def test_is_refused_in_one_line(self, how: str, tmp_path: Path) -> None:
        kind, damage, words = DAMAGE[how]
        folder = ensemble(tiny_base("gpt2"), stored(kind)).save(tmp_path / "p")
        load_prompt(folder)
        damage(folder)
        with pytest.raises(PromptFileError, match=words) as caught:
            load_prompt(folder)
        assert str(caught.value).startswith(f"the saved prompt '{folder}' is damaged: ")
        assert "\n" not in str(caught.value)


def test_families_of_these_tests_share_or_do_not() -> None:
    assert {family for family, _ in WAYS if family in NOT_SHARING} == {"mamba"}
    assert {family for family, _ in WAYS if tiny_base(family).architecture == "encoder-decoder"} == {"bart", "mt5"}


def test_prompts_of_two_kinds_are_not_saved(tmp_path: Path) -> None:
    base = tiny_base("gpt2")
    both = (members(base)[0], members(base, "key_values")[0])
    for states in (both, ()):
        with pytest.raises(PromptFileError, match="the prompts of an ensemble are of one kind: save them one by one"):
            ensemble(base, states).save(tmp_path / "p")
    assert list(tmp_path.iterdir()) == []
