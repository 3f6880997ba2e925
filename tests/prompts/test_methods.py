"""The contract that every method keeps, and where prompts start."""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers.small_tasks import FAST, WORDS, Recorder, reviews_task
from helpers.tiny_models import NOT_SHARING, tiny_base
from torch import Tensor

from softprompt.config import TrainConfig
from softprompt.data.encoding.batching import collate
from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.errors import BaseModelError, ConfigError
from softprompt.inference.evaluation import evaluate
from softprompt.inference.predictor import Predictor
from softprompt.inference.scoring import AnswerScorer
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.methods.method_registry import METHODS, check_method, fold_method, make_method
from softprompt.prompts.prefix import compute_keys_and_values, make_cached_prefix, make_concatenated_prefix, make_prefix
from softprompt.prompts.saved_prompt import TENSOR_FILE, Prompt
from softprompt.prompts.state import PromptState
from softprompt.store.prompt_loading import load_prompt
from softprompt.training.fit import fit
from softprompt.training.initialization import initialize
from softprompt.training.learner import PromptLearner

SPEC = TaskSpec("classification", "{{ text }}:", ("bad", "good"), ("poor", "great story"))
VARIANTS: dict[str, dict[str, Any]] = {
    "prompt-tuning": {"method": "prompt-tuning"},
    "p-tuning with an MLP": {"method": "p-tuning", "method_options": {"width": 128}},
    "p-tuning with an LSTM": {"method": "p-tuning", "method_options": {"encoder": "lstm", "width": 128}},
    "residual": {"method": "residual", "method_options": {"bottleneck": 32}},
    "prefix-tuning": {"method": "prefix-tuning"},
    "prefix-tuning with an MLP": {
        "method": "prefix-tuning",
        "method_options": {"reparameterization": "mlp", "width": 128},
    },
}
FAMILIES = ("gemma3", "gpt2", "mt5", "bart")
# the last layer of the tiny Gemma looks back no more than 8 tokens: behind longer texts it never sees the prompt
SHORT = [Example(word, label) for label, words in WORDS.items() for word in words]
every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_family = pytest.mark.parametrize("family", FAMILIES)


def digest(base: FrozenLM) -> str:
    whole = hashlib.sha256()
    for name, tensor in sorted(base.model.state_dict().items()):
        whole.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def start_of(base: FrozenLM) -> PromptState:
    return initialize("vocab", base, SPEC, 4, seed=0)


def made(variant: str, base: FrozenLM, seed: int = 0) -> Any:
    chosen = VARIANTS[variant]
    options = chosen.get("method_options", {})
    return make_method(chosen["method"], options, base, start_of(base), base.embedding_std, seed)


def shaken(variant: str, base: FrozenLM) -> Any:
    """As after some steps: every parameter away from where it began."""
    module, generator = made(variant, base), torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module


def same(one: PromptState, other: PromptState) -> bool:
    assert (one.kind, len(one.tensors)) == (other.kind, len(other.tensors))
    return all(map(torch.equal, one.tensors, other.tensors))


def log_probabilities(base: FrozenLM, make: Callable[..., Any], state: PromptState) -> Tensor:
    task = reviews_task()
    encoder = ExampleEncoder(base, task.spec, state.length)
    objective = AnswerScorer(base, encoder.verbalizer)
    with torch.no_grad():
        return objective.label_log_probabilities(make(base, state), encoder.scoring_items(task.test))


class Learned(NamedTuple):
    """A run of a method, and the base's weights before it."""

    prompt: Prompt
    losses: list[float]
    weights_before: str


@cache
def learned(variant: str, family: str) -> Learned:
    before, seen = digest(tiny_base(family)), Recorder()
    settings = {**FAST, **VARIANTS[variant], "steps": 40, "eval_every": 40}
    return Learned(fit(tiny_base(family), reviews_task(), callback=seen, **settings), seen.losses, before)


def test_every_method_is_among_the_variants() -> None:
    assert {chosen["method"] for chosen in VARIANTS.values()} == set(METHODS)


def test_help_names_every_method() -> None:
    description = str(TrainConfig.model_fields["method"].description)
    assert set(description.replace(" or ", ", ").split(", ")) == set(METHODS)


@every_family
@every_variant
class TestContract:
    def test_starts_exactly_at_its_start(self, variant: str, family: str) -> None:
        base = tiny_base(family)
        start, found = start_of(base), fold_method(made(variant, base))
        assert found.kind == METHODS[VARIANTS[variant]["method"]].kind
        expected = start if found.kind == "embeddings" else compute_keys_and_values(base, start.tensor)
        assert len(found.tensors) == len(expected.tensors)
        for one, other in zip(found.tensors, expected.tensors, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6 * float(other.std()), rtol=1e-6)
        plain = make_concatenated_prefix if base.architecture == "decoder-only" else make_prefix
        if found.kind == "key_values" and plain is make_prefix:
            return  # in an encoder words see the text too, which keys and values cannot
        given, words = log_probabilities(base, make_prefix, found), log_probabilities(base, plain, start)
        torch.testing.assert_close(given, words, atol=1e-4, rtol=0)

    def test_every_parameter_learns_by_the_second_step(self, variant: str, family: str) -> None:
        base, task = tiny_base(family), reviews_task()
        settings = {**FAST, **VARIANTS[variant], "warmup": 0, "schedule": "constant"}
        learner = PromptLearner(base, task, TrainConfig.build(**settings))
        encoder = ExampleEncoder(base, task.spec, 4)
        objective = AnswerScorer(base, encoder.verbalizer)
        batch = collate(encoder.training_items(SHORT), base.device)
        before = {name: parameter.detach().clone() for name, parameter in learner.method.named_parameters()}
        for step in range(2):
            objective.losses(make_prefix(base, learner.method.state()), batch).mean().backward()
            gradients = {name: float(one.grad.abs().max()) for name, one in learner.method.named_parameters()}
            learner.clip_gradients()
            learner.update()
            if step == 0:
                # Adam's first step is as long as the rate: networks learn at 1/100 of it, keys and values at 1/5
                for name, parameter in learner.method.named_parameters():
                    length = float((parameter.detach() - before[name]).abs().max())
                    factor = 0.01 if name.startswith(("mlp", "lstm", "network", "norm")) else 0.2 if "." in name else 1
                    assert length == pytest.approx(0.3 * factor * (gradients[name] > 0), rel=1e-2)
        assert learner.learned == sum(one.numel() for one in before.values()) > 0
        for name, parameter in learner.method.named_parameters():
            assert gradients[name] > 0, name
            assert not torch.equal(parameter, before[name]), name

    def test_lowers_the_loss(self, variant: str, family: str) -> None:
        base, (prompt, losses, _) = tiny_base(family), learned(variant, family)
        assert sum(losses[-5:]) < 0.75 * sum(losses[:5])
        start = initialize("labels", base, prompt.spec, 4, 0)
        gold = torch.tensor([prompt.spec.label_index[str(one.label)] for one in reviews_task().test])
        before, after = (
            float(-log_probabilities(base, make_prefix, state).gather(1, gold[:, None]).mean())
            for state in (start, prompt.state)
        )
        assert after < 0.8 * before

    def test_base_is_unchanged_after_training(self, variant: str, family: str) -> None:
        base, run = tiny_base(family), learned(variant, family)
        assert digest(base) == run.weights_before
        assert all(parameter.grad is None for parameter in base.model.parameters())
        assert not any(module.training for module in base.model.modules())

    def test_gradient_still_flows_after_an_evaluation(self, variant: str, family: str) -> None:
        base, task = tiny_base(family), reviews_task(validation=5)
        module = shaken(variant, base)
        encoder = ExampleEncoder(base, task.spec, 4)
        objective = AnswerScorer(base, encoder.verbalizer)
        batch = collate(encoder.training_items(SHORT), base.device)
        gradients = []
        for _ in range(2):
            module.zero_grad()
            objective.losses(make_prefix(base, module.state()), batch).sum().backward()
            gradients.append([parameter.grad.clone() for parameter in module.parameters()])
            evaluate(base, task.validation, fold_method(module), spec=task.spec)
        assert all(gradient.abs().max() > 0 for gradient in gradients[0])
        assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))

    def test_saved_and_loaded_gives_the_same_logits(self, variant: str, family: str, tmp_path: Path) -> None:
        prompt, task = learned(variant, family).prompt, reviews_task()
        loaded = load_prompt(prompt.save(tmp_path / "p"))
        assert same(loaded.state, prompt.state)
        assert loaded.method == VARIANTS[variant]["method"]
        before, after = (
            Predictor.of_prompt(tiny_base(family), one).label_log_probabilities(task.test) for one in (prompt, loaded)
        )
        assert torch.equal(before, after)

    def test_a_fixed_seed_gives_the_same_bytes(self, variant: str, family: str, tmp_path: Path) -> None:
        settings, task = {**FAST, **VARIANTS[variant], "init": "random", "steps": 3}, reviews_task(validation=6, test=6)
        for name, seed in (("one", 5), ("same", 5), ("other", 6)):
            torch.manual_seed(len(name))
            fit(tiny_base(family), task, out=tmp_path / name, seed=seed, **settings)
        one, alike, other = ((tmp_path / name / TENSOR_FILE).read_bytes() for name in ("one", "same", "other"))
        assert one == alike
        assert one != other
        for name in ("prompt.json", "history.jsonl"):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "same" / name).read_bytes()

    def test_networks_are_drawn_from_the_seed(self, variant: str, family: str) -> None:
        base = tiny_base(family)
        torch.manual_seed(1)
        one, other = made(variant, base, seed=1), made(variant, base, seed=2)
        torch.manual_seed(2)
        alike = made(variant, base, seed=1).state_dict()
        assert all(torch.equal(tensor, alike[name]) for name, tensor in one.state_dict().items())
        weights = [name for name in alike if name.split(".")[0] in ("mlp", "lstm", "network")]
        differing = [name for name in weights if not torch.equal(one.state_dict()[name], other.state_dict()[name])]
        assert bool(differing) == bool(weights) == (variant not in ("prompt-tuning", "prefix-tuning"))

    def test_folds_to_what_the_model_saw(self, variant: str, family: str) -> None:
        base = tiny_base(family)
        module = shaken(variant, base)
        state = fold_method(module)
        assert state.length == 4
        assert all(tensor.dtype == torch.float32 and not tensor.requires_grad for tensor in state.tensors)
        assert all(tensor.requires_grad for tensor in module.state().tensors)
        # with gradient an LSTM goes other ways, to the last bits
        for one, other in zip(state.tensors, module.state().tensors, strict=True):
            torch.testing.assert_close(one, other.detach(), atol=1e-6, rtol=1e-6)
        kept = state.detached()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.3)
        assert same(state, kept)
        assert not same(fold_method(module), kept)


@pytest.mark.parametrize("family", FAMILIES[:2])
@pytest.mark.parametrize(
    "variant", [one for one, chosen in VARIANTS.items() if METHODS[chosen["method"]].kind == "embeddings"]
)
def test_cached_prefix_equals_concatenation(variant: str, family: str) -> None:
    state = learned(variant, family).prompt.state
    shared, plain = (
        log_probabilities(tiny_base(family), make, state) for make in (make_cached_prefix, make_concatenated_prefix)
    )
    torch.testing.assert_close(shared, plain, atol=1e-4, rtol=1e-4)
    assert shared.std() > 0.1


def test_one_unit_is_one_standard_deviation_of_the_embeddings() -> None:
    base = tiny_base("gemma3")
    for name in ("prompt-tuning", "residual"):
        module = made(name, base)
        with torch.no_grad():
            module.theta.add_(1)
        torch.testing.assert_close(fold_method(module).tensor, start_of(base).tensor + base.embedding_std)


def test_one_unit_is_one_standard_deviation_of_a_layers_keys_and_of_its_values() -> None:
    base = tiny_base("gemma3")
    start, module = compute_keys_and_values(base, start_of(base).tensor), made("prefix-tuning", base)
    with torch.no_grad():
        for theta in module.theta:
            theta.add_(1)
    assert len(start.tensors) == base.config.num_hidden_layers
    for before, after in zip(start.tensors, fold_method(module).tensors, strict=True):
        keys, values = before
        torch.testing.assert_close(after[0], keys + keys.std(correction=0))
        torch.testing.assert_close(after[1], values + values.std(correction=0))
        assert keys.std() != pytest.approx(float(values.std()), rel=0.05)


def test_the_whole_prefix_is_learned_not_only_its_first_layer() -> None:
    base = tiny_base("gemma3")
    before, after = (
        compute_keys_and_values(base, start_of(base).tensor),
        learned("prefix-tuning", "gemma3").prompt.state,
    )
    shapes = [tensor.shape for tensor in before.tensors]
    assert [tensor.shape for tensor in after.tensors] == shapes == [(2, 2, 4, 8)] * 3


class TestMistakes:
    def test_unknown_method_names_the_known_ones(self) -> None:
        with pytest.raises(ConfigError) as caught:
            check_method("prompt tuning")
        assert str(caught.value) == (
            "unknown method 'prompt tuning': expected one of p-tuning, prefix-tuning, prompt-tuning, residual"
        )
        with pytest.raises(ConfigError, match="unknown method 'magic'"):
            fit(tiny_base("llama"), reviews_task(), method="magic", **FAST)

    @pytest.mark.parametrize(
        ("method", "options", "words"),
        [
            ("p-tuning", {"encode": "mlp"}, "method 'p-tuning' has no option 'encode': expected one of encoder, width"),
            ("prompt-tuning", {"width": 3}, "method 'prompt-tuning' has no option 'width': it has none, leave it out"),
            ("residual", {"width": 3}, "method 'residual' has no option 'width': expected one of bottleneck"),
            (
                "p-tuning",
                {"encoder": "gru"},
                "option 'encoder' of method 'p-tuning': input should be 'mlp' or 'lstm', got 'gru'",
            ),
            (
                "prefix-tuning",
                {"reparameterization": "lstm"},
                "option 'reparameterization' of method 'prefix-tuning': input should be 'none' or 'mlp', got 'lstm'",
            ),
            (
                "p-tuning",
                {"width": 0},
                "option 'width' of method 'p-tuning': input should be greater than or equal to 1, got 0",
            ),
            (
                "residual",
                {"bottleneck": 1_000_000},
                "option 'bottleneck' of method 'residual': input should be less than or equal to 65536, got 1000000",
            ),
            ("residual", {"bottleneck": "many"}, "option 'bottleneck' of method 'residual': input should be a valid"),
        ],
    )
    def test_wrong_option(self, method: str, options: dict[str, Any], words: str) -> None:
        for refused in (
            lambda: check_method(method, options),
            lambda: fit(tiny_base("llama"), reviews_task(), method=method, method_options=options, **FAST),
        ):
            with pytest.raises(ConfigError) as caught:
                refused()
            assert str(caught.value).startswith(words)
            assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("family", NOT_SHARING)
    def test_prefix_tuning_needs_a_cache(self, family: str) -> None:
        seen = Recorder()
        with pytest.raises(BaseModelError) as caught:
            fit(tiny_base(family), reviews_task(), method="prefix-tuning", callback=seen, **FAST)
        assert str(caught.value) == (
            f"a prompt of keys and values needs a shared prefix, which is not exact on 'tiny {family}' (softprompt "
            "doctor measures it): use a method that learns virtual tokens, such as prompt-tuning"
        )
        assert seen.first_step == -1
