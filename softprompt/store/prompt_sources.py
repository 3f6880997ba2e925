"""Where served prompts come from: the versions of a store, or saved prompts that were given by their folders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, Self

from softprompt.errors import ConfigError, StoreError
from softprompt.models.fingerprint import UnloadedModel
from softprompt.prompts.saved_prompt import MANIFEST_FILE, TENSOR_FILE, IdentifiedModel, Prompt, parse_prompt
from softprompt.store.artifacts import ArtifactStore
from softprompt.store.input_profile import InputProfile, read_profile
from softprompt.store.metadata import now
from softprompt.store.prompt_loading import load_prompt
from softprompt.store.references import check_name, is_name
from softprompt.store.version_store import PromptListing
from softprompt.utils.files import expand_user


class VersionGoneError(Exception):
    """A version is no longer there."""


@dataclass(frozen=True)
class PromptCatalog:
    """What a source has: each name with its versions and aliases, and what could not be read, in words."""

    names: Mapping[str, PromptListing]
    troubles: tuple[str, ...] = ()


class PromptSource(Protocol):
    """All methods block; none is given a name that ``references`` has not checked."""

    def read_catalog(self, before: Mapping[str, PromptListing]) -> PromptCatalog:
        """What there is now.

        Args:
            before: what there was, which stands for a name that cannot be read at the moment.

        Raises:
            StoreError: nothing can be read.
        """
        ...

    def load(self, name: str, number: int) -> tuple[Prompt, datetime]:
        """A version, checked, and when it was made.

        Raises:
            Gone: it was removed.
            StoreError, PromptFileError: it is damaged, or cannot be reached.
        """
        ...

    def place(self, name: str, number: int) -> str:
        """Where a version is: its folder or reference; empty if it is in memory alone."""
        ...


class StoreSource:
    """A store, in a folder or behind a URL."""

    def __init__(self, url: str) -> None:
        self._url = url

    def read_catalog(self, before: Mapping[str, PromptListing]) -> PromptCatalog:
        # a new one asks again whether this is a store: one that is not mounted at the moment has not lost its prompts
        artifacts, names, troubles = ArtifactStore(self._url), {}, []
        for name in artifacts.possible_names():
            known = before.get(name)
            try:
                numbers = artifacts.numbers(name)
                if numbers and (known is None or numbers[-1] not in known.numbers):
                    numbers = self._drop_unfinished(artifacts, name, numbers)
                aliases = artifacts.aliases(name) if numbers else {}
            except StoreError as error:
                troubles.append(str(error))
                if known is not None:
                    names[name] = known
                continue
            if numbers:
                names[name] = PromptListing(name, tuple(numbers), aliases)
        return PromptCatalog(names, tuple(troubles))

    def check_base(self, base: IdentifiedModel | UnloadedModel) -> None:
        """Nothing: a store may hold prompts of several base models, and each is checked when it is loaded."""

    def load(self, name: str, number: int) -> tuple[Prompt, datetime]:
        artifacts = ArtifactStore(self._url)
        if number not in artifacts.numbers(name):
            raise VersionGoneError
        try:
            version = artifacts.version(name, str(number))
            files = artifacts.read(version, [MANIFEST_FILE, TENSOR_FILE])
        except StoreError as error:
            if number not in artifacts.numbers(name):  # removed while it was read
                raise VersionGoneError from error
            raise
        return parse_prompt(files, f"{artifacts.url}#{version}"), version.created

    def place(self, name: str, number: int) -> str:
        return f"{self._url}#{name}@{number}"

    @staticmethod
    def _drop_unfinished(artifacts: ArtifactStore, name: str, numbers: list[int]) -> list[int]:
        """Without the newest one, if that is still being written."""
        try:
            artifacts.version(name, str(numbers[-1]))
        except StoreError:
            return numbers[:-1]
        return numbers


class FolderSource:
    """Saved prompts, read once; each is version 1 of its name."""

    def __init__(self, places: Sequence[str]) -> None:
        """Read them all.

        Args:
            places: ``FOLDER``, whose last part is the name, or ``NAME=FOLDER``.

        Raises:
            ConfigError: two of one name, or a folder whose name cannot be that of a prompt.
            PromptFileError, StoreError: one is damaged or not there.
        """
        self._made = now()
        self._prompts: dict[str, Prompt] = {}
        self._folders: dict[str, str] = {}
        for place in places:
            name, equals, folder = place.partition("=")
            if not equals:
                name, folder = expand_user(place).resolve().name, place
                if not is_name(name):
                    raise ConfigError(f"'{name}' cannot be the name of a prompt: give --prompt NAME={folder}")
            check_name(name)
            if name in self._prompts:
                raise ConfigError(f"two prompts would be called '{name}': give one of them as --prompt NAME=FOLDER")
            self._prompts[name] = load_prompt(expand_user(folder))
            self._folders[name] = str(expand_user(folder))

    @classmethod
    def of_prompts(cls, prompts: Mapping[str, Prompt], places: Mapping[str, str]) -> Self:
        """Prompts that are read already, by their names, and where those lie that lie somewhere."""
        source = cls([])
        for name, prompt in prompts.items():
            check_name(name)
            source._prompts[name] = prompt
        source._folders = dict(places)
        return source

    def check_base(self, base: IdentifiedModel | UnloadedModel) -> None:
        """Raise PromptFileError unless all were learned on ``base``."""
        for prompt in self._prompts.values():
            prompt.check_base(base)

    def read_catalog(self, before: Mapping[str, PromptListing]) -> PromptCatalog:
        return PromptCatalog({name: PromptListing(name, (1,), {}) for name in self._prompts})

    def load(self, name: str, number: int) -> tuple[Prompt, datetime]:
        return self._prompts[name], self._made

    def place(self, name: str, number: int) -> str:
        return self._folders.get(name, "")


def read_served_profile(source: PromptSource, which: str) -> InputProfile | None:
    """The profile of ``name@version``, if it has one; raises StoreError, PromptFileError."""
    name, _, number = which.rpartition("@")
    place = source.place(name, int(number))
    return read_profile(place) if place else None
