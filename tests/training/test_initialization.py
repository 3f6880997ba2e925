"""Where a prompt starts: each initialiser, and a start from a saved prompt."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.small_tasks import FAST, answers, reviews, reviews_task
from helpers.tiny_models import tiny_base, tiny_model, tiny_tokenizer
from torch import Tensor

from softprompt.data.encoding.verbalizer import encode_plain
from softprompt.data.task import Task, TaskSpec
from softprompt.errors import ConfigError, PromptFileError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.methods.initializers import default_instruction
from softprompt.prompts.methods.method_registry import METHODS, fold_method, make_method
from softprompt.store.prompt_loading import load_prompt
from softprompt.training.fit import fit
from softprompt.training.initialization import initialize
from softprompt.training.run_checks import check_init

SPEC = TaskSpec("classification", "{{ text }}:", ("bad", "good"), ("poor", "great story"))


@pytest.fixture(scope="module")
def base() -> FrozenLM:
    return tiny_base("llama")


def embedded(base: FrozenLM, text: str) -> Tensor:
    return base.embed(torch.tensor(encode_plain(base.tokenizer, text))).float()


def virtual_tokens(how: str, base: FrozenLM, spec: TaskSpec, length: int, seed: int) -> Tensor:
    """Where a prompt starts: ``[P, H]``."""
    return initialize(how, base, spec, length, seed).tensor


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
            fit(base, Task.generation(answers()), **{**FAST, "init": "labels"})

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
    def test_random_has_mean_and_spread_of_the_embeddings(self, family: str) -> None:
        base = FrozenLM(tiny_model(family), tiny_tokenizer(family), "of its own")
        with torch.no_grad():  # a part in common, and dimensions of different spread, as trained models have
            weight = base.model.get_input_embeddings().weight
            weight.mul_(torch.linspace(0.5, 2, weight.shape[1])).add_(torch.linspace(-1, 1, weight.shape[1]))
        embedded = base.embed(torch.arange(base.vocabulary_size)).float()
        start = virtual_tokens("random", base, SPEC, 4000, seed=0)
        far = (start.mean(dim=0) - embedded.mean(dim=0)).abs() / embedded.std(dim=0)
        assert float(far.max()) < 0.1
        torch.testing.assert_close(start.std(dim=0), embedded.std(dim=0), rtol=0.05, atol=0)

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
        for check in (check_init, lambda init: fit(base, reviews_task(), **{**FAST, "init": init})):
            with pytest.raises(ConfigError, match=words):
                check(how)


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
        start = initialize(f"prompt:{saved_prefix}", base, SPEC, 4, 0)
        for options in ({}, {"reparameterization": "mlp", "width": 8}):
            folded = fold_method(make_method("prefix-tuning", options, base, start, 1.0, 0))
            assert all(torch.equal(one, other) for one, other in zip(folded.tensors, state.tensors, strict=True))

    @pytest.mark.parametrize("method", sorted(name for name, entry in METHODS.items() if entry.kind == "embeddings"))
    def test_keys_and_values_are_no_start_for_virtual_tokens(self, method: str, saved_prefix: Path) -> None:
        base = tiny_base("llama")
        words = f"the prompt to start from holds keys and values, which only prefix-tuning can learn on, not {method}"
        with pytest.raises(ConfigError) as caught:
            make_method(method, {}, base, load_prompt(saved_prefix).state, 1.0, 0)
        assert str(caught.value) == words
        with pytest.raises(ConfigError, match=words):
            fit(base, reviews_task(), **{**FAST, "method": method, "init": f"prompt:{saved_prefix}"})

    def test_an_ensemble_is_no_start(self, base: FrozenLM, saved: Path, tmp_path: Path) -> None:
        prompt = load_prompt(saved)
        folder = replace(prompt, states=(prompt.state, prompt.state)).save(tmp_path / "two")
        with pytest.raises(PromptFileError, match="expected a single prompt, got an ensemble of 2: give one of them"):
            initialize(f"prompt:{folder}", base, SPEC, 4, 0)

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
            fit(tiny_base("qwen3"), reviews_task(), **{**FAST, "init": f"prompt:{saved}"})

    def test_no_prompt_there(self, tmp_path: Path) -> None:
        with pytest.raises(PromptFileError, match="is no saved prompt, it does not exist"):
            check_init(f"prompt:{tmp_path / 'none'}")
