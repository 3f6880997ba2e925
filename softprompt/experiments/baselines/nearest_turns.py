"""The solved examples nearest to each text as turns of a conversation with its own ones, the most similar last."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from softprompt.data.chats.conversation import Conversation, Message
from softprompt.data.encoding.encoder import EncodedSequence, ExampleEncoder
from softprompt.data.examples import Example
from softprompt.data.task import LONGEST, Task
from softprompt.experiments.baselines.nearest_examples import ExamplePool
from softprompt.inference.generation import GenerationConfig
from softprompt.inference.predictions import Prediction
from softprompt.inference.predictor import Predictor
from softprompt.inference.scoring import AnswerScorer
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.prefix import Prefix
from softprompt.prompts.written_prompt import count_turns, count_written, solved_turns, write_prompt


class NearestTurns:
    """Answers behind the turns of the solved examples that are nearest to each text.

    Attributes:
        pool: the examples to choose from.
        instruction_tokens: tokens of the system message.
        left_out: examples that did not fit the context so far.
        added: tokens of examples that stood in front of texts so far.
    """

    def __init__(
        self,
        base: FrozenLM,
        task: Task,
        count: int,
        instruction: str = "",
        generation: GenerationConfig | None = None,
    ) -> None:
        """Choose among the training examples of ``task``; raises as ``ExamplePool`` does."""
        self.base, self.pool = base, ExamplePool(task, count)
        self.spec, _ = write_prompt(base, task.spec, instruction)
        self.instruction_tokens = count_written(base, self.spec)
        # texts are cut as without examples; with them they may be as long as the context
        self._whole = Predictor(base, replace(self.spec, max_length=LONGEST - 1), None, generation)
        self._alone = ExampleEncoder(base, self.spec, 0, self._whole.generation.max_new_tokens)
        self.left_out = self.added = 0
        self._solved: dict[int, tuple[tuple[Message, ...], int]] = {}

    @property
    def truncated(self) -> int:
        """Texts cut so far, those of the solved examples not counted."""
        return self._alone.truncated

    @property
    def objective(self) -> AnswerScorer:
        return AnswerScorer(self.base, self._whole.encoder.verbalizer)

    @property
    def prefix(self) -> Prefix:
        """What stands in front of everything."""
        return self._whole.prefix

    def nearest(self, examples: Sequence[Example]) -> list[list[int]]:
        """For each example the indices in ``pool`` of those near to it, the nearest first."""
        return self.pool.nearest(examples)

    def behind_shots(self, examples: Sequence[Example]) -> list[Example]:
        """``examples`` as conversations, each with the turns of as many of its solved examples as fit."""
        chosen = self.nearest(examples)
        self._solve({index for indices in chosen for index in indices})
        asked, texts = self._alone.conversations(examples), self._alone.encode_texts(examples)
        return [
            replace(example, conversation=self._put_in_front(indices, conversation, len(text), example))
            for indices, conversation, text, example in zip(chosen, asked, texts, examples, strict=True)
        ]

    def items(self, examples: Sequence[Example]) -> list[EncodedSequence]:
        """For generation: what asks for each token of their outputs."""
        return self._whole.encoder.training_items(self.behind_shots(examples))

    def label_log_probabilities(self, examples: Sequence[Example]) -> Tensor:
        """Log-probabilities ``[examples, C]`` of the labels."""
        return self._whole.label_log_probabilities(self.behind_shots(examples) if examples else [])

    def iterate_predictions(self, examples: Sequence[Example]) -> Iterator[Prediction]:
        """Predictions in the order of the examples for classification, as they finish for generation."""
        yield from self._whole.iterate_predictions(self.behind_shots(examples) if examples else [])

    def _solve(self, indices: set[int]) -> None:
        missing = sorted(indices - self._solved.keys())
        shots = [self.pool.examples[index] for index in missing]
        for index, shot, tokens in zip(missing, shots, count_turns(self.base, self.spec, shots), strict=True):
            self._solved[index] = solved_turns(self.base, self.spec, [shot]), tokens

    def _put_in_front(
        self, indices: Sequence[int], conversation: Conversation, length: int, example: Example
    ) -> Conversation:
        spare = self._whole.encoder.spare(length)
        turns: tuple[Message, ...] = ()
        for place, index in enumerate(indices):
            own, tokens = self._solved[index]
            if spare is not None and tokens > spare:
                self.left_out += len(indices) - place
                break
            spare = None if spare is None else spare - tokens
            turns = (*own, *turns)
            self.added += tokens
        messages, answer = conversation.messages, _find_answer(example)
        first = 1 if conversation.system is not None else 0
        return replace(conversation, messages=(*messages[:first], *turns, *messages[first:], *answer))


def _find_answer(example: Example) -> tuple[Message, ...]:
    """The answer to learn, in generation."""
    given = None if example.conversation is None else example.conversation.answer
    if given is not None and example.references:
        return (given,)
    return tuple(Message("assistant", one) for one in example.references[:1])
