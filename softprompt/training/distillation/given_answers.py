"""The turns that conversations bring along: a teacher reads them, and leaves its distributions at each of their tokens.

Inputs whose last answer is missing are completed by the teacher itself (teacher.py), behind the turns that they have.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from softprompt.config import DistillConfig
from softprompt.data.chats.plain_text import answer_text
from softprompt.data.encoding.batching import batch_by_token_budget, collate
from softprompt.data.encoding.encoder import EncodedSequence, ExampleEncoder
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.errors import DataError
from softprompt.inference.generation import GenerationConfig
from softprompt.inference.predictor import Predictor, name_failing_example
from softprompt.inference.scoring import EVALUATION_TOKENS, LOGITS_CHUNK
from softprompt.training.distillation.teacher_answers import CompletionRecord, Completions


def find_given(spec: TaskSpec, example: Example) -> Example | None:
    """A conversation up to the last turn of the assistant in it, if it brings any that is to be learned."""
    conversation = example.conversation
    if spec.kind == "classification" or spec.chat is None or conversation is None:
        return None
    messages = conversation.messages
    turns = [index for index, one in enumerate(messages) if one.role == "assistant"]
    lacking = messages[-1].role != "assistant"
    # the last turn is then the teacher's own
    if (lacking and spec.chat.learn == "last") or not any(messages[index].learned for index in turns):
        return None
    last = turns[-1]
    answer = (answer_text(messages[last]),)
    until = replace(conversation, messages=messages[: last + 1])
    return replace(example, conversation=until, references=example.references or answer)


def has_answer(spec: TaskSpec, example: Example) -> bool:
    """Whether the answer of a conversation is one of the turns that it brings."""
    return find_given(spec, example) is not None and bool(example.references)


@torch.no_grad()
def read_given(
    predictor: Predictor, examples: Sequence[Example], generation: GenerationConfig, settings: DistillConfig
) -> Completions:
    """A teacher's distributions along the turns that ``examples``, of ``find_given``, bring.

    Raises:
        NotFiniteError: the model has no numbers for one of them.
    """
    base, items = predictor.base, predictor.encoder.training_items(examples)
    record = CompletionRecord(settings)
    with name_failing_example(examples):
        for chunk in batch_by_token_budget(items, EVALUATION_TOKENS):
            batch = collate(chunk, base.device)
            owners = torch.tensor([item.example for item in chunk])[batch.row.cpu()].tolist()
            targets, hidden = batch.targets.tolist(), predictor.prefix.scored(batch)
            for start in range(0, len(hidden), LOGITS_CHUNK):
                part = slice(start, start + LOGITS_CHUNK)
                record.add(owners[part], base.logits(hidden[part]), targets[part])
    completions = record.completions(len(examples), base, generation.ends)
    return replace(completions, given=torch.ones_like(completions.given))


def given_item(encoder: ExampleEncoder, example: Example, answer: Sequence[int]) -> EncodedSequence:
    """What asks a student for each token of ``answer``: of the turns that a conversation brings, or of the last alone.

    Templates that write the system prompt into the user's last turn leave a teacher no other.

    Raises:
        DataError: they are other tokens than its teacher read.
    """
    given = find_given(encoder.spec, example)
    assert given is not None
    (item,) = encoder.training_items([given])
    first = max(0, len(item.targets) - len(answer))
    item = replace(item, positions=item.positions[first:], targets=item.targets[first:])
    if item.targets != tuple(answer):
        raise DataError(
            example.locate_message("teacher and student read other tokens of its answers: shorten the conversation")
        )
    return item
