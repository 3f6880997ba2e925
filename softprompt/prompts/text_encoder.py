"""The encoder of texts behind given prompts: what they leave room for, begin with, and call the labels."""

from collections.abc import Sequence

from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.encoding.special_tokens import TokenizingModel
from softprompt.data.encoding.verbalizer import number_labels
from softprompt.data.few_shot import BEHIND_WORDS
from softprompt.data.task import TaskSpec
from softprompt.prompts.state import PromptState


def make_text_encoder(
    base: TokenizingModel, spec: TaskSpec, states: Sequence[PromptState], answer_room: int = 0
) -> ExampleEncoder:
    """An encoder of texts that stand behind any of ``states``, or behind nothing.

    Args:
        answer_room: tokens kept free behind the text, for generation.

    Raises:
        TemplateError, DataError: as ``ExampleEncoder``.
    """
    soft = any(state.label_rows is not None for state in states)
    return ExampleEncoder(
        base,
        spec,
        max((state.length for state in states), default=0),
        answer_room,
        # texts go on from written words; behind learned ones they begin
        BEHIND_WORDS if any(state.words for state in states) else "",
        label_ids=number_labels(spec, base.tokenizer) if soft else (),
    )
