"""Clients that ask, read streams, leave early, and have every answer checked."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
from soak_checks import Expected, Right, Which
from soak_world import World

import softprompt as sp
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.inference.generation import GenerationConfig
from softprompt.serving.engine.prompt_registry import BARE_TEMPLATE

VOCABULARY = ("a", "the", "good", "bad", "fine", "dull", "film", "story", "cat", "what?", "once", "more", "é€", "<bos>")
TEXTS = tuple(
    " ".join(random.Random(seed).choices(VOCABULARY, k=1 + seed % 9)) + f" {seed}" for seed in range(14)
)  # few, so that right answers are worked out once
TOKENS = (3, 12)
STOP = "e"
WAIT = 0.2  # seconds that a client waits who was told that the queue is full
LEAST_MARGIN = 1e-3  # in logits: where the next token is nearer than this, rounding may choose it
MOST_SHOWN = 20


@dataclass
class Tally:
    """What happened.

    Attributes:
        asked: requests, by what they were.
        statuses: by status.
        checked: answers that were compared.
        undecided: completions not compared, because two tokens were as likely but for rounding.
        left: requests whose client went away before the end.
        wrong: in words, the first ones of them.
    """

    asked: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    checked: int = 0
    undecided: int = 0
    left: int = 0
    faults: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return sum(self.asked.values())

    def fault(self, text: str) -> None:
        self.faults += 1
        if len(self.wrong) < MOST_SHOWN:
            self.wrong.append(text)


@dataclass(frozen=True)
class Told:
    """What a request came to; ``whole`` unless the client left."""

    status: int
    body: Any = None
    text: str = ""
    model: str = ""
    whole: bool = True


class Clients:
    """Asks one server."""

    def __init__(
        self, http: httpx.AsyncClient, world: World, right: Right, base: sp.FrozenLM, seed: int, tolerance: float
    ) -> None:
        """``tolerance``: of probabilities."""
        self._http, self._world, self._right, self._tolerance = http, world, right, tolerance
        self._draw = random.Random(seed)
        self._base_name = ""
        self._bare = TaskSpec("generation", BARE_TEMPLATE, max_length=base.context_length or 8192)
        self.tally = Tally()
        # how often each comes
        self._ways: dict[Callable[[], Awaitable[None]], int] = {
            self.label: 24,
            self.labels: 8,
            self.whole_text: 14,
            self.streamed_text: 14,
            self.streamed_chat: 6,
            self.stopped_text: 4,
            self.label_words: 5,
            self.bare: 4,
            self.baseline: 4,
            self.leave_label: 5,
            self.leave_text: 3,
            self.leave_stream: 7,
            self.unknown: 2,
        }

    async def ask_until(self, over: Callable[[], bool], base_name: str) -> None:
        """One request after the other."""
        self._base_name = base_name
        ways, weights = list(self._ways), list(self._ways.values())
        while not over():
            (way,) = self._draw.choices(ways, weights)
            self.tally.asked[way.__name__] += 1  # type: ignore[attr-defined]
            try:
                await way()
            except httpx.HTTPError as error:
                self.tally.fault(f"{way.__name__}: {type(error).__name__}: {error}")  # type: ignore[attr-defined]

    async def label(self) -> None:
        await self._labels(1)

    async def labels(self) -> None:
        await self._labels(self._draw.randint(2, 8))

    async def whole_text(self) -> None:
        await self._text(stream=False)

    async def streamed_text(self) -> None:
        await self._text(stream=True)

    async def streamed_chat(self) -> None:
        await self._text(stream=True, chat=True)

    async def stopped_text(self) -> None:
        await self._text(stream=self._draw.random() < 0.5, stop=STOP)

    async def label_words(self) -> None:
        """A completion by a prompt for labels."""
        model, text = self._model(labels=True), self._draw.choice(TEXTS)
        start = time.monotonic()
        told = await self._post("/v1/completions", {"model": model, "prompt": text, "columns": {"title": "title"}})
        for which in self._answered(model, told, start):
            expected = await self._expected_label(which, text)
            prompt = self._world.prompts[which]
            words = prompt.spec.verbalizers[prompt.spec.label_index[expected.text]]
            self._compare_text(model, told, replace(expected, text=words, margin=expected.margin / self._tolerance))

    async def bare(self) -> None:
        """The base model without prompt."""
        text, tokens = self._draw.choice(TEXTS), self._draw.choice(TOKENS)
        told = await self._post("/v1/completions", {"model": self._base_name, "prompt": text, "max_tokens": tokens})
        if self._is_answer(self._base_name, told):
            generation = GenerationConfig(max_new_tokens=tokens)
            expected = await self._right.text(None, self._bare, (), Example(text), generation)
            self._compare_text(self._base_name, told, expected)

    async def baseline(self) -> None:
        """The same task without the prompt."""
        model, text = self._model(labels=True), self._draw.choice(TEXTS)
        start = time.monotonic()
        told = await self._post("/v1/classify", {"model": model, "input": _row(text), "baseline": {}})
        possible = self._world.possible(model, start, time.monotonic())
        if told.status == 404 and None in possible:
            self.tally.statuses[404] += 1
        elif self._is_answer(model, told):
            spec = self._world.names[model.partition("@")[0]].spec
            self._compare_labels(model, told, [await self._right.label(None, spec, (), _example(text))])

    async def leave_label(self) -> None:
        model = self._model(labels=True)
        await self._leave("/v1/classify", {"model": model, "input": [_row(text) for text in TEXTS[:4]]})

    async def leave_text(self) -> None:
        await self._leave("/v1/completions", {"model": self._model(), "prompt": TEXTS[0], "max_tokens": TOKENS[-1]})

    async def leave_stream(self) -> None:
        await self._text(stream=True, leave=self._draw.randint(0, 4))

    async def unknown(self) -> None:
        """There never was such a prompt."""
        told = await self._post("/v1/classify", {"model": self._draw.choice(("nobody", "name-0@9999")), "input": "x"})
        self.tally.statuses[told.status] += 1
        if told.status != 404:
            self.tally.fault(f"unknown: status {told.status}: {told.body}")

    async def _labels(self, count: int) -> None:
        model, texts = self._model(labels=True), [self._draw.choice(TEXTS) for _ in range(count)]
        start = time.monotonic()
        given = [_row(text) for text in texts]
        told = await self._post("/v1/classify", {"model": model, "input": given if count > 1 else given[0]})
        for which in self._answered(model, told, start):
            self._compare_labels(model, told, [await self._expected_label(which, text) for text in texts])

    async def _text(
        self, *, stream: bool, chat: bool = False, stop: str | None = None, leave: int | None = None
    ) -> None:
        model, text, tokens = self._model(), self._draw.choice(TEXTS), self._draw.choice(TOKENS)
        body: dict[str, Any] = {"model": model, "max_tokens": tokens, "stream": stream}
        body |= {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
        body |= {"stop": stop} if stop else {}
        path = "/v1/chat/completions" if chat else "/v1/completions"
        start = time.monotonic()
        told = await (self._stream(path, body, leave) if stream else self._post(path, body))
        for which in self._answered(model, told, start):
            prompt = self._world.prompts[which]
            generation = GenerationConfig(max_new_tokens=tokens, stop=(stop,) if stop else ())
            expected = await self._right.text(which, prompt.spec, prompt.states, Example(text), generation)
            self._compare_text(model, told, expected)

    async def _leave(self, path: str, body: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._draw.random() * 0.05):
                await self._post(path, body)
        except TimeoutError:
            pass
        self.tally.left += 1

    async def _post(self, path: str, body: dict[str, Any]) -> Told:
        response = await self._http.post(path, json=body)
        answer = response.json()
        if response.status_code != 200:
            await self._told_to_wait(response)
            return Told(response.status_code, answer)
        choices = answer.get("choices")
        return Told(200, answer, choices[0].get("text", "") if choices else "", answer["model"])

    async def _stream(self, path: str, body: dict[str, Any], leave: int | None) -> Told:
        """A stream, left behind the event ``leave`` if that is given."""
        pieces, model, ended = [], "", False
        async with self._http.stream("POST", path, json=body) as response:
            if response.status_code != 200:
                await response.aread()
                await self._told_to_wait(response)
                return Told(response.status_code, response.json())
            events = 0
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    ended = True
                    break
                content = json.loads(line.removeprefix("data: "))
                if "error" in content:
                    return Told(500, content)
                model = content["model"]
                for choice in content["choices"]:
                    pieces.append(choice["text"] if "text" in choice else choice["delta"].get("content") or "")
                events += 1
                if leave is not None and events > leave:
                    self.tally.left += 1
                    return Told(200, None, "".join(pieces), model, whole=False)
        if not ended:
            return Told(500, "a stream without an end")
        return Told(200, None, "".join(pieces), model)

    async def _told_to_wait(self, response: httpx.Response) -> None:
        if response.status_code == 429:
            if not response.headers.get("retry-after", "").isdigit():
                self.tally.fault(f"429 with Retry-After {response.headers.get('retry-after')!r}")
            await asyncio.sleep(WAIT)

    def _model(self, *, labels: bool = False) -> str:
        """A reference: mostly one that is there, now and then one that was removed."""
        world = self._world
        kind = "classification" if labels else "generation"
        names = [name for name, one in world.names.items() if one.spec.kind == kind]
        there = [name for name in names if world.names[name].numbers]
        name = self._draw.choice(there if there and self._draw.random() < 0.95 else names)
        one = world.names[name]
        numbers = one.numbers if one.numbers and self._draw.random() < 0.9 else range(1, one.ever + 1)
        which = self._draw.choice(("", "", "@prod", "@latest", f"@{self._draw.choice(numbers)}"))
        return name + which

    def _answered(self, model: str, told: Told, start: float) -> list[tuple[str, int]]:
        """The version that answered, if one did and might."""
        possible = self._world.possible(model, start, time.monotonic())
        if told.status == 404 and None in possible:
            self.tally.statuses[404] += 1
            return []
        if not self._is_answer(model, told):
            return []
        name, _, number = told.model.partition("@")
        if name != model.partition("@")[0] or not number.isdigit() or int(number) not in possible:
            self.tally.fault(f"'{model}' was answered by '{told.model}', expected one of {possible}")
            return []
        return [(name, int(number))]

    def _is_answer(self, model: str, told: Told) -> bool:
        self.tally.statuses[told.status] += 1
        if told.status not in (200, 429):
            self.tally.fault(f"'{model}': status {told.status}: {told.body}")
        return told.status == 200

    async def _expected_label(self, which: Which, text: str) -> Expected:
        assert which is not None
        prompt = self._world.prompts[which]
        return await self._right.label(which, prompt.spec, prompt.states, _example(text))

    def _compare_labels(self, model: str, told: Told, expected: list[Expected]) -> None:
        results = told.body["results"]
        if len(results) != len(expected):
            self.tally.fault(f"'{model}': {len(results)} results for {len(expected)} texts")
            return
        for result, one in zip(results, expected, strict=True):
            self.tally.checked += 1
            assert one.probabilities is not None
            apart = max(abs(result["probabilities"][label] - value) for label, value in one.probabilities.items())
            if apart > self._tolerance or (result["label"] != one.text and one.margin > 2 * self._tolerance):
                self.tally.fault(f"'{model}' ({told.model}): got {result}, expected {one}")

    def _compare_text(self, model: str, told: Told, expected: Expected) -> None:
        if expected.margin < LEAST_MARGIN:
            self.tally.undecided += 1
            return
        self.tally.checked += 1
        # with the white space around it, which a chat and a Predictor leave out
        text = told.text.strip() if told.whole else told.text.lstrip()
        same = text == expected.text if told.whole else expected.text.startswith(text.rstrip())
        if not same:
            self.tally.fault(f"'{model}' ({told.model}): got {told.text!r}, expected {expected}")


def _row(text: str) -> dict[str, str]:
    return {"text": text, "title": "title"}


def _example(text: str) -> Example:
    return Example(text, columns={"title": "title"})
