"""The solved examples nearest to each text, in front of it.

Liu et al. 2022, "What makes good in-context examples for GPT-3?", with TF-IDF in place of sentence embeddings. They
differ with each text and are read anew with each request, the most similar one last. Where not all of them fit the
context, the least similar are left out. In chats they are turns (nearest_turns.py).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from softprompt.data.encoding.encoder import EncodedSequence, ExampleEncoder
from softprompt.data.examples import Example
from softprompt.data.few_shot import BEHIND_WORDS, encode_solved, prepend_tokens
from softprompt.data.task import Task
from softprompt.experiments.baselines.fitted_baseline import extra_module
from softprompt.experiments.baselines.tfidf import extract_words, fit_words, make_vectorizer
from softprompt.inference.generation import GenerationConfig, choose_max_new_tokens, complete
from softprompt.inference.predictions import Prediction
from softprompt.inference.predictor import name_failing_example, predict_labels
from softprompt.inference.scoring import EVALUATION_TOKENS, AnswerScorer
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.prefix import make_prefix
from softprompt.prompts.written_prompt import check_enough, written_prompt


class ExamplePool:
    """Examples to choose from by their words.

    Attributes:
        examples: all of them.
    """

    def __init__(self, task: Task, count: int) -> None:
        """The training examples of ``task``, ``count`` of which are chosen.

        Raises:
            DataError: there are fewer than ``count``, or no word in them.
            MissingExtraError: scikit-learn is not installed.
        """
        check_enough(task.train, count)
        self.examples, self._spec = task.train, task.spec
        self._vectorizer = make_vectorizer()
        self._words = fit_words(self._vectorizer, task, self.examples)
        neighbours = extra_module("sklearn.neighbors").NearestNeighbors(n_neighbors=count, metric="cosine")
        self._neighbours = neighbours.fit(self._words)

    @property
    def memory(self) -> int:
        """Bytes of what they are found by."""
        return int(self._words.data.nbytes + self._words.indices.nbytes)

    def nearest(self, examples: Sequence[Example]) -> list[list[int]]:
        """For each example the indices of those near to it, the nearest first."""
        words = self._vectorizer.transform(extract_words(self._spec, examples))
        found: list[list[int]] = self._neighbours.kneighbors(words, return_distance=False).tolist()
        return found


class NearestShots:
    """Answers behind the solved examples that are nearest to each text.

    Attributes:
        pool: the examples to choose from.
        prefix, instruction_tokens: what stands in front of everything.
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
        """Choose among the training examples of ``task``.

        Raises:
            DataError: there are fewer than ``count``, or no word in them.
            MissingExtraError: scikit-learn is not installed.
        """
        self.base, self.spec, self.pool = base, task.spec, ExamplePool(task, count)
        self.generation = generation or GenerationConfig(max_new_tokens=choose_max_new_tokens(base, task.spec))
        state = written_prompt(base, self.spec, instruction)
        self.instruction_tokens = 0 if state is None else state.length
        # behind solved examples, whether or not there is an instruction
        room = self.generation.max_new_tokens
        self.encoder = ExampleEncoder(base, self.spec, self.instruction_tokens, room, BEHIND_WORDS)
        self.objective = AnswerScorer(base, self.encoder.verbalizer)
        with torch.no_grad():
            self.prefix = make_prefix(base, state)
        self.left_out = self.added = 0
        self._of_pool = ExampleEncoder(base, self.spec, 0)
        # where it is the first of all that is written, and behind something else
        self._solved: dict[int, tuple[list[int], list[int]]] = {}

    @property
    def truncated(self) -> int:
        """Texts cut so far, those of the solved examples not counted."""
        return self.encoder.truncated

    def nearest(self, examples: Sequence[Example]) -> list[list[int]]:
        """For each example the indices in ``pool`` of those near to it, the nearest first."""
        return self.pool.nearest(examples)

    def in_front(self, examples: Sequence[Example], lengths: Sequence[int]) -> list[tuple[int, ...]]:
        """Token ids of the solved examples for each of ``examples``, as many as fit before so many tokens."""
        chosen = self.nearest(examples)
        missing = sorted({index for indices in chosen for index in indices} - self._solved.keys())
        shots = [self.pool.examples[index] for index in missing]
        made = zip(encode_solved(self._of_pool, shots, first=True), encode_solved(self._of_pool, shots), strict=True)
        self._solved.update(zip(missing, made, strict=True))
        fronts = []
        for indices, length in zip(chosen, lengths, strict=True):
            parts: list[list[int]] = []
            spare = self.encoder.spare(length)
            for place, index in enumerate(indices):
                first, later = self._solved[index]
                if spare is not None and sum(map(len, parts)) + max(len(first), len(later)) > spare:
                    self.left_out += len(indices) - place
                    break
                parts.append(later)
            if parts and not self.instruction_tokens:
                parts[-1] = self._solved[indices[len(parts) - 1]][0]
            fronts.append(tuple(token for part in reversed(parts) for token in part))
            self.added += len(fronts[-1])
        return fronts

    def items(self, examples: Sequence[Example]) -> list[EncodedSequence]:
        """For generation: what asks for each token of their outputs."""
        return self.behind_shots(self.encoder.training_items(examples), examples)

    def behind_shots(self, items: Sequence[EncodedSequence], examples: Sequence[Example]) -> list[EncodedSequence]:
        """``items`` of ``examples``, each text behind its solved examples."""
        longest = [0] * len(examples)
        for item in items:
            longest[item.example] = max(longest[item.example], len(item.ids))
        return prepend_tokens(items, self.in_front(examples, longest))

    def label_log_probabilities(self, examples: Sequence[Example]) -> Tensor:
        """Log-probabilities ``[examples, C]`` of the labels."""
        if not examples:
            return torch.zeros(0, len(self.spec.labels))
        items = self.behind_shots(self.encoder.scoring_items(examples), examples)
        with name_failing_example(examples):
            return self.objective.label_log_probabilities(self.prefix, items)

    def iterate_predictions(self, examples: Sequence[Example]) -> Iterator[Prediction]:
        """Predictions in the order of the examples for classification, as they finish for generation."""
        if self.spec.kind == "classification" or not examples:
            yield from predict_labels(self.spec, self.label_log_probabilities(examples))
            return
        texts = self.encoder.encode_inputs(examples)
        fronts = self.in_front(examples, [len(text) for text in texts])
        whole = [(*front, *text) for front, text in zip(fronts, texts, strict=True)]
        with name_failing_example(examples):
            for index, text, cut in complete(self.base, self.prefix, whole, self.generation, EVALUATION_TOKENS):
                yield Prediction(index, completion=text, at_limit=cut)
