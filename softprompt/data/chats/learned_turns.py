"""Which characters of a conversation are learned: those of the assistant's turns, with the mark that ends each."""

from dataclasses import replace

from softprompt.data.chats.chat_template import ChatTemplate
from softprompt.data.chats.conversation import Conversation
from softprompt.data.chats.rendered_chat import RenderedChat
from softprompt.data.encoding.tokenization import Span
from softprompt.errors import DataError


def find_learned_turns(template: ChatTemplate, conversation: Conversation) -> tuple[RenderedChat, list[Span], bool]:
    """A conversation's text, the ranges of it that are learned, and whether all turns that should be are among them.

    The template's ``{% generation %}`` tells them where it has it. Elsewhere a turn is what the text up to its end has
    more than the text that asks for it; where one is not the beginning of the other, as in templates that leave out
    earlier thoughts, only the last turn is learned.

    Raises:
        DataError: the template refuses the conversation, or not even the last turn can be found.
    """
    messages = conversation.messages
    turns = [index for index, one in enumerate(messages) if one.role == "assistant"]
    if not turns:
        raise DataError("expected an assistant's turn to learn, got none: add the answer, or remove the row")
    wanted = [index for index in turns if messages[index].learned]
    if not wanted:
        raise DataError("expected an assistant's turn to learn, got a weight of 0 for all: weigh one 1")
    wanted = wanted if template.format.learn == "all" else wanted[-1:]
    whole = template.render(conversation, ask=False)
    if template.marks_learned_turns:
        fixed = sum(one.role == "assistant" for one in template.format.turns)
        spans = [_end_at_mark(template, whole, span) for span in whole.generated[fixed:]]
        if len(spans) == len(turns):
            by_turn = dict(zip(turns, spans, strict=True))
            return whole, [by_turn[index] for index in wanted], True
    found = [_find_turn(template, conversation, index, whole) for index in wanted]
    if None not in found:
        return whole, [span for span in found if span is not None], True
    last = found[-1]
    if last is None:
        raise DataError(
            "the chat template writes the assistant's last turn otherwise than it asks for it: it cannot be learned "
            "so; give another template with --chat-template"
        )
    return whole, [last], False


def _find_turn(template: ChatTemplate, conversation: Conversation, index: int, whole: RenderedChat) -> Span | None:
    """What the turn at ``index`` adds to the text, if what it adds to is the beginning of ``whole``."""
    asked = template.render(replace(conversation, messages=conversation.messages[:index])).text
    if not whole.text.startswith(asked):
        return None
    until = replace(conversation, messages=conversation.messages[: index + 1])
    answered = whole if until == conversation else template.render(until, ask=False)
    start, end = _end_at_mark(template, answered, (len(asked), len(answered.text)))
    return (start, end) if whole.text.startswith(answered.text[:end]) else None


def _end_at_mark(template: ChatTemplate, rendered: RenderedChat, span: Span) -> Span:
    """To the mark that ends the turn, without what the template writes behind it."""
    start, end = span
    if not template.end:
        return span
    text, spelled = rendered.text, {first for first, _ in rendered.fields}
    at = text.rfind(template.end, start, end)
    while at in spelled:  # words of the assistant's
        at = text.rfind(template.end, start, at)
    if at >= 0:
        return start, at + len(template.end)
    behind = text.startswith(template.end, end)
    return (start, end + len(template.end)) if behind else span
