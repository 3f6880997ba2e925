"""Where a base model is read from: the embedded one, a folder, a GGUF file, or the hub and its cache."""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softprompt.errors import BaseModelError, MissingExtraError
from softprompt.models.builtin_models import MODEL_NAME, embedded_model_folder
from softprompt.models.gguf_conversion import gguf_folder
from softprompt.utils.files import expand_user
from softprompt.utils.place_kinds import describe_mistaken_place

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ModelSource:
    """What ``from_pretrained`` is given.

    Attributes:
        name: what the user called the model.
        place: a folder, or a name of the hub.
        options: what configuration, tokenizer and weights are asked for with.
    """

    name: str
    place: str
    options: dict[str, Any]

    def convert_gguf(self, dtype: "torch.dtype", progress: Callable[[str], None] | None = None) -> "ModelSource":
        """This source, or in place of a GGUF file the checkpoint in ``dtype`` that it is converted to, once.

        Raises:
            OutputError: the cache of converted models cannot be written.
            Exception: what ``transformers`` raises for a file that it cannot read.
        """
        if (file := self.options.get("gguf_file")) is None:
            return self
        folder = gguf_folder(Path(self.place) / file, dtype, progress=progress)
        return replace(self, place=str(folder), options={k: v for k, v in self.options.items() if k != "gguf_file"})

    def tokenizer(self) -> Any:
        """The ``transformers`` tokenizer; raises what it raises."""
        if self.name == MODEL_NAME or (self.name.endswith(".gguf") and "gguf_file" not in self.options):
            return _load_saved_tokenizer(Path(self.place))
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.place, **self.options)


def find_source(
    name: str, *, trust_remote_code: bool = False, progress: Callable[[str], None] | None = None
) -> ModelSource:
    """A model's name to where it is read from.

    Raises:
        BaseModelError: it is not there, or cannot be reached.
        MissingExtraError: a package is not installed.
    """
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if name.startswith("embedded:"):
        if name != MODEL_NAME:
            raise BaseModelError(f"unknown embedded model '{name}': expected '{MODEL_NAME}'")
        return ModelSource(name, str(embedded_model_folder(progress=progress)), options)
    path = expand_user(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise BaseModelError(f"base model file '{name}' does not exist")
        if importlib.util.find_spec("gguf") is None:
            raise MissingExtraError("gguf", "gguf")
        return ModelSource(name, str(path.parent), options | {"gguf_file": path.name})
    if path.is_dir():
        if not (path / "config.json").is_file():
            if told := describe_mistaken_place(name, "model"):
                raise BaseModelError(f"expected a model; {told}")
            raise BaseModelError(f"'{name}' is no model folder: expected config.json in it, which is missing")
        return ModelSource(name, str(path), options)
    if path.is_file() and (told := describe_mistaken_place(name, "model")):
        raise BaseModelError(f"expected a model; {told}")
    looks_local = name.startswith((".", "/", "~")) or name.count("/") != 1
    if looks_local and "/" in name:
        raise BaseModelError(f"base model folder '{name}' does not exist")
    return ModelSource(name, name, options | {"local_files_only": not _can_reach_hub(name)})


def _can_reach_hub(name: str) -> bool:
    """Whether the hub can be reached, asked once for ``name``; transformers tries for half a minute, file by file.

    Raises:
        BaseModelError: it cannot, and the model is not in its cache; a connection that is only slow is left alone.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # of httpx or of httpx2, as the release of huggingface_hub has it
        if type(error).__name__ not in ("ConnectError", "ConnectTimeout"):
            return True
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return False
        raise BaseModelError(
            f"cannot load the base model '{name}': it is no folder here, it is not in the hub's cache, and "
            f"{constants.ENDPOINT} cannot be reached ({error}): correct the name, or connect to the network"
        ) from error
    return True


def _load_saved_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder that we wrote, from its file as it is.

    ``AutoTokenizer`` takes a Gemma tokenizer's vocabulary out of that file and builds the same tokenizer again, which
    is two of the three seconds that it needs for 262,144 tokens.
    """
    from transformers import PreTrainedTokenizerFast

    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    known = {name: value for name, value in settings.items() if name.endswith("_token") or name == "model_max_length"}
    template = folder / "chat_template.jinja"
    if template.is_file():
        known["chat_template"] = template.read_text(encoding="utf-8")
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), padding_side="left", **known)
