"""What lies at a place: told by the names of files and their first bytes, for whoever was given another thing.

Nothing is parsed but the type of a PEFT adapter, and nothing is trusted: what is told is told in an error.
"""

import json
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Wanted = Literal["prompt", "data", "model", "store", "import"]

_DATA = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_SPLITS = ("train", "validation", "valid", "val", "dev", "test")
_PROMPTS_OF_PEFT = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CARTRIDGE")
_SMALL = 2**20  # bytes of a configuration that are looked at


@dataclass(frozen=True)
class PlaceKind:
    """A kind of thing.

    Attributes:
        is_a: verbs want one of these, ``None`` for what no verb takes.
        name: with its article.
        advice: what to do with it, ``{place}`` being its place.
    """

    is_a: Wanted | None
    name: str
    advice: str


PROMPT = PlaceKind("prompt", "a saved prompt", "it is what eval, predict, show and serve --prompt take, as it is")
STORE = PlaceKind(
    "store", "a store of prompts", "name a prompt in it, as in '{place}#NAME@1' (softprompt list '{place}' lists them)"
)
ADAPTER = PlaceKind(
    "import",
    "a prompt of PEFT",
    "make a saved prompt of it with softprompt import '{place}' --model MODEL --out PROMPT",
)
OTHER_ADAPTER = PlaceKind(
    None,
    "a {kind} adapter of PEFT",
    f"of PEFT's types {', '.join(_PROMPTS_OF_PEFT)} can be imported; what changes weights, as LoRA, is merged into its "
    "model (merge_and_unload of PEFT), and the folder of that model given with --model",
)
MODEL = PlaceKind("model", "a model", "give it with --model")
BAKED = PlaceKind(
    "model",
    "a model with prompts baked into its vocabulary",
    "give it with --model; the prompts themselves are the folders that it was exported from",
)
EMBEDS = PlaceKind(
    None,
    "an export for vLLM",
    "what is in it is for vLLM's --enable-prompt-embeds; the prompts themselves are the folders that it was exported "
    "from",
)
GGUF = PlaceKind("model", "a GGUF file of a model", "give it with --model")
DATA = PlaceKind("data", "data", "give it with --data")
RUN = PlaceKind(
    None, "the folder of an unfinished run", "the same command with --resume goes on with it, and leaves a prompt"
)
ARRAY = PlaceKind(
    "import",
    "a NumPy array",
    "make a saved prompt of it with softprompt import '{place}' --model MODEL --out PROMPT",
)
PICKLE = PlaceKind(
    None,
    "a pickle of PyTorch",
    "it can run code and is never loaded; save its matrix of virtual tokens with numpy.save, and import that .npy file",
)
TENSORS = PlaceKind(None, "a file of tensors", "alone it does not say what they are for: give the folder that holds it")
PART = PlaceKind(None, "a part of a saved prompt", "give the folder that holds it")
ARCHIVE = PlaceKind(None, "an archive", "unpack it and give what is in it")
OUTPUTS = PlaceKind(
    None, "a folder with saved prompts in it", "give one of them, as '{place}/{inner}', or in serve each with --prompt"
)


def recognize_place(place: str | Path) -> PlaceKind | None:
    """What lies there, ``None`` for nothing that is known."""
    path = Path(place)
    with suppress(OSError, ValueError):
        if path.is_dir():
            return _recognize_folder(path)
        if path.is_file():
            return _recognize_file(path)
    return None


def describe_mistaken_place(place: str | Path, wanted: Wanted) -> str:
    """What lies at ``place`` and what to do with it, where it is no such thing as is wanted; else nothing."""
    kind = recognize_place(place)
    if kind is None or kind.is_a == wanted:
        return ""
    if kind.is_a == "prompt" and wanted == "import":
        return f"'{place}' is a saved prompt already: it needs no import"
    return f"'{place}' is {kind.name}: {kind.advice.replace('{place}', str(place))}"


def _recognize_folder(folder: Path) -> PlaceKind | None:
    def has(name: str) -> bool:
        return (folder / name).is_file()

    tests: tuple[tuple[Callable[[], bool], Callable[[], PlaceKind]], ...] = (
        (lambda: has("prompt.json"), lambda: PROMPT),
        (lambda: has("softprompt-store.json"), lambda: STORE),
        (lambda: has("adapter_config.json"), lambda: _kind_of_adapter(folder)),
        (lambda: has("prompts.safetensors") and has("softprompt.json"), lambda: EMBEDS),
        (lambda: has("config.json") and has("softprompt.json"), lambda: BAKED),
        (lambda: has("config.json"), lambda: MODEL),
        (lambda: folder.name.endswith(".run"), lambda: RUN),
        (lambda: any(has(f"{split}{ending}") for split in _SPLITS for ending in _DATA), lambda: DATA),
    )
    for matches, kind in tests:
        if matches():
            return kind()
    inner = next((one.parent.name for one in sorted(folder.glob("*/prompt.json"))), None)
    return None if inner is None else PlaceKind(None, OUTPUTS.name, OUTPUTS.advice.replace("{inner}", inner))


def _kind_of_adapter(folder: Path) -> PlaceKind:
    kind = ""
    with suppress(OSError, ValueError, RecursionError), (folder / "adapter_config.json").open("rb") as stream:
        config = json.loads(stream.read(_SMALL))
        kind = str(config.get("peft_type", "")) if isinstance(config, dict) else ""
    if not kind or kind in _PROMPTS_OF_PEFT:
        return ADAPTER
    return PlaceKind(OTHER_ADAPTER.is_a, OTHER_ADAPTER.name.format(kind=kind[:40]), OTHER_ADAPTER.advice)


def _recognize_file(path: Path) -> PlaceKind | None:
    ending = path.suffix.lower()
    if path.name in ("prompt.json", "prompt.safetensors") and (path.parent / "prompt.json").is_file():
        return PART
    with path.open("rb") as stream:
        first = stream.read(8)
    if first.startswith(b"GGUF"):
        return GGUF
    if first.startswith(b"\x93NUMPY"):
        return ARRAY
    if ending in (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"):
        return PICKLE
    if zipfile.is_zipfile(path) and any(name.endswith("data.pkl") for name in _names_in(path)):
        return PICKLE
    if first.startswith((b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!")) or ending == ".tar":
        return ARCHIVE
    if ending == ".safetensors":
        return TENSORS
    return DATA if ending in _DATA else None


def _names_in(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()[:100]
