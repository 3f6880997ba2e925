"""The folder that the connector in vLLM reads, as the server in front of vLLM fills it with the prompts that come."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from softprompt.data.encoding.placement import Placement
from softprompt.engines.exported_model import ExportedModel, Probe
from softprompt.errors import DataError, PromptFileError, map_write_errors
from softprompt.export.engine_client import request_fields
from softprompt.export.export_readme import USAGE_FILE
from softprompt.export.prefix_file import prefix_path, read_facts
from softprompt.export.vllm_prefixes import check_holdable, key_of, write_model, write_prefix
from softprompt.models.deferred_base import BaseCheck
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.utils.files import atomic_path

HELD_SECONDS = 60.0  # that a base model stays in memory behind the last prompt that was computed


class PrefixFolder(ExportedModel):
    """A folder that the connector reads, as the server in front of vLLM fills it with the prompts that come.

    The base model is loaded when there is a prompt to compute, and let go again.
    """

    advice = "start vLLM on that model, with the connector and this folder (docs/how-to/serve-in-vllm.md)"

    def __init__(self, folder: Path, load: Callable[[], FrozenLM]) -> None:
        """Read the folder, which ``fill_folder`` or ``write_prefixes`` has written.

        Args:
            load: gives the base model.

        Raises:
            PromptFileError: it is no such folder.
        """
        super().__init__(folder)
        self._load, self._lock = load, threading.Lock()
        self._base: FrozenLM | None = None
        self._ids: dict[str, tuple[int, ...]] = {}
        self._placements: dict[str, Placement] = {}
        self._release: threading.Timer | None = None

    @property
    def names(self) -> list[str]:
        """The keys of those that were asked for."""
        return [key_of(digest) for digest in self._ids]

    def front(self, digest: str, placement: Placement | None = None) -> tuple[int, ...]:
        """See ``ExportedModel``."""
        if digest not in self._ids:
            raise PromptFileError("it is none of the prompts whose keys and values were computed")
        learned = self._placements[digest]
        place = placement or learned
        if (place.behind_bos, place.before) != (learned.behind_bos, learned.before):
            raise DataError(
                "this prompt's keys and values were computed behind what its own conversations begin with, and these "
                "begin in another way: leave the system message out, or ask a server without --engine vllm"
            )
        return (*self._ids[digest], *place.behind)

    def label_ids(self, digest: str) -> tuple[int, ...]:
        """None: labels are words."""
        return ()

    def request_fields(self, digest: str) -> Mapping[str, Any]:
        """See ``ExportedModel``."""
        return request_fields(key_of(digest))

    def check(self, prompt: Prompt) -> Probe:
        """See ``ExportedModel``: the prompt's keys and values are computed, if they are not in the folder yet."""
        path = prefix_path(self.folder, key_of(prompt.digest))
        with self._lock:
            if not path.exists():
                base = self._borrow_base()
                check_holdable(base, {prompt.digest[:12]: prompt})
                with atomic_path(path) as place:
                    write_prefix(base, prompt, place)
        facts, _ = read_facts(path)
        try:
            probe = Probe.of(facts.probe)
        except (KeyError, TypeError, ValueError) as error:
            raise PromptFileError(f"'{path}' is damaged: {error}") from error
        self._ids[prompt.digest], self._placements[prompt.digest] = facts.ids, prompt.state.placement
        return probe

    def _borrow_base(self) -> FrozenLM:
        """The base model, which is let go when nobody has asked for a while."""
        if self._release is not None:
            self._release.cancel()
        if self._base is None:
            self._base = self._load()
            if dict(self._base.fingerprint) != dict(self.fingerprint):
                raise PromptFileError(
                    f"'{self.folder}' was made for another model ('{self.name}') than '{self._base.name}': give "
                    "--engine-prompts another folder, and vLLM the same"
                )
        self._release = threading.Timer(HELD_SECONDS, self._let_go)
        self._release.daemon = True
        self._release.start()
        return self._base

    def _let_go(self) -> None:
        with self._lock:
            self._base = None


def fill_folder(folder: Path, load: Callable[[BaseCheck], FrozenLM], check: BaseCheck) -> PrefixFolder:
    """The folder for a server in front of vLLM, made if it is not there yet.

    Args:
        load: gives the base model, once ``check`` has seen what needs no weights.

    Raises:
        PromptFileError, BaseModelError: it is a folder of another model, or the model cannot be used so.
        OutputError: the folder cannot be written.
    """
    if not (folder / USAGE_FILE).exists():
        base = load(check)
        check_holdable(base, {})
        with map_write_errors(folder, "give another folder with --engine-prompts"):
            folder.mkdir(parents=True, exist_ok=True)
            write_model(base, folder, {})
    return PrefixFolder(folder, lambda: load(check))
