"""Prompts as NumPy arrays: the same bits out and in, and one line for whatever a file may hold instead."""

import contextlib
import hashlib
import io
import json
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.made_prompts import a_prompt
from helpers.small_tasks import TEMPLATE, Ended, command, reviews, write_data
from helpers.tiny_models import as_state, plain_logits, save_tiny, tiny_base
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softprompt.cli.verbs.deploying_verbs import FORM, IMPORTED_FORM
from softprompt.data.task import TaskSpec
from softprompt.errors import DataError, OutputError, PromptFileError
from softprompt.export.export_formats import FORMATS
from softprompt.export.numpy_array import MOST_BYTES, read_npy, write_npy
from softprompt.export.prompt_exchange import import_prompt
from softprompt.models.loading import load_model
from softprompt.prompts.prefix import make_prefix
from softprompt.prompts.state import PromptState
from softprompt.store.prompt_loading import load_prompt

CPU = ["--device", "cpu", "--dtype", "float32"]
SIZE = 32  # of the tiny models' embeddings


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("npy")
    for family in ("llama", "opt"):
        save_tiny(folder / family, family)
    write_data(folder / "reviews", reviews())
    return folder


def vectors(length: int = 5, size: int = SIZE) -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).normal(size=(length, size)).astype(np.float32)


def saved(path: Path, array: np.ndarray[Any, Any]) -> Path:
    np.save(path, array, allow_pickle=array.dtype.hasobject)
    return path


def import_(place: Path, source: Path, out: Path, *more: object, model: str = "llama") -> Ended:
    return command("import", source, "--model", place / model, "--out", out, *more, *CPU)


class TestRoundTrip:
    def test_ours_to_npy_to_ours_is_bit_exact(self, tmp_path: Path) -> None:
        prompt = a_prompt()
        write_npy(prompt, tmp_path / "made" / "p.npy")
        assert torch.equal(read_npy(tmp_path / "made" / "p.npy").tensor, prompt.state.tensor)
        assert [path.name for path in (tmp_path / "made").iterdir()] == ["p.npy"]

    def test_a_file_is_what_numpy_would_write_of_float32(self, tmp_path: Path) -> None:
        prompt = a_prompt()
        write_npy(prompt, tmp_path / "p.npy")
        expected = io.BytesIO()
        np.save(expected, prompt.state.tensor.numpy())
        assert (tmp_path / "p.npy").read_bytes() == expected.getvalue()
        # version 1.0, 128 bytes of header: the first bytes of the published prompts
        assert expected.getvalue()[:10] == b"\x93NUMPY\x01\x00v\x00"

    @pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_reads_floating_point_numbers_as_they_are(self, tmp_path: Path, dtype: str, order: Any) -> None:
        array = np.asarray(vectors().astype(dtype), order=order)
        state = read_npy(saved(tmp_path / "p.npy", array))
        assert (state.kind, state.tensor.dtype) == ("embeddings", torch.float32)
        assert np.array_equal(state.tensor.numpy(), array.astype(np.float32))

    def test_the_name_need_not_end_in_npy(self, tmp_path: Path) -> None:
        # as its checkpoints have it
        path = saved(tmp_path / "p.npy", vectors()).rename(tmp_path / "encoder.prompt.prompt.prompt")
        assert np.array_equal(read_npy(path).tensor.numpy(), vectors())

    @pytest.mark.parametrize("family", ["llama", "gemma3"])
    def test_vectors_stand_in_place_of_token_embeddings(self, tmp_path: Path, family: str) -> None:
        base, ids = tiny_base(family), [7, 8, 9]
        array = base.embed(torch.tensor([11, 12])).numpy() * 1.5
        state = read_npy(saved(tmp_path / "p.npy", array))
        with torch.no_grad():
            prefix = make_prefix(base, state)
            mine = base.logits(prefix.hidden(torch.tensor([ids]), torch.ones(1, 3, dtype=torch.long))[0])
            expected = plain_logits(base, torch.from_numpy(array), ids)
            unchanged = make_prefix(base, as_state(base.embed(torch.tensor([11, 12]))))
            other = base.logits(unchanged.hidden(torch.tensor([ids]), torch.ones(1, 3, dtype=torch.long))[0])
        torch.testing.assert_close(mine, expected, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(mine, other, atol=1e-3)


class TestWriting:
    def test_keys_and_values_are_refused(self, tmp_path: Path) -> None:
        prompt = replace(a_prompt(), states=(PromptState("key_values", (torch.zeros(2, 1, 5, 4),)),))
        with pytest.raises(PromptFileError, match=r"holds keys and values .* virtual tokens only: learn one"):
            write_npy(prompt, tmp_path / "p.npy")
        assert not any(tmp_path.iterdir())

    def test_ensembles_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(PromptFileError, match="expected a single prompt, got an ensemble of 2"):
            write_npy(replace(a_prompt(), states=a_prompt().states * 2), tmp_path / "p.npy")

    def test_nothing_is_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "p.npy").write_text("mine")
        with pytest.raises(OutputError, match=r"p\.npy' exists already"):
            write_npy(a_prompt(), tmp_path / "p.npy")
        assert (tmp_path / "p.npy").read_text() == "mine"


def bytes_of(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def headed(header: str, content: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    packed = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header) + 1)
    return b"\x93NUMPY" + version + packed + header.encode() + b"\n" + content


def describing(shape: str, descr: str = "'<f4'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


GOOD = bytes_of(vectors())
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is no .npy file, or its header is damaged"),
    "text": (b"label,text\n" * 30, "is no .npy file, or its header is damaged"),
    "pickle": (b"cos\nsystem\n(S'touch owned'\ntR.", "is no .npy file, or its header is damaged"),
    "zip": (b"PK\x03\x04" + bytes(60), "is an archive: unpack it and give what is in it"),
    "half a header": (GOOD[:60], "is no .npy file, or its header is damaged"),
    "unknown version": (GOOD[:6] + b"\x07" + GOOD[7:], "is no .npy file, or its header is damaged"),
    "truncated": (GOOD[:-1], "is damaged: its header announces 640 bytes of numbers, 639 are there"),
    "no numbers": (GOOD[:128], "is damaged: its header announces 640 bytes of numbers, 0 are there"),
    "too long": (GOOD + b"\0", "is damaged: its header announces 640 bytes of numbers, more follow"),
    "huge header": (headed("{" + " " * 2**20, version=b"\x02\x00"), "header is damaged"),
    "nested header": (headed("(" * 9000), "header is damaged"),
    "header is code": (headed("__import__('os').system('touch owned')"), "header is damaged"),
    "header of another kind": (headed("[1, 2]"), "header is damaged"),
    "shape of floats": (headed(describing("(2.0, 32)")), "header is damaged"),
    "announces petabytes": (
        headed(describing("(10000000, 1000000000)")),
        f"says that it holds 10,000,000 virtual tokens of 1,000,000,000 values: expected at most {MOST_BYTES:,} bytes",
    ),
    "announces more than numbers count": (headed(describing(f"({10**30}, {10**30})")), "expected at most"),
    "endless shape": (headed(describing("(" + "1" * 9000 + "x)")), "header is damaged"),
    "negative": (headed(describing("(-5, -32)"), bytes(640)), "header is damaged"),
    "no tokens": (bytes_of(vectors()[:0]), "has shape (0, 32): expected two dimensions"),
    "flat": (bytes_of(vectors().ravel()), "has shape (160,): expected two dimensions, virtual tokens and embedding"),
    "batched": (bytes_of(vectors()[None]), "has shape (1, 5, 32): expected two dimensions"),
    "a number": (bytes_of(np.float32(3)), "has shape (): expected two dimensions"),  # type: ignore[arg-type]
    "objects": (
        bytes_of(np.full((5, 32), None)),
        "holds |O (objects, which are never unpickled): expected float32, float64 or float16",
    ),
    "integers": (bytes_of(np.ones((5, 32), np.int64)), "holds <i8 (no floating-point numbers): expected float32"),
    "bfloat16, as numpy saves it": (headed(describing("(5, 32)", "'<V2'"), bytes(320)), "holds |V2 (no floating-point"),
    "fields": (headed(describing("(5,)", "[('a', '<f4')]"), bytes(20)), "header is damaged"),
    "strings": (bytes_of(np.array([["a", "b"]])), "holds <U1 (no floating-point numbers): expected float32"),
    "not a number": (bytes_of(np.full((5, 32), np.nan, np.float32)), "has values that are no finite numbers"),
    "infinite": (bytes_of(np.full((5, 32), np.inf, np.float32)), "has values that are no finite numbers"),
    "too large for float32": (bytes_of(np.full((5, 32), 1e300)), "has values that are no finite numbers"),
}


class TestHostileFiles:
    @pytest.mark.parametrize("name", HOSTILE)
    def test_ends_in_one_line(self, place: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        content, words = HOSTILE[name]
        (tmp_path / "p.npy").write_bytes(content)
        done = import_(place, tmp_path / "p.npy", tmp_path / "out")
        assert done.code == 2
        assert f"'{tmp_path}/p.npy' " in done.error
        assert words in done.error
        # found before the model is loaded, and without doing what it says
        assert "loading" not in done.err
        assert [path.name for path in tmp_path.iterdir()] == ["p.npy"]

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_whatever_bytes_change_it_is_refused_or_read(self, tmp_path: Path, data: st.DataObject) -> None:
        content = bytearray(GOOD)
        for place in data.draw(st.lists(st.integers(0, len(GOOD) - 1), max_size=6)):
            content[place] = data.draw(st.integers(0, 255))
        end = data.draw(st.integers(0, len(GOOD))) if data.draw(st.booleans()) else len(GOOD)
        path = tmp_path / "p.npy"
        path.write_bytes(bytes(content[:end]))
        with contextlib.suppress(PromptFileError):
            state = read_npy(path)
            assert state.tensor.ndim == 2
            assert torch.isfinite(state.tensor).all()

    def test_missing_file_folder_and_pipe(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"cannot read '.*none\.npy': No such file"):
            read_npy(tmp_path / "none.npy")
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
            with pytest.raises(PromptFileError, match=r"is no file: expected a \.npy file"):
                read_npy(path)


class TestImport:
    def test_without_data_it_is_the_task_that_the_options_tell(self, place: Path, tmp_path: Path) -> None:
        source = saved(tmp_path / "sst2.npy", vectors())
        words = ["--labels", "bad, good", "--verbalizer", "good=great", "--template", TEMPLATE]
        done = import_(place, source, tmp_path / "p", *words, "--json")
        assert done.code == 0
        facts = {
            "imported_from": "sst2.npy",
            "format": "npy",
            "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        }
        assert json.loads(done.out) == {"prompt": str(tmp_path / "p"), "length": 5, "metrics": {}, "training": facts}
        prompt = load_prompt(tmp_path / "p")
        assert np.array_equal(prompt.state.tensor.numpy(), vectors())
        assert prompt.spec == TaskSpec("classification", TEMPLATE, ("bad", "good"), ("bad", "great"))
        assert (prompt.method, prompt.base_name, prompt.parent) == ("imported", str(place / "llama"), None)
        prompt.check_base(load_model(place / "llama", device="cpu", dtype="float32"))
        assert command("show", tmp_path / "p").code == 0

    def test_with_neither_labels_nor_data_it_is_generation(self, place: Path, tmp_path: Path) -> None:
        done = import_(place, saved(tmp_path / "p.npy", vectors()), tmp_path / "p")
        saved_in = f"5 virtual tokens of 32, imported from p.npy, saved in {tmp_path}/p"
        assert (done.code, done.out.splitlines()[-1]) == (0, saved_in)
        assert load_prompt(tmp_path / "p").spec == TaskSpec.of()
        assert load_prompt(tmp_path / "p").spec.kind == "generation"

    def test_with_data_it_is_scored(self, place: Path, tmp_path: Path) -> None:
        source = saved(tmp_path / "p.npy", vectors())
        done = import_(place, source, tmp_path / "p", "--data", place / "reviews", "--template", TEMPLATE)
        assert done.code == 0
        assert "validation  accuracy" in done.out
        evaluated = command("eval", tmp_path / "p", "--data", place / "reviews", "--json", *CPU)
        assert evaluated.code == 0
        prompt = load_prompt(tmp_path / "p")
        assert prompt.spec.labels == ("bad", "good")
        assert prompt.metrics["test"]["value"] == json.loads(evaluated.out)["value"]

    def test_another_size_names_both(self, place: Path, tmp_path: Path) -> None:
        done = import_(place, saved(tmp_path / "p.npy", vectors()), tmp_path / "p", model="opt")
        assert done.code == 2
        assert done.error == (
            f"'{tmp_path}/p.npy' holds virtual tokens of 32 values, expected 16 as the embeddings of '{place}/opt' "
            "have: give --model the model that it was learned on"
        )
        assert not (tmp_path / "p").exists()

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            (["--labels", "good"], "classification needs at least two labels, got only 'good'"),
            (["--verbalizer", "good=great"], "verbalizer for unknown label 'good': there are no labels"),
            (["--labels", "a,b", "--verbalizer", "c=d"], "verbalizer for unknown label 'c': labels are a, b"),
            (["--template", "words"], "{{ text }}"),
            (["--template", "{{ text "], "template"),
            (["--text-column", "review"], "--text-column, --label-column and --target-column are for --data"),
            (["--data", "none.jsonl"], "expected a file or folder at 'none.jsonl', found none"),
            (["--format", "pickle"], "Invalid value for '--format'"),
        ],
    )
    def test_mistakes_end_in_one_line(self, place: Path, tmp_path: Path, more: list[str], words: str) -> None:
        done = import_(place, saved(tmp_path / "p.npy", vectors()), tmp_path / "p", *more)
        assert done.code == 2
        assert words in done.error
        assert "loading" not in done.err
        assert not (tmp_path / "p").exists()

    def test_nothing_is_overwritten(self, place: Path, tmp_path: Path) -> None:
        (tmp_path / "p").mkdir()
        done = import_(place, saved(tmp_path / "p.npy", vectors()), tmp_path / "p")
        assert (done.code, "exists already" in done.error) == (2, True)

    def test_several_prompts_in_a_file_are_no_prompt_of_ours(self, tmp_path: Path) -> None:
        with pytest.raises(PromptFileError, match="holds virtual tokens of 16 values, expected 32"):
            import_prompt(tiny_base("llama"), saved(tmp_path / "x.npy", vectors(2, 16)))


class TestExport:
    def test_writes_what_import_reads(self, place: Path, tmp_path: Path) -> None:
        first = saved(tmp_path / "first.npy", vectors())
        assert import_(place, first, tmp_path / "p").code == 0
        done = command("export", tmp_path / "p", "--format", "npy", "--out", tmp_path / "second.npy", "--json")
        assert done.code == 0
        assert json.loads(done.out) == {
            "prompt": str(tmp_path / "p"),
            "format": "npy",
            "out": f"{tmp_path}/second.npy",
            "length": 5,
            "size": SIZE,
        }
        assert (tmp_path / "second.npy").read_bytes() == first.read_bytes()

    def test_mistakes_end_in_one_line(self, tmp_path: Path) -> None:
        a_prompt().save(tmp_path / "p")
        replace(a_prompt(), states=a_prompt().states * 2).save(tmp_path / "several")
        for arguments, words in (
            ([tmp_path / "none", "--format", "npy", "--out", "x.npy"], "is no saved prompt, it does not exist"),
            ([tmp_path / "p", "--format", "npy", "--out", tmp_path / "p"], "exists already"),
            ([tmp_path / "p", "--format", "gif", "--out", "x"], "Invalid value for '--format'"),
            ([tmp_path / "several", "--format", "npy", "--out", tmp_path / "x"], "an ensemble of 2"),
        ):
            done = command("export", *arguments)
            assert done.code == 2
            assert words in done.error

    def test_the_command_line_knows_the_formats_that_there_are(self) -> None:
        assert sorted(FORM.choices) == sorted(FORMATS)
        assert sorted(IMPORTED_FORM.choices) == sorted(name for name, entry in FORMATS.items() if entry.imported)
        assert all(entry.summary for entry in FORMATS.values())
