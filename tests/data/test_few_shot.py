"""Solved examples as the start of a learned prompt: what a few-shot prompt says, within the prompt's length."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from helpers.small_tasks import FAST, answers, reviews_task
from helpers.tiny_models import tiny_base

from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.encoding.verbalizer import encode_plain
from softprompt.data.examples import Example
from softprompt.data.few_shot import GAP, encode_solved, encode_solved_within
from softprompt.data.task import TaskSpec
from softprompt.inference.predictor import Predictor
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.methods.initializers import default_instruction
from softprompt.prompts.written_prompt import written_prompt
from softprompt.training.fit import fit
from softprompt.training.initialization import initialize

SPEC = TaskSpec("classification", "{{ text }}\nLabel:", ("negative", "positive"), ("bad", "good"))
ONE_EACH = [Example("a great story", "positive"), Example("a dull cat", "negative")]


@pytest.fixture(scope="module")
def base() -> FrozenLM:
    return tiny_base("llama")


def many(count: int, words: str = "the film is fine") -> list[Example]:
    return [Example(f"{words} {index}", ("negative", "positive")[index % 2]) for index in range(count)]


def text_of(base: FrozenLM, ids: Sequence[int]) -> str:
    return str(base.tokenizer.decode(list(ids)))


class TestSolvedWithin:
    def test_labels_take_turns_and_fill_the_length(self, base: FrozenLM) -> None:
        encoder = ExampleEncoder(base, SPEC, 0)
        one = max(map(len, encode_solved(encoder, many(40))))
        ids = encode_solved_within(encoder, many(40), 5 * one, seed=0)
        assert 4 * one < len(ids) <= 5 * one
        labels = [part.rsplit(" ", 1)[1] for part in text_of(base, ids).split(GAP) if part]
        assert len(labels) == 5
        assert all(first != second for first, second in pairwise(labels))

    def test_each_is_there_once(self, base: FrozenLM) -> None:
        ids = encode_solved_within(ExampleEncoder(base, SPEC, 0), ONE_EACH, 1000, seed=0)
        assert sorted(text_of(base, ids).split(GAP)) == ["", "a dull cat\nLabel: bad", "a great story\nLabel: good"]

    def test_none_where_a_label_does_not_fit(self, base: FrozenLM) -> None:
        encoder = ExampleEncoder(base, SPEC, 0)
        long = Example("a story " * 40, "negative")
        assert encode_solved_within(encoder, [ONE_EACH[0], long], 100, seed=0) == []
        assert encode_solved_within(encoder, ONE_EACH, 4, seed=0) == []
        assert encode_solved_within(encoder, [], 100, seed=0) == []

    def test_longer_ones_are_passed_over(self, base: FrozenLM) -> None:
        mixed = [*many(20, "a story " * 40), *ONE_EACH]
        ids = encode_solved_within(ExampleEncoder(base, SPEC, 0), mixed, 60, seed=0)
        assert "a dull cat" in text_of(base, ids)
        assert "a great story" in text_of(base, ids)

    def test_the_seed_decides(self, base: FrozenLM) -> None:
        encoder = ExampleEncoder(base, SPEC, 0)
        same, again, other = (tuple(encode_solved_within(encoder, many(40), 60, seed)) for seed in (1, 1, 2))
        assert same == again != other


class TestAsAStart:
    def test_it_says_what_the_written_prompt_says(self, base: FrozenLM) -> None:
        instruction = default_instruction(SPEC)
        shots = encode_solved_within(ExampleEncoder(base, SPEC, 0), ONE_EACH, 1000, seed=3)
        words = encode_plain(base.tokenizer, instruction + GAP)
        start = initialize("examples", base, SPEC, len(words) + len(shots), 3, ONE_EACH)
        by_turn = sorted(ONE_EACH, key=lambda one: text_of(base, shots).index(one.text))
        written = written_prompt(base, SPEC, instruction, by_turn)
        assert written is not None
        texts = [Example("the mat"), Example("so so")]
        found, expected = (Predictor(base, SPEC, one).label_log_probabilities(texts) for one in (start, written))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("length", [1, 9, 40, 200])
    def test_it_has_the_length_asked_for_and_ends_with_the_examples(self, base: FrozenLM, length: int) -> None:
        start = initialize("examples", base, SPEC, length, 0, many(40)).tensor
        assert start.shape == (length, base.embedding_size)
        shots = encode_solved_within(ExampleEncoder(base, SPEC, 0), many(40), length, 0)
        if shots:
            assert torch.equal(start[-len(shots) :], base.embed(torch.tensor(shots)).float())
        else:
            assert torch.equal(start, initialize("text", base, SPEC, length, 0).tensor)

    def test_special_tokens_in_examples_are_plain_text(self, base: FrozenLM) -> None:
        hostile = [Example("<eos>", "positive"), Example("<bos>", "negative")]
        start = initialize("examples", base, SPEC, 60, 0, hostile).tensor
        special = base.embed(torch.tensor(base.tokenizer.all_special_ids)).float()
        assert not (start[:, None] == special[None]).all(-1).any()

    @pytest.mark.parametrize("family", ["gemma3", "t5"])
    def test_learning_begins_there(self, family: str) -> None:
        prompt = fit(tiny_base(family), reviews_task(), **{**FAST, "length": 40, "init": "examples"})
        assert prompt.length == 40
        assert prompt.training["init"] == "examples"

    def test_outputs_of_generation(self, base: FrozenLM) -> None:
        spec = TaskSpec("generation", "{{ text }}\nOutput:")
        ids = encode_solved_within(ExampleEncoder(base, spec, 0), answers()["train"], 60, seed=0)
        assert "\nOutput: " in text_of(base, ids)
