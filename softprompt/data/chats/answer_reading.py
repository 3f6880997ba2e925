"""What an assistant says, read as it comes: thoughts, content, and calls of tools, each told apart.

Answers come as text in which the marks of thoughts and calls are written out. Three families write them in three ways:

    tags       <think>…</think> content <tool_call>{"name": …, "arguments": …}</tool_call>, or one mark before the calls
    JSON       a call is all there is: {"name": …, "parameters": …}
    channels   <|channel|>analysis<|message|>…<|end|><|start|>assistant to=functions.NAME<|channel|>…<|message|>{…}
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary

from softprompt.data.chats.call_form import CallForm, find_call_form
from softprompt.data.chats.chat_template import ChatTemplate
from softprompt.data.chats.conversation import ToolCall

_CHANNEL, _MESSAGE, _START, _END = "<|channel|>", "<|message|>", "<|start|>", "<|end|>"
_THINK = ("<think>", "</think>")
_ARGUMENTS = ("arguments", "parameters")
_BETWEEN_CALLS = re.compile(r"[\s,;\[\]]+")


@dataclass(frozen=True)
class AnswerPart:
    """What is new of an answer.

    Attributes:
        text: of its content, or of its thoughts.
        call: in place of a text.
    """

    kind: Literal["content", "reasoning", "call"]
    text: str = ""
    call: ToolCall | None = None


class AnswerReader(Protocol):
    """Reads one answer."""

    def read(self, text: str) -> list[AnswerPart]:
        """What is new with these words."""
        ...

    def close(self) -> list[AnswerPart]:
        """What is left at its end."""
        ...


@dataclass(frozen=True)
class AnswerForm:
    """How the answers of a chat template are written.

    Attributes:
        calls: how it writes calls, where it does.
        channels: each part of an answer has a header, as gpt-oss writes them.
        thinks: the answer begins within thoughts.
        marks: of thoughts and channels, what is a token of its own and is to stay in the text.
        call_marks: the same of calls, where tools are offered.
    """

    calls: CallForm | None
    channels: bool
    thinks: bool
    marks: tuple[str, ...]
    call_marks: tuple[str, ...]

    def reader(self, tools: Collection[str] = ()) -> AnswerReader:
        """For one answer, in which the tools of these names may be called."""
        if self.channels:
            return _ChannelReader(frozenset(tools))
        return _TagReader(self.calls, self.thinks, frozenset(tools))


_known: WeakKeyDictionary[ChatTemplate, AnswerForm] = WeakKeyDictionary()


def find_answer_form(template: ChatTemplate, marks: Mapping[str, int]) -> AnswerForm:
    """The form of answers in this template; ``marks`` are those of the tokenizer, by what is written for them."""
    if template not in _known:
        _known[template] = _make_answer_form(template, marks)
    return _known[template]


def _make_answer_form(template: ChatTemplate, marks: Mapping[str, int]) -> AnswerForm:
    source = template.format.template
    asked = template.format.asking == "answer"
    speaks_in_channels = _CHANNEL in source and _CHANNEL in marks
    calls = find_call_form(template, marks)
    shown = {_CHANNEL, _MESSAGE, _START, _END, "<|constrain|>"} if speaks_in_channels else {*_THINK}
    of_calls = set() if calls is None else {"<|python_tag|>", *(mark for mark in marks if mark in calls.before)}
    if calls is not None and calls.begin:
        of_calls |= {calls.begin, calls.begin.replace("<", "</", 1)}
    thinks = template.format.asking == "thoughts" and _THINK[0] in template.left_out
    kept, of_them = (tuple(sorted(some & marks.keys())) for some in (shown, of_calls))
    return AnswerForm(calls, speaks_in_channels and not asked, thinks, kept, of_them)


def measure_partial(text: str, words: Sequence[str]) -> int:
    """Characters at the end of ``text`` that one of ``words`` may begin with."""
    return max(
        # no more of a word can have begun than there is text
        (
            length
            for word in words
            for length in range(1, min(len(word), len(text) + 1))
            if text.endswith(word[:length])
        ),
        default=0,
    )


class _TagReader:
    """Thoughts and calls between tags, or calls as bare JSON."""

    def __init__(self, calls: CallForm | None, thinks: bool, tools: frozenset[str]) -> None:
        self._form, self._tools = calls if tools else None, tools
        self._state: Literal["start", "thoughts", "content", "calls"] = "thoughts" if thinks else "start"
        self._text = ""  # that was not told yet
        self._raw = ""  # of calls, in case they are none
        self._called = False

    def read(self, text: str) -> list[AnswerPart]:
        self._text += text
        return list(self._tell(closed=False))

    def close(self) -> list[AnswerPart]:
        return list(self._tell(closed=True))

    def _tell(self, *, closed: bool) -> Iterator[AnswerPart]:
        before = None
        while before != (self._state, self._text):
            before = self._state, self._text
            step = {
                "start": self._begin,
                "thoughts": self._think,
                "content": self._say,
                "calls": self._call,
            }[self._state]
            yield from step(closed)

    def _begin(self, closed: bool) -> Iterator[AnswerPart]:
        said = self._text.lstrip()
        # small models leave the tags out
        bare = ["{", *([] if self._form.begin else ["<|python_tag|>"])] if self._form is not None else []
        openings = [_THINK[0], *bare]
        found = next((one for one in openings if said.startswith(one)), None)
        if found is None:
            if said and not (any(one.startswith(said) for one in openings) and not closed):
                self._state = "content"
        elif found == _THINK[0]:
            self._state, self._text = "thoughts", said.removeprefix(found)
        else:
            self._state, self._raw, self._text = "calls", "", self._text
        yield from ()

    def _think(self, closed: bool) -> Iterator[AnswerPart]:
        thoughts, ended, rest = self._text.partition(_THINK[1])
        kept = 0 if ended or closed else measure_partial(thoughts, _THINK[1:])
        told = thoughts[: len(thoughts) - kept]
        self._text = rest if ended else thoughts[len(thoughts) - kept :]
        if ended:
            self._state = "content"
        if told:
            yield AnswerPart("reasoning", told)

    def _say(self, closed: bool) -> Iterator[AnswerPart]:
        begin = self._form.begin if self._form is not None else ""
        said, begun, rest = self._text.partition(begin) if begin else (self._text, "", "")
        kept = 0 if begun or closed or not begin else measure_partial(said, [begin])
        told = said[: len(said) - kept]
        self._text = rest if begun else said[len(said) - kept :]
        if begun:
            self._state, self._raw = "calls", begun
        if told:
            yield AnswerPart("content", told)

    def _call(self, closed: bool) -> Iterator[AnswerPart]:
        """Calls behind each other, each told when it is whole; what is none is content after all."""
        assert self._form is not None
        tags = [one for one in (self._form.begin, self._form.begin.replace("<", "</", 1), "<|python_tag|>") if one]
        rest = self._text
        while True:
            rest = _BETWEEN_CALLS.sub("", rest, count=1) if _BETWEEN_CALLS.match(rest) else rest
            tag = next((one for one in tags if rest.startswith(one)), None)
            if tag is None:
                break
            rest = rest.removeprefix(tag)
        if not rest or (not closed and any(one.startswith(rest) for one in tags)):
            if closed and not self._called and (self._raw + self._text).strip():
                yield AnswerPart("content", self._raw + self._text)
            if closed:
                self._text = ""
            return
        try:
            value, end = json.JSONDecoder().raw_decode(rest) if "}" in rest else (None, 0)
        except (ValueError, RecursionError):
            value, end = None, 0
        call = read_call(value, self._tools)
        if call is not None:
            self._called, self._raw, self._text = True, "", rest[end:]
            yield AnswerPart("call", call=call)
        elif end or closed or not rest.startswith("{"):
            said, self._text, self._raw, self._state = self._raw + self._text, "", "", "content"
            yield AnswerPart("content", said)


class _ChannelReader:
    """Parts of an answer, each behind a header."""

    def __init__(self, tools: frozenset[str]) -> None:
        self._tools = tools
        self._text = ""
        self._header: str | None = None

    def read(self, text: str) -> list[AnswerPart]:
        self._text += text
        return list(self._tell(closed=False))

    def close(self) -> list[AnswerPart]:
        return list(self._tell(closed=True))

    def _tell(self, *, closed: bool) -> Iterator[AnswerPart]:
        while True:
            if self._header is None:
                header, found, rest = self._text.partition(_MESSAGE)
                if not found:
                    if closed and header.strip() and _CHANNEL not in header and _START not in header:
                        yield AnswerPart("content", header)
                        self._text = ""
                    return
                self._header, self._text = header, rest
            ends = [at for mark in (_END, _START, _CHANNEL) if (at := self._text.find(mark)) >= 0]
            body, ended = (self._text[: min(ends)], True) if ends else (self._text, False)
            kept = 0 if ended or closed else measure_partial(body, [_END, _START, _CHANNEL])
            tool = re.search(r"to=functions\.([^\s<]+)", self._header)
            if tool is None:
                told = body[: len(body) - kept]
                self._text = self._text[len(told) :]
                if told:
                    yield AnswerPart("reasoning" if "analysis" in self._header else "content", told)
            elif ended or closed:
                self._text = self._text[len(body) :]
                call = _read_arguments(tool[1], body, self._tools)
                yield AnswerPart("content", body) if call is None else AnswerPart("call", call=call)
            if not ended:
                return
            self._text = self._text.removeprefix(_END)
            self._header = None


def read_call(value: Any, tools: Collection[str]) -> ToolCall | None:
    """A call as an object with the tool's name and its arguments; ``None`` for anything else."""
    if not isinstance(value, Mapping) or value.get("name") not in tools:
        return None
    given: Any = next((value[name] for name in _ARGUMENTS if name in value), {})
    if isinstance(given, str):
        return _read_arguments(value["name"], given, tools)
    return ToolCall(value["name"], given) if isinstance(given, Mapping) else None


def _read_arguments(name: str, text: str, tools: Collection[str]) -> ToolCall | None:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return ToolCall(name, given) if isinstance(given, Mapping) and name in tools else None
