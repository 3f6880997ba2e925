"""Examples to token ids and padded batches: what is cut, what stays plain text, which examples meet in a batch."""

import random
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers.tiny_models import BOS, CONTEXT, EOS, VOCABULARY, tiny_base, tiny_model, tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from softprompt.data.encoding.batching import batch_by_token_budget, collate, epoch_batches
from softprompt.data.encoding.encoder import EncodedSequence, ExampleEncoder
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.errors import DataError, TemplateError
from softprompt.models.frozen_lm import FrozenLM

LABELS = ("good", "good film", "negative")


def classification(template: str = "{{ text }}\nLabel:", **settings: Any) -> TaskSpec:
    return TaskSpec("classification", template, LABELS, LABELS, **settings)


def generation(template: str = "{{ text }}\nOutput:", **settings: Any) -> TaskSpec:
    return TaskSpec("generation", template, **settings)


def encoder(spec: TaskSpec, prompt_length: int = 4, answer_room: int = 0, family: str = "llama") -> ExampleEncoder:
    return ExampleEncoder(tiny_base(family), spec, prompt_length, answer_room)


def ids_of(text: str) -> list[int]:
    return list(tiny_tokenizer("llama")(text, add_special_tokens=False).input_ids)


def plain_ids_of(text: str) -> list[int]:
    return list(tiny_tokenizer("llama")(text, add_special_tokens=False, split_special_tokens=True).input_ids)


def text_of(ids: tuple[int, ...]) -> str:
    return str(tiny_tokenizer("llama").decode(list(ids)))


class TestItems:
    def test_a_training_item_asks_every_decision_of_its_label(self) -> None:
        made = encoder(classification())
        text = ids_of("a dull story\nLabel:")
        (good, film), end = ids_of(" good film"), tiny_tokenizer("llama").eos_token_id
        last = len(text) - 1
        negative = ids_of(" negative")[0]
        items = made.training_items([Example("a dull story", label) for label in LABELS])
        assert items == [
            EncodedSequence(0, (*text, good), (last, last + 1), (good, end), (0, 1)),
            EncodedSequence(1, (*text, good), (last, last + 1), (good, film), (0, 1)),
            EncodedSequence(2, tuple(text), (last,), (negative,), (0,)),
        ]

    def test_scoring_items_ask_every_decision_once(self) -> None:
        words = ("good film", "good story", "bad film", "bad story")
        made = encoder(TaskSpec("classification", "{{ text }}\nLabel:", words, words))
        assert made.verbalizer is not None
        examples = [Example("a cat"), Example("the mat sat")]
        items = made.scoring_items(examples)
        for index, example in enumerate(examples):
            text = ids_of(f"{example.text}\nLabel:")
            (item,) = [item for item in items if item.example == index]
            assert item.ids == (*text, *(ids_of(word)[0] for word in (" bad", " good")))
            assert item.parents == (len(text) - 1, len(text) - 1)  # both stand at the end of the text
            paths = [made.verbalizer.decisions[decision].path for decision in item.decisions]
            assert sorted(item.decisions) == [0, 1, 2]
            assert [item.ids[len(text) : position + 1][-1:] for position in item.positions] == paths

    def test_a_generation_item_asks_for_the_answer_and_its_end(self) -> None:
        text, answer = ids_of("a cat\nOutput:"), [*ids_of(" the mat"), tiny_tokenizer("llama").eos_token_id]
        (item,) = encoder(generation()).training_items([Example("a cat", None, ("the mat", "another"))])
        assert item.ids == (*text, *answer[:-1])
        assert item.targets == tuple(answer)
        assert item.positions == tuple(range(len(text) - 1, len(text) - 1 + len(answer)))

    def test_an_unknown_label_is_an_error(self) -> None:
        with pytest.raises(DataError, match="label 'fine' is not among good, good film, negative"):
            encoder(classification()).training_items([Example("a cat", "fine")])

    def test_an_empty_template_is_an_error(self) -> None:
        with pytest.raises(TemplateError, match="the template gives an empty text for an example"):
            encoder(classification("{{ text | trim }}")).encode_texts([Example("a"), Example("  ")])

    @pytest.mark.parametrize("family", ["llama", "bart"])
    def test_question_items_ask_once_at_the_end(self, family: str) -> None:
        made = encoder(classification(), family=family)
        examples = [Example("the cat"), Example("a")]
        asked = made.question_items(examples)
        assert [item.ids for item in asked] == made.encode_inputs(examples)
        for item in asked:
            read = item.decoder_ids or item.ids
            assert (item.positions, item.targets) == ((len(read) - 1,), ())
            assert item.decoder_ids == made.base.special_tokens.decoder_start

    @pytest.mark.parametrize(("family", "answer_room", "around"), [("llama", 20, 21), ("bart", 20, 1)])
    def test_spare_is_what_prompt_text_and_answer_leave(self, family: str, answer_room: int, around: int) -> None:
        made = encoder(generation(), prompt_length=4, answer_room=answer_room, family=family)
        assert made.spare(30) == CONTEXT - around - 4 - 30
        assert encoder(classification(), answer_room=answer_room).spare(30) == CONTEXT - 1 - 4 - 30
        assert encoder(generation(), family="t5").spare(30) is None


class TestTruncation:
    def test_only_the_text_is_cut_and_counted(self) -> None:
        made = encoder(classification("Review: {{ text }}\nIs it {{ other }}?", max_length=30))
        examples = [Example(words, columns={"other": "good"}) for words in ("a cat", "the film is great " * 40, "so")]
        cut = made.encode_texts(examples)
        assert made.truncated == 1
        assert text_of(cut[0]) == "Review: a cat\nIs it good?"
        head, tail = "Review: ", "\nIs it good?"
        text = text_of(cut[1])
        assert text.startswith(head)
        assert text.endswith(tail)
        assert examples[1].text.startswith(text[len(head) : -len(tail)])
        assert 28 <= len(cut[1]) <= 30
        made.encode_texts(examples)
        assert made.truncated == 2

    def test_the_label_is_never_cut(self) -> None:
        made = encoder(classification(max_length=12))
        item = made.training_items([Example("what is the film " * 20, "good film")])[0]
        assert item.targets == tuple(ids_of(" good film"))
        assert len(item.ids) == 12 + 1
        assert text_of(item.ids).endswith("\nLabel: good")

    def test_the_limit_is_what_the_context_leaves(self) -> None:
        room = CONTEXT - 1 - 50  # BOS and prompt
        assert encoder(classification(), prompt_length=50).limit == room - 1
        assert encoder(generation(), prompt_length=50, answer_room=30).limit == room - 30
        assert encoder(classification(max_length=20), prompt_length=50).limit == 20
        assert encoder(classification(), prompt_length=50, family="gpt2").limit == CONTEXT - 50 - 1
        assert encoder(classification(), prompt_length=5000, family="mamba").limit == 512

    def test_a_prompt_longer_than_the_context_is_an_error(self) -> None:
        words = "a prompt of 155 virtual tokens and an answer of 1 leave 3 tokens for the text in this model's context"
        with pytest.raises(TemplateError, match=f"{words} of 160: use a shorter prompt"):
            encoder(classification(), prompt_length=155)
        with pytest.raises(TemplateError, match=r"a prompt of 500 .* leave 0 tokens"):
            encoder(classification(), prompt_length=500)

    def test_a_template_that_leaves_no_room_is_an_error(self) -> None:
        made = encoder(classification("{{ other }} {{ text }}", max_length=10))
        with pytest.raises(
            TemplateError, match=r"fill the limit of 10 tokens and leave no room for the text: shorten them"
        ):
            made.encode_texts([Example("a cat", columns={"other": "the story is good " * 5})])

    def test_a_template_that_repeats_the_text_cuts_each_of_them(self) -> None:
        made = encoder(classification("{{ text }}; {{ text }}:", max_length=16))
        (ids,) = made.encode_texts([Example("the film is great " * 10)])
        first, _, second = text_of(ids).removesuffix(":").partition("; ")
        assert first.startswith("the film")
        assert first.strip() == second.strip()
        assert len(ids) <= 16

    def test_a_long_output_takes_its_room_from_the_text(self) -> None:
        made = encoder(generation(), prompt_length=20)
        output = "the cat sat on the mat " * 15
        item = made.training_items([Example("a good film " * 50, None, (output,))])[0]
        answer = [*ids_of(f" {output}"), tiny_tokenizer("llama").eos_token_id]
        assert item.targets == tuple(answer)
        assert 1 + 20 + len(item.ids) == CONTEXT
        text = text_of(item.ids[: item.positions[0] + 1])
        assert text.startswith("a good film")
        assert text.endswith("\nOutput:")

    def test_an_output_longer_than_the_context_is_an_error(self) -> None:
        words = (
            r"an output of \d+ tokens leaves 0 tokens for its text in the model's context of 160: shorten the output"
        )
        with pytest.raises(DataError, match=words):
            encoder(generation()).training_items([Example("a cat", None, ("what is the story " * 60,))])

    def test_a_tokenizer_without_offsets_cuts_by_characters(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", False)
        (ids,) = encoder(classification(max_length=20)).encode_texts([Example("the film is great " * 40)])
        assert 15 <= len(ids) <= 20
        assert text_of(ids).endswith("\nLabel:")


class TestSpecialTokens:
    TEXT = f"a {EOS}{BOS} film {BOS}"

    @pytest.mark.parametrize("family", ["llama", "gpt2"])
    def test_those_in_the_data_are_plain_text(self, family: str) -> None:
        example = Example(self.TEXT, "good", columns={"other": BOS})
        special = set(tiny_tokenizer(family).all_special_ids)
        for template in ("{{ text }}\nLabel:", "{{ text | upper | lower }} {{ other }}:"):
            made = encoder(classification(template), family=family)
            (ids,) = made.encode_texts([example])
            assert not special & set(ids)
            assert text_of(ids) == made.spec.compiled.render(example)
            assert not special & set(made.training_items([example])[0].ids)

    def test_those_in_the_template_are_special(self) -> None:
        made = encoder(classification(f"{EOS}user: {{{{ text }}}}{EOS}model:"))
        (ids,) = made.encode_texts([Example(self.TEXT)])
        end = tiny_tokenizer("llama").eos_token_id
        middle = plain_ids_of(f"user: {self.TEXT}")
        assert list(ids) == [end, *middle, end, *plain_ids_of("model:")]

    def test_those_in_the_template_survive_cutting_and_those_in_the_data_do_not_appear(self) -> None:
        made = encoder(classification(f"{EOS}{{{{ text }}}}{EOS}:", max_length=20))
        (ids,) = made.encode_texts([Example(f"{EOS} " * 50)])
        end = tiny_tokenizer("llama").eos_token_id
        assert len(ids) <= 20
        assert [place for place, token in enumerate(ids) if token == end] == [0, len(ids) - 2]

    def test_a_field_whose_end_was_cut_off_by_a_filter_is_still_data(self) -> None:
        made = encoder(classification(f"{EOS}{{{{ text|truncate(8, true, '', 0) }}}}"))
        (ids,) = made.encode_texts([Example(f"a {EOS} film and more")])
        assert text_of(ids) == f"{EOS}a {EOS} "
        assert ids.count(tiny_tokenizer("llama").eos_token_id) == 1

    def test_a_beginning_that_is_written_twice_is_told(self) -> None:
        doubled = ExampleEncoder(tiny_base("llama"), classification(f"{BOS}{{{{ text }}}}"), 0)
        assert doubled.encode_texts([Example("a")])[0][0] == tiny_base("llama").bos_ids[0]
        (note,) = doubled.truncation_notes()
        assert note.startswith(f"the template begins with {BOS}, which stands in front of every prompt anyway")
        for family, template in (("llama", f"{{{{ text }}}}{BOS}"), ("qwen3", f"{BOS}{{{{ text }}}}")):
            assert ExampleEncoder(tiny_base(family), classification(template), 0).truncation_notes() == []

    def test_of_two_special_tokens_that_begin_alike_the_longer_is_taken(self) -> None:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=type(tiny_tokenizer("llama").backend_tokenizer).from_str(
                tiny_tokenizer("llama").backend_tokenizer.to_str()
            ),
            eos_token=EOS,
            additional_special_tokens=["<|im|>", "<|im|>user"],
        )
        model = tiny_model("llama")
        spec = classification("<|im|>user{{ text }}<|im|>")
        with pytest.raises(TemplateError, match=r"spells '<.im.>user', token 321, .* no embedding.* below 320"):
            ExampleEncoder(FrozenLM(model, tokenizer, "x"), spec, 0).encode_texts([Example("a")])
        model.resize_token_embeddings(VOCABULARY + 2)
        base = FrozenLM(model, tokenizer, "x")
        (ids,) = ExampleEncoder(base, spec, 0).encode_texts([Example("a")])
        assert tokenizer.convert_ids_to_tokens(list(ids)) == ["<|im|>user", "a", "<|im|>"]


def test_collate_pads_on_the_right() -> None:
    items = [
        EncodedSequence(4, (5, 6, 7), (1, 2), (8, 9), (0, 1)),
        EncodedSequence(4, (5,), (0,), (3,), (2,)),
        EncodedSequence(6, (5, 6), (1,), (2,), (0,), prompt=2),
    ]
    batch = collate(items, torch.device("cpu"), pad_id=1)
    assert batch.input_ids.tolist() == [[5, 6, 7], [5, 1, 1], [5, 6, 1]]
    assert batch.mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert batch.row.tolist() == [0, 0, 1, 2]
    assert batch.column.tolist() == [1, 2, 0, 1]
    assert batch.targets.tolist() == [8, 9, 3, 2]
    assert batch.decisions.tolist() == [0, 1, 2, 0]
    assert batch.which.tolist() == [0, 0, 2]


LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=200)


class TestEpochs:
    @given(LENGTHS, st.integers(1, 20), st.integers(0, 3))
    def test_every_example_comes_once_at_most_in_full_batches(self, lengths: list[int], size: int, epoch: int) -> None:
        batches = epoch_batches(lengths, size, 0, epoch)
        counts = Counter(index for batch in batches for index in batch)
        assert set(counts.values()) == {1}
        assert set(counts) <= set(range(len(lengths)))
        if len(lengths) > size:
            assert {len(batch) for batch in batches} == {size}
            assert len(batches) == len(lengths) // size
        else:
            assert sorted(counts) == list(range(len(lengths)))

    def test_the_order_depends_on_seed_and_epoch_alone(self) -> None:
        lengths = [random.Random(1).randint(1, 60) for _ in range(300)]
        first = epoch_batches(lengths, 16, 3, 5)
        random.seed(9)
        assert epoch_batches(tuple(lengths), 16, 3, 5) == first
        assert epoch_batches(lengths, 16, 3, 6) != first
        assert epoch_batches(lengths, 16, 4, 5) != first

    def test_the_rest_of_an_epoch_comes_in_others(self) -> None:
        seen = {index for epoch in range(20) for batch in epoch_batches([5] * 40, 16, 0, epoch) for index in batch}
        assert seen == set(range(40))

    def test_batches_hold_little_padding_and_come_in_any_order(self) -> None:
        generator = random.Random(0)
        lengths = [generator.randint(4, 64) for _ in range(2000)]
        batches = epoch_batches(lengths, 16, 0, 0)
        padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
        real = sum(lengths[index] for batch in batches for index in batch)
        assert padded < 1.06 * real
        longest = [max(lengths[index] for index in batch) for batch in batches]
        rises = sum(one < other for one, other in pairwise(longest))
        assert 0.4 < rises / len(longest) < 0.6


@given(LENGTHS, st.integers(1, 300), st.integers(1, 9) | st.none())
def test_budgeted_keeps_to_the_budget_and_loses_nothing(lengths: list[int], budget: int, most: int | None) -> None:
    items = [EncodedSequence(i, (1,) * length, ()) for i, length in enumerate(lengths)]
    chunks = list(batch_by_token_budget(items, budget, most))
    assert sorted(item.example for chunk in chunks for item in chunk) == list(range(len(items)))
    for chunk in chunks:
        assert len(chunk) <= (most or len(chunk))
        assert len(chunk) == 1 or len(chunk) * max(len(item.ids) for item in chunk) <= budget


def test_budgeted_fills_the_budget() -> None:
    items = [EncodedSequence(i, (1,) * 10, ()) for i in range(25)]
    assert [len(chunk) for chunk in batch_by_token_budget(items, 100)] == [10, 10, 5]
