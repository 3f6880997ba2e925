"""Saved prompts on the Hugging Face Hub: a model repository whose root is the folder of a saved prompt, and a card.

A push is one commit, hence whole or not there. A pull takes the files of one commit, and only those that a saved prompt
can have; nothing of the repository is run.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from softprompt.errors import SoftpromptError, StoreError
from softprompt.prompts.saved_prompt import Prompt, parse_prompt
from softprompt.store.metadata import MOST_FILES
from softprompt.utils.safe_io import FILE_LIMIT, FILE_NAME, read_file

PREFIX = "hf:"
CARD = "README.md"
_PLACE = re.compile(r"([\w.-]+/[\w.-]+)(?:@(.+))?", re.ASCII)


@dataclass(frozen=True)
class HubCommit:
    """Where a prompt is on the Hub: repository, and the commit's SHA."""

    repository: str
    revision: str

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}@{self.revision}"


def is_on_hub(place: str) -> bool:
    """Whether ``hf:OWNER/NAME`` is meant."""
    return place.startswith(PREFIX)


def push(files: Mapping[str, bytes], place: str, *, public: bool = False) -> HubCommit:
    """Commit a saved prompt to ``hf:OWNER/NAME``, which is made if it is not there, private unless ``public``.

    A card is written where neither the prompt nor the repository has one.

    Raises:
        PromptFileError: it is no saved prompt.
        StoreError: the Hub cannot be reached, or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    repository, revision = _parse_place(place)
    if revision is not None:
        raise StoreError(f"expected {PREFIX}OWNER/NAME to push to, got '{place}': leave '@{revision}' out")
    prompt = parse_prompt(files, "the prompt to push")
    with _map_hub_errors(place):
        api = HfApi()
        api.create_repo(repository, private=not public, exist_ok=True)
        if CARD not in files and not api.file_exists(repository, CARD):
            files = {**files, CARD: make_card(prompt, repository).encode()}
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        done = api.create_commit(repository, operations, commit_message="Push a soft prompt")
        return HubCommit(repository, done.oid)


def pull(place: str) -> tuple[HubCommit, dict[str, bytes]]:
    """The files of a saved prompt at ``hf:OWNER/NAME`` or ``hf:OWNER/NAME@REVISION``, checked, and where they were.

    Raises:
        PromptFileError: they are no saved prompt, or damaged.
        StoreError: the Hub cannot be reached, refuses, or holds too much there.
    """
    from huggingface_hub import HfApi

    repository, revision = _parse_place(place)
    with _map_hub_errors(place):
        api = HfApi()
        info = api.model_info(repository, revision=revision, files_metadata=True)
        # what lies in folders, or is hidden, is no part of a saved prompt
        sizes = {one.rfilename: one.size or 0 for one in info.siblings or () if FILE_NAME.fullmatch(one.rfilename)}
        if len(sizes) > MOST_FILES or sum(sizes.values()) > FILE_LIMIT or info.sha is None:
            raise StoreError(
                f"'{place}' holds {len(sizes)} files of {sum(sizes.values()):,} bytes, a saved prompt has at most "
                f"{MOST_FILES} of {FILE_LIMIT:,}"
            )
        paths = {name: api.hf_hub_download(repository, name, revision=info.sha) for name in sizes}
        files = {name: read_file(Path(path), FILE_LIMIT) for name, path in paths.items()}
    parse_prompt(files, place)
    return HubCommit(repository, info.sha), files


def make_card(prompt: Prompt, repository: str) -> str:
    """A model card: what the prompt is for, on which model, what it reached, how it is used."""
    from huggingface_hub import ModelCardData

    facts = ModelCardData(
        library_name="softprompt",
        tags=["soft-prompt", prompt.method],
        # others are names of ours, or of places on somebody's disk
        base_model=prompt.base_name if re.fullmatch(_PLACE, prompt.base_name) else None,
    )
    labels = f", labels {', '.join(prompt.spec.labels)}" if prompt.spec.labels else ""
    return "\n".join(
        [
            "---",
            facts.to_yaml(),
            "---",
            f"# {repository.rpartition('/')[2]}",
            "",
            f"{prompt.length} virtual tokens ({prompt.method}) for {prompt.spec.kind}{labels}, learned with softprompt "
            f"on `{prompt.base_name}`. `prompt.json` holds the template, the settings and the results.",
            "",
            "```console",
            f"$ softprompt pull {PREFIX}{repository} --out prompt",
            '$ softprompt predict prompt "your text"',
            "```",
            "",
        ]
    )


def _parse_place(place: str) -> tuple[str, str | None]:
    found = _PLACE.fullmatch(place.removeprefix(PREFIX))
    if found is None:
        raise StoreError(f"expected {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION, got '{place}'")
    return found[1], found[2]


@contextmanager
def _map_hub_errors(place: str) -> Iterator[None]:
    try:
        yield
    except SoftpromptError:
        raise
    except Exception as error:  # of whichever of its packages it is
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise StoreError(
            f"'{place}' on the Hugging Face Hub: {first}; correct the name, log in (hf auth login), or connect to the "
            "network"
        ) from error
