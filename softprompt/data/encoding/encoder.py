"""Examples to token ids, and token ids to padded batches.

Shapes: ``B`` batch, ``T`` text length, ``S`` different texts of a batch, ``U`` answer length, ``N`` scored positions.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from softprompt.data.chats.conversation import Conversation
from softprompt.data.encoding.conversation_encoder import ConversationEncoder
from softprompt.data.encoding.placement import Placement
from softprompt.data.encoding.special_tokens import TokenizingModel
from softprompt.data.encoding.tokenization import FilledText, safe_tokenizer
from softprompt.data.encoding.verbalizer import answer_end_id, encode_answer, make_verbalizer
from softprompt.data.examples import Example
from softprompt.data.label_names import suggest_label
from softprompt.data.task import TaskSpec
from softprompt.errors import DataError, TemplateError

_Fitting = tuple[FilledText, tuple[int, ...]]  # and its token ids

_LEAST_ROOM = 8  # tokens of template and text that prompt and answer must leave in the context


@dataclass(frozen=True, slots=True)
class EncodedSequence:
    """One sequence of a forward pass, without BOS and prompt.

    Attributes:
        example: index of its example.
        ids: token ids of the text, and of the part of the answer that the model is given.
        positions: where the next token is asked for, as indices into ``ids``, or into ``decoder_ids`` if there are any.
        targets: the token that should follow at each position (empty when predicting).
        decisions: which decision of the verbalizer each position asks (empty for generation).
        prompt: which of the prompts in the batch it stands behind.
        decoder_ids: of an encoder-decoder model, what the decoder is given of the answer, in place of ``ids``.
        parents: the place in ``ids`` that each of its last tokens follows; none where each follows the one before.
    """

    example: int
    ids: tuple[int, ...]
    positions: tuple[int, ...]
    targets: tuple[int, ...] = ()
    decisions: tuple[int, ...] = ()
    prompt: int = 0
    decoder_ids: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded items as tensors.

    Attributes:
        input_ids: ``[B, T]``; of an encoder-decoder model each text behind each prompt once, ``[S, T]``.
        mask: the same shape, 1 on text and 0 on padding.
        row, column: ``[N]``, the scored positions: item, and place in ``input_ids``, or in ``decoder_ids``.
        targets: ``[N]`` token ids (empty when predicting).
        decisions: ``[N]`` (empty for generation).
        which: ``[B]``, the prompt of each item.
        decoder_ids: ``[B, U]``, what the decoder is given of the answers; ``U`` is 0 for decoder-only models.
        reads: ``[B]``, the row of ``input_ids`` that each item is about.
        seen: ``[B, T, T]``, the tokens of its row that each may look at, itself too; ``None``: all before it.
    """

    input_ids: Tensor
    mask: Tensor
    row: Tensor
    column: Tensor
    targets: Tensor
    decisions: Tensor
    which: Tensor
    decoder_ids: Tensor
    reads: Tensor
    seen: Tensor | None = None


class ExampleEncoder:
    """Turns examples of one task into items for one base model.

    Attributes:
        verbalizer: the labels as tokens; ``None`` for generation.
        truncated: texts cut so far, because template and text were longer than ``limit``.
        limit: tokens of template and text, at most.
    """

    def __init__(
        self,
        base: TokenizingModel,
        spec: TaskSpec,
        prompt_length: int,
        answer_room: int = 0,
        behind: str = "",
        *,
        label_ids: Sequence[int] = (),
    ) -> None:
        """Work out the limit: the task's own, or less where the base model's context is shorter.

        Args:
            prompt_length: virtual tokens ``P``.
            answer_room: tokens kept free behind the text, for generation.
            behind: words that a text goes on from; without any it is where the tokenizer begins.
            label_ids: a token of its own for each label, where labels are not words.

        Raises:
            TemplateError: prompt and answer leave no room for text in the context.
            DataError: the labels cannot be told apart.
        """
        self.base, self.spec, self._tokenizer = base, spec, base.tokenizer
        self._tokens, self._behind = safe_tokenizer(base.tokenizer), behind
        self._chat = None
        if spec.chat is not None:
            self._chat = ConversationEncoder(base.tokenizer, spec, base.special_tokens.bos)
            prompt_length += self._chat.length
        self._encoder_decoder = base.architecture == "encoder-decoder"
        self.verbalizer = make_verbalizer(spec, base.tokenizer, alone=self._encoder_decoder, label_ids=label_ids)
        self.truncated, self.limit = 0, spec.max_length
        # a client may not know it of its model
        self._rows: int | None = getattr(base, "vocabulary_size", None)
        # behind the items; those for classification, or in a decoder, need none
        self._kept_free = 0 if self._encoder_decoder or self.verbalizer is not None else answer_room
        self._room: int | None = None
        if base.context_length is not None:
            around = (*base.special_tokens.bos, *base.special_tokens.suffix)
            self._room = base.context_length - len(around) - prompt_length
            answer = max((len(path) for path in self.verbalizer.paths), default=0) if self.verbalizer else answer_room
            left = self._room_before(answer)
            if left < _LEAST_ROOM:
                raise TemplateError(
                    f"a prompt of {prompt_length} virtual tokens and an answer of {answer} leave "
                    f"{max(left, 0)} tokens for the text in this model's context of "
                    f"{base.context_length}: use a shorter prompt" + (", or fewer new tokens" if answer_room else "")
                )
            self.limit = min(self.limit, left)

    @property
    def placement(self) -> Placement:
        """What stands around the virtual tokens of this task, which no text of ``encode_texts`` repeats."""
        return Placement() if self._chat is None else self._chat.placement

    def encode_texts(self, examples: Sequence[Example], answers: Sequence[int] | None = None) -> list[tuple[int, ...]]:
        """Token ids of template and text, cut to ``limit`` within the text.

        Args:
            answers: tokens that will follow each text, where that may be more than was kept free for them.

        Raises:
            TemplateError: the template is empty, or leaves no room for the text.
            DataError: an answer leaves no room for the text.
        """
        return [ids for _, ids in self._fitting(examples, answers)]

    def texts(self, examples: Sequence[Example]) -> list[FilledText]:
        """Template and text, cut as ``encode_texts`` are, and where the row's data stands in them."""
        return [filled for filled, _ in self._fitting(examples, None)]

    def conversations(self, examples: Sequence[Example]) -> list[Conversation]:
        """In chats: what is asked, cut as ``encode_texts`` are."""
        assert self._chat is not None
        whole = self._read([self._filled(example) for example in examples])
        return [
            self._chat.asked(example)
            if len(ids) <= self.limit
            else self._chat.asked(*self._cut_example(example, len(ids), self.limit))
            for example, ids in zip(examples, whole, strict=True)
        ]

    def _fitting(self, examples: Sequence[Example], answers: Sequence[int] | None) -> list[_Fitting]:
        whole = [self._filled(example) for example in examples]
        encoded = self._read(whole)
        limits = [self.limit] * len(examples)
        if answers is not None:
            limits = [self._limit_before(*one) for one in zip(answers, examples, strict=True)]
        if blank := next((one for one, ids in zip(examples, encoded, strict=True) if not ids), None):
            what = f"the template gives an empty text for an example; got {self.spec.template!r}"
            raise TemplateError(blank.locate_message(what))
        if self._rows is not None and (most := max(map(max, encoded), default=0)) >= self._rows:
            raise TemplateError(
                f"the template spells {self._tokenizer.convert_ids_to_tokens(most)!r}, token {most:,}, for which the "
                f"model has no embedding: expected tokens below {self._rows:,}, leave it out"
            )
        return [
            (filled, tuple(ids)) if len(ids) <= limit else self._cut_text(example, len(ids), limit)
            for example, filled, ids, limit in zip(examples, whole, encoded, limits, strict=True)
        ]

    def encode_inputs(self, examples: Sequence[Example], answers: Sequence[int] | None = None) -> list[tuple[int, ...]]:
        """``encode_texts``, and what an encoder reads behind every text."""
        return [(*ids, *self.base.special_tokens.suffix) for ids in self.encode_texts(examples, answers)]

    def truncation_notes(self) -> list[str]:
        """What there is to say of texts that were cut so far, and of a beginning that is written twice."""
        why = "--max-length" if self.limit == self.spec.max_length else "the model's context holds no more"
        notes = [f"{self.truncated:,} texts were cut to {self.limit:,} tokens ({why})"] if self.truncated else []
        if self._chat is not None:
            return [*notes, *self._chat.notes()]
        beginning = "".join(self._tokenizer.convert_ids_to_tokens(list(self.base.special_tokens.bos)))
        if beginning and self.spec.template.lstrip().startswith(beginning):
            notes.append(
                f"the template begins with {beginning}, which stands in front of every prompt anyway: the model reads "
                "it twice: leave it out of the template"
            )
        return notes

    def training_items(self, examples: Sequence[Example]) -> list[EncodedSequence]:
        """One item an example, with the answer to learn."""
        if self.verbalizer is not None:
            return [
                self._label_item(i, text, self._label(examples[i]))
                for i, text in enumerate(self.encode_inputs(examples))
            ]
        if self._chat is not None:
            return [self._conversation_item(self._chat, i, example) for i, example in enumerate(examples)]
        return self.answer_items(examples, [self._answer(example) for example in examples])

    def cut_examples(self, examples: Sequence[Example]) -> list[Example]:
        """Conversations and texts of a chat as they are read: those that are too long without what is cut of them.

        Raises:
            TemplateError, DataError: as ``encode_texts`` and ``training_items``.
        """
        assert self._chat is not None
        found = []
        for example in examples:
            one = example
            if self.verbalizer is None and one.conversation is not None and one.references:
                one = self._fit_answered(self._chat, one)[2]
            length = len(self._read([self._filled(one)])[0])
            found.append(one if length <= self.limit else self._chat.cut(*self._cut_example(one, length, self.limit)))
        return found

    def answer_items(self, examples: Sequence[Example], answers: Sequence[tuple[int, ...]]) -> list[EncodedSequence]:
        """For generation: one item an example, that asks for each token of an answer, of which there is one at least.

        Raises:
            DataError: an answer leaves no room for its text.
        """
        texts = self.encode_inputs(examples, [len(answer) - 1 for answer in answers])
        return [
            self._item(i, text, answer[:-1], range(len(answer)), targets=answer)
            for i, (text, answer) in enumerate(zip(texts, answers, strict=True))
        ]

    def scoring_items(self, examples: Sequence[Example]) -> list[EncodedSequence]:
        """For classification: the items, one for each example and tree, that together ask every decision once."""
        if self.verbalizer is None:
            raise TypeError("scoring_items is for classification")
        trees = range(len(self.verbalizer.trees))
        return [
            self.scoring_item(i, text, tree) for i, text in enumerate(self.encode_inputs(examples)) for tree in trees
        ]

    def scoring_item(self, index: int, text: tuple[int, ...], tree: int) -> EncodedSequence:
        """The item of a text of ``inputs`` that asks the decisions of one tree (an index) of the verbalizer."""
        assert self.verbalizer is not None
        one = self.verbalizer.trees[tree]
        item = self._item(index, text, one.tokens, [place + 1 for place in one.places], decisions=one.asked)
        if all(parent == place - 1 for place, parent in enumerate(one.parents)):
            return item
        return replace(item, parents=tuple(len(text) + parent for parent in one.parents))

    def question_items(self, examples: Sequence[Example]) -> list[EncodedSequence]:
        """One item an example that asks, at the end of the text, for the first token of its answer."""
        return [self._item(i, text, (), (0,)) for i, text in enumerate(self.encode_inputs(examples))]

    def spare(self, length: int) -> int | None:
        """Tokens that fit in front of ``length`` tokens of ``inputs``, or of an item; ``None``: any number."""
        if self._room is None:
            return None
        return self._room + len(self.base.special_tokens.suffix) - length - self._kept_free

    def _item(
        self,
        index: int,
        text: tuple[int, ...],
        given: tuple[int, ...],
        steps: Iterable[int],
        targets: tuple[int, ...] = (),
        decisions: tuple[int, ...] = (),
    ) -> EncodedSequence:
        """What the model is ``given`` of an answer, and after how many of its tokens the next one is asked for."""
        if self._encoder_decoder:
            start = self.base.special_tokens.decoder_start
            positions = tuple(len(start) - 1 + step for step in steps)
            return EncodedSequence(index, text, positions, targets, decisions, decoder_ids=(*start, *given))
        return EncodedSequence(
            index, (*text, *given), tuple(len(text) - 1 + step for step in steps), targets, decisions
        )

    def _label(self, example: Example) -> int:
        if example.label not in self.spec.label_index:
            raise DataError(
                example.locate_message(f"label '{example.label}' is not among {', '.join(self.spec.labels)}")
                + f"{suggest_label(example.label or '', self.spec.labels)}: name all with --labels"
            )
        return self.spec.label_index[example.label]

    def _label_item(self, index: int, text: tuple[int, ...], label: int) -> EncodedSequence:
        assert self.verbalizer is not None
        decisions = self.verbalizer.decisions_of(label)
        return self._item(
            index,
            text,
            decisions[-1].path,
            [len(decision.path) for decision in decisions],
            tuple(decision.choices[decision.choice_of_label[label]] for decision in decisions),
            self.verbalizer.passed[label],
        )

    def _answer(self, example: Example) -> tuple[int, ...]:
        words = encode_answer(self._tokenizer, self.spec, example.references[0], alone=self._encoder_decoder)
        return (*words, answer_end_id(self._tokenizer, self.spec))

    def _conversation_item(self, chat: ConversationEncoder, index: int, example: Example) -> EncodedSequence:
        """The item that asks for every token of the assistant's turns that are learned."""
        ids, spans, _ = self._fit_answered(chat, example)
        places = [place for span in spans for place in range(*span)]
        return EncodedSequence(
            index, tuple(ids[:-1]), tuple(place - 1 for place in places), tuple(ids[place] for place in places)
        )

    def _fit_answered(
        self, chat: ConversationEncoder, example: Example
    ) -> tuple[list[int], list[tuple[int, int]], Example]:
        """What ``encode_answered`` gives of an example, cut where it is too long, and the example as it is read."""
        ids, spans = chat.encode_answered(example)
        start = spans[-1][0]
        limit = self._limit_before(len(ids) - start - 1, example)
        if start <= limit:
            return ids, spans, example
        cut = self._cut(example, start, limit, lambda one, said: chat.encode_answered(one, said)[1][-1][0])
        return *chat.encode_answered(*cut), chat.cut(*cut)

    def _room_before(self, answer: int) -> int:
        """Tokens that the context has for a text with such an answer; none if the answer does not fit where it goes."""
        assert self._room is not None
        if not self._encoder_decoder:
            return self._room - answer
        return (
            self._room if len(self.base.special_tokens.decoder_start) + answer <= (self.base.context_length or 0) else 0
        )

    def _limit_before(self, answer: int, example: Example) -> int:
        if self._room is None:
            return self.limit
        left = self._room_before(answer)
        if left < _LEAST_ROOM:
            what = f"an output of {answer} tokens leaves {max(left, 0)} tokens for its text in the model's context"
            raise DataError(
                example.locate_message(f"{what} of {self.base.context_length}: shorten the output, or remove its row")
            )
        return min(self.limit, left)

    def _filled(self, example: Example, text: str | None = None) -> FilledText:
        if self._chat is not None:
            return self._chat.fill(example, text)
        rendered = self.spec.compiled.fill(example, text)
        return rendered.text, rendered.fields

    def _read(self, texts: Sequence[FilledText]) -> list[list[int]]:
        if self._chat is not None:
            return self._chat.encode(texts)
        return self._tokens.encode_after(self._behind, texts) if self._behind else self._tokens.encode_batch(texts)

    def _cut_text(self, example: Example, length: int, limit: int) -> _Fitting:
        """Template and text of an example that is shortened until they fit."""
        filled = self._filled(*self._cut_example(example, length, limit))
        return filled, tuple(self._read([filled])[0])

    def _cut_example(self, example: Example, length: int, limit: int) -> tuple[Example, str | None]:
        return self._cut(example, length, limit, lambda one, said: len(self._read([self._filled(one, said)])[0]))

    def _cut(
        self, example: Example, length: int, limit: int, measure: Callable[[Example, str | None], int]
    ) -> tuple[Example, str | None]:
        """The example without its oldest turns, and its text shortened by whole tokens from its end, until they fit.

        ``measure``: tokens of an example, with another text in place of its own, if given.
        """
        said = example.said
        if self._chat is not None:
            while length > limit and (shorter := self._chat.shorten(example)) is not None:
                example, length = shorter, measure(shorter, None)
            said = self._chat.last_said(example)
        ends = self._tokens.token_ends(said)
        keep, text = len(ends), None
        while length > limit:
            if keep <= 1:
                what = f"the template and the other columns in it fill the limit of {limit} tokens"
                raise TemplateError(
                    example.locate_message(f"{what} and leave no room for the text: shorten them or raise --max-length")
                )
            # where the template repeats the text, the excess may be more than there is of it
            keep = keep - (length - limit) if length - limit < keep else keep // 2
            text = said[: ends[keep - 1]]
            length = measure(example, text)
        self.truncated += 1
        return example, text
