"""Conversations as token ids: what is asked behind the shared prefix, what is learned of the answers, what is cut."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from softprompt.data.chats.chat_format import keeps_shared_turns
from softprompt.data.chats.chat_template import find_chat_template
from softprompt.data.chats.conversation import Conversation, Message
from softprompt.data.chats.learned_turns import find_learned_turns
from softprompt.data.encoding.placement import BEHIND_BOS, Placement
from softprompt.data.encoding.special_tokens import TokenizingModel
from softprompt.data.encoding.tokenization import FilledText, safe_tokenizer
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.errors import DataError


def find_placement(base: TokenizingModel, spec: TaskSpec) -> Placement:
    """What stands around the virtual tokens of a task's prompts on this model."""
    if spec.chat is None:
        return BEHIND_BOS
    return find_chat_template(base.tokenizer, spec.chat).placement(base.special_tokens.bos)


class ConversationEncoder:
    """Turns the conversations of one task, and rows of text as a user's turn, into token ids.

    Attributes:
        template: what writes them.
        only_last: conversations so far of which only the last turn can be learned.
        turns_cut: turns left out so far, the oldest of conversations that were too long.
    """

    def __init__(self, tokenizer: Any, spec: TaskSpec, bos: Sequence[int]) -> None:
        assert spec.chat is not None
        self.template = find_chat_template(tokenizer, spec.chat)
        self._spec, self._bos, self._tokens = spec, bos, safe_tokenizer(tokenizer)
        self.only_last = self.turns_cut = 0

    @cached_property
    def placement(self) -> Placement:
        """What stands around the virtual tokens."""
        return self.template.placement(self._bos)

    @property
    def length(self) -> int:
        """Tokens of the shared prefix beside BOS and the virtual tokens."""
        return self.placement.added

    def asked(self, example: Example, text: str | None = None) -> Conversation:
        """The conversation that is asked to go on: the row's own without its answer, or its text as a user's turn.

        ``text`` stands in place of what the user says last.
        """
        if example.conversation is None:
            return Conversation((Message("user", self._spec.compiled.fill(example, text).text),))
        conversation = self.cut(example, text).conversation
        assert conversation is not None
        answered = conversation.messages[-1].role == "assistant" and bool(example.references)
        return conversation.without_answer() if answered and self._spec.kind == "generation" else conversation

    def answered(self, example: Example, text: str | None = None) -> Conversation:
        """With the answer that is learned."""
        asked = self.asked(example, text)
        given = example.conversation
        if given is not None and given.messages[-1].role == "assistant" and given.messages[:-1]:
            answer = given.messages[-1]
        else:
            answer = Message("assistant", example.references[0])
        return replace(asked, messages=(*asked.messages, answer))

    def fill(self, example: Example, text: str | None = None) -> FilledText:
        """What is asked, behind the shared prefix; of classification up to where the label stands.

        Raises:
            DataError: the template refuses it, or its system message is not the shared one.
        """
        whole = self._spec.kind == "classification" or self.template.format.asking == "answer"
        opening = self.template.opening if whole else ""
        try:
            rendered = self.template.render(self._checked(self.asked(example, text)))
        except DataError as error:
            raise DataError(example.locate_message(error)) from error
        start = self.template.skip_shared(rendered, lambda said: str(example.locate_message(said)))
        written, fields = rendered.part(start)
        return written + opening, fields

    def encode(self, texts: Sequence[FilledText]) -> list[list[int]]:
        """Token ids of texts behind the shared prefix."""
        return self._tokens.encode_after(self._behind, texts)

    def encode_answered(self, example: Example, text: str | None = None) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a conversation with its answer, behind the shared prefix, and the ranges that are learned.

        They end with the last token that is learned.

        Raises:
            DataError: as ``fill``, or its turns cannot be learned.
        """
        try:
            conversation = self._checked(self.answered(example, text))
            rendered, spans, complete = find_learned_turns(self.template, conversation)
        except DataError as error:
            raise DataError(example.locate_message(error)) from error
        self.only_last += not complete
        start = self.template.skip_shared(rendered, lambda said: str(example.locate_message(said)))
        cuts = [cut for span in spans for cut in span]
        ids, *parts = self.encode([rendered.part(start, end) for end in (cuts[-1], *cuts[:-1])])
        counts = [*(_count_alike(ids, part) for part in parts), len(ids)]
        return ids, list(zip(counts[::2], counts[1::2], strict=True))

    def notes(self) -> list[str]:
        """What there is to say of turns that were left out so far, and of those that cannot be learned."""
        notes = []
        if self.turns_cut:
            notes.append(f"{self.turns_cut:,} turns were left out, the oldest of conversations that were too long")
        if self.only_last:
            notes.append(
                f"of {self.only_last:,} conversations only the assistant's last turn is learned: this chat template "
                "writes earlier ones otherwise than it asks for them"
            )
        return notes

    def shorten(self, example: Example) -> Example | None:
        """Without its oldest turns, up to the next thing that the user says; ``None``: nothing is left to leave out."""
        if example.conversation is None:
            return None
        messages = example.conversation.messages
        first = 1 if messages[0].role == "system" else 0
        users = [index for index, one in enumerate(messages) if one.role == "user" and index > first]
        if not users:
            return None
        self.turns_cut += users[0] - first
        kept = replace(example.conversation, messages=(*messages[:first], *messages[users[0] :]))
        return replace(example, conversation=kept)

    def cut(self, example: Example, text: str | None) -> Example:
        """The example with ``text`` in place of what the user says last."""
        if text is None:
            return example
        if example.conversation is None:
            return replace(example, text=text)
        messages = example.conversation.messages
        last = max(index for index, one in enumerate(messages) if one.role == "user")
        said = (*messages[:last], replace(messages[last], content=text), *messages[last + 1 :])
        return replace(example, conversation=replace(example.conversation, messages=said))

    def last_said(self, example: Example) -> str:
        """What the user says last: what is cut where leaving out turns is not enough."""
        if example.conversation is None:
            return example.text
        return next(one.content for one in reversed(example.conversation.messages) if one.role == "user")

    @cached_property
    def _behind(self) -> str:
        """The mark behind which texts are read: the one that the shared prefix ends with, or a virtual token's like."""
        if not (shared := self.template.shared):
            return self._tokens.neutral_mark
        return max((mark for mark in self._tokens.marks if shared.endswith(mark)), key=len, default="")

    def _checked(self, conversation: Conversation) -> Conversation:
        chat = self.template.format
        if chat.shared and not keeps_shared_turns(chat, conversation):
            kept = "another one was learned beside the virtual tokens" if chat.system else "none was learned with"
            raise DataError(
                f"it has a system message or tools of its own, and {kept}: expected the same in every conversation"
            )
        return conversation


def _count_alike(ids: Sequence[int], others: Sequence[int]) -> int:
    """Tokens that both begin with."""
    return next((at for at, (one, other) in enumerate(zip(ids, others, strict=False)) if one != other), len(others))
