"""The queue between the event loop and the thread that runs the model: bounded, and fair.

Requests for labels take turns, and the prompts before them: neither many examples, nor many labels, nor many requests
of one prompt keep another's waiting. Texts go in their order.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable

from softprompt.serving.engine.engine_requests import (
    ClassificationRequest,
    EngineRequest,
    GenerationRequest,
    RequestKind,
    ScheduledExample,
)

LOOKED_AT = 4  # examples that a batch is chosen from, times as many as it can hold


class RequestQueue:
    """Requests that wait; safe to use from several threads.

    Attributes:
        capacity: examples that may wait; and an eighth of it more, of prompts of which no more than that waits, so that
            one prompt never fills the queue for all.
        counts: examples that wait or are being prepared, by the kind of their requests.
        counts_by_prompt: the same by the keys of their prompts.
        preparing: those that are being prepared.
    """

    def __init__(self, limit: int) -> None:
        self.capacity = limit
        self.counts: dict[RequestKind, int] = {"classification": 0, "generation": 0}
        self.counts_by_prompt: Counter[str] = Counter()
        self.preparing = 0
        self._questions: deque[ClassificationRequest] = deque()
        self._texts: deque[GenerationRequest] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def reserve(self, kind: RequestKind, key: str, examples: int) -> bool:
        """Keep room for examples of a prompt while they are prepared; whether there was any."""
        with self._changed:
            few = self.capacity // 8
            room = self.capacity + (few if self.counts_by_prompt[key] + examples <= few else 0)
            if sum(self.counts.values()) + examples > room:
                return False
            self._add_count(kind, key, examples)
            self.preparing += examples
            return True

    def release(self, kind: RequestKind, key: str, examples: int) -> None:
        """Examples for which room was kept will not come."""
        with self._changed:
            self._add_count(kind, key, -examples)
            self.preparing -= examples
            self._changed.notify_all()

    def put(self, request: EngineRequest) -> bool:
        """A request whose room was kept; whether it will be taken."""
        with self._changed:
            if self._closed:
                return False
            if isinstance(request, ClassificationRequest):
                self._questions.append(request)
            else:
                self._texts.append(request)
            self.preparing -= _count_examples(request)
            self._changed.notify_all()
            return True

    def remove(self, request: EngineRequest) -> None:
        """Take a request out, if it is still there."""
        with self._changed:
            if isinstance(request, ClassificationRequest) and request in self._questions:
                self._questions.remove(request)
                self._add_count("classification", request.served.key, -len(request.waiting))
            elif isinstance(request, GenerationRequest) and request in self._texts:
                self._texts.remove(request)
                self._add_count("generation", request.served.key, -1)

    def take_examples(self, rows: int, tokens: int) -> list[ScheduledExample]:
        """Examples for one forward pass of at most so many rows and padded tokens, if it is not just one row.

        The first is the one whose turn it is; those nearest to it in length go with it. Of an example of more rows as
        many as fit, so that others get their turn before the rest of it.
        """
        with self._changed:
            if not (candidates := self._next_in_turn(rows * LOOKED_AT, rows, tokens)):
                return []
            first, *others = candidates
            others.sort(key=lambda one: abs(one.length - first.length))
            chosen, filled, longest = [first], len(first.numbers), first.length
            for one in others:
                more, length = filled + len(one.numbers), max(longest, one.length)
                # one of many rows stands in nobody's way
                if more <= rows and more * length <= tokens:
                    chosen.append(one)
                    filled, longest = more, length
            for one in chosen:
                one.request.scheduled[one.index] = one.numbers.stop
                if one.last:
                    one.request.waiting.remove(one.index)
                    self._add_count("classification", one.request.served.key, -1)
            # whose turn it was goes behind the others, and so do others of that prompt
            self._questions.rotate(-1)
            key = first.request.served.key
            left = [request for request in self._questions if request.waiting]
            self._questions = deque(sorted(left, key=lambda request: request.served.key == key))
            return chosen

    def take_generations(
        self, fits: Callable[[list[GenerationRequest], GenerationRequest], bool]
    ) -> list[GenerationRequest]:
        """Texts from the front, as many as fit."""
        with self._changed:
            taken: list[GenerationRequest] = []
            while self._texts and fits(taken, self._texts[0]):
                taken.append(self._texts.popleft())
            for text in taken:
                self._add_count("generation", text.served.key, -1)
            return taken

    def take_all(self, *, close: bool = False) -> list[EngineRequest]:
        """Everything that waits; ``close`` if nothing will be taken any more."""
        with self._changed:
            self._closed |= close
            everything: list[EngineRequest] = [*self._questions, *self._texts]
            for request in everything:
                self._add_count(request.kind, request.served.key, -_count_examples(request))
            self._questions.clear()
            self._texts.clear()
            return everything

    def wait(self, until: Callable[[], bool], seconds: float | None = None) -> None:
        """Until something changed so that ``until()``, asked while nothing changes, or for so many seconds."""
        with self._changed:
            self._changed.wait_for(until, seconds)

    def wake(self) -> None:
        """Let who waits look again."""
        with self._changed:
            self._changed.notify_all()

    @property
    def ready(self) -> int:
        """Examples that wait, prepared."""
        return sum(self.counts.values()) - self.preparing

    def _add_count(self, kind: RequestKind, key: str, examples: int) -> None:
        self.counts[kind] += examples
        self.counts_by_prompt[key] += examples
        if not self.counts_by_prompt[key]:
            del self.counts_by_prompt[key]

    def _next_in_turn(self, limit: int, rows: int, tokens: int) -> list[ScheduledExample]:
        """The next examples, one of each request after the other, of each as many rows as a forward pass takes."""
        found: list[ScheduledExample] = []
        places = [(request, iter(request.waiting)) for request in self._questions]
        while places and len(found) < limit:
            going = []
            for request, rest in places:
                if (index := next(rest, None)) is None:
                    continue
                found.append(
                    request.schedule_example(index, max(1, min(rows, tokens // max(1, request.lengths[index]))))
                )
                going.append((request, rest))
                if len(found) == limit:
                    break
            places = going
        return found


def _count_examples(request: EngineRequest) -> int:
    return len(request.waiting) if isinstance(request, ClassificationRequest) else 1
