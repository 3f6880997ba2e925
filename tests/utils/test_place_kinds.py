"""What lies at a place, for whoever was given another thing: every kind, asked for as every other."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small_tasks import command
from helpers.tiny_models import save_tiny

from softprompt.data.readers.example_reader import check_file, split_files
from softprompt.errors import BaseModelError, DataError, PromptFileError, StoreError
from softprompt.export.export_readme import USAGE_FILE
from softprompt.export.peft import CONFIG_FILE
from softprompt.export.prompt_exchange import recognize_format
from softprompt.export.vllm_embeddings import TENSOR_FILE
from softprompt.models.model_files import find_source
from softprompt.prompts.saved_prompt import MANIFEST_FILE
from softprompt.store.artifacts import MARKER
from softprompt.store.prompt_loading import load_prompt
from softprompt.store.version_store import Store
from softprompt.utils.place_kinds import describe_mistaken_place, recognize_place


def pickled() -> bytes:
    content = io.BytesIO()
    torch.save({"rows": torch.zeros(2, 3)}, content)
    return content.getvalue()


def zipped() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("prompt.json", "{}")
    return content.getvalue()


def array() -> bytes:
    content = io.BytesIO()
    np.save(content, np.zeros((2, 3), dtype=np.float32))
    return content.getvalue()


LORA, TUNED = (json.dumps({"peft_type": kind}).encode() for kind in ("LORA", "PROMPT_TUNING"))
# of each thing its files, what it is called, and what asks for it without a complaint
KINDS: dict[str, tuple[dict[str, bytes], str, str]] = {
    "prompt": ({MANIFEST_FILE: b"{}"}, "a saved prompt", "prompt"),
    "store": ({MARKER: b"{}"}, "a store of prompts", "store"),
    "tuned": ({CONFIG_FILE: TUNED}, "a prompt of PEFT", "import"),
    "lora": ({CONFIG_FILE: LORA}, "a LORA adapter of PEFT", ""),
    "damaged": ({CONFIG_FILE: b"[" * 9000}, "a prompt of PEFT", "import"),
    "model": ({"config.json": b"{}"}, "a model", "model"),
    "baked": ({"config.json": b"{}", USAGE_FILE: b"{}"}, "a model with prompts baked into its vocabulary", "model"),
    "embeds": ({TENSOR_FILE: b"", USAGE_FILE: b"{}"}, "an export for vLLM", ""),
    "rows": ({"train.jsonl": b""}, "data", "data"),
    "p.run": ({"state": b""}, "the folder of an unfinished run", ""),
    "several": ({f"one/{MANIFEST_FILE}": b"{}"}, "a folder with saved prompts in it", ""),
    "m.gguf": ({"": b"GGUF...."}, "a GGUF file of a model", "model"),
    "weights.pt": ({"": pickled()}, "a pickle of PyTorch", ""),
    "adapter_model.bin": ({"": b"\x80\x02"}, "a pickle of PyTorch", ""),
    "without-ending": ({"": pickled()}, "a pickle of PyTorch", ""),
    "p.zip": ({"": zipped()}, "an archive", ""),
    "p.tar.gz": ({"": b"\x1f\x8b\x08"}, "an archive", ""),
    "p.npy": ({"": array()}, "a NumPy array", "import"),
    "p.safetensors": ({"": b"12345678"}, "a file of tensors", ""),
    "rows.csv": ({"": b"text,label\n"}, "data", "data"),
}


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    found = tmp_path / request.param
    for name, content in KINDS[request.param][0].items():
        (found / name).parent.mkdir(parents=True, exist_ok=True)
        (found / name if name else found).write_bytes(content)
    return found


ASK: dict[str, tuple[Any, type[Exception]]] = {
    "prompt": (load_prompt, PromptFileError),
    "data": (lambda place: split_files(place) if place.is_dir() else check_file(place), DataError),
    "model": (lambda place: find_source(str(place)), BaseModelError),
    "store": (lambda place: Store(str(place)).list(), StoreError),
    "import": (recognize_format, PromptFileError),
}


@pytest.mark.parametrize("wanted", sorted(ASK))
@pytest.mark.parametrize("place", list(KINDS), indirect=True)
def test_another_thing_than_is_wanted_is_told_by_its_kind(place: Path, wanted: str) -> None:
    _, name, is_a = KINDS[place.name]
    kind = recognize_place(place)
    assert kind is not None
    assert kind.name == name
    told = describe_mistaken_place(place, wanted)  # type: ignore[arg-type]
    assert bool(told) == (wanted != is_a)
    ask, error = ASK[wanted]
    if told:
        with pytest.raises(error) as raised:
            ask(place)
        assert name in str(raised.value)
        assert str(raised.value).endswith(told)


def test_a_part_of_a_prompt_is_told(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_text("{}")
    with pytest.raises(PromptFileError, match="a part of a saved prompt: give the folder that holds it"):
        load_prompt(tmp_path / MANIFEST_FILE)


@pytest.mark.parametrize("name", ["nothing", "empty", "notes.txt"])
def test_what_is_unknown_is_not_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("words")
    assert recognize_place(tmp_path / name) is None
    with pytest.raises(PromptFileError, match=r"expected a \.npy file of virtual tokens or the adapter folder"):
        recognize_format(tmp_path / name)


class TestImport:
    def test_finds_the_format_of_what_it_is_given(self, tmp_path: Path) -> None:
        save_tiny(tmp_path / "llama", "llama")
        np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32))
        cpu = ["--device", "cpu", "--dtype", "float32"]
        done = command("import", tmp_path / "rows.npy", "--model", tmp_path / "llama", "--out", tmp_path / "p", *cpu)
        assert done.code == 0, done.err
        adapter = tmp_path / "adapter"
        assert command("export", tmp_path / "p", "--format", "peft", "--out", adapter, *cpu).code == 0
        done = command("import", adapter, "--model", tmp_path / "llama", "--out", tmp_path / "q", *cpu)
        assert done.code == 0, done.err
        assert load_prompt(tmp_path / "q").state.digest == load_prompt(tmp_path / "p").state.digest

    def test_says_what_it_was_given_instead(self, tmp_path: Path) -> None:
        (tmp_path / "lora").mkdir()
        (tmp_path / "lora" / CONFIG_FILE).write_bytes(LORA)
        done = command("import", tmp_path / "lora", "--model", "m", "--out", tmp_path / "p")
        assert done.code == 2
        assert "is a LORA adapter of PEFT: of PEFT's types PROMPT_TUNING, P_TUNING, PREFIX_TUNING" in done.error
        assert "loading" not in done.err
