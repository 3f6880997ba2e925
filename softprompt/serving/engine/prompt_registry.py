"""Registry: which prompt a request means, and the prompt itself, loaded and checked once.

A request is resolved when it arrives, against one listing of what there is. The listing is replaced as a whole when the
store changes, so that a promotion is seen by later requests and by none that runs. What a request says is looked up in
the listing and never becomes a path.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date, datetime
from threading import Lock
from typing import Any, Protocol

from softprompt.data.chats.chat_format import ChatFormat
from softprompt.data.chats.chat_resolution import find_own_template
from softprompt.data.encoding.special_tokens import TokenizingModel
from softprompt.data.task import TaskSpec
from softprompt.errors import SoftpromptError, shorten
from softprompt.inference.chat_answers import make_bare_states
from softprompt.prompts.saved_prompt import IdentifiedModel, Prompt
from softprompt.serving.engine.engine_requests import ServedPrompt
from softprompt.store.prompt_sources import PromptSource, VersionGoneError
from softprompt.store.references import LATEST, is_name, is_number
from softprompt.store.version_store import PromptListing

BARE_TEMPLATE = "{{ text }}"
BARE_LENGTH = 8192  # tokens of a bare text, where the base model does not say how many it takes

log = logging.getLogger("softprompt.serving")


class ModelNotFoundError(Exception):
    """There is no such prompt; the message is for whoever asked."""


class ModelUnavailableError(Exception):
    """There is such a prompt, but it cannot be used now; the message is for whoever asked, and names no file."""


@dataclass(frozen=True)
class ResolvedModel:
    """What a request's model is.

    Attributes:
        id: what answers it: ``name@number``, or the base model's name.
        name: of the prompt without version, or the base model's.
        number: of the version; ``None`` for the base model.
    """

    id: str
    name: str
    number: int | None


@dataclass(frozen=True)
class LoadedPrompt:
    """A prompt in memory.

    Attributes:
        created: when it was made.
        length: virtual tokens.
        metrics: how well it was found to do, by split.
        learned_in: precision, if that is another one than the base model's.
        example: a text that shows what to ask, if it was saved with one.
    """

    served: ServedPrompt
    created: datetime
    length: int
    metrics: Mapping[str, Any]
    learned_in: str | None = None
    example: str | None = None


@dataclass(frozen=True)
class StoreChanges:
    """What a look at the source found: versions that came and went, aliases of known names that moved, troubles."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    moved: tuple[str, ...]
    troubles: tuple[str, ...]


class BaseModelInfo(IdentifiedModel, TokenizingModel, Protocol):
    """The base model as far as it must be known here."""


class PromptRegistry:
    """Prompts of one source, on one base model.

    Attributes:
        base: the base model.
        base_name: what requests call it.
        bare: the base model as the engine serves it: with the bare text.
        refreshed: whether the source was read at least once.
    """

    def __init__(
        self,
        base: BaseModelInfo,
        source: PromptSource,
        *,
        base_name: str,
        default_alias: str = "prod",
        max_loaded: int = 1024,
        check: Callable[[Prompt], None] | None = None,
    ) -> None:
        """Nothing is read yet: ``refresh`` does it.

        Args:
            base_name: what requests call the base model.
            default_alias: where a bare name leads, if it has this alias; else to its newest version.
            max_loaded: prompts held in memory.
            check: raises PromptFileError for a prompt of this base model that the engine has no way to run.
        """
        self.base, self.base_name = base, base_name
        self.refreshed = False
        spec = TaskSpec("generation", BARE_TEMPLATE, max_length=base.context_length or BARE_LENGTH)
        self.bare = ServedPrompt(base_name, spec, ())
        self._bare_chats: dict[date, ServedPrompt] = {}
        self._source, self._check = source, check
        self._default_alias, self._max_loaded = default_alias, max_loaded
        self._names: Mapping[str, PromptListing] = {}
        self._kept: OrderedDict[str, LoadedPrompt] = OrderedDict()
        self._failed: dict[str, str] = {}
        self._logged: dict[str, str] = {}  # why a version failed: said once, though each refresh tries it again
        self._loading: dict[str, asyncio.Task[LoadedPrompt]] = {}
        self._lock = Lock()  # of _kept and _failed, which the thread of a refresh changes too
        self._refreshing = asyncio.Lock()

    @property
    def names(self) -> Mapping[str, PromptListing]:
        """What there is, by name."""
        return self._names

    @property
    def loaded_count(self) -> int:
        """Prompts in memory."""
        return len(self._kept)

    @property
    def bare_chat(self) -> ServedPrompt:
        """The base model as it answers conversations: by its chat template; with the bare text where it has none."""
        today = date.today()
        if today not in self._bare_chats:
            self._bare_chats = {today: self._make_bare_chat(today)}
        return self._bare_chats[today]

    def _make_bare_chat(self, today: date) -> ServedPrompt:
        source = find_own_template(self.base)
        if source is None:
            return self.bare
        chat = ChatFormat(placement="first", shared=False, asking="thoughts").with_template(source, today)
        spec = replace(self.bare.spec, chat=chat)
        return ServedPrompt(f"{self.base_name} chat {today}", spec, make_bare_states(self.base, spec))

    def refresh(self) -> StoreChanges:
        """Look at the source again, and load what aliases newly lead to before they do. Blocks.

        Raises:
            StoreError: it cannot be read; all stays as it was.
        """
        before = self._names
        stock = self._source.read_catalog(before)
        with self._lock:
            self._failed.clear()
            there = _list_versions(stock.names)
            self._logged = {id: why for id, why in self._logged.items() if id in there}
        pointed_to = [
            ResolvedModel(f"{name}@{number}", name, number)
            for name, listing in stock.names.items()
            for number in sorted({*listing.aliases.values(), listing.numbers[-1]} & {*listing.numbers})
        ]
        for found in pointed_to[: self._max_loaded]:
            if found.id not in self._kept:
                self._try_to_load(found)
        self._names = stock.names
        there = _list_versions(stock.names)
        with self._lock:
            for id in [id for id in self._kept if id not in there]:
                del self._kept[id]
        self.refreshed = True
        return _compare_catalogs(before, stock.names, stock.troubles)

    async def reload(self) -> StoreChanges:
        """``refresh`` beside the running requests, one at a time."""
        async with self._refreshing:
            return await asyncio.to_thread(self.refresh)

    def resolve(self, model: str) -> ResolvedModel:
        """What ``model`` means now: the base model's name, ``name``, ``name@number`` or ``name@alias``.

        Raises:
            ModelNotFoundError: nothing of this name.
        """
        if model == self.base_name:
            return ResolvedModel(self.base_name, self.base_name, None)
        name, at, which = model.partition("@")
        listing = self._names.get(name) if is_name(name) else None
        if listing is None:
            raise ModelNotFoundError(f"there is no model '{shorten(model, 80)}': GET /v1/models tells which there are")
        number: int | None
        if not at:
            number = listing.aliases.get(self._default_alias, listing.numbers[-1])
        elif which == LATEST:
            number = listing.numbers[-1]
        else:
            number = int(which) if is_number(which) else listing.aliases.get(which)
        if number not in listing.numbers:
            there = ", ".join([*map(str, listing.numbers[-8:]), *sorted(listing.aliases)[:8], LATEST])
            raise ModelNotFoundError(f"there is no model '{shorten(model, 80)}': '{name}' has, behind '@', {there}")
        return ResolvedModel(f"{name}@{number}", name, number)

    def try_resolve(self, model: str) -> ResolvedModel | None:
        """``find``, or ``None``."""
        try:
            return self.resolve(model)
        except ModelNotFoundError:
            return None

    async def load(self, found: ResolvedModel) -> LoadedPrompt:
        """A version, from memory or from the source; who wants it at the same time waits for the same reading.

        Raises:
            ModelNotFoundError: it was removed meanwhile.
            ModelUnavailableError: it is damaged, of another base model, or out of reach.
        """
        if (kept := self.get_loaded(found.id)) is not None:
            return kept
        if (reason := self._failed.get(found.id)) is not None:
            raise ModelUnavailableError(reason)
        task = self._loading.get(found.id)
        if task is None:
            task = self._loading[found.id] = asyncio.create_task(asyncio.to_thread(self._load, found))
            task.add_done_callback(lambda done: self._forget_task(found.id, done))
        # shielded, for others may wait for it too
        return await asyncio.shield(task)

    def get_loaded(self, id: str) -> LoadedPrompt | None:
        """A version, if it is loaded."""
        with self._lock:
            kept = self._kept.get(id)
            if kept is not None:
                self._kept.move_to_end(id)
            return kept

    def get_failure(self, id: str) -> str | None:
        """Why a version could not be loaded since the last refresh, if that was tried."""
        return self._failed.get(id)

    def _forget_task(self, id: str, task: "asyncio.Task[LoadedPrompt]") -> None:
        del self._loading[id]
        if not task.cancelled():
            task.exception()  # looked at, even if nobody waits any more

    def _try_to_load(self, found: ResolvedModel) -> None:
        with suppress(ModelNotFoundError, ModelUnavailableError):  # in the log, and told to whoever asks for it
            self._load(found)

    def _load(self, found: ResolvedModel) -> LoadedPrompt:
        assert found.number is not None
        why = "is damaged or cannot be read"
        try:
            prompt, created = self._source.load(found.name, found.number)
            why = "was learned on another base model than this server's"
            prompt.check_base(self.base)
            why = "cannot be run by the engine"
            if self._check is not None:
                self._check(prompt)
        except VersionGoneError as error:
            raise ModelNotFoundError(f"there is no model '{found.id}' any more, it was removed") from error
        except SoftpromptError as error:
            reason = f"'{found.id}' {why}; the server's log says more, and other models are not affected"
            with self._lock:
                self._failed[found.id] = reason
                known, self._logged[found.id] = self._logged.get(found.id), str(error)
            if known != str(error):
                log.warning("prompt not loaded", extra={"fields": {"model": found.id, "reason": str(error)}})
            raise ModelUnavailableError(reason) from error
        if (note := prompt.precision_note(self.base)) is not None:
            log.warning("prompt of another precision", extra={"fields": {"model": found.id, "reason": note}})
        served = ServedPrompt(f"{found.id}:{prompt.digest[:16]}", prompt.spec, prompt.states)
        learned_in = prompt.precisions(self.base).get("learned")
        loaded = LoadedPrompt(served, created, prompt.length, prompt.metrics, learned_in, prompt.example)
        with self._lock:
            self._logged.pop(found.id, None)
            self._kept[found.id] = loaded
            while len(self._kept) > self._max_loaded:
                self._kept.popitem(last=False)
        return loaded


def _list_versions(names: Mapping[str, PromptListing]) -> set[str]:
    return {f"{name}@{number}" for name, listing in names.items() for number in listing.numbers}


def _compare_catalogs(
    before: Mapping[str, PromptListing], after: Mapping[str, PromptListing], troubles: tuple[str, ...]
) -> StoreChanges:
    old, new = _list_versions(before), _list_versions(after)
    moved = [
        f"{name}@{alias}"
        for name in before.keys() & after.keys()
        for alias in before[name].aliases.keys() | after[name].aliases.keys()
        if before[name].aliases.get(alias) != after[name].aliases.get(alias)
    ]
    return StoreChanges(tuple(sorted(new - old)), tuple(sorted(old - new)), tuple(sorted(moved)), troubles)
