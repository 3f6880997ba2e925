"""Examples to tokens, in a thread of its own: templates and tokenizer, and what is worked out once for a task."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from softprompt.base import FrozenLM
from softprompt.batch import Encoder, Item, Reader
from softprompt.data import Example
from softprompt.errors import DataError
from softprompt.examples import characters
from softprompt.objective import Objective
from softprompt.server.work import Served
from softprompt.shots import words_before
from softprompt.task import TaskSpec
from softprompt.tokens import tokens_of

_Value = TypeVar("_Value")

KEPT = 512  # tasks whose encoders are kept: a few kilobytes each


class Recent(Generic[_Value]):
    """The values of the last ``most`` keys that were asked for."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[Hashable, _Value] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], _Value]) -> _Value:
        if key not in self._values:
            self._values[key] = make()
        self._values.move_to_end(key)
        if len(self._values) > self._most:
            self._values.popitem(last=False)
        return self._values[key]


class Texts:
    """Makes tokens of examples; to be called in one thread only."""

    def __init__(self, base: Reader, longest: int) -> None:
        """``longest``: characters of an example that are read at all."""
        self._longest = longest
        self._base = base
        # now, and not while texts wait
        tokens_of(base.tokenizer).prepare()
        self._labelling: Recent[Encoder] = Recent(KEPT)
        self._generating: Recent[Encoder] = Recent(KEPT)

    def labelling(self, served: Served, examples: Sequence[Example]) -> Encoder:
        """What reads ``examples`` for their labels; raises DataError for one that is too long."""
        self._check_lengths(examples)
        return self._labelling.get(served.key, lambda: self._encoder(served, served.spec))

    def text(self, served: Served, example: Example, new_tokens: int) -> Item:
        """The item of a text that at most ``new_tokens`` are to follow.

        Raises:
            TemplateError, DataError: an example that cannot be read.
        """
        self._check_lengths([example])
        # whatever its task is, words can follow
        encoder = self._generating.get(
            (served.key, new_tokens),
            lambda: self._encoder(served, replace(served.spec, kind="generation"), new_tokens),
        )
        return Item(0, encoder.inputs([example])[0], ())

    def _encoder(self, served: Served, spec: TaskSpec, new_tokens: int = 0) -> Encoder:
        length = max((state.length for state in served.states), default=0)
        return Encoder(self._base, spec, length, new_tokens, words_before(served.states))

    def _check_lengths(self, examples: Sequence[Example]) -> None:
        for example in examples:
            if (length := characters(example)) > self._longest:
                raise DataError(f"a text of {length:,} characters: expected at most {self._longest:,}, shorten it")


class Preparing:
    """Makes items of examples; to be called in one thread only."""

    def __init__(self, base: FrozenLM, longest_text: int) -> None:
        """``longest_text``: characters of an example that are read at all."""
        self._base, self._texts = base, Texts(base, longest_text)
        self._objectives: Recent[Objective] = Recent(KEPT)

    def questions(self, served: Served, examples: Sequence[Example]) -> tuple[Objective, list[tuple[Item, ...]]]:
        """What scores the labels, and the items of each example, behind each of the prompts.

        Raises:
            TemplateError, DataError: an example that cannot be read.
        """
        encoder = self._texts.labelling(served, examples)
        objective = self._objectives.get(served.key, lambda: Objective(self._base, encoder.verbalizer))
        found: list[list[Item]] = [[] for _ in examples]
        for item in encoder.scoring_items(examples):
            found[item.example] += [replace(item, prompt=prompt) for prompt in range(max(1, len(served.states)))]
        return objective, [tuple(items) for items in found]

    def text(self, served: Served, example: Example, new_tokens: int) -> Item:
        """The item of a text that at most ``new_tokens`` are to follow; raises as ``questions``."""
        return self._texts.text(served, example, new_tokens)
