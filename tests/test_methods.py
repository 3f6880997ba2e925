"""The contract that every method keeps, and where prompts start."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from small import FAST, WORDS, Recorder, reviews, reviews_task
from tiny import NOT_SHARING, tiny_base
from torch import Tensor

from softprompt.base import FrozenLM
from softprompt.batch import Encoder, collate
from softprompt.config import TrainConfig
from softprompt.data import Example
from softprompt.errors import BaseModelError, ConfigError, PromptFileError
from softprompt.evaluate import evaluate
from softprompt.fit import fit
from softprompt.learner import Learner
from softprompt.methods import METHODS, check_method, fold, make_method
from softprompt.methods.initialisers import check_init, default_instruction, initialise
from softprompt.objective import Objective
from softprompt.predict import Predictor
from softprompt.prefix import PromptState, cached_prefix, concatenated_prefix, keys_and_values, make_prefix
from softprompt.store import TENSOR_FILE, Prompt, load_prompt
from softprompt.task import Task, TaskSpec
from softprompt.verbalizer import plain_ids

SPEC = TaskSpec("classification", "{{ text }}:", ("bad", "good"), ("poor", "great story"))
VARIANTS: dict[str, dict[str, Any]] = {
    "prompt-tuning": {"method": "prompt-tuning"},
    "p-tuning with an MLP": {"method": "p-tuning", "method_options": {"width": 128}},
    "p-tuning with an LSTM": {"method": "p-tuning", "method_options": {"encoder": "lstm", "width": 128}},
    "residual": {"method": "residual", "method_options": {"bottleneck": 32}},
    "prefix-tuning": {"method": "prefix-tuning"},
    "prefix-tuning with an MLP": {
        "method": "prefix-tuning",
        "method_options": {"reparametrisation": "mlp", "width": 128},
    },
}
FAMILIES = ("gemma3", "gpt2", "mt5", "bart")
# the last layer of the tiny Gemma looks back no more than 8 tokens: behind longer texts it never sees the prompt
SHORT = [Example(word, label) for label, words in WORDS.items() for word in words]
EMBEDDING_METHODS = sorted(name for name, entry in METHODS.items() if entry.kind == "embeddings")
every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_family = pytest.mark.parametrize("family", FAMILIES)


def digest(base: FrozenLM) -> str:
    whole = hashlib.sha256()
    for name, tensor in sorted(base.model.state_dict().items()):
        whole.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def start_of(base: FrozenLM) -> PromptState:
    return initialise("vocab", base, SPEC, 4, seed=0)


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
    encoder = Encoder(base, task.spec, state.length)
    objective = Objective(base, encoder.verbalizer)
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
    return Learned(fit(tiny_base(family), reviews_task(), observer=seen, **settings), seen.losses, before)


def test_every_method_is_among_the_variants() -> None:
    assert {chosen["method"] for chosen in VARIANTS.values()} == set(METHODS)


@every_family
@every_variant
class TestContract:
    def test_starts_exactly_at_its_start(self, variant: str, family: str) -> None:
        base = tiny_base(family)
        start, found = start_of(base), fold(made(variant, base))
        assert found.kind == METHODS[VARIANTS[variant]["method"]].kind
        expected = start if found.kind == "embeddings" else keys_and_values(base, start.tensor)
        assert len(found.tensors) == len(expected.tensors)
        for one, other in zip(found.tensors, expected.tensors, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6 * float(other.std()), rtol=1e-6)
        plain = concatenated_prefix if base.architecture == "decoder-only" else make_prefix
        if found.kind == "key_values" and plain is make_prefix:
            return  # in an encoder words see the text too, which keys and values cannot
        given, words = log_probabilities(base, make_prefix, found), log_probabilities(base, plain, start)
        torch.testing.assert_close(given, words, atol=1e-4, rtol=0)

    def test_every_parameter_learns_by_the_second_step(self, variant: str, family: str) -> None:
        base, task = tiny_base(family), reviews_task()
        settings = {**FAST, **VARIANTS[variant], "warmup": 0, "schedule": "constant"}
        learner = Learner(base, task, TrainConfig.build(**settings))
        encoder = Encoder(base, task.spec, 4)
        objective = Objective(base, encoder.verbalizer)
        batch = collate(encoder.training_items(SHORT), base.device)
        before = {name: parameter.detach().clone() for name, parameter in learner.method.named_parameters()}
        for step in range(2):
            objective.losses(make_prefix(base, learner.method.state()), batch).mean().backward()
            gradients = {name: float(one.grad.abs().max()) for name, one in learner.method.named_parameters()}
            learner.clip()
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
        start = initialise("labels", base, prompt.spec, 4, 0)
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
        encoder = Encoder(base, task.spec, 4)
        objective = Objective(base, encoder.verbalizer)
        batch = collate(encoder.training_items(SHORT), base.device)
        gradients = []
        for _ in range(2):
            module.zero_grad()
            objective.losses(make_prefix(base, module.state()), batch).sum().backward()
            gradients.append([parameter.grad.clone() for parameter in module.parameters()])
            evaluate(base, task.validation, fold(module), spec=task.spec)
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
        state = fold(module)
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
        assert not same(fold(module), kept)


@pytest.mark.parametrize("family", FAMILIES[:2])
@pytest.mark.parametrize("variant", [one for one, chosen in VARIANTS.items() if chosen["method"] in EMBEDDING_METHODS])
def test_cached_prefix_equals_concatenation(variant: str, family: str) -> None:
    state = learned(variant, family).prompt.state
    shared, plain = (log_probabilities(tiny_base(family), make, state) for make in (cached_prefix, concatenated_prefix))
    torch.testing.assert_close(shared, plain, atol=1e-4, rtol=1e-4)
    assert shared.std() > 0.1


def test_one_unit_is_one_standard_deviation_of_the_embeddings() -> None:
    base = tiny_base("gemma3")
    for name in ("prompt-tuning", "residual"):
        module = made(name, base)
        with torch.no_grad():
            module.theta.add_(1)
        torch.testing.assert_close(fold(module).tensor, start_of(base).tensor + base.embedding_std)


def test_one_unit_is_one_standard_deviation_of_a_layers_keys_and_of_its_values() -> None:
    base = tiny_base("gemma3")
    start, module = keys_and_values(base, start_of(base).tensor), made("prefix-tuning", base)
    with torch.no_grad():
        for theta in module.theta:
            theta.add_(1)
    assert len(start.tensors) == base.config.num_hidden_layers
    for before, after in zip(start.tensors, fold(module).tensors, strict=True):
        keys, values = before
        torch.testing.assert_close(after[0], keys + keys.std(correction=0))
        torch.testing.assert_close(after[1], values + values.std(correction=0))
        assert keys.std() != pytest.approx(float(values.std()), rel=0.05)


def test_the_whole_prefix_is_learned_not_only_its_first_layer() -> None:
    base = tiny_base("gemma3")
    before, after = keys_and_values(base, start_of(base).tensor), learned("prefix-tuning", "gemma3").prompt.state
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
                {"reparametrisation": "lstm"},
                "option 'reparametrisation' of method 'prefix-tuning': input should be 'none' or 'mlp', got 'lstm'",
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

    @pytest.mark.parametrize("method", EMBEDDING_METHODS)
    def test_keys_and_values_are_no_start_for_virtual_tokens(self, method: str, saved_prefix: Path) -> None:
        base = tiny_base("llama")
        words = f"the prompt to start from holds keys and values, which only prefix-tuning can learn on, not {method}"
        with pytest.raises(ConfigError) as caught:
            make_method(method, {}, base, load_prompt(saved_prefix).state, 1.0, 0)
        assert str(caught.value) == words
        with pytest.raises(ConfigError, match=words):
            fit(base, reviews_task(), **{**FAST, "method": method, "init": f"prompt:{saved_prefix}"})

    @pytest.mark.parametrize("family", NOT_SHARING)
    def test_prefix_tuning_needs_a_cache(self, family: str) -> None:
        seen = Recorder()
        with pytest.raises(BaseModelError) as caught:
            fit(tiny_base(family), reviews_task(), method="prefix-tuning", observer=seen, **FAST)
        assert str(caught.value) == (
            f"a prompt of keys and values needs a shared prefix, which is not exact on 'tiny {family}' (softprompt "
            "doctor measures it): use a method that learns virtual tokens, such as prompt-tuning"
        )
        assert seen.first_step == -1


@pytest.fixture(scope="module")
def base() -> FrozenLM:
    return tiny_base("llama")


def embedded(base: FrozenLM, text: str) -> Tensor:
    return base.embed(torch.tensor(plain_ids(base.tokenizer, text))).float()


def virtual_tokens(how: str, base: FrozenLM, spec: TaskSpec, length: int, seed: int) -> Tensor:
    """Where a prompt starts: ``[P, H]``."""
    return initialise(how, base, spec, length, seed).tensor


class TestInitialisers:
    @pytest.mark.parametrize("family", ["llama", "gemma3"])
    def test_words_are_their_embeddings_repeated(self, family: str) -> None:
        base = tiny_base(family)
        words = embedded(base, "good or bad?")
        length = len(words) + 3
        start = virtual_tokens("text:good or bad?", base, SPEC, length, seed=0)
        assert start.shape == (length, base.embedding_size)
        assert torch.equal(start, torch.cat([words, words])[:length])

    def test_words_are_cut_to_the_length(self, base: FrozenLM) -> None:
        start = virtual_tokens("text:good or bad?", base, SPEC, 2, seed=0)
        assert torch.equal(start, embedded(base, "good or bad?")[:2])

    def test_special_tokens_in_words_are_plain_text(self, base: FrozenLM) -> None:
        start = virtual_tokens("text:<eos>", base, SPEC, 1, seed=0)
        assert not torch.equal(start[0], base.embed(torch.tensor(base.tokenizer.eos_token_id)))

    def test_text_is_an_instruction_with_the_labels(self, base: FrozenLM) -> None:
        assert default_instruction(SPEC) == "Classify the text as poor or great story."
        expected = embedded(base, default_instruction(SPEC))
        assert torch.equal(virtual_tokens("text", base, SPEC, len(expected), 0), expected)

    def test_text_for_generation(self, base: FrozenLM) -> None:
        spec = TaskSpec("generation", "{{ text }}")
        expected = embedded(base, default_instruction(spec))
        assert torch.equal(virtual_tokens("text", base, spec, len(expected), 0), expected)

    def test_labels_are_their_words(self, base: FrozenLM) -> None:
        expected = torch.cat([embedded(base, " poor"), embedded(base, " great story")])
        assert torch.equal(virtual_tokens("labels", base, SPEC, len(expected), 0), expected)

    def test_labels_need_labels(self, base: FrozenLM) -> None:
        with pytest.raises(ConfigError, match="init 'labels' needs a classification task: use text, vocab or random"):
            virtual_tokens("labels", base, TaskSpec("generation", "{{ text }}"), 4, 0)

    def test_vocabulary_is_sampled_without_special_tokens(self, base: FrozenLM) -> None:
        start = virtual_tokens("vocab", base, SPEC, 200, seed=3)
        rows = base.embed(torch.arange(base.vocabulary_size)).float()
        same = (start[:, None] == rows[None]).all(-1)
        assert same.sum(1).tolist() == [1] * 200
        ids = same.int().argmax(1).tolist()
        assert len(set(ids)) == 200
        assert not set(ids) & set(base.tokenizer.all_special_ids)

    def test_vocabulary_shorter_than_the_prompt_is_repeated(self, base: FrozenLM) -> None:
        assert (
            virtual_tokens("vocab", base, SPEC, base.vocabulary_size + 5, seed=0).shape[0] == base.vocabulary_size + 5
        )

    @pytest.mark.parametrize("family", ["llama", "gemma3"])
    def test_random_has_the_spread_of_the_embeddings(self, family: str) -> None:
        base = tiny_base(family)
        start = virtual_tokens("random", base, SPEC, 400, seed=0)
        assert float(start.std()) == pytest.approx(base.embedding_std, rel=0.05)
        assert float(start.abs().max()) <= base.embedding_std * 3**0.5
        assert abs(float(start.mean())) < 0.1 * base.embedding_std

    @pytest.mark.parametrize("how", ["vocab", "random"])
    def test_seed_decides(self, base: FrozenLM, how: str) -> None:
        one, same, other = (virtual_tokens(how, base, SPEC, 6, seed) for seed in (1, 1, 2))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    @pytest.mark.parametrize("how", ["text", "text:words", "labels", "vocab", "random"])
    def test_shape_and_dtype(self, base: FrozenLM, how: str) -> None:
        start = virtual_tokens(how, base, SPEC, 7, 0)
        assert start.shape == (7, base.embedding_size)
        assert start.dtype == torch.float32

    @pytest.mark.parametrize(
        ("how", "words"),
        [
            ("magic", "unknown init 'magic': expected text, examples, text:WORDS, labels, vocab, random or prompt"),
            ("labels:x", "unknown init 'labels:x'"),
            ("text:", "init 'text:': expected something behind the colon, as in text:Classify the review"),
            ("text:  ", "expected something behind the colon"),
            ("prompt:", "init 'prompt:': expected something behind the colon, as in prompt:prompts/sentiment"),
            ("prompt", "init 'prompt': expected a colon and more, as in prompt:prompts/sentiment"),
        ],
    )
    def test_mistakes(self, base: FrozenLM, how: str, words: str) -> None:
        for check in (check_init, _initialise_with(base)):
            with pytest.raises(ConfigError, match=words):
                check(how)


def _initialise_with(base: FrozenLM) -> Callable[[str], object]:
    return lambda how: initialise(how, base, SPEC, 4, 0)


@pytest.fixture(scope="module")
def saved_prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts") / "keys and values"
    fit(tiny_base("llama"), reviews_task(), out=folder, method="prefix-tuning", **FAST)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts") / "first"
    fit(tiny_base("llama"), reviews_task(), out=folder, **FAST)
    return folder


class TestFromAPrompt:
    def test_prefix_tuning_starts_exactly_at_keys_and_values(self, base: FrozenLM, saved_prefix: Path) -> None:
        state = load_prompt(saved_prefix).state
        assert state.kind == "key_values"
        start = initialise(f"prompt:{saved_prefix}", base, SPEC, 4, 0)
        for options in ({}, {"reparametrisation": "mlp", "width": 8}):
            assert same(fold(make_method("prefix-tuning", options, base, start, 1.0, 0)), state)

    def test_an_ensemble_is_no_start(self, base: FrozenLM, saved: Path, tmp_path: Path) -> None:
        prompt = load_prompt(saved)
        folder = replace(prompt, states=(prompt.state, prompt.state)).save(tmp_path / "two")
        with pytest.raises(PromptFileError, match="expected a single prompt, got an ensemble of 2: give one of them"):
            initialise(f"prompt:{folder}", base, SPEC, 4, 0)

    def test_starts_from_its_state(self, base: FrozenLM, saved: Path) -> None:
        assert torch.equal(virtual_tokens(f"prompt:{saved}", base, SPEC, 4, 0), load_prompt(saved).state.tensor)

    def test_names_its_parent(self, base: FrozenLM, saved: Path, tmp_path: Path) -> None:
        child = fit(base, reviews_task(), out=tmp_path / "child", **{**FAST, "init": f"prompt:{saved}"})
        assert child.parent == load_prompt(tmp_path / "child").parent == str(saved)
        assert load_prompt(saved).parent is None

    def test_goes_on_where_it_was(self, base: FrozenLM, saved: Path) -> None:
        task = Task.classification(reviews(), template=SPEC.template)
        again = fit(base, task, **{**FAST, "init": f"prompt:{saved}", "steps": 1, "learning_rate": 1e-6})
        assert again.metrics["test"]["value"] == load_prompt(saved).metrics["test"]["value"]

    def test_another_length_says_which(self, base: FrozenLM, saved: Path) -> None:
        with pytest.raises(PromptFileError, match="has 4 virtual tokens, expected 7: use --length 4"):
            virtual_tokens(f"prompt:{saved}", base, SPEC, 7, 0)

    def test_another_base_is_refused_with_both_names(self, saved: Path) -> None:
        with pytest.raises(PromptFileError, match="learned on 'tiny llama', but the base model given is 'tiny qwen3'"):
            virtual_tokens(f"prompt:{saved}", tiny_base("qwen3"), SPEC, 4, 0)

    def test_no_prompt_there(self, tmp_path: Path) -> None:
        with pytest.raises(PromptFileError, match="is no saved prompt, it does not exist"):
            check_init(f"prompt:{tmp_path / 'none'}")
