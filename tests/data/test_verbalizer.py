"""Labels as token sequences: where they part, what ends them, how their words become tokens."""

import math
import random

import pytest
from helpers.tiny_models import tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from softprompt.data.encoding.verbalizer import (
    TREE,
    Decision,
    Verbalizer,
    encode_answer,
    encode_answers,
    encode_plain,
    end_token_id,
)
from softprompt.data.task import TaskSpec
from softprompt.errors import DataError

END = 99


def spec(*labels: str, template: str = "{{ text }}\nLabel:") -> TaskSpec:
    return TaskSpec("classification", template, labels, labels)


def pieces(template: str, answer: str) -> list[str]:
    tokenizer = tiny_tokenizer("llama")
    return list(tokenizer.convert_ids_to_tokens(encode_answer(tokenizer, spec("a", "b", template=template), answer)))


def test_labels_of_one_token_part_once() -> None:
    verbalizer = Verbalizer.of_tokens([(7,), (3,), (5,)], END)
    assert verbalizer.decisions == (Decision((), (3, 5, 7), {0: 2, 1: 0, 2: 1}),)
    assert (verbalizer.rows, verbalizer.paths) == ((3, 5, 7), ((),))


def test_labels_of_several_tokens_part_where_they_differ_only() -> None:
    verbalizer = Verbalizer.of_tokens([(1, 2, 3), (1, 2, 4, 8), (5, 6)], END)
    assert verbalizer.sequences == ((1, 2, 3), (1, 2, 4, 8), (5, 6))
    assert verbalizer.decisions == (Decision((), (1, 5), {0: 0, 1: 0, 2: 1}), Decision((1, 2), (3, 4), {0: 0, 1: 1}))
    assert verbalizer.rows == (1, 3, 4, 5)
    assert verbalizer.paths == ((1, 2),)
    assert [[d.path for d in verbalizer.decisions_of(label)] for label in range(3)] == [
        [(), (1, 2)],
        [(), (1, 2)],
        [()],
    ]


def test_labels_that_begin_alike_are_not_asked_where_there_is_no_choice() -> None:
    verbalizer = Verbalizer.of_tokens([(1, 2), (1, 3)], END)
    assert verbalizer.decisions == (Decision((1,), (2, 3), {0: 0, 1: 1}),)


def test_a_label_that_another_one_continues_is_closed() -> None:
    verbalizer = Verbalizer.of_tokens([(1,), (1, 2), (1, 2, 3), (4,)], END)
    assert verbalizer.sequences == ((1, END), (1, 2, END), (1, 2, 3), (4,))
    assert verbalizer.decisions == (
        Decision((), (1, 4), {0: 0, 1: 0, 2: 0, 3: 1}),
        Decision((1,), (2, END), {0: 1, 1: 0, 2: 0}),
        Decision((1, 2), (3, END), {1: 1, 2: 0}),
    )
    assert verbalizer.paths == ((1, 2),)


def check_trees(verbalizer: Verbalizer) -> None:
    """Every decision is asked once, behind the tokens that lead to it."""
    assert sorted(one for tree in verbalizer.trees for one in tree.asked) == list(range(len(verbalizer.decisions)))
    for tree in verbalizer.trees:
        ways: list[tuple[int, ...]] = []
        for token, parent in zip(tree.tokens, tree.parents, strict=True):
            ways.append((*(ways[parent] if parent >= 0 else ()), token))
        assert len(set(ways)) == len(ways)
        for decision, place in zip(tree.asked, tree.places, strict=True):
            assert verbalizer.decisions[decision].path == (ways[place] if place >= 0 else ())


@given(
    st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple), min_size=2, max_size=12, unique=True),
    st.randoms(use_true_random=False),
)
def test_label_probabilities_sum_to_one_whatever_the_model_says(
    labels: list[tuple[int, ...]], chance: random.Random
) -> None:
    verbalizer = Verbalizer.of_tokens(labels, END)
    shares = []
    for decision in verbalizer.decisions:
        weights = [chance.random() + 0.01 for _ in decision.choices]
        shares.append([weight / sum(weights) for weight in weights])
    total = 0.0
    for label in range(len(labels)):
        steps = [
            share[decision.choice_of_label[label]]
            for decision, share in zip(verbalizer.decisions, shares, strict=True)
            if label in decision.choice_of_label
        ]
        assert steps
        total += math.prod(steps)
    assert total == pytest.approx(1)
    check_trees(verbalizer)
    for decision in verbalizer.decisions:
        assert any(path[: len(decision.path)] == decision.path for path in verbalizer.paths)
        assert len(decision.choices) > 1
        assert set(decision.choices) <= set(verbalizer.rows)


def test_labels_stand_behind_a_text_as_one_tree() -> None:
    verbalizer = Verbalizer.of_tokens([(1, 2, 3), (1, 2, 4), (1, 5, 6), (1, 5, 7, 8), (1, 5, 7, 9), (2, 2)], END)
    (tree,) = verbalizer.trees
    assert (tree.tokens, tree.parents) == ((1, 2, 5, 7), (-1, 0, 0, 2))
    assert {verbalizer.decisions[one].path: place for one, place in zip(tree.asked, tree.places, strict=True)} == {
        (): -1,
        (1,): 0,
        (1, 2): 1,
        (1, 5): 2,
        (1, 5, 7): 3,
    }
    # a decoder beside an encoder reads each path by itself
    apart = Verbalizer.of_tokens(verbalizer.sequences, END, branching=False)
    check_trees(apart)
    assert sorted(tree.tokens for tree in apart.trees) == sorted(verbalizer.paths) == [(1, 2), (1, 5, 7)]


def test_thousands_of_labels_stand_in_several_trees() -> None:
    labels = [(a, b, c) for a in range(40) for b in range(10) for c in range(3)]
    verbalizer = Verbalizer.of_tokens(labels, END)
    check_trees(verbalizer)
    sizes = [len(tree.tokens) for tree in verbalizer.trees]
    assert max(sizes) <= TREE
    assert len(sizes) == math.ceil(440 / TREE)


def test_a_task_gives_the_tokens_behind_its_template() -> None:
    tokenizer = tiny_tokenizer("llama")
    verbalizer = Verbalizer.of_task(spec("good", "negative"), tokenizer)
    assert [tokenizer.convert_ids_to_tokens(ids) for ids in verbalizer.sequences] == [["Ġgood"], ["Ġnegat", "ive"]]


def test_verbalizers_stand_for_the_labels() -> None:
    words = TaskSpec("classification", "{{ text }}:", ("0", "1"), ("bad", "good"))
    tokenizer = tiny_tokenizer("llama")
    assert Verbalizer.of_task(words, tokenizer).sequences == tuple((tokenizer.encode(w)[1],) for w in (" bad", " good"))


@pytest.mark.parametrize(
    ("template", "tokens"),
    [
        ("{{ text }}\nLabel:", ["Ġpos", "it", "ive"]),
        ("{{ text }}", ["Ġpos", "it", "ive"]),
        ("{{ text }} ", ["pos", "it", "ive"]),
        ("{{ text }}\n", ["pos", "it", "ive"]),
        ("Is {{ text }} good? {% if text %}Say:{% endif %}", ["Ġpos", "it", "ive"]),
    ],
)
def test_a_space_stands_before_the_answer_unless_the_template_ends_in_one(template: str, tokens: list[str]) -> None:
    assert pieces(template, "positive") == tokens


def test_special_tokens_in_an_answer_are_plain_text() -> None:
    assert pieces("{{ text }}:", "good <eos>") == ["Ġgood", "Ġ", "<", "e", "os", ">"]
    assert "<bos>" not in tiny_tokenizer("llama").convert_ids_to_tokens(encode_plain(tiny_tokenizer("llama"), "<bos>"))


def test_labels_of_the_same_tokens_are_an_error() -> None:
    same = TaskSpec("classification", "{{ text }}", ("yes", "no", "maybe"), ("good", "bad", "good"))
    with pytest.raises(
        DataError, match="labels 'yes' and 'maybe' are the same tokens: give them different verbalizers"
    ):
        Verbalizer.of_task(same, tiny_tokenizer("llama"))


def test_the_end_of_an_answer_is_the_end_of_sequence() -> None:
    tokenizer = tiny_tokenizer("llama")
    assert end_token_id(tokenizer) == tokenizer.eos_token_id
    endless = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(DataError, match="tokenizer has no end-of-sequence token: set its eos_token"):
        end_token_id(endless)


def test_a_verbalizer_has_so_many_tokens_at_most() -> None:
    words = TaskSpec("classification", "{{ text }}:", ("a", "b"), ("no", "\U0001f600" * 100))
    with pytest.raises(DataError, match="the words of label 'b' are 401 tokens, expected at most 256: give it a short"):
        Verbalizer.of_task(words, tiny_tokenizer("llama"))


def test_labels_that_each_continue_the_one_before() -> None:
    """The shape that costs most: as many places where labels part as labels, each on the way of all behind it."""
    labels = [(1,) * length for length in range(1, 257)]
    verbalizer = Verbalizer.of_tokens(labels, END)
    assert [decision.path for decision in verbalizer.decisions] == labels[:-1]
    assert verbalizer.paths == (labels[-2],)
    assert [set(tree.asked) for tree in verbalizer.trees] == [set(range(255))]
    assert [len(one) for one in verbalizer.passed] == [*range(1, 256), 255]


def test_answers_read_together_are_those_read_alone() -> None:
    tokenizer, answers = tiny_tokenizer("llama"), ["good", "negative", "good <eos>", "a film"]
    for template in ("{{ text }}\nLabel:", "{{ text }}" + " word" * 999, "{{ text }} <eos>"):
        task = spec("a", "b", template=template)
        assert encode_answers(tokenizer, task, answers) == [encode_answer(tokenizer, task, one) for one in answers]
