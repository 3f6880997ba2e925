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

from softprompt.errors import BaseModelError, DataError, PromptFileError
from softprompt.export.prefix_file import StoredPrefix, check_weights, load_prefix, prefix_path

KEPT = 256  # prompts in memory, if nothing else is said


@dataclass(frozen=True)
class CacheShape:
    """Layers of a model that keep keys and values, and heads ``K`` and size ``D`` of these, of all ranks together."""

    layers: int
    heads: int
    size: int

    def __str__(self) -> str:
        return f"{self.layers} layers with {self.heads} heads of {self.size}"


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
            kept: prompts in memory, at most.
            note: told of prompts whose model could not be compared with the server's.
        """
        self.folder, self._shape, self._checkpoint = folder, shape, checkpoint
        self._kept, self._note = kept, note
        self._known: OrderedDict[str, StoredPrefix] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, key: str) -> StoredPrefix:
        """A prompt, from memory or from its file.

        Raises:
            PromptFileError: there is none of this key, or its file is damaged.
            BaseModelError: it was learned on another model than the server's.
        """
        path = prefix_path(self.folder, key)
        with self._lock:
            if (known := self._known.get(key)) is not None:
                self._known.move_to_end(key)
                return known
        if not path.exists():
            raise PromptFileError(f"there is no prompt '{key}' on this server")
        prefix = load_prefix(path)
        self._check_base(key, prefix)
        with self._lock:
            self._known[key] = prefix
            while len(self._known) > self._kept:
                self._known.popitem(last=False)
        return prefix

    def check(self, key: str, ids: Sequence[int], salt: str | None) -> StoredPrefix:
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

    def _check_base(self, key: str, prefix: StoredPrefix) -> None:
        heads, _, size = prefix.layers[0][0].shape
        shape = CacheShape(len(prefix.layers), heads, size)
        if shape != self._shape:
            raise BaseModelError(
                f"the prompt '{key}' was learned on '{prefix.base}' ({shape}), and this server's model has "
                f"{self._shape}: start it on the model that the prompt was learned on"
            )
        if self._checkpoint is None or not check_weights(prefix, self._checkpoint):
            self._note(
                f"the prompt '{key}' was learned on '{prefix.base}', and no weights of this server's model can be "
                "compared with it"
            )
