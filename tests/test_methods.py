"""The contract that every method keeps, and where prompts start."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small import FAST, reviews, reviews_task
from tiny import tiny_base

from softprompt.base import FrozenLM
from softprompt.batch import Encoder, collate
from softprompt.errors import ConfigError, PromptFileError
from softprompt.evaluate import evaluate
from softprompt.fit import fit
from softprompt.methods import METHODS, check_method
from softprompt.methods.initialisers import check_init, default_instruction, initialise
from softprompt.objective import Objective
from softprompt.predict import Predictor
from softprompt.prefix import cached_prefix, concatenated_prefix
from softprompt.store import TENSOR_FILE, load_prompt
from softprompt.task import Task, TaskSpec
from softprompt.verbalizer import plain_ids

SPEC = TaskSpec("classification", "{{ text }}:", ("bad", "good"), ("poor", "great story"))
every_method = pytest.mark.parametrize("method", sorted(METHODS))


def digest(base: FrozenLM) -> str:
    whole = hashlib.sha256()
    for name, tensor in sorted(base.model.state_dict().items()):
        whole.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def made(method: str, base: FrozenLM, length: int = 4) -> Any:
    return METHODS[method](initialise("vocab", base, SPEC, length, seed=0), base.embedding_std)


@pytest.fixture(scope="module")
def base() -> FrozenLM:
    return tiny_base("llama")


@every_method
class TestContract:
    @pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
    def test_base_is_unchanged_after_training(self, method: str, family: str) -> None:
        base = tiny_base(family)
        before = digest(base)
        prompt = fit(base, reviews_task(), method=method, **FAST)
        assert not torch.equal(prompt.state.tensor, initialise("labels", base, prompt.spec, 4, 0))
        assert digest(base) == before
        assert all(parameter.grad is None for parameter in base.model.parameters())
        assert not any(module.training for module in base.model.modules())

    def test_gradient_still_flows_after_an_evaluation(self, method: str, base: FrozenLM) -> None:
        module, task = made(method, base), reviews_task()
        encoder = Encoder(base, task.spec, 4)
        objective, items = Objective(base, encoder.verbalizer), encoder.training_items(task.train[:6])
        gradients = []
        for _ in range(2):
            module.zero_grad()
            loss = objective.loss_sum(cached_prefix(base, module.virtual_tokens()), collate(items, base.device))
            loss.backward()
            gradients.append([parameter.grad.clone() for parameter in module.parameters()])
            evaluate(base, task.validation, module.fold(), spec=task.spec)
        assert all(gradient.abs().max() > 0 for gradient in gradients[0])
        assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))

    def test_cached_prefix_equals_concatenation(self, method: str, base: FrozenLM) -> None:
        task = reviews_task()
        prompt = fit(base, task, method=method, **FAST)
        encoder = Encoder(base, task.spec, 4)
        objective, items = Objective(base, encoder.verbalizer), encoder.scoring_items(task.test)
        with torch.no_grad():
            shared, plain = (
                objective.label_log_probabilities(make(base, prompt.state.tensor), items)
                for make in (cached_prefix, concatenated_prefix)
            )
        torch.testing.assert_close(shared, plain, atol=1e-4, rtol=1e-4)
        assert shared.std() > 0.1

    def test_saved_and_loaded_gives_the_same_logits(self, method: str, base: FrozenLM, tmp_path: Path) -> None:
        task = reviews_task()
        prompt = fit(base, task, method=method, **FAST)
        loaded = load_prompt(prompt.save(tmp_path / "p"))
        before, after = (Predictor.of_prompt(base, one).label_log_probabilities(task.test) for one in (prompt, loaded))
        assert torch.equal(before, after)

    def test_a_fixed_seed_gives_the_same_bytes(self, method: str, base: FrozenLM, tmp_path: Path) -> None:
        settings = {**FAST, "method": method, "init": "random"}
        for name, seed in (("one", 5), ("same", 5), ("other", 6)):
            torch.manual_seed(len(name))
            fit(base, reviews_task(), out=tmp_path / name, seed=seed, **settings)
        one, same, other = ((tmp_path / name / TENSOR_FILE).read_bytes() for name in ("one", "same", "other"))
        assert one == same
        assert one != other
        for name in ("prompt.json", "history.jsonl"):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "same" / name).read_bytes()

    def test_starts_where_the_initialiser_says(self, method: str, base: FrozenLM) -> None:
        start = initialise("vocab", base, SPEC, 4, seed=0)
        torch.testing.assert_close(METHODS[method](start, 0.1).fold().tensor, start)

    def test_folds_to_what_the_model_saw(self, method: str, base: FrozenLM) -> None:
        module = made(method, base)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
        state = module.fold()
        assert state.kind == "embeddings"
        assert state.tensor.shape == (4, base.embedding_size)
        assert state.tensor.dtype == torch.float32
        assert not state.tensor.requires_grad
        assert torch.equal(state.tensor, module.virtual_tokens())
        kept = state.tensor.clone()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(1)
        assert torch.equal(state.tensor, kept)
        assert not torch.equal(module.fold().tensor, kept)


def test_one_unit_is_one_standard_deviation() -> None:
    start = torch.randn(3, 8)
    module: Any = METHODS["prompt-tuning"](start, 0.25)
    with torch.no_grad():
        module.theta.add_(1)
    torch.testing.assert_close(module.fold().tensor, start + 0.25)


def test_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown method 'prompt tuning': expected one of .*prompt-tuning"):
        check_method("prompt tuning")
    with pytest.raises(ConfigError, match="unknown method 'magic'"):
        fit(tiny_base("llama"), reviews_task(), method="magic", **FAST)


def embedded(base: FrozenLM, text: str) -> torch.Tensor:
    return base.embed(torch.tensor(plain_ids(base.tokenizer, text))).float()


class TestInitialisers:
    @pytest.mark.parametrize("family", ["llama", "gemma3"])
    def test_words_are_their_embeddings_repeated(self, family: str) -> None:
        base = tiny_base(family)
        words = embedded(base, "good or bad?")
        length = len(words) + 3
        start = initialise("text:good or bad?", base, SPEC, length, seed=0)
        assert start.shape == (length, base.embedding_size)
        assert torch.equal(start, torch.cat([words, words])[:length])

    def test_words_are_cut_to_the_length(self, base: FrozenLM) -> None:
        start = initialise("text:good or bad?", base, SPEC, 2, seed=0)
        assert torch.equal(start, embedded(base, "good or bad?")[:2])

    def test_special_tokens_in_words_are_plain_text(self, base: FrozenLM) -> None:
        start = initialise("text:<eos>", base, SPEC, 1, seed=0)
        assert not torch.equal(start[0], base.embed(torch.tensor(base.tokenizer.eos_token_id)))

    def test_text_is_an_instruction_with_the_labels(self, base: FrozenLM) -> None:
        assert default_instruction(SPEC) == "Classify the text as poor or great story."
        expected = embedded(base, default_instruction(SPEC))
        assert torch.equal(initialise("text", base, SPEC, len(expected), 0), expected)

    def test_text_for_generation(self, base: FrozenLM) -> None:
        spec = TaskSpec("generation", "{{ text }}")
        expected = embedded(base, default_instruction(spec))
        assert torch.equal(initialise("text", base, spec, len(expected), 0), expected)

    def test_labels_are_their_words(self, base: FrozenLM) -> None:
        expected = torch.cat([embedded(base, " poor"), embedded(base, " great story")])
        assert torch.equal(initialise("labels", base, SPEC, len(expected), 0), expected)

    def test_labels_need_labels(self, base: FrozenLM) -> None:
        with pytest.raises(ConfigError, match="init 'labels' needs a classification task: use text, vocab or random"):
            initialise("labels", base, TaskSpec("generation", "{{ text }}"), 4, 0)

    def test_vocabulary_is_sampled_without_special_tokens(self, base: FrozenLM) -> None:
        start = initialise("vocab", base, SPEC, 200, seed=3)
        rows = base.embed(torch.arange(base.vocabulary_size)).float()
        same = (start[:, None] == rows[None]).all(-1)
        assert same.sum(1).tolist() == [1] * 200
        ids = same.int().argmax(1).tolist()
        assert len(set(ids)) == 200
        assert not set(ids) & set(base.tokenizer.all_special_ids)

    def test_vocabulary_shorter_than_the_prompt_is_repeated(self, base: FrozenLM) -> None:
        assert initialise("vocab", base, SPEC, base.vocabulary_size + 5, seed=0).shape[0] == base.vocabulary_size + 5

    @pytest.mark.parametrize("family", ["llama", "gemma3"])
    def test_random_has_the_spread_of_the_embeddings(self, family: str) -> None:
        base = tiny_base(family)
        start = initialise("random", base, SPEC, 400, seed=0)
        assert float(start.std()) == pytest.approx(base.embedding_std, rel=0.05)
        assert float(start.abs().max()) <= base.embedding_std * 3**0.5
        assert abs(float(start.mean())) < 0.1 * base.embedding_std

    @pytest.mark.parametrize("how", ["vocab", "random"])
    def test_seed_decides(self, base: FrozenLM, how: str) -> None:
        one, same, other = (initialise(how, base, SPEC, 6, seed) for seed in (1, 1, 2))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    @pytest.mark.parametrize("how", ["text", "text:words", "labels", "vocab", "random"])
    def test_shape_and_dtype(self, base: FrozenLM, how: str) -> None:
        start = initialise(how, base, SPEC, 7, 0)
        assert start.shape == (7, base.embedding_size)
        assert start.dtype == torch.float32

    @pytest.mark.parametrize(
        ("how", "words"),
        [
            ("magic", "unknown init 'magic': expected text, text:WORDS, labels, vocab, random or prompt:FOLDER"),
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
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts") / "first"
    fit(tiny_base("llama"), reviews_task(), out=folder, **FAST)
    return folder


class TestFromAPrompt:
    def test_starts_from_its_state(self, base: FrozenLM, saved: Path) -> None:
        assert torch.equal(initialise(f"prompt:{saved}", base, SPEC, 4, 0), load_prompt(saved).state.tensor)

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
            initialise(f"prompt:{saved}", base, SPEC, 7, 0)

    def test_another_base_is_refused_with_both_names(self, saved: Path) -> None:
        with pytest.raises(PromptFileError, match="learned on 'tiny llama', but the base model given is 'tiny qwen3'"):
            initialise(f"prompt:{saved}", tiny_base("qwen3"), SPEC, 4, 0)

    def test_no_prompt_there(self, tmp_path: Path) -> None:
        with pytest.raises(PromptFileError, match="is no saved prompt, it does not exist"):
            check_init(f"prompt:{tmp_path / 'none'}")
