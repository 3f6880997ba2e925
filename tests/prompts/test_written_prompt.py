"""The written prompt: its words as a prefix are the same computation as its words in front of the template."""

from collections import Counter

import pytest
import torch
from helpers.tiny_models import FAMILIES, tiny_base, tiny_tokenizer

from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.errors import DataError, TemplateError
from softprompt.inference.predictor import Predictor
from softprompt.prompts.written_prompt import choose_shots, written_prompt

TEMPLATE = "{{ text }}\nLabel:"
INSTRUCTION = "Is the film good or bad?"
SHOTS = (Example("a great story", "positive"), Example("a dull cat", "negative"))
EXAMPLES = [Example("the mat"), Example("what a great film, the story is good"), Example("so so")]


def spec_of(template: str = TEMPLATE) -> TaskSpec:
    return TaskSpec("classification", template, ("negative", "positive"), ("bad", "very good"))


def whole_text(instruction: str, shots: tuple[Example, ...]) -> str:
    """All that is written, as a template of its own."""
    words = {"negative": "bad", "positive": "very good"}
    parts = [instruction] * bool(instruction) + [f"{one.text}\nLabel: {words[str(one.label)]}" for one in shots]
    return "\n\n".join([*parts, TEMPLATE])


@pytest.mark.parametrize("instruction", ["", INSTRUCTION], ids=["no instruction", "instruction"])
@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_equals_the_whole_text_without_a_prefix(family: str, count: int, instruction: str) -> None:
    base, shots = tiny_base(family), SHOTS[:count]
    state = written_prompt(base, spec_of(), instruction, shots)
    assert (state is None) == (not instruction and not shots)
    found = Predictor(base, spec_of(), state).label_log_probabilities(EXAMPLES)
    whole = spec_of(whole_text(instruction, shots))
    expected = Predictor(base, whole).label_log_probabilities(EXAMPLES)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    if state is not None:
        plain = Predictor(base, spec_of()).label_log_probabilities(EXAMPLES)
        assert (found - plain).abs().max() > 1e-2


def test_the_words_are_those_of_the_whole_text() -> None:
    base = tiny_base("llama")
    state = written_prompt(base, spec_of(), INSTRUCTION, SHOTS)
    assert state is not None
    words = whole_text(INSTRUCTION, SHOTS).removesuffix(TEMPLATE)
    ids = tiny_tokenizer("llama")(words, add_special_tokens=False).input_ids
    assert (state.kind, state.length) == ("embeddings", len(ids))
    assert torch.equal(state.tensor, base.embed(torch.tensor(ids)))
    assert state.tensor.dtype == torch.float32


def test_generation_shows_the_first_output() -> None:
    base, spec = tiny_base("llama"), TaskSpec("generation", "{{ text }}\nOutput:")
    state = written_prompt(base, spec, shots=[Example("a cat", None, ("the mat", "another"))])
    assert state is not None
    ids = tiny_tokenizer("llama")("a cat\nOutput: the mat\n\n", add_special_tokens=False).input_ids
    assert torch.equal(state.tensor, base.embed(torch.tensor(ids)))


def test_special_tokens_in_it_are_plain_text() -> None:
    base = tiny_base("llama")
    state = written_prompt(base, spec_of(), "Say <eos>", [Example("<bos>", "positive")])
    assert state is not None
    special = base.embed(torch.tensor(base.tokenizer.all_special_ids))
    assert not any(torch.equal(row, one) for row in state.tensor for one in special)


def test_more_words_than_the_context_holds_are_an_error() -> None:
    base = tiny_base("llama")
    with pytest.raises(TemplateError, match=r"a prompt of \d+ virtual tokens .* in this model's context of 160"):
        Predictor(base, spec_of(), written_prompt(base, spec_of(), "what is the film about? " * 50))


class TestShots:
    @pytest.mark.parametrize(("count", "most"), [(3, 1), (6, 2), (8, 3), (12, 4), (0, 0)])
    def test_labels_come_equally_often(self, count: int, most: int) -> None:
        examples = [Example(f"text {i}", "abbcccccc"[i % 9]) for i in range(180)]
        shots = choose_shots(examples, count, seed=0)
        assert len(shots) == len(set(shots)) == count
        counts = Counter(one.label for one in shots)
        assert max(counts.values(), default=0) <= most
        assert min(counts.values(), default=0) >= most - 1
        assert set(shots) <= set(examples)

    def test_a_rare_label_gives_all_it_has(self) -> None:
        examples = [Example("rare", "a"), *(Example(f"text {i}", "b") for i in range(50))]
        assert Counter(one.label for one in choose_shots(examples, 8, seed=0)) == {"a": 1, "b": 7}

    def test_the_choice_depends_on_the_seed_alone(self) -> None:
        examples = [Example(f"text {i}", "ab"[i % 2]) for i in range(50)]
        assert choose_shots(examples, 8, seed=1) == choose_shots(tuple(examples), 8, seed=1)
        assert choose_shots(examples, 8, seed=1) != choose_shots(examples, 8, seed=2)
        orders = {tuple(one.label for one in choose_shots(examples, 8, seed=seed)) for seed in range(20)}
        assert len(orders) > 10

    def test_generation_examples_do_too(self) -> None:
        examples = [Example(f"text {i}", None, (f"output {i}",)) for i in range(9)]
        assert len(set(choose_shots(examples, 4, seed=0))) == 4

    def test_more_than_there_are_is_an_error(self) -> None:
        words = "8 examples wanted for the written prompt, but the training split has 2"
        with pytest.raises(DataError, match=words):
            choose_shots(SHOTS, 8, seed=0)
