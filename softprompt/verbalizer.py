"""Labels as token sequences, scored exactly.

The probability of a label is the product of the choices that lead to it when decoding is held to the label set: at
each place where labels part, a softmax over the tokens that continue some label. It is normalised over the labels,
needs the output layer for those tokens only, and asks the model nothing where there is no choice. With labels that
differ in their first token it is the usual softmax over label words (Schick and Schuetze 2021), at one position.
It is also what engines compute that decode with a choice constraint, so exports give the same answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from softprompt.errors import DataError
from softprompt.task import TaskSpec
from softprompt.tokens import tokens_of


@dataclass(frozen=True)
class Decision:
    """A place where labels part.

    Attributes:
        path: label tokens that lead from the end of the text to this place (empty for the first).
        choices: token ids that may follow.
        choice_of_label: for each label the index into ``choices``, or -1 where the label does not come by.
    """

    path: tuple[int, ...]
    choices: tuple[int, ...]
    choice_of_label: tuple[int, ...]


@dataclass(frozen=True)
class Verbalizer:
    """The labels' token sequences and their decisions, the first decision at the end of the text.

    Attributes:
        sequences: token ids of each label.
        decisions: every place where labels part, shorter paths first.
        rows: all token ids among the choices, sorted: the rows of the output layer that are needed.
        paths: the fewest label prefixes behind the text that reach every decision.
    """

    sequences: tuple[tuple[int, ...], ...]
    decisions: tuple[Decision, ...]
    rows: tuple[int, ...]
    paths: tuple[tuple[int, ...], ...]

    @classmethod
    def of_tokens(cls, sequences: Sequence[Sequence[int]], end_id: int) -> Self:
        """Find the decisions among label token sequences; ``end_id`` closes a label that another one continues."""
        labels = [tuple(sequence) for sequence in sequences]
        closed = [
            (*label, end_id) if any(other != label and other[: len(label)] == label for other in labels) else label
            for label in labels
        ]
        prefixes = sorted(
            {label[:length] for label in closed for length in range(len(label))}, key=lambda p: (len(p), p)
        )
        decisions = []
        for path in prefixes:
            next_tokens = [
                label[len(path)] if label[: len(path)] == path and len(label) > len(path) else None for label in closed
            ]
            choices = sorted({token for token in next_tokens if token is not None})
            if len(choices) > 1:
                index = {token: position for position, token in enumerate(choices)}
                of_label = tuple(-1 if token is None else index[token] for token in next_tokens)
                decisions.append(Decision(path, tuple(choices), of_label))
        all_paths = [decision.path for decision in decisions]
        paths = [
            path for path in all_paths if not any(other != path and other[: len(path)] == path for other in all_paths)
        ]
        rows = sorted({token for decision in decisions for token in decision.choices})
        return cls(tuple(closed), tuple(decisions), tuple(rows), tuple(paths))

    @classmethod
    def of_task(cls, spec: TaskSpec, tokenizer: Any, *, alone: bool = False) -> Self:
        """Tokenise the task's verbalizers as they stand behind its template, or ``alone`` (see ``answer_ids``).

        Raises:
            DataError: two labels are the same tokens.
        """
        sequences: list[tuple[int, ...]] = []
        for label, words in zip(spec.labels, spec.verbalizers, strict=True):
            ids = tuple(answer_ids(tokenizer, spec, words, alone=alone))
            if ids in sequences:
                other = spec.labels[sequences.index(ids)]
                raise DataError(f"labels '{other}' and '{label}' are the same tokens: give them different verbalizers")
            sequences.append(ids)
        return cls.of_tokens(sequences, end_of_answer(tokenizer))

    def decisions_of(self, label: int) -> list[Decision]:
        """The decisions that ``label`` (an index) passes through."""
        return [decision for decision in self.decisions if decision.choice_of_label[label] >= 0]


def end_of_answer(tokenizer: Any) -> int:
    """The token that ends an answer: the tokenizer's end of sequence.

    Raises:
        DataError: the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise DataError("the base model's tokenizer has no end-of-sequence token: set its eos_token")
    return int(tokenizer.eos_token_id)


def answer_ids(tokenizer: Any, spec: TaskSpec, answer: str, *, alone: bool = False) -> list[int]:
    """Token ids of an answer; special tokens in it are read as plain text.

    It stands behind the template, or ``alone``, in a decoder that sees the template only through the encoder.
    """
    if alone:
        return plain_ids(tokenizer, answer)
    # behind the template's last words, then behind a new line, which joins no word: tokenizers treat the start of a
    # text differently from its middle, and what follows some turn marks too
    tokens, rest = tokens_of(tokenizer), spec.answer_separator + answer
    for before in (spec.template.rpartition("}")[2] or "a", "\n"):
        head = tokens.ids(before, ())
        whole = tokens.ids(before + rest, [(len(before), len(before + rest))])
        if whole[: len(head)] == head:
            return whole[len(head) :]
    return tokens.plain(rest)


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of ``text`` alone: nothing added, and no part of it taken for a special token."""
    return tokens_of(tokenizer).plain(text)
