"""What is prepared for one prompt is bounded, in time beside others and in what is kept of it."""

from serving import TWO, tokens
from tiny import tiny_base

from softprompt.data import Example
from softprompt.server.preparing import Preparing, Recent, portions
from softprompt.server.work import Served
from softprompt.task import LABELS, TaskSpec

BASE = tiny_base("llama")


def test_others_get_their_turn_between_few_or_long_texts() -> None:
    short, long = Example("a"), Example("b", columns={"c": "x" * 90_000})
    assert [len(one) for one in portions([short] * 130)] == [64, 64, 2]
    assert [len(one) for one in portions([long, long, short, long])] == [1, 2, 1]
    assert list(portions([])) == []


def test_few_heavy_values_are_kept_where_many_light_ones_would_be() -> None:
    kept: Recent[int] = Recent(10, weigh=lambda value: value)
    for key, weight in (("a", 3), ("b", 3), ("c", 3), ("a", 0), ("d", 3)):
        kept.get(key, lambda weight=weight: weight)  # type: ignore[misc]
    assert list(kept._values) == ["c", "a", "d"]
    kept.get("heavy", lambda: 99)
    assert list(kept._values) == ["heavy"]
    kept.get("light", lambda: 1)
    assert list(kept._values) == ["light"]


def test_a_prompt_with_all_the_labels_there_may_be_counts_for_many() -> None:
    names = tuple(" ".join(f"{number:011b}") for number in range(LABELS))
    many = Served("many@1", TaskSpec("classification", "{{ text }}:", names, names), (tokens(BASE, 3),))
    preparing = Preparing(BASE, 1_000)
    preparing.questions(Served("two@1", TWO, (tokens(BASE, 3),)), [Example("film")])
    light = preparing._objectives._weight
    objective, *_ = preparing.questions(many, [Example("film")])
    assert objective.verbalizer is not None
    assert len(objective.verbalizer.decisions) == LABELS - 1
    assert light == 1
    assert preparing._objectives._weight - light > 50
