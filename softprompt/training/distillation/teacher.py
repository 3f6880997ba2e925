"""The teacher of a distillation: a long text, a system prompt, solved examples or a saved prompt; it is asked once.

For classification it leaves the probabilities of the labels; for generation a completion, or the turns that a
conversation brings, and its distribution at each place of these. Students learn from them (distillation_loss.py).
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from softprompt.config import DistillConfig
from softprompt.data.encoding.conversation_encoder import ConversationEncoder
from softprompt.data.encoding.verbalizer import answer_end_id, encode_plain
from softprompt.data.examples import Example
from softprompt.data.few_shot import GAP
from softprompt.data.split_assignment import sample_indices
from softprompt.data.task import TaskSpec
from softprompt.errors import ConfigError
from softprompt.inference.chat_answers import make_bare_state
from softprompt.inference.generation import ANSWER_ROOM, GenerationConfig, complete
from softprompt.inference.predictor import Predictor, name_failing_example
from softprompt.inference.scoring import EVALUATION_TOKENS
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState
from softprompt.prompts.written_prompt import written_ids, written_prompt
from softprompt.training.distillation.given_answers import find_given, has_answer, read_given
from softprompt.training.distillation.teacher_answers import (
    Answers,
    CompletionRecord,
    Completions,
    LabelAnswers,
    concatenate_completions,
    truncate_at_stop,
)
from softprompt.training.training_run import TEST_LIMIT

NO_TEACHER = (
    "expected a teacher: a system prompt (--system), solved examples (--shots N), a saved prompt (--teacher), or chats "
    "that have a system message; got none"
)


@dataclass(frozen=True)
class Teacher:
    """What stands in front of the inputs while the teacher answers.

    Attributes:
        states: the prompt, or several that answer together.
        ids: its tokens, where it is text; empty for a saved prompt.
        stop: strings that end its completions.
        source: what it is, for people.
        spec: how it reads the inputs, where it has a system prompt and turns in front of them; ``None``: as students.
        words, word_ids: its text as virtual tokens, and their tokens, where that is not what stands in front.
    """

    states: tuple[PromptState, ...]
    ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    source: str = "text"
    spec: TaskSpec | None = None
    words: PromptState | None = None
    word_ids: tuple[int, ...] = ()

    @classmethod
    def written(cls, base: FrozenLM, spec: TaskSpec, text: str = "", shots: Sequence[Example] = ()) -> "Teacher":
        """A text, solved examples, or a text and solved examples behind it; a blank line stands between and behind.

        Completions behind solved examples end where the next one would begin, unless an output has a blank line.

        Raises:
            ConfigError: neither is given.
        """
        text = text.strip()
        state = written_prompt(base, spec, text, shots)
        if state is None:
            raise ConfigError("expected a text or solved examples for the teacher, got neither: give one of them")
        gap_within = any(GAP in output for shot in shots for output in shot.references)
        parts = [*(["text"] if text else []), *([f"{len(shots)} solved examples"] if shots else [])]
        stop = (GAP,) if shots and spec.kind == "generation" and not gap_within else ()
        return cls((state,), tuple(written_ids(base, spec, text, shots)), stop, " and ".join(parts))

    @classmethod
    def of_chat(cls, base: FrozenLM, taught: TaskSpec, spec: TaskSpec, shots: int = 0) -> "Teacher":
        """The system prompt, and ``shots`` solved examples as turns, that ``taught`` has beside ``spec``.

        What both share of the conversations' beginning is left out of ``words``: in the student's place of the
        virtual tokens these give the teacher's own tokens.
        """
        assert taught.chat is not None
        bos = base.special_tokens.bos
        own, theirs = (ConversationEncoder(base.tokenizer, one, bos).placement for one in (spec, taught))
        ids = (*theirs.before, *theirs.behind)
        end = len(ids) - len(own.behind)
        words = ids[len(own.before) : end]
        if ids[: len(own.before)] != own.before or ids[end:] != own.behind or not words:
            # a template that has the system prompt in the user's turn
            words = tuple(encode_plain(base.tokenizer, taught.chat.system or taught.chat.turns[0].content))
        with torch.no_grad():
            embedded = base.embed(torch.tensor(words, device=base.device)).float()
        state = make_bare_state(base, taught)
        assert state is not None
        parts = [*(["system prompt"] if taught.chat.system else []), *([f"{shots} solved examples"] if shots else [])]
        said = PromptState("embeddings", (embedded,), words=True)
        return cls((state,), ids, (), " and ".join(parts), taught, said, words)

    @classmethod
    def saved(cls, prompt: Prompt) -> "Teacher":
        """A saved prompt of any method and length; an ensemble for classification only."""
        members = f"an ensemble of {len(prompt.states)} saved prompts" if len(prompt.states) > 1 else "a saved prompt"
        return cls(prompt.states, source=f"{members} ({prompt.method})")

    @property
    def tokens(self) -> int:
        """That stand in front of an input; of several prompts, of all of them together, for each reads the input."""
        return sum(state.length + state.placement.added for state in self.states)

    @property
    def start(self) -> PromptState:
        """What a student may begin as."""
        return self.words or self.states[0]

    @cached_property
    def digest(self) -> str:
        """What tells it from another teacher."""
        chat = [] if self.spec is None or self.spec.chat is None else [str(self.spec.chat.to_dict())]
        parts = [",".join(state.digest for state in self.states), *map(str, self.ids), *self.stop, *chat]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def predictor(self, base: FrozenLM, spec: TaskSpec, settings: DistillConfig) -> Predictor:
        """It answers, its prefix computed once; ``spec`` is the students'."""
        return Predictor(base, self.spec or spec, self.states, self.generation(settings))

    def generation(self, settings: DistillConfig) -> GenerationConfig:
        """How its greedy completions are made."""
        return GenerationConfig(max_new_tokens=settings.max_new_tokens or ANSWER_ROOM, stop=settings.stop or self.stop)


def own_split(split: str) -> str:
    """What the teacher's own completions of a held-out split are called, where its rows bring answers along."""
    return f"{split}, completed"


def ask_teacher(
    base: FrozenLM,
    spec: TaskSpec,
    teacher: Teacher,
    settings: DistillConfig,
    splits: Mapping[str, Sequence[Example]],
    note: Callable[[str], None],
) -> dict[str, Answers]:
    """What the teacher answers to the examples of each split; those of ``train`` as the settings say, others greedily.

    Conversations that bring answers are read along these; of held-out ones that are reported, what the teacher would
    answer itself is given beside, under ``own_split``.

    Raises:
        TemplateError: the teacher leaves no room for text in the model's context.
        ConfigError: an ensemble for generation.
    """
    predictor = teacher.predictor(base, spec, settings)
    found: dict[str, Answers] = {}
    for split, examples in splits.items():
        note(f"the teacher ({teacher.source}, {teacher.tokens:,} tokens) answers {len(examples):,} {split} inputs")
        if spec.kind == "classification":
            found[split] = LabelAnswers(predictor.label_log_probabilities(examples))
            continue
        found[split] = _answer_all(predictor, examples, settings, learned=split == "train")
        if split != "train" and any(find_given(predictor.spec, one) is not None for one in examples):
            reported = sample_indices(examples, TEST_LIMIT[spec.kind])
            chosen = [examples[index] for index in reported]
            found[own_split(split)] = _completions(predictor, chosen, predictor.generation, 1, settings)
    for text in predictor.encoder.truncation_notes():
        note(f"behind the teacher {text}")
    return found


def _answer_all(
    predictor: Predictor, examples: Sequence[Example], settings: DistillConfig, *, learned: bool
) -> Completions:
    """Along the turns that conversations bring, and completions of those that lack an answer, each as it is asked."""
    spec, parts = predictor.spec, list[Completions]()
    given = {index: one for index, example in enumerate(examples) if (one := find_given(spec, example)) is not None}
    if given:
        read = read_given(predictor, list(given.values()), predictor.generation, settings)
        parts.append(_of_examples(read, list(given)))
    lacking = [index for index, example in enumerate(examples) if not has_answer(spec, example)]
    if lacking and (settings.greedy or not learned):
        some = [examples[index] for index in lacking]
        parts.append(_of_examples(_completions(predictor, some, predictor.generation, 1, settings), lacking))
    if settings.samples and learned:
        sampled = replace(predictor.generation, temperature=settings.sample_temperature, seed=settings.sample_seed)
        parts.append(_completions(predictor, examples, sampled, settings.samples, settings))
    return concatenate_completions(parts)


def _of_examples(completions: Completions, indices: Sequence[int]) -> Completions:
    """Of examples that were some of others: ``indices`` are theirs among these."""
    return replace(completions, example=torch.tensor(indices, dtype=torch.long)[completions.example])


def _completions(
    predictor: Predictor,
    examples: Sequence[Example],
    generation: GenerationConfig,
    times: int,
    settings: DistillConfig,
) -> Completions:
    """``times`` completions of each example."""
    base, texts = predictor.base, predictor.encoder.encode_inputs(examples)
    record = CompletionRecord(settings)
    with name_failing_example(examples):
        for _ in complete(base, predictor.prefix, texts * times, generation, EVALUATION_TOKENS, record.add):
            pass
    completions = record.completions(len(texts) * times, base, generation.ends)
    if generation.stop:
        end = answer_end_id(base.tokenizer, predictor.spec)
        completions = truncate_at_stop(completions, generation.stop, base, end)
    return replace(completions, example=completions.example % len(texts))
