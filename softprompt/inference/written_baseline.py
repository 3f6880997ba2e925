"""What a learned prompt gains over the written one: the words that it started from, scored on the same rows.

The written prompt is what a person would have put in front without learning: the words of ``init='text:WORDS'``, or
the plain instruction of ``init='text'``. Of every other start it is that instruction with as many solved training
examples behind it as fit into the length of the learned prompt, which is the start that ``init='examples'`` has. So
both take about the same room in front of a text, and what is between them is what was learned. In chats the words are
the system message, that which is kept beside the prompt where one is, and the examples are turns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.examples import Example
from softprompt.data.few_shot import encode_few_shot, fit_solved
from softprompt.data.split_assignment import Subsample
from softprompt.data.task import TaskSpec
from softprompt.metrics.baseline_gain import describe_written
from softprompt.metrics.bootstrap import paired_difference, resample_scores
from softprompt.metrics.registry import score_runs
from softprompt.metrics.scores import PairedDifference, Score
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.state import PromptState
from softprompt.prompts.written_prompt import choose_instruction, fit_shots, write_prompt

MOST_ROWS = {"classification": 1000, "generation": 100}  # that the written prompt answers, at most


@dataclass(frozen=True)
class WrittenPrompt:
    """Words in front of the template, or a system message and turns.

    Attributes:
        instruction: the words.
        shots: how many solved examples stand behind them.
        spec: the task that they are for; of chats with both.
        state: both as a prompt; of chats ``None``.
    """

    instruction: str
    shots: int
    spec: TaskSpec
    state: PromptState | None

    def __str__(self) -> str:
        return describe_written(self.instruction, self.shots)


@dataclass(frozen=True)
class WrittenBaseline:
    """What a written prompt reaches, and the learned one on the same rows.

    Attributes:
        written: the words.
        score: of the written prompt.
        learned: value of the learned prompt.
        difference: ``learned`` minus the written prompt's value, paired by row.
        drawn: of how many rows these are a sample, if they are one.
    """

    written: WrittenPrompt
    score: Score
    learned: float
    difference: PairedDifference
    drawn: Subsample

    def to_dict(self) -> dict[str, Any]:
        """The score's fields, with the words beside them and the gain below ``gain``."""
        return {
            **self.score.model_dump(),
            "instruction": self.written.instruction,
            "shots": self.written.shots,
            "learned": self.learned,
            "gain": self.difference.model_dump(),
            **self.drawn.to_dict(),
        }


def write_baseline(
    base: FrozenLM, spec: TaskSpec, training: Mapping[str, Any], length: int, seed: int, examples: Sequence[Example]
) -> WrittenPrompt:
    """The written counterpart of a prompt.

    Args:
        training: what the prompt says of its learning; its ``init`` decides.
        length: virtual tokens of the prompt.
        seed: by which examples are drawn.
        examples: solved ones, to stand behind the instruction.
    """
    init = str(training.get("init", ""))
    words = init.removeprefix("text:") if init.startswith("text:") else choose_instruction(spec, examples)
    plain = init == "text" or init.startswith("text:")
    if spec.chat is not None:
        words = spec.chat.system or words
        shots = [] if plain else fit_shots(base, spec, examples, length, seed)
        return WrittenPrompt(words, len(shots), *write_prompt(base, spec, words, shots))
    encoder = ExampleEncoder(base, spec, 0)
    solved = [] if plain else fit_solved(encoder, examples, length, seed)
    ids = [*encode_few_shot(encoder, words, ()), *(token for one in solved for token in one)]
    with torch.no_grad():
        embedded = base.embed(torch.tensor(ids, device=base.device)).float()
    return WrittenPrompt(words, len(solved), spec, PromptState("embeddings", (embedded,), words=True))


def compare_answers(
    metric: str, gold: Sequence[Any], learned: Sequence[str], written: Sequence[str]
) -> tuple[float, PairedDifference]:
    """The learned prompt's value, and how far it is above the written one's: answers to the same rows, in order."""
    scores = {name: score_runs(metric, gold, [words]) for name, words in (("learned", learned), ("written", written))}
    values = resample_scores(scores)
    difference = paired_difference(scores["learned"], scores["written"], values["learned"], values["written"])
    return float(scores["learned"].means[0]), difference
