"""A text's token ids: those that the tokenizer makes of the whole of it, where no field can spell a mark.

    marks      special tokens, and added tokens that the chat template spells: they begin and end turns, thoughts
    words      everything else, other added tokens too (runs of blanks, HTML tags): they come from any text

The tokenizer reads the whole text, as it stands. Where a mark then lies on characters of a field, a copy of the
tokenizer reads the text again in which marks have names that nobody knows: only the marks that the template wrote are
put in by these names, so that nothing else spells one, alone or together with what stands beside it.
"""

import json
import re
import secrets
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary, proxy

from softprompt.errors import BaseModelError

Span = tuple[int, int]  # half-open, in characters
FilledText = tuple[str, Sequence[Span]]  # a text, and where a row's data stands in it
_Seen = tuple[int, int, int]  # a span, and the id of the mark that the tokenizer sees there
_WHOLE: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": False}

# what stands for an image, a turn or the like in any vocabulary, though some files do not call it special
_NO_TEXT = re.compile(r"<(?:start|end)_of_\w+>|<\|[^|<>\s]+\|>")

_known: WeakKeyDictionary[Any, tuple["SafeTokenizer", int, Any]] = WeakKeyDictionary()


class SafeTokenizer:
    """What one tokenizer makes of texts.

    Attributes:
        marks: ids by what is written for them.
    """

    def __init__(self, tokenizer: Any) -> None:
        # whoever reads texts has it; kept from here, none would ever be let go
        self._tokenizer = proxy(tokenizer)
        self.marks = find_marks(tokenizer)
        self._ids = frozenset(self.marks.values())
        self._added = {str(token): token for token in tokenizer.added_tokens_decoder.values()}
        self._pattern = compile_marks(self.marks)
        self._making = Lock()

    @cached_property
    def neutral_mark(self) -> str:
        """A mark that takes in nothing of what stands beside it, as a virtual token; empty if there is none."""
        plain = [name for name, one in self._added.items() if name in self.marks and not _takes_in(one)]
        return min(plain, key=lambda name: self._added[name].normalized, default="")

    def encode(self, text: str, fields: Sequence[Span]) -> list[int]:
        """Of one text, with what a user's data brought at ``fields``, ascending and disjoint."""
        return self.encode_batch([(text, fields)])[0]

    def encode_after(self, before: str, texts: Sequence[tuple[str, Sequence[Span]]]) -> list[list[int]]:
        """Of texts that follow the words ``before``, with which none of their tokens is shared.

        Tokenizers read the start of a text in another way than its middle, and what follows some marks too.
        """
        head, size = self.encode(before, ()), len(before)
        shifted = [(before + text, [(start + size, end + size) for start, end in fields]) for text, fields in texts]
        read = self.encode_batch(shifted)
        alone = [one for one, ids in zip(texts, read, strict=True) if ids[: len(head)] != head]
        others = iter(self.encode_batch(alone))
        return [ids[len(head) :] if ids[: len(head)] == head else next(others) for ids in read]

    def encode_plain(self, text: str) -> list[int]:
        """Of a text in which nothing is a mark."""
        return self.encode(text, [(0, len(text))] if text else [])

    def encode_batch(self, texts: Sequence[tuple[str, Sequence[Span]]]) -> list[list[int]]:
        """Of several texts."""
        if not texts:
            return []
        whole = self._read([text for text, _ in texts])
        return [
            self._encode_protected(text, fields, spans) if any(_overlaps(fields, span) for span in spans) else ids
            for (text, fields), (ids, spans) in zip(texts, whole, strict=True)
        ]

    def decode(self, ids: Sequence[int], shown: Collection[int] = ()) -> str:
        """What ``ids`` spell, to the blank, marks left out: an answer has none, for none is learned from a text.

        Marks that are ``shown`` stay.
        """
        words = [token for token in ids if token in shown or token not in self._ids]
        left_out = not shown
        return str(self._tokenizer.decode(words, skip_special_tokens=left_out, clean_up_tokenization_spaces=False))

    def token_ends(self, text: str) -> list[int]:
        """Where each token of ``text`` ends, in characters; every character where the tokenizer cannot tell."""
        if not self._tokenizer.is_fast:
            return list(range(1, len(text) + 1))
        return [end for _, end in self._tokenizer(text, **_WHOLE, return_offsets_mapping=True)["offset_mapping"]]

    def prepare(self) -> None:
        """Make ready what the first text that spells a mark would wait for, seconds of a large vocabulary."""
        if self._tokenizer.is_fast:
            _ = self._copy

    def _read(self, texts: list[str]) -> list[tuple[list[int], list[_Seen]]]:
        """As the tokenizer reads them, and where it sees marks, with the blanks that some take in."""
        if not self._tokenizer.is_fast:
            read = self._tokenizer(texts, **_WHOLE)["input_ids"]
            # at every place: which of several it would take does not matter
            pattern = re.compile(f"(?=({self._pattern.pattern}))")
            return [
                (list(ids), [(*one.span(1), self.marks[one[1]]) for one in pattern.finditer(text)])
                for text, ids in zip(texts, read, strict=True)
            ]
        # offsets take as long again as the tokens: they are asked for where a template has marks, or some text
        if not self._pattern.search(texts[0]):
            plain = self._tokenizer(texts, **_WHOLE)["input_ids"]
            marked = [index for index, ids in enumerate(plain) if not self._ids.isdisjoint(ids)]
            found: list[tuple[list[int], list[_Seen]]] = [(ids, []) for ids in plain]
            for index, read in zip(marked, self._seen([texts[index] for index in marked]), strict=True):
                found[index] = read
            return found
        return self._seen(texts)

    def _seen(self, texts: list[str]) -> list[tuple[list[int], list[_Seen]]]:
        if not texts:
            return []
        read = self._tokenizer(texts, **_WHOLE, return_offsets_mapping=True)
        return [
            (ids, [(*span, token) for token, span in zip(ids, spans, strict=True) if token in self._ids])
            for ids, spans in zip(read["input_ids"], read["offset_mapping"], strict=True)
        ]

    def _encode_protected(self, text: str, fields: Sequence[Span], seen: Sequence[_Seen]) -> list[int]:
        starts, ends = [0, *(end for _, end in fields)], [*(start for start, _ in fields), len(text)]
        own = list(zip(starts, ends, strict=True))
        given = [*(text[start:end] for start, end in fields), ""]
        if not self._tokenizer.is_fast:
            return self._encode_pieces([text[start:end] for start, end in own], given)

        def named(mark: re.Match[str]) -> str:
            return self._names[mark[0]] if self._is_mark(mark, text, seen) else mark[0]

        # within the whole text, for what stands beside a mark may decide
        pieces = [self._replace_marks(text, span, named) + theirs for span, theirs in zip(own, given, strict=True)]
        copy, back = self._copy
        return [back.get(token, token) for token in copy.encode("".join(pieces), add_special_tokens=False).ids]

    def _replace_marks(self, text: str, span: Span, named: Callable[[re.Match[str]], str]) -> str:
        start, end = span
        written = []
        for mark in self._pattern.finditer(text, start, end):
            written += [text[start : mark.start()], named(mark)]
            start = mark.end()
        return "".join([*written, text[start:end]])

    def _is_mark(self, mark: re.Match[str], text: str, seen: Sequence[_Seen]) -> bool:
        """Whether the tokenizer takes ``mark`` for one where it stands."""
        added = self._added.get(mark[0])
        if added is None or added.normalized:
            # what a normalizer makes of it decides, and it sees no more than it saw; words that it does not know are
            # a mark too, of another kind
            here = self.marks[mark[0]]
            return any(start <= mark.start() and mark.end() <= end and one == here for start, end, one in seen)
        beside = text[: mark.start()][-1:] + text[mark.end() :][:1]
        return not (added.single_word and any(map(_in_a_word, beside)))

    def _encode_pieces(self, own: Sequence[str], given: Sequence[str]) -> list[int]:
        """Of tokenizers written in Python: what stands between two marks of the template is read for itself."""
        ids: list[int] = []
        piece = ""

        def flush() -> list[int]:
            read = self._tokenizer(piece, add_special_tokens=False, split_special_tokens=True) if piece else None
            return [] if read is None else list(read["input_ids"])

        for mine, theirs in zip(own, given, strict=True):
            start = 0
            for mark in self._pattern.finditer(mine):
                piece += mine[start : mark.start()]
                ids += [*flush(), self.marks[mark[0]]]
                piece, start = "", mark.end()
            piece += mine[start:] + theirs
        return ids + flush()

    @cached_property
    def _names(self) -> dict[str, str]:
        """What marks are called in the copy: nobody can write what nobody knows."""
        return {mark: f"\ue000{secrets.token_hex(16)}\ue001" for mark in self.marks}

    @property
    def _copy(self) -> tuple[Any, dict[int, int]]:
        with self._making:
            return self._made

    @cached_property
    def _made(self) -> tuple[Any, dict[int, int]]:
        """The tokenizer with other names for marks, and the ids that it gives them where these are others."""
        from tokenizers import Tokenizer

        settings = json.loads(self._tokenizer.backend_tokenizer.to_str())
        # neither adds nor cuts anything here, and some name their tokens
        settings |= {"post_processor": None, "truncation": None, "padding": None}
        names, model = self._names, settings["model"]
        for added in settings["added_tokens"]:
            added["content"] = names.get(added["content"], added["content"])
        # a vocabulary that holds a mark as a word may read it from any text
        vocabulary = model["vocab"]
        if isinstance(vocabulary, dict):
            model["vocab"] = {names.get(word, word): token for word, token in vocabulary.items()}
        else:
            model["vocab"] = [[names.get(word, word), score] for word, score in vocabulary]
        if model.get("unk_token") is not None:
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
        if merges := model.get("merges"):
            pairs = [one.split(" ", 1) if isinstance(one, str) else one for one in merges]
            model["merges"] = [pair for pair in pairs if not names.keys() & {*pair, "".join(pair)}]
        copy = Tokenizer.from_str(json.dumps(settings))
        there = {name: copy.token_to_id(name) for name in names.values()}
        return copy, {here: self.marks[mark] for mark, name in names.items() if (here := there[name]) is not None}


def safe_tokenizer(tokenizer: Any) -> SafeTokenizer:
    """The same for every call with this tokenizer, until it gets more tokens."""
    size, template = len(tokenizer), tokenizer.chat_template
    known = _known.get(tokenizer)
    if known is None or known[1:] != (size, template):
        known = _known[tokenizer] = (SafeTokenizer(tokenizer), size, template)
    return known[0]


def _takes_in(added: Any) -> bool:
    return bool(added.lstrip or added.rstrip or added.single_word)


def _in_a_word(sign: str) -> bool:
    """What `tokenizers` takes for a part of a word, which is more than Python does: accents of their own too."""
    kind = unicodedata.category(sign)
    return kind[0] in "LM" or kind in ("Nd", "Nl", "Pc") or sign in "\u200c\u200d" or "\u24b6" <= sign <= "\u24e9"


def _overlaps(fields: Sequence[Span], span: _Seen) -> bool:
    """Whether ``span`` shares a character with one of ``fields``, ascending and disjoint."""
    nearest = bisect_right(fields, span[0], key=lambda field: field[1])
    return nearest < len(fields) and fields[nearest][0] < span[1]


def compile_marks(marks: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of ``marks``, the longest first, for one may begin another."""
    return re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))) or r"(?!)")


def find_marks(tokenizer: Any) -> dict[str, int]:
    """Special tokens, and those that the chat template spells: ids by what is written for them."""
    template = tokenizer.chat_template or ""
    spelled = template if isinstance(template, str) else json.dumps(template, ensure_ascii=False)
    marks = {
        str(token): token_id
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.special or _NO_TEXT.fullmatch(str(token)) or (_looks_like_a_mark(str(token)) and str(token) in spelled)
    }
    for token in tokenizer.all_special_tokens:
        marks.setdefault(str(token), tokenizer.convert_tokens_to_ids(token))
    return {mark: token_id for mark, token_id in marks.items() if mark}


def _looks_like_a_mark(word: str) -> bool:
    """Signs and letters, as ``<think>`` has them: a template has blanks, words and brackets for reasons of its own."""
    return any(map(str.isalpha, word)) and any(not sign.isalnum() and not sign.isspace() for sign in word)


def check_embedding_rows(tokenizer: Any, rows: int, name: str, needed: Sequence[int] = ()) -> None:
    """Raise BaseModelError if a text, or a frame of ``needed`` ids, can have a token beyond ``rows`` of the embedding.

    Marks that no text can spell may lack one: some tokenizers have a token for padding that their model never learned.
    """
    beyond = {token: word for word, token in tokenizer.get_vocab().items() if token >= rows}
    spelled = set(beyond) - set(find_marks(tokenizer).values()) | {
        one for one in (*needed, tokenizer.eos_token_id) if one in beyond
    }
    if spelled:
        first = min(spelled)
        raise BaseModelError(
            f"the tokenizer of '{name}' has tokens that the model has no embedding for: expected ids below {rows:,}, "
            f"got {first:,} for {beyond[first]!r}"
            + (f" and {len(spelled) - 1:,} more" if len(spelled) > 1 else "")
            + ": get the tokenizer that belongs to the model, or give the model rows for it (resize_token_embeddings)"
        )
