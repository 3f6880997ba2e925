"""Saved prompts: whole or not there at all, and refused when anything about them is wrong."""

import errno
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.made_prompts import a_prompt
from helpers.tiny_models import tiny_base
from safetensors.torch import load, save

from softprompt.errors import OutputError, PromptFileError
from softprompt.prompts.saved_prompt import MANIFEST_FILE, SCHEMA_VERSION, TENSOR_FILE
from softprompt.prompts.state import PromptState
from softprompt.store.prompt_loading import load_prompt, read_manifest
from softprompt.utils.files import check_free, replace_file, write_folder


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return a_prompt().save(tmp_path / "prompts" / "p")


class TestRoundTrip:
    def test_everything_comes_back(self, saved: Path) -> None:
        before, after = a_prompt(), load_prompt(saved)
        assert torch.equal(before.state.tensor, after.state.tensor)
        assert replace(after, states=()) == replace(before, states=())

    def test_the_files(self, saved: Path) -> None:
        assert sorted(path.name for path in saved.iterdir()) == ["history.jsonl", MANIFEST_FILE, TENSOR_FILE]
        assert (saved / "history.jsonl").read_text() == '{"step": 1}\n'
        manifest = json.loads((saved / MANIFEST_FILE).read_text(encoding="utf-8"))
        assert manifest["schema_version"] == SCHEMA_VERSION
        assert manifest["kind"] == "embeddings"
        assert manifest["length"] == 5
        assert manifest["base"] == {"name": "tiny llama", "fingerprint": tiny_base("llama").fingerprint}
        assert manifest["sha256"] == hashlib.sha256((saved / TENSOR_FILE).read_bytes()).hexdigest()
        tensors = load((saved / TENSOR_FILE).read_bytes())
        assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} == {
            "prompt": (torch.float32, (5, 32))
        }

    def test_same_prompt_same_bytes(self, saved: Path, tmp_path: Path) -> None:
        again = a_prompt().save(tmp_path / "again")
        for name in (TENSOR_FILE, MANIFEST_FILE):
            assert (again / name).read_bytes() == (saved / name).read_bytes()

    def test_nothing_else_is_left_beside_it(self, saved: Path) -> None:
        assert [path.name for path in saved.parent.iterdir()] == ["p"]

    def test_a_state_in_half_precision_is_saved_in_float32(self, tmp_path: Path) -> None:
        state = PromptState.of_embeddings(torch.randn(5, 32, dtype=torch.bfloat16))
        folder = replace(a_prompt(), states=(state,)).save(tmp_path / "p")
        assert torch.equal(load_prompt(folder).state.tensor, state.tensor.float())


class TestOtherBase:
    def test_is_refused_with_both_names(self, saved: Path) -> None:
        prompt = load_prompt(saved)
        prompt.check_base(tiny_base("llama"))
        with pytest.raises(PromptFileError) as caught:
            prompt.check_base(tiny_base("gpt2"))
        message = str(caught.value)
        assert message.startswith("this prompt was learned on 'tiny llama', but the base model given is 'tiny gpt2' (")
        assert "config" in message
        assert "weights" in message
        assert message.endswith("load it on the model it was learned on")

    def test_one_differing_part_is_enough(self) -> None:
        base = tiny_base("llama")
        prompt = replace(a_prompt(), base_fingerprint={**base.fingerprint, "tokenizer": "0" * 64})
        with pytest.raises(PromptFileError, match=r"\(differing: tokenizer\)"):
            prompt.check_base(base)

    def test_a_prompt_without_fingerprint_fits_nothing(self) -> None:
        with pytest.raises(PromptFileError, match="no fingerprint saved"):
            replace(a_prompt(), base_fingerprint={}).check_base(tiny_base("llama"))


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / MANIFEST_FILE
    values = {**json.loads(path.read_text(encoding="utf-8")), "description_sha256": ..., **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}), encoding="utf-8")


def replace_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    content = save(tensors)
    (folder / TENSOR_FILE).write_bytes(content)
    edit_manifest(folder, sha256=hashlib.sha256(content).hexdigest())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "tensor truncated": (lambda folder: truncate(folder / TENSOR_FILE), "is damaged: its SHA-256 is not the one in"),
    "tensor flipped": (lambda folder: flip_a_bit(folder / TENSOR_FILE), "is damaged: its SHA-256 is not the one in"),
    "other digest": (lambda folder: edit_manifest(folder, sha256="0" * 64), "its SHA-256 is not the one in"),
    "no digest": (lambda folder: edit_manifest(folder, sha256=...), "is damaged: it lacks 'sha256'"),
    "no length": (lambda folder: edit_manifest(folder, length=...), "its length says None"),
    "no task": (lambda folder: edit_manifest(folder, task=...), "is damaged: it lacks 'task'"),
    "wrong task": (lambda folder: edit_manifest(folder, task={"kind": 1}), "the saved task is of another form: kind: "),
    "bad template": (
        lambda folder: edit_manifest(folder, task={**a_prompt().spec.to_dict(), "template": "nothing"}),
        r"the saved task cannot be used: the template must contain",
    ),
    "base is a string": (lambda folder: edit_manifest(folder, base="gpt2"), "is damaged: "),
    "seed is infinite": (lambda folder: edit_manifest(folder, seed=float("inf")), "is damaged: "),
    "members is no number": (lambda folder: edit_manifest(folder, members=True), "with True members in 1 tensors"),
    "whole numbers": (
        lambda folder: replace_tensors(folder, {"prompt": torch.ones(5, 32, dtype=torch.int64)}),
        r"kind 'embeddings' with shape \(5, 32\)",
    ),
    "wrong length": (lambda folder: edit_manifest(folder, length=4), "5 virtual tokens, its length says 4"),
    "unknown kind": (lambda folder: edit_manifest(folder, kind="magic"), "kind 'magic'"),
    "NaN": (
        lambda folder: replace_tensors(folder, {"prompt": torch.full((5, 32), float("nan"))}),
        "values that are not numbers",
    ),
    "infinite": (
        lambda folder: replace_tensors(folder, {"prompt": torch.full((5, 32), float("inf"))}),
        "values that are not numbers",
    ),
    "one dimension": (lambda folder: replace_tensors(folder, {"prompt": torch.ones(5)}), r"shape \(5,\)"),
    "other name": (
        lambda folder: replace_tensors(folder, {"theta": torch.ones(5, 32)}),
        "is damaged: it lacks 'prompt'",
    ),
    "no tensor": (lambda folder: (folder / TENSOR_FILE).unlink(), f"is damaged: it holds no {TENSOR_FILE}"),
    "no manifest": (
        lambda folder: (folder / MANIFEST_FILE).unlink(),
        f"is no saved prompt, it holds no {MANIFEST_FILE}",
    ),
    "manifest truncated": (lambda folder: truncate(folder / MANIFEST_FILE), "prompt.json' is damaged: "),
    "not JSON": (lambda folder: (folder / MANIFEST_FILE).write_text("hello"), "prompt.json' is damaged: "),
    "not text": (lambda folder: (folder / MANIFEST_FILE).write_bytes(b"\xff\xfe"), "prompt.json' is damaged: "),
    "a list": (lambda folder: (folder / MANIFEST_FILE).write_text("[1]"), "schema version None, expected 1"),
    "other schema": (lambda folder: edit_manifest(folder, schema_version=2), "schema version 2, expected 1: use the"),
}


class TestDamage:
    @pytest.mark.parametrize("how", DAMAGE)
    def test_is_refused_in_one_line_that_names_it(self, saved: Path, how: str) -> None:
        damage, words = DAMAGE[how]
        damage(saved)
        with pytest.raises(PromptFileError, match=words) as caught:
            load_prompt(saved)
        assert "\n" not in str(caught.value)

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(PromptFileError, match=r"'.*none' is no saved prompt, it does not exist: give the folder"):
            read_manifest(tmp_path / "none")

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(PromptFileError, match=r"'.*file' is no saved prompt, it is a file"):
            load_prompt(tmp_path / "file")

    def test_a_pickle_is_not_read(self, saved: Path) -> None:
        torch.save({"prompt": torch.ones(5, 32)}, saved / TENSOR_FILE)
        edit_manifest(saved, sha256=hashlib.sha256((saved / TENSOR_FILE).read_bytes()).hexdigest())
        with pytest.raises(PromptFileError, match="is damaged"):
            load_prompt(saved)


class TestPlaces:
    def test_existing_folder(self, saved: Path) -> None:
        before = {path.name: path.read_bytes() for path in saved.iterdir()}
        with pytest.raises(OutputError, match=r"'.*p' exists already: give another --out, or remove it first"):
            a_prompt().save(saved)
        assert {path.name: path.read_bytes() for path in saved.iterdir()} == before

    def test_empty_folder_file_and_dangling_link_are_taken_too(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").write_text("mine")
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        for name in ("folder", "file", "link"):
            with pytest.raises(OutputError, match="exists already"):
                a_prompt().save(tmp_path / name)
        assert (tmp_path / "file").read_text() == "mine"

    def test_below_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(OutputError, match=r"cannot be made, '.*file' is a file: give another --out"):
            check_free(tmp_path / "file" / "deeper" / "p")

    def test_name_too_long(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="cannot write"):
            check_free(tmp_path / ("n" * 300))

    def test_below_folders_that_are_not_there_yet(self, tmp_path: Path) -> None:
        assert a_prompt().save(tmp_path / "a" / "b" / "p") == tmp_path / "a" / "b" / "p"
        assert load_prompt(tmp_path / "a" / "b" / "p").seed == 7

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_no_permission(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with pytest.raises(OutputError, match="no permission to write"):
            a_prompt().save(tmp_path / "p")
        tmp_path.chmod(0o700)

    @pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place where nobody may write")
    def test_where_nobody_may_write(self) -> None:
        with pytest.raises(OutputError, match=r"(cannot|no permission to) write '/proc/p'.* give another --out"):
            a_prompt().save("/proc/p")


class TestCrash:
    @pytest.mark.parametrize(
        ("code", "words"),
        [
            (errno.ENOSPC, "no space left to write '.*p': free some space.*nothing half-written was kept"),
            (errno.EDQUOT, "no space left to write"),
            (errno.EROFS, "no permission to write"),
            (errno.EIO, "cannot write '.*p': "),
        ],
    )
    @pytest.mark.parametrize("file", [1, 2, 3])
    def test_while_writing_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str, file: int
    ) -> None:
        calls = []

        def fail(descriptor: int) -> None:
            calls.append(descriptor)
            if len(calls) == file:
                raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OutputError, match=words):
            a_prompt().save(tmp_path / "p")
        assert len(calls) == file
        assert list(tmp_path.iterdir()) == []

    def test_interrupt_while_writing_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(descriptor: int) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            a_prompt().save(tmp_path / "p")
        assert list(tmp_path.iterdir()) == []

    def test_somebody_else_was_faster(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "fsync", lambda descriptor: (tmp_path / "p").mkdir(exist_ok=True))
        with pytest.raises(OutputError, match="appeared while it was being written: nothing was overwritten"):
            write_folder(tmp_path / "p", {"a": b"a"})
        assert [path.name for path in tmp_path.iterdir()] == ["p"]
        assert list((tmp_path / "p").iterdir()) == []

    def test_replacing_a_file_keeps_the_old_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "file"
        replace_file(path, b"old")

        def fail(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="full"):
            replace_file(path, b"new")
        assert path.read_bytes() == b"old"
        assert [one.name for one in tmp_path.iterdir()] == ["file"]
        monkeypatch.undo()
        replace_file(path, b"new")
        assert path.read_bytes() == b"new"
