"""Store: saved prompts as versions that never change, and aliases that move between them through a gate.

store = sp.Store("prompts/store")                 # or s3://bucket/prompts
store.put(prompt, "sentiment")                    # sentiment@1
store.promote("sentiment@1", "prod", gate=Gate(base, task.test))
sp.load_prompt("prompts/store#sentiment@prod")
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softprompt.errors import GateError, PromptFileError, SoftpromptError, StoreError
from softprompt.metrics.scores import read_score
from softprompt.prompts.saved_prompt import Prompt, parse_prompt
from softprompt.store.artifacts import ArtifactStore, resolve_reference
from softprompt.store.backends import open_backend
from softprompt.store.metadata import AliasChange, Version
from softprompt.store.prompt_loading import read_manifest
from softprompt.store.references import Reference, check_alias, default_store, is_reference
from softprompt.store.verdict import Verdict
from softprompt.store.version_diff import PromptDifference, compare_prompts
from softprompt.utils.files import check_free, expand_user, write_folder
from softprompt.utils.notebook_display import Displayed
from softprompt.utils.pandas_tables import make_table
from softprompt.utils.safe_io import FILE_LIMIT, read_file
from softprompt.utils.summaries import describe_value, summarize

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class PromptListing:
    """A name in a store, its versions by number, and where its aliases are."""

    name: str
    numbers: tuple[int, ...]
    aliases: dict[str, int]

    def __repr__(self) -> str:
        newest = f"newest {self.name}@{self.numbers[-1]}" if self.numbers else ""
        return summarize(self, describe_value(self.name), f"{len(self.numbers)} versions", newest, aliases=self.aliases)


class Store(Displayed):
    """A folder, or any URL of fsspec, that holds versions of prompts.

    Versions are named in it as ``NAME@NUMBER``, ``NAME@ALIAS`` or ``NAME@latest``. Every method that reads raises
    StoreError for what is not there or damaged, every one that writes OutputError or StoreError if it cannot.
    """

    def __init__(self, url: str | Path | None = None, *, single_writer: bool | None = None) -> None:
        """Nothing is made or read yet.

        Args:
            url: of the store; what SOFTPROMPT_STORE says, if not given.
            single_writer: that nobody else writes meanwhile, where the backend cannot keep writers apart.
        """
        self._artifacts = ArtifactStore(default_store() if url is None else url, single_writer=single_writer)
        self.url = self._artifacts.url

    def __repr__(self) -> str:
        return summarize(self, describe_value(self.url))

    def put(self, prompt: Prompt | str | Path, name: str, *, by: str | None = None) -> Version:
        """Make a prompt, or a saved one by its folder or reference, the next version of ``name``.

        Args:
            by: who does it; user and machine, if not given.

        Raises:
            PromptFileError: the saved prompt is damaged.
        """
        files = prompt.files() if isinstance(prompt, Prompt) else read_saved_files(prompt)
        parent = parse_prompt(files, name if isinstance(prompt, Prompt) else str(prompt)).parent
        return self._artifacts.add(name, files, parent=None if parent is None else self._shorten_parent(parent), by=by)

    def get(self, which: str) -> Prompt:
        """The prompt of a version, its files checked."""
        version = self.version(which)
        return parse_prompt(self._artifacts.read(version), f"{self.url}#{version}")

    def manifest(self, which: str) -> dict[str, Any]:
        """What ``prompt.json`` of a version says; raises PromptFileError if it is damaged."""
        return read_manifest(f"{self.url}#{self.version(which)}")

    def pull(self, which: str, folder: str | Path) -> Path:
        """Write a version as a saved prompt; raises OutputError if the folder exists."""
        folder = expand_user(folder)
        check_free(folder)
        version = self.version(which)
        files = self._artifacts.read(version)
        parse_prompt(files, f"{self.url}#{version}")
        write_folder(folder, files)
        return folder

    def list(self) -> tuple[PromptListing, ...]:
        """What the store holds, by name."""
        return tuple(
            PromptListing(name, tuple(self._artifacts.numbers(name)), self._artifacts.aliases(name))
            for name in self._artifacts.names()
        )

    def version(self, which: str) -> Version:
        """What is known of a version beside its prompt."""
        reference = self._parse_reference(which)
        return self._artifacts.version(reference.name, reference.which)

    def versions(self, name: str) -> tuple[Version, ...]:
        """All versions of a name, ascending."""
        return tuple(self._artifacts.versions(name))

    def aliases(self, name: str) -> dict[str, int]:
        """The version that each alias of a name is at."""
        return self._artifacts.aliases(name)

    def history(self, which: str) -> tuple[AliasChange, ...]:
        """The moves of an alias, ``NAME@ALIAS``, the oldest first."""
        reference = self._parse_reference(which)
        return tuple(self._artifacts.alias_changes(reference.name, reference.which))

    def lineage(self, which: str) -> tuple[str, ...]:
        """A version and what it was started from, the youngest first, as far back as this store knows."""
        version = self.version(which)
        chain = [str(version)]
        while version.parent is not None and version.parent not in chain:
            chain.append(version.parent)
            if "#" in version.parent or not is_reference(version.parent):
                break
            version = self.version(version.parent)
        return tuple(chain)

    def to_pandas(self, name: str | None = None) -> "DataFrame":
        """A row for each version, of ``name`` or of all names, by ``NAME@NUMBER``.

        Columns: ``name``, ``number``, ``created``, ``by``, ``parent``, ``aliases`` (with commas between them), the
        ``metric`` and its value on ``validation`` and ``test``, as saved.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        names = [listing.name for listing in self.list()] if name is None else [name]
        rows = [self._describe_version(version, self.aliases(one)) for one in names for version in self.versions(one)]
        types = {"version": "str", "name": "str", "number": "int64", "created": "datetime64[us, UTC]"}
        texts = dict.fromkeys(("by", "parent", "aliases", "metric"), "str")
        return make_table(rows, types | texts | {"validation": "float64", "test": "float64"}, index="version")

    def _describe_version(self, version: Version, aliases: Mapping[str, int]) -> dict[str, Any]:
        metrics = self.manifest(str(version))["metrics"]
        scores = {split: read_score(metrics.get(split)) for split in ("validation", "test")}
        known = next((score.metric for score in scores.values() if score is not None), None)
        return {
            "version": str(version),
            **version.model_dump(include={"name", "number", "created", "by", "parent"}),
            "aliases": ", ".join(alias for alias, number in aliases.items() if number == version.number),
            "metric": known,
            **{split: None if score is None else score.value for split, score in scores.items()},
        }

    def diff(self, a: str, b: str) -> PromptDifference:
        """What tells two versions apart."""
        return compare_prompts(self.get(a), self.get(b))

    def promote(
        self,
        which: str,
        alias: str,
        *,
        gate: Callable[[Prompt, Prompt], Verdict] | None = None,
        force: bool = False,
        by: str | None = None,
    ) -> AliasChange:
        """Move ``alias`` to a version, unless the gate finds that worse than the one in place.

        Args:
            gate: a ``Gate``; without one nothing is compared.
            force: move even so; the history keeps that it was forced.
            by: who does it; user and machine, if not given.

        Returns:
            The move; the last one, if the alias is at this version already.

        Raises:
            GateError: the version is significantly worse; the error's ``verdict`` says by how much and where.
            StoreError: the alias was moved by somebody else meanwhile.
            PromptFileError: a version is damaged, or was learned on another base model than the gate has.
        """
        check_alias(alias)
        version = self.version(which)
        history = self._artifacts.alias_changes(version.name, alias)
        before = history[-1].to if history else None
        if before == version.number:
            return history[-1]
        prompt = self.get(str(version))
        verdict = None if gate is None or before is None else gate(prompt, self.get(f"{version.name}@{before}"))
        refused = verdict is not None and not verdict.passed
        if refused and not force:
            raise GateError(
                f"{version} was not promoted to '{alias}', it is significantly worse than {version.name}@{before}: "
                f"{verdict}; --force promotes it nevertheless",
                verdict,
            )
        facts = {"name": version.name, "alias": alias, "before": before, "to": version.number, "forced": refused}
        figures = None if verdict is None else verdict.figures()
        return self._artifacts.append(history, AliasChange.new("promote", by=by, gate=figures, **facts))

    def rollback(self, which: str, *, by: str | None = None) -> AliasChange:
        """Move an alias, ``NAME@ALIAS``, back to where it was before the last promotion that is not rolled back yet.

        Raises:
            StoreError: there is nothing before, or the alias was moved by somebody else meanwhile.
        """
        reference = self._parse_reference(which)
        history = self._artifacts.alias_changes(reference.name, reference.which)
        places: list[int] = []
        for move in history:
            if move.action == "promote":
                places.append(move.to)
            else:
                places = places[:-1]
        if len(places) < 2:
            there = f"it has been at {reference.name}@{places[0]} only" if places else "it was never promoted"
            raise StoreError(f"{which} cannot be rolled back, {there}: promote another version")
        self.get(f"{reference.name}@{places[-2]}")
        facts = {"name": reference.name, "alias": reference.which, "before": places[-1], "to": places[-2]}
        return self._artifacts.append(history, AliasChange.new("rollback", by=by, **facts))

    def _parse_reference(self, which: str) -> Reference:
        if "#" in which:
            raise StoreError(f"expected NAME@VERSION or NAME@ALIAS in the store '{self.url}', got '{which}'")
        return Reference.parse(f"{self.url}#{which}")

    def _shorten_parent(self, parent: str) -> str:
        """``NAME@NUMBER`` for what is in this store, so that it stays true where the store is copied to."""
        if is_reference(parent):
            # a parent of somewhere else keeps the name that it has there
            with suppress(SoftpromptError):
                reference = Reference.parse(parent)
                if open_backend(reference.store).url == self.url and reference.number is not None:
                    return f"{reference.name}@{reference.which}"
        return parent


def read_saved_files(place: str | Path) -> dict[str, bytes]:
    """All files of a saved prompt, by name, from a folder or a reference.

    Raises:
        PromptFileError: there is something in the folder that cannot be kept.
    """
    if isinstance(place, str) and is_reference(place):
        artifacts, version = resolve_reference(Reference.parse(place))
        return artifacts.read(version)
    folder, files = expand_user(place), {}
    try:
        for path in sorted(folder.iterdir()):
            if not path.name.startswith("."):
                files[path.name] = read_file(path, FILE_LIMIT)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PromptFileError(
            f"'{folder}' is no saved prompt, it is no folder: give the folder that train wrote"
        ) from error
    except (OSError, ValueError) as error:
        raise PromptFileError(f"'{path}' cannot be kept in a store: {error}; move it out of the folder") from error
    return files
