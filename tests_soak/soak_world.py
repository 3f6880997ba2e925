"""A store that changes all the while, and what each reference may lead to at each moment."""

import asyncio
import random
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

import torch

import softprompt as sp
from softprompt.data.task import TaskSpec
from softprompt.prompts.prefix import compute_keys_and_values
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState

LABELS = TaskSpec.of(labels=["bad", "good"], verbalizers={"good": "great"}, template="{{ text }}:")
TITLED = TaskSpec.of(labels=["no", "yes", "none"], template="{{ title }} {{ text }}?")
WORDS = TaskSpec.of(template="{{ text }}\nOutput:")
SPECS = (LABELS, TITLED, WORDS)
LENGTHS = (1, 3, 6, 12)  # virtual tokens
MOST_VERSIONS, MOST_NAMES = 5, 9


class Timeline:
    """What one reference leads to: a version's number, or nothing."""

    def __init__(self) -> None:
        self._spans: list[tuple[int | None, float, float]] = [(None, -inf, inf)]

    @property
    def now(self) -> int | None:
        return self._spans[-1][0]

    def change(self, value: int | None, began: float) -> None:
        """From ``began`` on the new value may be seen; the old one too, until ``settle``."""
        self._spans.append((value, began, inf))

    def settle(self, at: float) -> None:
        """From now on the server knows the last value only."""
        self._spans = [(value, began, min(ended, at)) for value, began, ended in self._spans[-50:-1]] + self._spans[-1:]

    def possible(self, start: float, end: float) -> set[int | None]:
        """What it may have led to for a request that ran from ``start`` to ``end``."""
        return {value for value, began, ended in self._spans if began <= end and ended >= start}


@dataclass
class Name:
    """A name as the store has it.

    Attributes:
        promoted: where its alias ``prod`` was, the last one counts; rolling back takes it off.
    """

    spec: TaskSpec
    numbers: list[int] = field(default_factory=list)
    promoted: list[int] = field(default_factory=list)
    ever: int = 0

    def leads_to(self, which: str) -> int | None:
        newest = self.numbers[-1] if self.numbers else None
        prod = self.promoted[-1] if self.promoted and self.numbers else None
        if which in ("", "prod"):
            return prod if prod is not None or which else newest
        number = newest if which == "latest" else int(which)
        return number if number in self.numbers else None


class World:
    """The store and its changes.

    Attributes:
        prompts: every version that ever was.
        names: every name that ever was; one that was removed has no numbers.
        changes: how many of which kind were made.
    """

    def __init__(self, base: sp.FrozenLM, folder: Path, seed: int) -> None:
        """Three names, the first one in production."""
        self._base, self._folder, self._draw = base, folder, random.Random(seed)
        self.store = sp.Store(folder)
        self.prompts: dict[tuple[str, int], Prompt] = {}
        self.names: dict[str, Name] = {}
        self.timelines: dict[str, Timeline] = {}
        self.changes: Counter[str] = Counter()
        for at, spec in enumerate(SPECS):
            name = f"name-{at}"
            self.names[name] = Name(spec)
            for _ in range(2):
                self.store.put(self._new(name), name)
            self.store.promote(f"{name}@1", "prod")
            self.names[name].promoted.append(1)
            self._begin(name, -inf)
            self._settle(name, -inf)

    async def change(self, reload: Callable[[], Awaitable[None]]) -> None:
        """Make one change, and have the server look at the store."""
        name, what, write = self._chosen()
        self._begin(name, time.monotonic())
        await asyncio.to_thread(write)
        await reload()
        self._settle(name, time.monotonic())
        self.changes[what] += 1

    def possible(self, reference: str, start: float, end: float) -> set[int | None]:
        """The versions that ``reference`` may have meant."""
        timeline = self.timelines.get(reference)
        return {None} if timeline is None else timeline.possible(start, end)

    def _chosen(self) -> tuple[str, str, Callable[[], object]]:
        """One change that can be made now, noted here; what writes it is still to be called."""
        there = [name for name, one in self.names.items() if one.numbers]
        name = self._draw.choice(there)
        one = self.names[name]
        what = self._draw.choice(("put", "put", "promote", "promote", "roll back", "remove", "add name", "remove name"))
        if what == "promote":
            number = self._draw.choice(one.numbers)
            if number != (one.promoted or [None])[-1]:
                one.promoted.append(number)
                return name, what, lambda: self.store.promote(f"{name}@{number}", "prod")
        elif what == "roll back" and len(one.promoted) > 1 and one.promoted[-2] in one.numbers:
            one.promoted.pop()
            return name, what, lambda: self.store.rollback(f"{name}@prod")
        elif what == "remove":
            unused = [number for number in one.numbers[:-1] if number != (one.promoted or [None])[-1]]
            if len(one.numbers) >= MOST_VERSIONS and unused:
                one.numbers.remove(unused[0])
                return name, what, lambda: self._remove(Path(name) / str(unused[0]))
        elif what == "remove name" and len(there) > MOST_NAMES and len(one.numbers) < MOST_VERSIONS:
            one.numbers.clear()
            one.promoted.clear()
            return name, what, lambda: self._remove(Path(name))
        elif what == "add name" and len(there) <= MOST_NAMES:
            name = f"name-{len(self.names)}"
            self.names[name] = Name(self._draw.choice(SPECS))
            added = self._new(name)
            return name, what, lambda: self.store.put(added, name)
        if len(one.numbers) > MOST_VERSIONS:
            unused = [number for number in one.numbers[:-1] if number != (one.promoted or [None])[-1]]
            one.numbers.remove(unused[0])
            return name, "remove", lambda: self._remove(Path(name) / str(unused[0]))
        new = self._new(name)
        return name, "put", lambda: self.store.put(new, name)

    def _new(self, name: str) -> Prompt:
        """The next version of a name, that no other one equals."""
        one, base = self.names[name], self._base
        one.ever += 1
        one.numbers.append(one.ever)
        keys = self._draw.random() < 0.3
        members = 2 if one.spec.kind == "classification" and self._draw.random() < 0.3 else 1
        states = tuple(self._state(keys=keys) for _ in range(members))
        method = "prefix-tuning" if keys else "prompt-tuning"
        prompt = Prompt(states, one.spec, base.name, base.fingerprint, method)
        self.prompts[name, one.ever] = prompt
        return prompt

    def _state(self, *, keys: bool) -> PromptState:
        """Virtual tokens, or their keys and values."""
        numbers = torch.Generator().manual_seed(self._draw.randrange(2**31))
        shape = self._draw.choice(LENGTHS), self._base.embedding_size
        tokens = torch.randn(shape, generator=numbers) * self._base.embedding_std
        return compute_keys_and_values(self._base, tokens) if keys else PromptState.of_embeddings(tokens)

    def _remove(self, place: Path) -> None:
        """As an operator would: out of the store at once, then out of the disk."""
        aside = self._folder.parent / f"removed {place.as_posix().replace('/', ' ')}"
        (self._folder / place).rename(aside)
        shutil.rmtree(aside)

    def _references(self, name: str) -> dict[str, int | None]:
        one = self.names[name]
        ways = ("", "prod", "latest", *map(str, range(1, one.ever + 1)))
        return {f"{name}@{which}" if which else name: one.leads_to(which) for which in ways}

    def _begin(self, name: str, at: float) -> None:
        for reference, number in self._references(name).items():
            timeline = self.timelines.setdefault(reference, Timeline())
            if timeline.now != number:
                timeline.change(number, at)

    def _settle(self, name: str, at: float) -> None:
        for reference in self._references(name):
            self.timelines[reference].settle(at)
