"""Names in a store, and references to what it holds: ``[STORE#]NAME@VERSION`` or ``[STORE#]NAME@ALIAS``.

Every name is checked here before any path is built of it. Names are lower-case, so that they differ on every file
system.
"""

import os
import re
from dataclasses import dataclass
from typing import Self

from softprompt.errors import StoreError

ENVIRONMENT = "SOFTPROMPT_STORE"
LATEST = "latest"  # an alias that every name has, of its newest version

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_ALIAS = re.compile(r"[a-z](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_RULE = "lower-case letters, digits, '.', '-' and '_' (at most 64), a letter or digit first and last"


@dataclass(frozen=True)
class Reference:
    """One version in a store, by its number or by an alias.

    Attributes:
        store: folder or URL of the store.
        name: of the prompt.
        which: the version's number, an alias, or ``latest``.
    """

    store: str
    name: str
    which: str

    @property
    def number(self) -> int | None:
        """The version, where the reference says it."""
        return int(self.which) if is_number(self.which) else None

    def __str__(self) -> str:
        return f"{self.store}#{self.name}@{self.which}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``[STORE#]NAME@WHICH``; the store of ``SOFTPROMPT_STORE`` is meant where none is given.

        Raises:
            StoreError: it is none, or a name in it breaks the rule.
        """
        store, name = split_store(text)
        name, at, which = name.partition("@")
        if not at:
            raise StoreError(f"expected [STORE#]NAME@VERSION or [STORE#]NAME@ALIAS, got '{text}'")
        check_name(name)
        if not is_number(which) and which != LATEST:
            check_alias(which, "a version (1, 2, ...) or an alias")
        return cls(store, name, which)


def is_reference(place: object) -> bool:
    """Whether a prompt is meant that is in a store; a folder spelled like that is given as ``./NAME@WHICH``."""
    if not isinstance(place, str):
        return False
    behind = place.rpartition("#")[2]
    return "@" in behind and "/" not in behind


def split_store(text: str) -> tuple[str, str]:
    """The store and what is named in it.

    Raises:
        StoreError: it names no store, and ``SOFTPROMPT_STORE`` does not either.
    """
    store, _, rest = text.rpartition("#")
    return store or default_store(f"STORE#{rest}, as in prompts/store#{rest},"), rest


def default_store(instead: str = "a store") -> str:
    """What ``SOFTPROMPT_STORE`` says; raises StoreError, which asks for it or for ``instead``, if it is not set."""
    store = os.environ.get(ENVIRONMENT, "")
    if not store.strip():
        raise StoreError(f"expected {instead} or the environment variable {ENVIRONMENT}, got neither")
    return store


def is_name(name: str) -> bool:
    """Whether it can be that of a prompt."""
    return _NAME.fullmatch(name) is not None


def check_name(name: str) -> None:
    """Raise StoreError unless ``name`` can be that of a prompt."""
    if not is_name(name):
        raise StoreError(f"expected the name of a prompt, {_RULE}; got {_quote(name)}")


def check_alias(alias: str, what: str = "an alias") -> None:
    """Raise StoreError unless ``alias`` can be one that moves."""
    if alias == LATEST or not _ALIAS.fullmatch(alias):
        own = f"; '{LATEST}' is always the newest version and cannot be moved" if alias == LATEST else ""
        raise StoreError(f"expected {what}: {_RULE}, no digit first; got {_quote(alias)}{own}")


def is_number(which: str) -> bool:
    """Whether it is the number of a version, as it is written."""
    return _VERSION.fullmatch(which) is not None


def _quote(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:79]}…")
