"""Examples to tokens, in a thread of its own: templates and tokenizer, and what is worked out once for a task."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Generic, TypeVar

from softprompt.data.encoding.encoder import EncodedSequence, ExampleEncoder
from softprompt.data.encoding.special_tokens import TokenizingModel
from softprompt.data.encoding.token_bytes import token_bytes
from softprompt.data.encoding.tokenization import safe_tokenizer
from softprompt.data.examples import Example, count_characters
from softprompt.data.task import TaskSpec
from softprompt.errors import DataError
from softprompt.inference.scoring import AnswerScorer
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.text_encoder import make_text_encoder
from softprompt.serving.engine.completion_chunks import InputUsage
from softprompt.serving.engine.engine_requests import EchoedText, EncodedText, LabelQuery, RawPrompt, ServedPrompt

_Value = TypeVar("_Value")

KEPT = 512  # tasks whose encoders are kept, those with many labels counted several times
_TOKENS_OF_ONE, _CELLS_OF_ONE = 2_000, 2**16  # what the labels of a task that counts once have
_TOGETHER, _CHARACTERS_TOGETHER = 64, 2**17  # examples that are prepared together, and their characters


class WeightedCache(Generic[_Value]):
    """The values of the last ``most`` keys that were asked for, or of fewer, where ``weigh`` counts some for more."""

    def __init__(self, most: int, weigh: Callable[[_Value], int] = lambda value: 1) -> None:
        self._most, self._weigh = most, weigh
        self._values: OrderedDict[Hashable, _Value] = OrderedDict()
        self._weight = 0

    def get(self, key: Hashable, make: Callable[[], _Value]) -> _Value:
        if key not in self._values:
            self._values[key] = make()
            self._weight += self._weigh(self._values[key])
        self._values.move_to_end(key)
        while self._weight > self._most and len(self._values) > 1:
            self._weight -= self._weigh(self._values.popitem(last=False)[1])
        return self._values[key]


class TextEncoder:
    """Makes tokens of examples; to be called in one thread only."""

    def __init__(self, base: TokenizingModel, longest: int) -> None:
        """``longest``: characters of an example that are read at all."""
        self._longest = longest
        self._base = base
        # now, and not while texts wait
        safe_tokenizer(base.tokenizer).prepare()
        # of a baked checkpoint
        self._never = frozenset(getattr(base, "never", ()))
        self._labelling: WeightedCache[ExampleEncoder] = WeightedCache(KEPT, weigh_labels)
        self._generating: WeightedCache[ExampleEncoder] = WeightedCache(KEPT)

    def get_label_encoder(self, served: ServedPrompt, examples: Sequence[Example]) -> ExampleEncoder:
        """What reads ``examples`` for their labels; raises DataError for one that is too long."""
        self._check_lengths(examples)
        return self._labelling.get(served.key, lambda: self._make_encoder(served, served.spec))

    def encode_text(self, served: ServedPrompt, example: Example | RawPrompt, new_tokens: int) -> EncodedText:
        """A text that at most ``new_tokens`` are to follow.

        Raises:
            TemplateError, DataError: an example, or a raw text, that cannot be read.
        """
        if isinstance(example, RawPrompt):
            return self._encode_raw(served, example, new_tokens if example.completed else 0)
        self._check_lengths([example])
        # whatever its task is, words can follow
        encoder = self._generating.get(
            (served.key, new_tokens),
            lambda: self._make_encoder(served, served.spec.as_generation, new_tokens),
        )
        (ids,), cut = encode_and_find_cuts(encoder, [example])
        return EncodedText(EncodedSequence(0, ids, ()), InputUsage(count_prefix_tokens(served) + len(ids), bool(cut)))

    def _encode_raw(self, served: ServedPrompt, raw: RawPrompt, new_tokens: int) -> EncodedText:
        """The text as it is; nothing is cut of it, for that would be another text than is scored."""
        base, tokenizer = self._base, self._base.tokenizer
        if len(raw.text) > self._longest:
            what = "characters" if isinstance(raw.text, str) else "tokens"
            raise DataError(f"a text of {len(raw.text):,} {what}: expected at most {self._longest:,}, shorten it")
        words = raw.text if isinstance(raw.text, str) else token_bytes(tokenizer).write(raw.text)
        ids = tuple(safe_tokenizer(tokenizer).encode_plain(raw.text) if isinstance(raw.text, str) else raw.text)
        if (strange := next((one for one in ids if not 0 <= one < len(tokenizer)), None)) is not None:
            raise DataError(f"token id {strange:,}: expected those of the base model, from 0 to {len(tokenizer) - 1:,}")
        if (virtual := next((one for one in ids if one in self._never), None)) is not None:
            raise DataError(f"token id {virtual:,} is a virtual token of a prompt: expected those of the base model")
        if not ids:
            raise DataError("a text without a token: expected some words")
        # where texts begin with BOS, it is the one in front of everything
        bos = base.special_tokens.bos
        before = bos if bos and ids[: len(bos)] == bos and len(ids) > len(bos) else ()
        ids = (*ids[len(before) :], *base.special_tokens.suffix)
        virtual_tokens = count_prefix_tokens(served)
        if base.context_length is not None:
            room = base.context_length - len(bos) - virtual_tokens - new_tokens
            if len(ids) > room:
                raise DataError(
                    f"a text of {len(ids):,} tokens behind {virtual_tokens:,} virtual ones, and {new_tokens:,} new: "
                    f"expected at most {max(room, 0):,} in this model's context of {base.context_length:,}"
                )
        read = InputUsage(virtual_tokens + len(ids), cut=False)
        echo = EchoedText(words, before) if raw.echo else None
        return EncodedText(EncodedSequence(0, ids, ()), read, echo, not raw.completed)

    def _make_encoder(self, served: ServedPrompt, spec: TaskSpec, new_tokens: int = 0) -> ExampleEncoder:
        return make_text_encoder(self._base, spec, served.states, new_tokens)

    def _check_lengths(self, examples: Sequence[Example]) -> None:
        for example in examples:
            if (length := count_characters(example)) > self._longest:
                raise DataError(f"a text of {length:,} characters: expected at most {self._longest:,}, shorten it")


def weigh_labels(encoder: ExampleEncoder) -> int:
    """How many an encoder counts for in ``WeightedCache``."""
    sequences = encoder.verbalizer.sequences if encoder.verbalizer is not None else ()
    return 1 + sum(map(len, sequences)) // _TOKENS_OF_ONE


def _weigh_decisions(objective: AnswerScorer) -> int:
    assert objective.verbalizer is not None
    return 1 + len(objective.verbalizer.decisions) * len(objective.verbalizer.sequences) // _CELLS_OF_ONE


def split_portions(template: str, examples: Sequence[Example]) -> Iterator[list[Example]]:
    """The examples of a request as they are prepared: few and short enough that between them others get their turn.

    Each counts with the words of its ``template``, which are read with it.
    """
    portion: list[Example] = []
    size = 0
    for example in examples:
        length = len(template) + count_characters(example)
        if portion and (len(portion) == _TOGETHER or size + length > _CHARACTERS_TOGETHER):
            yield portion
            portion, size = [], 0
        portion.append(example)
        size += length
    if portion:
        yield portion


class RequestPreparer(TextEncoder):
    """Makes items of examples for the model of this process; to be called in one thread only."""

    def __init__(self, base: FrozenLM, longest: int) -> None:
        super().__init__(base, longest)
        self._model = base
        self._objectives: WeightedCache[AnswerScorer] = WeightedCache(KEPT, _weigh_decisions)

    def encode_examples(
        self, served: ServedPrompt, examples: Sequence[Example]
    ) -> tuple[LabelQuery, list[tuple[int, ...]], list[InputUsage]]:
        """What asks for the labels and scores them, and of each example its tokens, and what is read of it.

        Raises:
            TemplateError, DataError: an example that cannot be read.
        """
        encoder = self.get_label_encoder(served, examples)
        objective = self._objectives.get(
            served.key, lambda: AnswerScorer(self._model, encoder.verbalizer, served.states)
        )
        texts, cut = encode_and_find_cuts(encoder, examples)
        before = count_prefix_tokens(served)
        read = [InputUsage(before + len(text), index in cut) for index, text in enumerate(texts)]
        return LabelQuery(encoder, objective, max(1, len(served.states))), texts, read


def count_prefix_tokens(served: ServedPrompt) -> int:
    """Virtual tokens of all of its prompts, and what is kept around them."""
    return sum(state.length + state.placement.added for state in served.states)


def encode_and_find_cuts(
    encoder: ExampleEncoder, examples: Sequence[Example]
) -> tuple[list[tuple[int, ...]], frozenset[int]]:
    """Tokens of examples, and which of them were cut."""

    def cuts(some: Sequence[Example]) -> tuple[list[tuple[int, ...]], int]:
        before = encoder.truncated
        return encoder.encode_inputs(some), encoder.truncated - before

    found, count = cuts(examples)
    if count in (0, len(examples)):
        return found, frozenset(range(count))
    return found, frozenset(index for index, one in enumerate(examples) if cuts([one])[1])
