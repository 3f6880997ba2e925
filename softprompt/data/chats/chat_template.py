"""ChatTemplate: conversations as the text that a model's own chat template makes of them.

What messages say never becomes a special token: a mark in them is given to the template as a sign that stands nowhere
else, and is a piece of the user's data in what comes out. Where the virtual tokens stand is found in the same way, by
a sign at the beginning or end of the system message.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from softprompt.data.chats.chat_format import ChatFormat
from softprompt.data.chats.conversation import Conversation, Message, ToolCall
from softprompt.data.chats.rendered_chat import RenderedChat, Signs
from softprompt.data.encoding.placement import Placement
from softprompt.data.encoding.tokenization import Span, compile_marks, safe_tokenizer
from softprompt.errors import DataError, TemplateError, printable

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PROBES = ("a", "Z 9")  # what two users may say, with nothing in common


class ChatTemplate:
    """A chat template with what is fixed of its conversations.

    Attributes:
        format: what is fixed.
        has_system_turn: whether it gives a system message a turn of its own.
    """

    def __init__(self, tokenizer: Any, chat: ChatFormat) -> None:
        """Find out what the template does.

        Raises:
            TemplateError: it does not parse, or makes nothing of what users say.
        """
        self.format, self._named = chat, dict(tokenizer.special_tokens_map)
        self._bos = str(tokenizer.bos_token or "")
        self._tokens = safe_tokenizer(tokenizer)
        self._marks = self._tokens.marks
        added = tokenizer.added_tokens_decoder.values()
        # an assistant says these: thoughts and calls begin and end so
        self._spoken = {str(one) for one in added if not one.special} & self._marks.keys()
        self._pattern = compile_marks(self._marks)
        self.marks_learned_turns = bool(_GENERATION.search(chat.template))
        self._render_probe(_PROBES[0], None)  # what does not work at all is told so
        self.has_system_turn, self._takes_system = self._find_system_turn()
        if chat.system and not self._takes_system:
            raise TemplateError(
                "this chat template has no place for a system message: leave --system out, or those of the rows"
            )

    @property
    def takes_system(self) -> bool:
        """Whether a system message is written anywhere."""
        return self._takes_system

    @property
    def inside_system(self) -> bool:
        """Whether the virtual tokens stand in the system turn, rather than before the first turn."""
        return self.has_system_turn and self.format.placement != "first"

    def render(self, conversation: Conversation, *, ask: bool = True) -> RenderedChat:
        """A conversation's text, with the beginning of the assistant's turn behind it if it is to be asked.

        Raises:
            DataError: the template refuses it, or has no place for its system message, tools or calls.
        """
        tools = conversation.tools or self.format.tools
        rendered = self._render(self._with_fixed(conversation), tools, ask)
        if tools and not self.takes_tools:
            raise DataError(_left_out("tools"))
        for message in conversation.messages:
            if any(call.name not in rendered.text for call in message.tool_calls):
                raise DataError(_left_out("calls of tools"))
            if message.role == "tool" and not _stands_in(message.content.strip(), rendered.text):
                raise DataError(_left_out("results of tools"))
        return rendered

    @cached_property
    def takes_tools(self) -> bool:
        """Whether tools are written anywhere."""
        conversation = Conversation((Message("user", _PROBES[0]),))
        try:
            return _TOOL["function"]["name"] in self._render(self._with_fixed(conversation), (_TOOL,), ask=True).text
        except DataError:
            return False

    @property
    def front(self) -> str:
        """What stands before the virtual tokens."""
        probe, _ = self._beginning
        return probe.text[: probe.place]

    @property
    def shared(self) -> str:
        """What stands behind the virtual tokens in every conversation, up to the last mark that all have there."""
        probe, end = self._beginning
        return probe.text[probe.place : end]

    @cached_property
    def _beginning(self) -> tuple[RenderedChat, int]:
        """A conversation, and up to where all have its text."""
        probe, other = map(self._probe, _PROBES)
        if not self.format.shared:
            return probe, probe.place
        pairs = enumerate(zip(probe.text, other.text, strict=False))
        same = next((at for at, (one, another) in pairs if one != another), len(probe.text))
        # a mark is a token whatever stands beside it, where other words may join those behind them
        given = {start for start, _ in probe.fields}
        marks = (mark for mark in self._pattern.finditer(probe.text, probe.place, same) if mark.start() not in given)
        return probe, max((mark.end() for mark in marks), default=probe.place)

    @cached_property
    def left_out(self) -> str:
        """What the template asks with that no finished answer has, the beginning of thoughts: it is not asked with."""
        said = Message("user", _PROBES[0]).to_dict()
        asked, _ = self._write([said], (), ask=True)
        answered, _ = self._write([said, Message("assistant", _ANSWER).to_dict()], (), ask=False)
        place = answered.rfind(_ANSWER)
        return "" if place < 0 or answered.startswith(asked) else asked.removeprefix(answered[:place])

    @cached_property
    def opening(self) -> str:
        """What an answer without thoughts begins with: empty, or what a channel or an end of thinking is written as."""
        conversation = Conversation((Message("user", _PROBES[0]),))
        asked = self.render(conversation).text
        answered = self.render(_answer(conversation, _ANSWER), ask=False).text
        place = answered.rfind(_ANSWER)
        return answered[len(asked) : place] if answered.startswith(asked) and place >= len(asked) else ""

    @cached_property
    def end(self) -> str:
        """The mark that ends an assistant's turn; empty where the template writes none."""
        conversation = _answer(Conversation((Message("user", _PROBES[0]),)), _ANSWER)
        behind = self.render(conversation, ask=False).text.rpartition(_ANSWER)[2]
        found = self._pattern.search(behind)
        return found[0] if found is not None and not behind[: found.start()].strip() else ""

    @cached_property
    def end_id(self) -> int | None:
        """The token of ``end``."""
        return self._marks.get(self.end)

    @cached_property
    def answer_mark(self) -> int | None:
        """The last mark of ``opening``: what an answer says stands behind the last one of these."""
        found = [mark[0] for mark in self._pattern.finditer(self.opening)]
        return self._marks[found[-1]] if found else None

    @cached_property
    def asking(self) -> str:
        """The end of what is asked, from its last mark on: what answers are tokenised behind."""
        text = self.render(Conversation((Message("user", _PROBES[0]),))).text + self.opening
        starts = [mark.start() for mark in self._pattern.finditer(text)]
        return text[max(starts, default=0) :]

    def placement(self, bos: Sequence[int]) -> Placement:
        """What stands around the virtual tokens, as token ids, for a model whose texts begin with ``bos``.

        They are read as beside special tokens, which virtual tokens are where others write them.
        """
        probe, end = self._beginning
        before = self._tokens.encode(*probe.part(0, probe.place))
        (behind,) = self._tokens.encode_after(self._tokens.neutral_mark, [probe.part(probe.place, end)])
        behind_bos = bool(bos) and before[: len(bos)] == list(bos)
        return Placement(behind_bos or not bos, tuple(before[len(bos) if behind_bos else 0 :]), tuple(behind))

    def skip_shared(self, rendered: RenderedChat, example_says: Callable[[str], str]) -> int:
        """Where in a conversation's text that starts which is not in the shared prefix.

        Raises:
            DataError: it does not begin as all others do; ``example_says`` puts its row before the message.
        """
        if rendered.text[: rendered.place] != self.front or not rendered.text.startswith(self.shared, rendered.place):
            raise DataError(
                example_says(
                    "its beginning is not the one that all conversations share: expected the same system message and "
                    "tools in every one, or none of its own"
                )
            )
        return rendered.place + len(self.shared)

    def _with_fixed(self, conversation: Conversation) -> list[Message]:
        messages, own = list(conversation.messages), conversation.system
        if own is not None:
            messages = messages[1:]
        system = self.format.system if own in (None, self.format.replaces) else own
        if system and not self._takes_system:
            raise DataError("this model's chat template has no place for a system message: leave it out")
        if self.inside_system:
            return [Message("system", system or ""), *self.format.turns, *messages]
        return [*([Message("system", system)] if system else []), *self.format.turns, *messages]

    def _probe(self, said: str) -> RenderedChat:
        return self.render(Conversation((Message("user", said),)))

    def _render_probe(self, said: str, system: str | None) -> str:
        messages = [*([] if system is None else [Message("system", system)]), Message("user", said)]
        try:
            return self._write([one.to_dict() for one in messages], (), ask=True)[0]
        except DataError as error:
            raise TemplateError(str(error)) from error

    @cached_property
    def _takes_arguments_as_text(self) -> bool:
        """Whether calls have their arguments as JSON text, as OpenAI has them, where an object fails."""
        call = Message("assistant", "", (ToolCall("Qtool", {"a": 1}, "call00000"),))
        result = Message("tool", "1", tool_call_id="call00000", name="Qtool")
        said = [one.to_dict() for one in (Message("user", _PROBES[0]), call, result)]
        try:
            self._write(said, (), ask=True)
        except DataError:
            try:
                self._write([_write_arguments(one) for one in said], (), ask=True)
            except DataError:
                return False
            return True
        return False

    def _find_system_turn(self) -> tuple[bool, bool]:
        """Whether a system message has a turn of its own, and whether it stands anywhere."""
        try:
            text = self._render_probe(_USER, _SYSTEM)
        except TemplateError:
            return False, False
        system, user = text.find(_SYSTEM), text.find(_USER)
        if system < 0 or user < 0:
            return False, False
        return system < user and bool(self._pattern.search(text, system, user)), True

    def _render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], ask: bool) -> RenderedChat:
        said = [one.to_dict() for one in messages]
        if any(one.tool_calls for one in messages) and self._takes_arguments_as_text:
            said = [_write_arguments(one) for one in said]
        signs = Signs([said, tools], self._pattern)
        spoken = self._spoken
        hidden = [signs.hide(one, spoken if one["role"] == "assistant" else frozenset()) for one in said]
        if self.inside_system:
            system = hidden[0]["content"]
            at_end = self.format.placement == "system-end"
            hidden[0]["content"] = system + signs.place if at_end else signs.place + system
        text, generated = self._write(hidden, [signs.hide(tool, frozenset()) for tool in tools], ask=ask)
        whole = not ask or self.format.asking == "thoughts"
        rendered = signs.reveal(text if whole else text.removesuffix(self.left_out), generated)
        if not self.inside_system and self._bos and text.startswith(self._bos):
            return replace(rendered, place=len(self._bos))
        return rendered

    def _write(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any], *, ask: bool
    ) -> tuple[str, list[Span]]:
        from jinja2 import TemplateError as JinjaError
        from transformers.utils.chat_template_utils import render_jinja_template

        options = {**self._named, **self.format.arguments}
        try:
            rendered: Any = render_jinja_template(
                [[dict(one) for one in messages]],
                tools=[*tools] or None,
                chat_template=self.format.template,
                return_assistant_tokens_mask=self.marks_learned_turns and not ask,
                add_generation_prompt=ask,
                **options,
            )
        # what templates raise is not of one kind: a filter fails on what another model's would take
        except (JinjaError, TypeError, ValueError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
            reason = printable(str(error) or type(error).__name__, 200)
            raise DataError(f"the chat template refuses the conversation: {reason}") from error
        (text,), spans = rendered
        return text, [(start, end) for start, end in (spans[0] if spans else ()) if end > start]


_known: WeakKeyDictionary[Any, OrderedDict[ChatFormat, ChatTemplate]] = WeakKeyDictionary()
_KEPT = 1024  # of a tokenizer: whoever asks a server may bring formats of his own
_finding = Lock()


def find_chat_template(tokenizer: Any, chat: ChatFormat) -> ChatTemplate:
    """The chat template of ``chat`` for this tokenizer, the same one for every call."""
    with _finding:
        templates = _known.setdefault(tokenizer, OrderedDict())
        found = templates.get(chat)
        if found is not None:
            templates.move_to_end(chat)
            return found
    found = ChatTemplate(tokenizer, chat)
    with _finding:
        while len(templates) >= _KEPT:
            templates.popitem(last=False)
        return templates.setdefault(chat, found)


_SYSTEM, _USER, _ANSWER = "Qsystem", "Quser", "Qanswer"
_TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {"name": "Qtool", "description": "", "parameters": {"type": "object", "properties": {}}},
}


def _left_out(what: str) -> str:
    return (
        f"this model's chat template has no place for {what}, and would leave them out: remove them, or give another "
        "template with --chat-template"
    )


def _stands_in(words: str, text: str) -> bool:
    """Whether ``text`` has the words, as they are or as JSON writes them."""
    return words in text or any(json.dumps(words, ensure_ascii=one)[1:-1] in text for one in (False, True))


def _write_arguments(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose calls have their arguments as JSON text."""
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message.get("tool_calls", ())
    ]
    return {**message, **({"tool_calls": calls} if calls else {})}


def _answer(conversation: Conversation, words: str) -> Conversation:
    return replace(conversation, messages=(*conversation.messages, Message("assistant", words)))
