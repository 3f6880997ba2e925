"""An engine that is a vLLM server: prompts are tokens of its baked vocabulary, or what its connector loads for them.

    a label     at each place where labels part, vLLM's log-probabilities of the tokens that continue one, normalised
    a text      vLLM's tokens as they come, cut into pieces by the same rules as those of our own engine

Texts are tokenised here, as plain text, and sent as token ids. A request for a prompt that vLLM does not have never
gets this far (``check_prompt``).
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from copy import copy
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any, Literal, TypeVar

import torch

from softprompt.data.encoding.conversation_encoder import find_placement
from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.encoding.token_bytes import token_bytes
from softprompt.data.encoding.verbalizer import Decision
from softprompt.data.examples import Example
from softprompt.engines.exported_model import ExportedModel, Probe
from softprompt.errors import ConfigError, DataError, GrammarError
from softprompt.export.export_readme import list_front
from softprompt.inference.generation import Completion, GenerationConfig
from softprompt.inference.predictions import Prediction
from softprompt.inference.token_logprobs import ScoredToken
from softprompt.prompts.saved_prompt import Prompt, hash_prompt
from softprompt.serving.engine.completion_chunks import (
    CompletionChunk,
    Detokenizer,
    InputUsage,
    TokenLogprob,
    spell_echo,
)
from softprompt.serving.engine.engine_requests import (
    EchoedText,
    EncodedText,
    EngineBusyError,
    RawPrompt,
    ServedPrompt,
    deadline_after,
    expire_at,
)
from softprompt.serving.engine.inference_engine import EngineLimits
from softprompt.serving.engine.request_preparation import (
    KEPT,
    TextEncoder,
    WeightedCache,
    count_prefix_tokens,
    encode_and_find_cuts,
    split_portions,
)
from softprompt.serving.engine.request_timing import RequestTiming
from softprompt.serving.engine.vllm_client import VllmClient
from softprompt.serving.engine.vllm_fields import (
    PLAIN,
    read_log_probabilities,
    read_prompt_tokens,
    read_scored_tokens,
    write_completion_body,
    write_scoring_body,
)

_Value = TypeVar("_Value")

MOST_CHOICES = 128  # tokens whose log-probabilities vLLM tells in one request
NOT_SCORED = (
    "log-probabilities of the text itself are not to be had behind keys and values in vLLM, which would read anew what "
    "only holds their place: leave echo or logprobs out, or ask a server without --engine vllm"
)
_AT_ONCE = 16  # places of labels that a request for labels asks vLLM for at the same time
MOST_OFF = 0.5  # nats that vLLM's log-probabilities may be off in the mean; other types of number round otherwise


class VllmEngine:
    """Implements ``EngineClient`` on a vLLM server.

    Attributes:
        model: what the server calls the model that it runs.
    """

    def __init__(self, checkpoint: ExportedModel, server: VllmClient, limits: EngineLimits) -> None:
        """Look at the server, once; blocks.

        Args:
            limits: of these, how much may wait and how long a text may be.

        Raises:
            ConfigError: there is no such server, or it does not run this checkpoint.
        """
        running = server.describe_model()
        self._checkpoint, self._server, self._limits = checkpoint, server, limits
        self.model = running.model
        self._check()
        lengths = [one for one in (checkpoint.context_length, running.context_length) if one is not None]
        shortened = copy(checkpoint)
        # vLLM wants room for the token that it is asked for
        shortened.context_length = min(lengths) - 1 if lengths else None
        self._texts = TextEncoder(shortened, limits.text_characters)
        self._leading_tokens: WeightedCache[tuple[int, ...]] = WeightedCache(KEPT)
        self._preparer = ThreadPoolExecutor(1, "softprompt tokens")
        self._inside = 0

    async def is_reachable(self) -> bool:
        """Whether vLLM says that it can be asked."""
        return await self._server.is_healthy()

    async def classify(
        self,
        served: ServedPrompt,
        examples: Sequence[Example],
        *,
        deadline: float | None = None,
        timing: RequestTiming | None = None,
    ) -> list[Prediction]:
        """See ``EngineClient``."""
        if served.spec.kind != "classification":
            raise DataError(f"'{served.key}' has no labels to choose from: expected a prompt for classification")
        if not examples:
            return []
        with self._reserve_room(len(examples)):
            async with expire_at(deadline_after(deadline)):
                texts: list[tuple[int, ...]] = []
                cut: set[int] = set()
                for part in split_portions(served.spec.template, examples):
                    encoder, leading, some, shortened = await self._run_preparer(
                        partial(self._encode_for_labels, served, part)
                    )
                    cut |= {len(texts) + index for index in shortened}
                    texts += some
                assert encoder.verbalizer is not None
                decisions = self._name_baked_labels(served, encoder.verbalizer.decisions)
                fields = self._name_prompt(served)
                scored = await gather_in_order(
                    self._score_decision(decision, [[*leading, *text, *decision.path] for text in texts], fields)
                    for decision in decisions
                )
        if timing is not None:
            timing.mark_tokens()
        scores = [[0.0] * len(served.spec.labels) for _ in texts]
        for decision, answers in zip(decisions, scored, strict=True):
            for score, choices in zip(scores, answers, strict=True):
                for label, choice in decision.choice_of_label.items():
                    score[label] += choices[choice]
        length = count_prefix_tokens(served)
        return [
            _make_prediction(index, served, score, InputUsage(length + len(text), index in cut))
            for index, (score, text) in enumerate(zip(scores, texts, strict=True))
        ]

    async def generate(
        self,
        served: ServedPrompt,
        example: Example | RawPrompt,
        generation: GenerationConfig,
        *,
        logprobs: int | None = None,
        deadline: float | None = None,
        timing: RequestTiming | None = None,
    ) -> AsyncIterator[CompletionChunk]:
        """See ``EngineClient``."""
        until = deadline_after(deadline)
        with self._reserve_room(1):
            async with expire_at(until):
                leading, encoded = await self._run_preparer(partial(self._encode_text, served, example, generation))
                ids = [*leading, *encoded.item.ids]
                fields = self._name_prompt(served)
                if encoded.echo is not None:
                    if fields and logprobs is not None:
                        raise DataError(NOT_SCORED)
                    told = await self._score_text(encoded.echo, len(leading), ids, logprobs)
                    end: Literal["length"] | None = "length" if encoded.only_read else None
                    yield CompletionChunk(encoded.echo.text, 0, encoded.read, end, told)
            if encoded.only_read:
                return
            completion, scored = Completion(self._checkpoint, replace(generation, grammar=None)), list[ScoredToken]()
            pieces = Detokenizer(completion, self._checkpoint.tokenizer, encoded.read, scored)
            body = {**write_completion_body(self.model, ids, generation, self._checkpoint, logprobs), **fields}
            async with aclosing(self._server.stream(body)) as events:
                while completion.finish is None:
                    # only while waiting: between pieces the caller's own time passes
                    with _name_grammar_errors(generation):
                        async with expire_at(until):
                            choice = await anext(events, None)
                    if choice is None:
                        raise RuntimeError("the engine's stream ended before the completion did")
                    before = len(completion.tokens)
                    _add_tokens(completion, choice)
                    if logprobs is not None:
                        chosen = len(completion.tokens) - before + (completion.finish == "stop")
                        scored += read_scored_tokens(choice, logprobs)[:chosen]
                    if timing is not None and len(completion.tokens) > before:
                        timing.mark_tokens(len(completion.tokens) - before)
                    if (completion.tokens or completion.finish) and (piece := pieces.next_chunk()) is not None:
                        yield piece

    async def close(self) -> None:
        """Ask nothing more."""
        await self._server.close()
        self._preparer.shutdown(wait=False)

    def check_prompt(self, prompt: Prompt) -> None:
        """Have vLLM take a prompt into use; blocks.

        Raises:
            PromptFileError, BaseModelError, OutputError: it cannot.
            ConfigError: vLLM does not answer as the prompt does.
        """
        if (probe := self._checkpoint.check(prompt)) is not None:
            self._compare("the prompt", probe, self._checkpoint.request_fields(prompt.digest))

    def _check(self) -> None:
        """Compare the server with what the export says of its model; raises ConfigError."""
        for name, probe in self._checkpoint.probes.items():
            self._compare(name, probe, {})

    def _compare(self, name: str, probe: Probe, fields: Mapping[str, Any]) -> None:
        """Hold vLLM's log-probabilities of a probe to those that were noted; raises ConfigError."""
        url = self._server.url
        body = {**write_scoring_body(self.model, [list(probe.ids)], probe.tokens), **fields}
        (choice,) = self._server.complete_once(body)
        given = read_log_probabilities(choice)
        if not given.keys() >= set(probe.tokens):
            raise ConfigError(
                f"'{url}' does not tell the log-probabilities of the tokens that it is asked for "
                "(logprob_token_ids): expected a newer vLLM, as 0.32"
            )
        noted = zip(probe.tokens, probe.log_probabilities, strict=True)
        off = fmean(abs(given[token] - value) for token, value in noted)
        if off > MOST_OFF:
            raise ConfigError(
                f"'{url}' runs '{self.model}', whose answers for '{name}' are not those of "
                f"'{self._checkpoint.folder}' ({off:.1f} nats off): {self._checkpoint.advice}"
            )

    @contextmanager
    def _reserve_room(self, examples: int) -> Iterator[None]:
        """vLLM's own queue has no end: what may wait there is counted here."""
        most = self._limits.waiting
        if examples > most:
            raise DataError(f"{examples:,} examples at once: expected at most {most:,}, send fewer")
        if self._inside + examples > most:
            raise EngineBusyError(1.0)
        self._inside += examples
        try:
            yield
        finally:
            self._inside -= examples

    async def _run_preparer(self, work: Callable[[], _Value]) -> _Value:
        return await asyncio.get_running_loop().run_in_executor(self._preparer, work)

    def _encode_for_labels(
        self, served: ServedPrompt, examples: Sequence[Example]
    ) -> tuple[ExampleEncoder, tuple[int, ...], list[tuple[int, ...]], frozenset[int]]:
        encoder = self._texts.get_label_encoder(served, examples)
        return encoder, self._get_leading_tokens(served), *encode_and_find_cuts(encoder, examples)

    def _encode_text(
        self, served: ServedPrompt, example: Example | RawPrompt, generation: GenerationConfig
    ) -> tuple[tuple[int, ...], EncodedText]:
        return self._get_leading_tokens(served), self._texts.encode_text(served, example, generation.max_new_tokens)

    def _get_leading_tokens(self, served: ServedPrompt) -> tuple[int, ...]:
        """All that stands in front of a text: BOS, virtual tokens, and what is around these in a conversation."""
        if not served.states:
            place = find_placement(self._checkpoint, served.spec)
            return list_front(self._checkpoint.special_tokens.bos, place, ())
        place = served.states[0].placement
        return self._leading_tokens.get(served.key, lambda: self._checkpoint.front(_hash_baked(served), place))

    def _name_baked_labels(self, served: ServedPrompt, decisions: Sequence[Decision]) -> Sequence[Decision]:
        """The same, among the checkpoint's tokens where labels are tokens of their own."""
        if not served.states or served.states[0].label_rows is None:
            return decisions
        return [replace(decisions[0], choices=self._checkpoint.label_ids(_hash_baked(served)))]

    def _name_prompt(self, served: ServedPrompt) -> Mapping[str, Any]:
        """What a request says of its prompt beside the token ids."""
        return self._checkpoint.request_fields(_hash_baked(served)) if served.states else {}

    async def _score_decision(
        self, decision: Decision, prompts: list[list[int]], fields: Mapping[str, Any]
    ) -> list[list[float]]:
        """Log-probabilities of the choices behind each of ``prompts``, normalised over them."""
        parts = [
            decision.choices[start : start + MOST_CHOICES] for start in range(0, len(decision.choices), MOST_CHOICES)
        ]
        scored = await gather_in_order(
            self._server.complete({**write_scoring_body(self.model, prompts, part), **fields}) for part in parts
        )
        found: list[dict[int, float]] = [{} for _ in prompts]
        for answers in scored:
            for known, choice in zip(found, answers, strict=True):
                known.update(read_log_probabilities(choice))
        given = torch.tensor([[known[token] for token in decision.choices] for known in found], dtype=torch.float64)
        return given.log_softmax(dim=-1).tolist()

    async def _score_text(
        self, echo: EchoedText, leading: int, ids: list[int], top: int | None
    ) -> tuple[TokenLogprob, ...]:
        """The tokens of a text behind so many ``leading`` ones; none if they are not asked for."""
        if top is None:
            return ()
        body = {"model": self.model, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": top}
        (choice,) = await self._server.complete({**body, **PLAIN})
        scored = [ScoredToken(token, None) for token in echo.before]
        scored += read_prompt_tokens(choice, ids, top)[leading:]
        if not echo.before:
            scored[0] = ScoredToken(ids[leading], None)
        return spell_echo(token_bytes(self._checkpoint.tokenizer), echo.text, scored)


@contextmanager
def _name_grammar_errors(generation: GenerationConfig) -> Iterator[None]:
    """A request that vLLM refuses is wrong in its grammar, if it has one: all else was looked at before."""
    try:
        yield
    except DataError as error:
        if generation.grammar is None:
            raise
        raise GrammarError(str(error)) from error


async def gather_in_order(works: Iterable[Coroutine[Any, Any, _Value]]) -> list[_Value]:
    """What all of them come to, some at once; the first that fails ends the others, and is raised as it is."""
    left = enumerate(works)
    found: dict[int, _Value] = {}

    async def take() -> None:
        # of many labels there are thousands, each with all of the texts: made when it is their turn
        for number, work in left:
            found[number] = await work

    tasks = [asyncio.create_task(take()) for _ in range(_AT_ONCE)]
    try:
        await asyncio.gather(*tasks)
        return [found[number] for number in range(len(found))]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _add_tokens(completion: Completion, choice: dict[str, Any]) -> None:
    """Add the tokens of an event of the stream."""
    for token in choice.get("token_ids") or ():
        if not completion.add(int(token)):
            return
    # what ended it may be no token that was sent
    if (reason := choice.get("finish_reason")) is not None:
        completion.finish = "length" if reason == "length" else "stop"


def _make_prediction(index: int, served: ServedPrompt, score: list[float], read: InputUsage) -> Prediction:
    probabilities = dict(zip(served.spec.labels, map(math.exp, score), strict=True))
    likeliest = max(probabilities, key=probabilities.__getitem__)
    return Prediction(index, likeliest, probabilities, prompt_tokens=read.tokens, cut=read.cut)


def _hash_baked(served: ServedPrompt) -> str:
    """The digest of the prompt that was baked, of which this may be a form."""
    while served.parent is not None:
        served = served.parent
    return hash_prompt(served.spec, served.states)
