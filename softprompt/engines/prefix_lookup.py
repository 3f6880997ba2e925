"""The prompts of a folder as a vLLM server finds them: each read once, and held to the request and to the model.

Nothing of vLLM is imported here. A request names a prompt by its key, 32 hexadecimal digits, which is its salt too: a
block of vLLM's prefix cache is known by the token ids that it holds, and those of two prompts may be the same.

Shapes: ``P'`` tokens of a prefix, ``K`` heads of keys, ``D`` their size.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from softprompt.errors import BaseModelError, DataError, PromptFileError
from softprompt.export.prefix_file import Layers, PrefixFacts, check_weights, load_layers, prefix_path, read_facts

KEPT = 256  # prompts whose keys and values are in memory, if nothing else is said
MOST_FACTS = 4096  # prompts of which the rest is


@dataclass(frozen=True)
class CacheShape:
    """Layers of a model that keep keys and values, and heads ``K`` and size ``D`` of these, of all ranks together."""

    layers: int
    heads: int
    size: int

    def __str__(self) -> str:
        return f"{self.layers} layers with {self.heads} heads of {self.size}"


_Value = TypeVar("_Value")


class PrefixLookup:
    """Prompts by their keys. A file that comes later is found when it is asked for."""

    def __init__(
        self,
        folder: Path,
        shape: CacheShape,
        checkpoint: Path | None = None,
        *,
        kept: int = KEPT,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Nothing is read yet.

        Args:
            shape: of the model that the server runs.
            checkpoint: its folder, if it is known.
            kept: prompts whose keys and values are in memory, at most.
            note: told of prompts whose model could not be compared with the server's.
        """
        self.folder, self._shape, self._checkpoint = folder, shape, checkpoint
        self._kept, self._note = kept, note
        self._facts: OrderedDict[str, PrefixFacts] = OrderedDict()
        self._layers: OrderedDict[str, Layers] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, key: str) -> PrefixFacts:
        """A prompt that is there, looked at once.

        Raises:
            PromptFileError: there is none of this key, or its file is damaged.
            BaseModelError: it was learned on another model than the server's.
        """
        if not prefix_path(self.folder, key).exists():
            raise PromptFileError(f"there is no prompt '{key}' on this server")
        return self._keep(self._facts, key, self._read, MOST_FACTS)

    def load(self, key: str) -> Layers:
        """Keys and values of a prompt, from memory or from its file; raises as ``find``."""
        return self._keep(self._layers, key, load_layers, self._kept)

    def _keep(self, known: OrderedDict[str, _Value], key: str, read: Callable[[Path], _Value], most: int) -> _Value:
        """What is known of a key, the least recently asked for going first."""
        with self._lock:
            if key in known:
                known.move_to_end(key)
                return known[key]
        found = read(prefix_path(self.folder, key))
        with self._lock:
            known[key] = found
            while len(known) > most:
                known.popitem(last=False)
        return found

    def check(self, key: str, ids: Sequence[int], salt: str | None) -> PrefixFacts:
        """The prompt that a request names, if its token ids begin with those that hold the prompt's place.

        Args:
            ids: token ids of the whole request.
            salt: its ``cache_salt``.

        Raises:
            PromptFileError, BaseModelError: as ``find``.
            DataError: the request is not one for this prompt.
        """
        prefix = self.find(key)
        if salt != key:
            raise DataError(f"a request for a prompt has its key as cache_salt too: expected '{key}', got {salt!r}")
        length = len(prefix.ids)
        if tuple(ids[:length]) != prefix.ids:
            raise DataError(
                f"a request for the prompt '{key}' begins with the {length} token ids that hold its place: take them "
                "from softprompt (Tasks.ids), got others"
            )
        if len(ids) <= length:
            raise DataError(f"expected a text behind the prompt '{key}', got nothing")
        return prefix

    def _read(self, path: Path) -> PrefixFacts:
        facts, sizes = read_facts(path)
        shape = CacheShape(len(sizes), *sizes[0])
        if shape != self._shape or len(set(sizes)) > 1:
            raise BaseModelError(
                f"the prompt '{path.stem}' was learned on '{facts.base}' ({shape}), and this server's model has "
                f"{self._shape}: start it on the model that the prompt was learned on"
            )
        if self._checkpoint is None or not check_weights(facts, self._checkpoint):
            self._note(
                f"the prompt '{path.stem}' was learned on '{facts.base}', and no weights of this server's model can be "
                "compared with it"
            )
        return facts
