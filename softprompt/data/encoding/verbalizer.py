"""Labels as token sequences, scored exactly.

The probability of a label is the product of the choices that lead to it when decoding is held to the label set: at
each place where labels part, a softmax over the tokens that continue some label. It is normalised over the labels,
needs the output layer for those tokens only, and asks the model nothing where there is no choice. With labels that
differ in their first token it is the usual softmax over label words (Schick and Schuetze 2021), at one position.
It is also what engines compute that decode with a choice constraint, so exports give the same answers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from softprompt.data.chats.chat_template import find_chat_template
from softprompt.data.encoding.tokenization import safe_tokenizer
from softprompt.data.task import TaskSpec
from softprompt.errors import DataError

TOKENS = 256  # of a label's words
TREE = 256  # tokens that stand side by side behind one text, at most
_BEFORE = 64  # characters of a template that its answers are tokenised behind


@dataclass(frozen=True)
class Decision:
    """A place where labels part.

    Attributes:
        path: label tokens that lead from the end of the text to this place (empty for the first).
        choices: token ids that may follow.
        choice_of_label: the index into ``choices`` of each label that comes by, in the order of the labels.
    """

    path: tuple[int, ...]
    choices: tuple[int, ...]
    choice_of_label: Mapping[int, int]


@dataclass(frozen=True)
class AnswerTree:
    """Beginnings of labels that stand behind one text side by side, each token that they share once.

    Attributes:
        tokens: token ids, each behind the one that it follows.
        parents: the place in ``tokens`` of the one that each follows; -1: the end of the text.
        asked: the decisions (indices) that it is for.
        places: the place in ``tokens`` behind which each of these is asked; -1: at the end of the text.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    asked: tuple[int, ...]
    places: tuple[int, ...]


@dataclass(frozen=True)
class Verbalizer:
    """The labels' token sequences and their decisions, the first decision at the end of the text.

    Attributes:
        sequences: token ids of each label.
        decisions: every place where labels part, shorter paths first.
        rows: all token ids among the choices, sorted: the rows of the output layer that are needed.
        paths: the fewest label prefixes behind the text that reach every decision.
        trees: ``paths`` as trees of tokens, which together ask every decision once.
        passed: the decisions (indices) that each label passes through.
    """

    sequences: tuple[tuple[int, ...], ...]
    decisions: tuple[Decision, ...]
    rows: tuple[int, ...]
    paths: tuple[tuple[int, ...], ...]
    trees: tuple[AnswerTree, ...]
    passed: tuple[tuple[int, ...], ...]

    @classmethod
    def of_tokens(cls, sequences: Sequence[Sequence[int]], end_id: int, *, branching: bool = True) -> Self:
        """Find the decisions among label token sequences; ``end_id`` closes a label that another one continues.

        Args:
            branching: let ``paths`` share a tree; else each is one of its own.
        """
        tree = _Trie()
        ends = [tree.grow(sequence) for sequence in sequences]
        # those that others continue are known when all have grown
        continued = [bool(tree.children[end]) for end in ends]
        closed = [
            (*sequence, end_id) if more else tuple(sequence)
            for sequence, more in zip(sequences, continued, strict=True)
        ]
        for label in closed:
            tree.grow(label)

        path_of: dict[int, tuple[int, ...]] = {}  # of each node of the tree where labels part
        parts: list[list[int]] = []  # those nodes, on the way of each label
        for label in closed:
            parts.append([])
            for length, node in enumerate(tree.way(label)):
                if len(tree.children[node]) > 1:
                    parts[-1].append(node)
                    if node not in path_of:
                        path_of[node] = label[:length]
        order = sorted(path_of, key=lambda node: (len(path_of[node]), path_of[node]))
        index = {node: position for position, node in enumerate(order)}
        passed = tuple(tuple(index[node] for node in nodes) for nodes in parts)

        choices = [tuple(sorted(tree.children[node])) for node in order]
        places = [{token: place for place, token in enumerate(tokens)} for tokens in choices]
        choice_of_label: list[dict[int, int]] = [{} for _ in order]
        for number, (label, decisions) in enumerate(zip(closed, passed, strict=True)):
            for decision in decisions:
                token = label[len(path_of[order[decision]])]
                choice_of_label[decision][number] = places[decision][token]

        inner = {decision for decisions in passed for decision in decisions[:-1]}
        way = {decisions[-1]: decisions for decisions in passed if decisions}
        last = [decision for decision in range(len(order)) if decision not in inner]
        paths = [path_of[order[decision]] for decision in last]
        steps = [[(decision, len(path_of[order[decision]])) for decision in way[one]] for one in last]
        return cls(
            tuple(closed),
            tuple(
                Decision(path_of[node], some, of_label)
                for node, some, of_label in zip(order, choices, choice_of_label, strict=True)
            ),
            tuple(sorted({token for tokens in choices for token in tokens})),
            tuple(paths),
            tuple(_plant(paths, steps, TREE if branching else 0)),
            passed,
        )

    @classmethod
    def of_task(cls, spec: TaskSpec, tokenizer: Any, *, alone: bool = False) -> Self:
        """Tokenise the task's verbalizers as they stand behind its template, or ``alone`` (see ``encode_answer``).

        Raises:
            DataError: two labels are the same tokens, or one has too many.
        """
        sequences = [tuple(ids) for ids in encode_answers(tokenizer, spec, spec.verbalizers, alone=alone)]
        known: dict[tuple[int, ...], str] = {}
        for label, ids in zip(spec.labels, sequences, strict=True):
            if len(ids) > TOKENS:
                raise DataError(
                    f"the words of label '{label[:80]}' are {len(ids):,} tokens, expected at most {TOKENS}: give it a "
                    "shorter verbalizer"
                )
            if (other := known.setdefault(ids, label)) != label:
                raise DataError(f"labels '{other}' and '{label}' are the same tokens: give them different verbalizers")
        return cls.of_tokens(sequences, answer_end_id(tokenizer, spec), branching=not alone)

    def decisions_of(self, label: int) -> list[Decision]:
        """The decisions that ``label`` (an index) passes through."""
        return [self.decisions[decision] for decision in self.passed[label]]


def number_labels(spec: TaskSpec, tokenizer: Any) -> range:
    """Token ids, behind those of the model, for labels whose rows of the output layer are learned."""
    return range(len(tokenizer), len(tokenizer) + len(spec.labels))


def make_verbalizer(
    spec: TaskSpec, tokenizer: Any, *, alone: bool = False, label_ids: Sequence[int] = ()
) -> Verbalizer | None:
    """``Verbalizer.of_task``, or one decision among ``label_ids``, a token for each label; ``None`` for generation."""
    if spec.kind == "generation":
        return None
    if label_ids:
        return Verbalizer.of_tokens([(one,) for one in label_ids], -1)
    return Verbalizer.of_task(spec, tokenizer, alone=alone)


def _plant(
    paths: Sequence[tuple[int, ...]], steps: Sequence[Sequence[tuple[int, int]]], most: int
) -> Iterator[AnswerTree]:
    """``paths`` as trees of at most ``most`` tokens, or of one path.

    Args:
        steps: the decisions on each path, and after how many of its tokens.
    """
    answered = set[int]()
    left = sorted(range(len(paths)), key=lambda index: paths[index], reverse=True)  # neighbours share the most
    while left:
        places: dict[tuple[int, int], int] = {}  # by the place of the token before, and the token
        asked: dict[int, int] = {}
        while left and (not asked or len(places) + _count_new(places, paths[left[-1]]) <= most):
            path, way = paths[left[-1]], [-1]
            for token in path:
                way.append(places.setdefault((way[-1], token), len(places)))
            for decision, length in steps[left.pop()]:
                if decision not in answered:
                    answered.add(decision)
                    asked[decision] = way[length]
        yield AnswerTree(
            tuple(token for _, token in places),
            tuple(parent for parent, _ in places),
            tuple(asked),
            tuple(asked.values()),
        )


def _count_new(places: Mapping[tuple[int, int], int], path: tuple[int, ...]) -> int:
    """Tokens of a path that are not among ``places``."""
    known, place = 0, -1
    while known < len(path) and (found := places.get((place, path[known]))) is not None:
        known, place = known + 1, found
    return len(path) - known


class _Trie:
    """Token sequences by their beginnings: ``children[node]`` are the nodes behind a node, by the token between."""

    def __init__(self) -> None:
        self.children: list[dict[int, int]] = [{}]

    def grow(self, sequence: Sequence[int]) -> int:
        """Add a sequence; the node where it ends."""
        node = 0
        for token in sequence:
            if token not in self.children[node]:
                self.children[node][token] = len(self.children)
                self.children.append({})
            node = self.children[node][token]
        return node

    def way(self, sequence: Sequence[int]) -> list[int]:
        """The node in front of each token of a sequence that has grown."""
        nodes = [0]
        for token in sequence[:-1]:
            nodes.append(self.children[nodes[-1]][token])
        return nodes


def end_token_id(tokenizer: Any) -> int:
    """The token that ends an answer: the tokenizer's end of sequence.

    Raises:
        DataError: the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise DataError("the base model's tokenizer has no end-of-sequence token: set its eos_token")
    return int(tokenizer.eos_token_id)


def answer_end_id(tokenizer: Any, spec: TaskSpec) -> int:
    """The token that ends an answer of this task: of a conversation that which ends the assistant's turn.

    Raises:
        DataError: there is none.
    """
    end = end_of_turn(tokenizer, spec)
    return end_token_id(tokenizer) if end is None else end


def end_of_turn(tokenizer: Any, spec: TaskSpec) -> int | None:
    """The token that ends the assistant's turn, where the task's texts are conversations whose template has one."""
    return None if spec.chat is None else find_chat_template(tokenizer, spec.chat).end_id


def encode_answer(tokenizer: Any, spec: TaskSpec, answer: str, *, alone: bool = False) -> list[int]:
    """Token ids of an answer; special tokens in it are read as plain text.

    It stands behind the template, or ``alone``, in a decoder that sees the template only through the encoder.
    """
    return encode_answers(tokenizer, spec, [answer], alone=alone)[0]


def encode_answers(tokenizer: Any, spec: TaskSpec, answers: Sequence[str], *, alone: bool = False) -> list[list[int]]:
    """``encode_answer`` of each of ``answers``."""
    tokens = safe_tokenizer(tokenizer)
    if alone:
        return tokens.encode_batch([(answer, [(0, len(answer))]) for answer in answers])
    rests = [spec.answer_separator + answer for answer in answers]
    found: dict[int, list[int]] = {}
    # behind the template's last words, then behind a new line, which joins no word: tokenizers treat the start of a
    # text differently from its middle, and what follows some turn marks too
    for before in (_words_before(tokenizer, spec), "\n"):
        head, start = tokens.encode(before, ()), len(before)
        left = [index for index in range(len(rests)) if index not in found]
        texts = [(before + rests[index], [(start, start + len(rests[index]))]) for index in left]
        for index, whole in zip(left, tokens.encode_batch(texts), strict=True):
            if whole[: len(head)] == head:
                found[index] = whole[len(head) :]
    return [found[index] if index in found else tokens.encode_plain(rest) for index, rest in enumerate(rests)]


def _words_before(tokenizer: Any, spec: TaskSpec) -> str:
    """What stands in front of an answer: the template's last words, or the beginning of the assistant's turn."""
    if spec.chat is not None:
        return find_chat_template(tokenizer, spec.chat).asking
    return spec.template.rpartition("}")[2][-_BEFORE:] or "a"


def encode_plain(tokenizer: Any, text: str) -> list[int]:
    """Token ids of ``text`` alone: nothing added, and no part of it taken for a special token."""
    return safe_tokenizer(tokenizer).encode_plain(text)
