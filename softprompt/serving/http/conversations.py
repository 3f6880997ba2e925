"""Conversations of requests: what they say, what they begin with behind the prompt they ask, how they are answered.

What a prompt was learned with decides (``inference/chat_answers.py``). One that was learned on single texts in a plain
template answers one message of the user.
"""

import asyncio
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from softprompt.data.chats.answer_reading import AnswerForm, find_answer_form
from softprompt.data.chats.chat_template import find_chat_template
from softprompt.data.chats.conversation import Conversation, Message
from softprompt.data.chats.message_parsing import parse_conversation
from softprompt.data.chats.plain_text import readable_text
from softprompt.data.encoding.tokenization import safe_tokenizer
from softprompt.data.examples import Example, count_characters
from softprompt.data.task import TaskSpec
from softprompt.errors import DataError, SoftpromptError
from softprompt.inference.chat_answers import end_with_turns, find_beginning, make_call_grammar
from softprompt.inference.generation import GenerationConfig
from softprompt.serving.engine.engine_requests import ServedPrompt
from softprompt.serving.engine.prompt_registry import BARE_LENGTH, BARE_TEMPLATE
from softprompt.serving.http.http_errors import ApiError
from softprompt.serving.http.request_context import RequestContext, ServingContext
from softprompt.serving.http.schemas.request_schemas import ChatMessage, ChatRequest, NamedTool

_THOUGHTS = "<think>"
_THINKING = ("enable_thinking", "thinking")
_NUMBER = re.compile(r"^message (\d+): ")


@dataclass(frozen=True)
class AskedChat:
    """A conversation as it is asked.

    Attributes:
        context: with what answers it.
        example: the conversation, or the row of its only message.
        form: how it is answered; ``None``: as a text is.
        tools: names of those that may be called.
    """

    context: RequestContext
    example: Example
    form: AnswerForm | None = None
    tools: tuple[str, ...] = ()


async def read_chat(
    serving: ServingContext, context: RequestContext, body: ChatRequest, *, constrained: bool = False
) -> AskedChat:
    """What a request means.

    Args:
        constrained: its answer follows a grammar of its own.

    Raises:
        ApiError: it is no conversation that this prompt can answer.
    """
    spec = context.served.spec
    if spec.chat is None:
        return AskedChat(context, _read_text(serving, context, body))
    conversation = _parse(body)
    example = _make_example(serving, context, body, conversation)
    if (length := count_characters(example)) > serving.config.text_limit:
        limit = f"expected at most {serving.config.text_limit:,} characters, got {length:,}"
        raise ApiError(422, "text_too_long", f"messages: {limit}", param="messages")
    context.outcome.examples = [example]
    must_call = body.tool_choice == "required" or isinstance(body.tool_choice, NamedTool)
    if must_call:
        _check_choice(context, body, conversation)
    work = partial(_find_form, serving, context, body, example, constrained or must_call)
    asked = await asyncio.to_thread(work)
    if conversation.tools and spec.chat.shared and not spec.chat.tools and context.served.states:
        context.outcome.warnings.append(
            f"'{context.model}' was learned without tools: how well it calls some was never measured"
        )
    return asked


def answer_chat(serving: ServingContext, asked: AskedChat, generation: GenerationConfig) -> GenerationConfig:
    """How the tokens of the answer are chosen, what ends it, and which marks stay in it."""
    if asked.form is None:
        return generation
    ended = end_with_turns(serving.registry.base, asked.context.served.spec, generation)
    shown = {*asked.form.marks, *(asked.form.call_marks if asked.tools else ())}
    return replace(ended, answer_mark=None, shown_marks=tuple(sorted(shown)))


async def read_rows(
    serving: ServingContext, context: RequestContext, generation: GenerationConfig
) -> tuple[RequestContext, GenerationConfig, AnswerForm | None]:
    """How rows of a prompt that was learned on conversations are answered: each is what a user says.

    Returns:
        The context with what answers them, how tokens are chosen, and the form of answers that have more than content.
    """
    if context.served.spec.chat is None or context.raw or context.classifies:
        return context, generation, None
    work = partial(_find_beginning, serving, context, None, {}, constrained=generation.grammar is not None)
    context = await asyncio.to_thread(work)
    form = _find_answer_form(serving, context)
    ended = answer_chat(serving, AskedChat(context, Example(""), form), generation)
    return context, ended, form if form.channels or form.thinks or _THOUGHTS in form.marks else None


def require_call(
    serving: ServingContext, asked: AskedChat, body: ChatRequest, generation: GenerationConfig
) -> GenerationConfig:
    """The answer calls a tool: any one, or the one that is named.

    Raises:
        ApiError: the chat template writes no calls.
    """
    choice = body.tool_choice
    if choice != "required" and not isinstance(choice, NamedTool):
        return generation
    if asked.form is None or asked.form.calls is None:
        message = f"tool_choice: the chat template of '{asked.context.model}' writes no calls: leave it out"
        raise ApiError(400, "invalid_value", message, param="tool_choice")
    name = None if choice == "required" else choice.function.name
    wanted = [one.function for one in body.tools or () if name in (None, one.function.name)]
    marks = safe_tokenizer(serving.registry.base.tokenizer).marks
    tools = {one.name: one.parameters or {"type": "object", "properties": {}} for one in wanted}
    return replace(generation, grammar=make_call_grammar(asked.form.calls, tools, marks))


def _read_text(serving: ServingContext, context: RequestContext, body: ChatRequest) -> Example:
    """The row of the only message of the user, for a prompt that was learned on texts in a plain template."""
    name = context.model

    def refuse(param: str, what: str) -> ApiError:
        why = f"'{name}' answers single texts in a plain template, without turns"
        return ApiError(422, "invalid_value", f"{param}: {why}: {what}", param=param)

    for field, value in (("tools", body.tools), ("chat_template_kwargs", body.chat_template_kwargs)):
        if value:
            raise refuse(field, "leave it out")
    if body.tool_choice not in (None, "none", "auto"):
        raise refuse("tool_choice", "leave it out")
    last = body.messages[-1]
    if len(body.messages) > 1 and serving.config.chat == "single":
        raise refuse("messages", f"expected one message of the user, got {len(body.messages)} messages")
    if last.role != "user":
        raise refuse("messages", f"expected a last message of the user, got one of {last.role}")
    content = last.content or ""
    if not isinstance(content, str):
        other = next((one for one in content if one.type != "text"), None)
        if other is not None:
            raise refuse("messages", f"expected text only, got a part of the type '{other.type}'")
        content = "\n".join(str(getattr(one, "text", "")) for one in content)
    if not content.strip():
        raise refuse("messages", "expected more than white space in the message")
    return serving.build_examples(context, [serving.build_row(context, content, body.columns)])[0]


def _parse(body: ChatRequest) -> Conversation:
    tools = [] if body.tool_choice == "none" else [one.model_dump(exclude_unset=True) for one in body.tools or ()]
    for tool in tools:
        tool.pop("strict", None)
        tool["function"].pop("strict", None)
    try:
        conversation = parse_conversation([_dump(one) for one in body.messages], tools)
    except DataError as error:
        raise _refuse_messages(error) from error
    if conversation.messages[-1].role not in ("user", "tool"):
        number = len(conversation.messages) - 1
        got = body.messages[-1].role
        place, expected = f"messages[{number}]", "expected a last message of the user or a tool, which is answered"
        raise ApiError(400, "invalid_messages", f"{place}: {expected}, got one of {got}", param=place)
    return conversation


def _dump(message: ChatMessage) -> dict[str, Any]:
    # parts are of several types
    given = message.model_dump(exclude_unset=True, warnings=False)
    return {name: value for name, value in given.items() if value or name != "tool_calls"}


def _refuse_messages(error: DataError) -> ApiError:
    """OpenAI's clients count messages from 0."""
    found = _NUMBER.match(str(error))
    place = f"messages[{int(found[1]) - 1}]" if found else "messages"
    said = _NUMBER.sub("", str(error)).removesuffix(": mend it").removesuffix(", or remove the row")
    return ApiError(400, "invalid_messages", f"{place}: {said}", param=place)


def _make_example(
    serving: ServingContext, context: RequestContext, body: ChatRequest, conversation: Conversation
) -> Example:
    """The conversation; a single message of the user is a row of what the prompt was learned on."""
    spec, messages = context.served.spec, conversation.messages
    if len(messages) == 1 and messages[0].role == "user" and not conversation.tools:
        return serving.build_examples(context, [serving.build_row(context, messages[0].content, body.columns)])[0]
    if spec.template.strip() != BARE_TEMPLATE:
        conversation = _fill_template(spec, context, body, conversation)
    elif body.columns:
        context.outcome.warnings.append("columns has no effect: conversations stand in no template")
    return Example(readable_text(conversation), conversation=conversation)


def _fill_template(
    spec: TaskSpec, context: RequestContext, body: ChatRequest, conversation: Conversation
) -> Conversation:
    """With the template around what the user says, which must be one message."""
    turns = [one for one in conversation.messages if one.role != "system"]
    if [one.role for one in turns] != ["user"]:
        message = (
            f"messages: '{context.model}' was learned on single texts in a template of its own: expected one message "
            f"of the user beside a system message, got {len(turns)} turns"
        )
        raise ApiError(400, "invalid_messages", message, param="messages")
    try:
        said = spec.compiled.fill(Example(turns[0].content, columns=dict(body.columns or {}))).text
    except SoftpromptError as error:
        raise ApiError(400, "invalid_messages", f"messages: {error}", param="messages") from error
    filled = [replace(one, content=said) if one.role == "user" else one for one in conversation.messages]
    return replace(conversation, messages=tuple(filled))


def _check_choice(context: RequestContext, body: ChatRequest, conversation: Conversation) -> None:
    named = {one["function"]["name"] for one in conversation.tools}
    choice = body.tool_choice
    if context.classifies:
        why = f"tool_choice: '{context.model}' answers with the words of its labels, and calls nothing: leave it out"
    elif not named:
        why = "tool_choice: expected tools to choose from, got none"
    elif isinstance(choice, NamedTool) and choice.function.name not in named:
        why = "tool_choice: expected the name of one of the tools, got another one"
    else:
        return
    raise ApiError(400, "invalid_value", why, param="tool_choice")


def _find_form(
    serving: ServingContext, context: RequestContext, body: ChatRequest, example: Example, constrained: bool
) -> AskedChat:
    """Where it begins behind the prompt, and how its answer is written; renders it, so not in the event loop."""
    spec, conversation = context.served.spec, example.conversation
    if conversation is not None and _needs_short_ids(serving, spec):
        conversation = _shorten_ids(conversation)
        example = replace(example, conversation=conversation)
    must_call = body.tool_choice == "required" or isinstance(body.tool_choice, NamedTool)
    begin = partial(
        _find_beginning,
        serving,
        context,
        given=body.chat_template_kwargs or {},
        constrained=constrained,
        must_call=must_call,
    )
    try:
        context = begin(conversation)
    except ApiError:
        # some templates read what a tool need not have
        if conversation is None or (completed := _complete_tools(conversation)) == conversation:
            raise
        context = begin(completed)
        conversation, example = completed, replace(example, conversation=completed)
    if context.classifies:
        return AskedChat(context, example)
    assert spec.chat is not None
    tools: Sequence[Any] = () if conversation is None else conversation.tools or spec.chat.tools
    if body.tool_choice == "none":
        tools = ()
    return AskedChat(
        context, example, _find_answer_form(serving, context), tuple(one["function"]["name"] for one in tools)
    )


def _find_beginning(
    serving: ServingContext,
    context: RequestContext,
    conversation: Conversation | None,
    given: Mapping[str, Any],
    *,
    constrained: bool,
    must_call: bool = False,
) -> RequestContext:
    """The context with what answers a conversation, or rows: the prompt where its virtual tokens stand in these.

    Args:
        given: to the chat template, by name.
        constrained: the answer follows a grammar, and begins with what that has.
        must_call: that grammar is a call's.
    """
    base, served = serving.registry.base, context.served
    assert served.spec.chat is not None
    chat = served.spec.chat
    changes: dict[str, Any] = {"arguments": {**chat.arguments, **given}} if given else {}
    if any(given.get(name) for name in _THINKING) or chat.asking == "thoughts":
        changes["asking"] = "turn" if constrained else "thoughts"
    if constrained and not must_call and find_chat_template(base.tokenizer, chat).opening.strip():
        changes["asking"] = "answer"
    try:
        found = find_beginning(base, served.spec, served.states, conversation, changes)
    except DataError as error:
        said = str(error).removeprefix("it has ")
        named = {"a system message": "messages[0]", "tools": "tools"}
        param = next((name for words, name in named.items() if said.startswith(words)), "messages")
        raise ApiError(400, "invalid_messages", f"{param}: {said}", param=param) from error
    spec, key = found.spec, f"{served.key} {found.name}".rstrip()
    if conversation is not None:
        # it was learned on texts that were cut, and whoever asks has the context that the model has
        spec, key = replace(spec, max_length=base.context_length or BARE_LENGTH), f"{key} chat"
    if key == served.key:
        return context
    served = ServedPrompt(key, spec, found.states, parent=served)
    outcome = context.outcome
    outcome.served = None if outcome.served is None else served
    return replace(context, served=served)


def _find_answer_form(serving: ServingContext, context: RequestContext) -> AnswerForm:
    base, chat = serving.registry.base, context.served.spec.chat
    assert chat is not None
    return find_answer_form(find_chat_template(base.tokenizer, chat), safe_tokenizer(base.tokenizer).marks)


def _complete_tools(conversation: Conversation) -> Conversation:
    """With a description and parameters for each tool."""
    without: dict[str, Any] = {"description": "", "parameters": {"type": "object", "properties": {}}}
    tools = tuple({**one, "function": {**without, **one["function"]}} for one in conversation.tools)
    return replace(conversation, tools=tools)


def _needs_short_ids(serving: ServingContext, spec: TaskSpec) -> bool:
    """Whether the chat template writes ids of calls, and takes only those of nine letters."""
    assert spec.chat is not None
    base = serving.registry.base
    template = find_chat_template(base.tokenizer, spec.chat)
    calls = find_answer_form(template, safe_tokenizer(base.tokenizer).marks).calls
    return calls is not None and calls.short_ids


def _shorten_ids(conversation: Conversation) -> Conversation:
    def shorten(id: str | None) -> str | None:
        known = id is not None and (len(id) != 9 or not id.isalnum())
        return hashlib.sha256(str(id).encode()).hexdigest()[:9] if known else id

    def rename(message: Message) -> Message:
        calls = tuple(replace(one, id=shorten(one.id)) for one in message.tool_calls)
        return replace(message, tool_calls=calls, tool_call_id=shorten(message.tool_call_id))

    return replace(conversation, messages=tuple(map(rename, conversation.messages)))
