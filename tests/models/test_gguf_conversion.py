"""The cache of converted models: built once, whole or not at all, and GGUF files in it."""

import hashlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.gguf_models import write_gguf
from helpers.learned_prompts import learned, text_ids
from helpers.small_tasks import command
from helpers.tiny_models import plain_logits
from transformers import AutoModelForCausalLM, AutoTokenizer

from softprompt.errors import BaseModelError, OutputError
from softprompt.models import gguf_conversion
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model

NAME = "tiny"
SOURCE = hashlib.sha256(b"source").hexdigest()
LOG = "builds.log"
PATIENCE_S = 60
CHAT = "{% for turn in messages %}{{ turn.content }}<|im_end|>{% endfor %}"


def quiet(_: str) -> None:
    """A progress callback for who does not listen."""


def build_tiny(folder: Path, say: Callable[[str], None]) -> Mapping[str, Any]:
    """Write a folder like a checkpoint, and one line in the log beside it."""
    say("building")
    with (folder.parent / LOG).open("a") as log:
        log.write(f"{os.getpid()}\n")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights" * 100)
    return {"model": "tiny"}


def ready(cache: Path, build: gguf_conversion.Builder = build_tiny, say: Callable[[str], None] = quiet) -> Path:
    return gguf_conversion.prepare_folder(cache, NAME, SOURCE, build, say)


def builds(cache: Path) -> int:
    return len((cache / LOG).read_text().splitlines())


def entries(cache: Path) -> set[str]:
    """What lies in the cache but for the lock and the log."""
    return {path.name for path in cache.iterdir()} - {LOG, f".{NAME}.lock"}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def build_until_released(folder: Path, say: Callable[[str], None]) -> Mapping[str, Any]:
    """Build, but be done only when somebody has put a file named 'release' into the cache."""
    facts = build_tiny(folder, say)
    wait_for((folder.parent / "release").exists)
    return facts


def worker(cache: Path, told: Path) -> None:
    """One process that asks for the folder and writes down what it was told and given."""

    def say(line: str) -> None:
        with told.open("a") as file:
            file.write(line + "\n")

    say(f"got {ready(cache, build_until_released, say)}")


def start_worker(cache: Path, told: Path) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("spawn").Process(target=worker, args=(cache, told))
    process.start()
    return process


class TestCacheFolder:
    @pytest.fixture(autouse=True)
    def _environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/ada")
        monkeypatch.delenv("SOFTPROMPT_CACHE", raising=False)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def test_lies_in_the_home_folder_by_default(self) -> None:
        assert gguf_conversion.cache_folder() == Path("/home/ada/.cache/softprompt")

    def test_follows_xdg(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", "/var/xdg")
        assert gguf_conversion.cache_folder() == Path("/var/xdg/softprompt")

    def test_ignores_a_relative_xdg_folder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", "xdg")
        assert gguf_conversion.cache_folder() == Path("/home/ada/.cache/softprompt")

    @pytest.mark.parametrize(("value", "folder"), [("/data/sp", "/data/sp"), ("~/sp", "/home/ada/sp")])
    def test_own_variable_wins(self, monkeypatch: pytest.MonkeyPatch, value: str, folder: str) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", "/var/xdg")
        monkeypatch.setenv("SOFTPROMPT_CACHE", value)
        assert gguf_conversion.cache_folder() == Path(folder)

    def test_empty_variable_counts_as_not_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOFTPROMPT_CACHE", "")
        assert gguf_conversion.cache_folder() == Path("/home/ada/.cache/softprompt")


class TestReadyFolder:
    def test_builds_once(self, tmp_path: Path) -> None:
        cache = tmp_path / "not" / "there" / "yet"
        assert ready(cache) == ready(cache) == cache / NAME
        assert builds(cache) == 1
        assert entries(cache) == {NAME}

    def test_marker_tells_source_files_and_facts(self, tmp_path: Path) -> None:
        folder = ready(tmp_path)
        marker = json.loads((folder / "softprompt.json").read_text())
        weights = b"weights" * 100
        assert marker["source_sha256"] == SOURCE
        assert marker["model"] == "tiny"
        assert marker["files"]["model.safetensors"] == {"bytes": 700, "sha256": hashlib.sha256(weights).hexdigest()}
        assert set(marker["files"]) == {"config.json", "model.safetensors"}

    @pytest.mark.parametrize(
        "damage",
        [
            lambda folder: (folder / "softprompt.json").unlink(),
            lambda folder: (folder / "softprompt.json").write_text("{"),
            lambda folder: (folder / "softprompt.json").write_text("[]"),
            lambda folder: (folder / "softprompt.json").write_text('{"schema": 0}'),
            lambda folder: (folder / "model.safetensors").write_bytes(b"weights" * 99),
            lambda folder: (folder / "model.safetensors").write_bytes(b"weightz" + b"weights" * 99),
            lambda folder: (folder / "config.json").unlink(),
        ],
        ids=["no marker", "cut marker", "odd marker", "other schema", "cut weights", "other weights", "lost file"],
    )
    def test_damaged_folder_is_built_anew(self, tmp_path: Path, damage: Callable[[Path], None]) -> None:
        folder = ready(tmp_path)
        damage(folder)
        folder = ready(tmp_path)
        assert builds(tmp_path) == 2
        assert (folder / "model.safetensors").read_bytes() == b"weights" * 100
        assert entries(tmp_path) == {NAME}

    def test_folder_from_another_source_is_built_anew(self, tmp_path: Path) -> None:
        ready(tmp_path)
        gguf_conversion.prepare_folder(tmp_path, NAME, "0" * 64, build_tiny, quiet)
        assert builds(tmp_path) == 2

    def test_failed_build_leaves_nothing(self, tmp_path: Path) -> None:
        def fail(folder: Path, say: Callable[[str], None]) -> Mapping[str, Any]:
            build_tiny(folder, say)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ready(tmp_path, fail)
        assert entries(tmp_path) == set()
        assert ready(tmp_path).is_dir()

    def test_killed_build_is_not_taken_for_good(self, tmp_path: Path) -> None:
        process = start_worker(tmp_path, tmp_path / LOG)
        wait_for(lambda: any(tmp_path.glob(f".{NAME}.part-*/model.safetensors")))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(PATIENCE_S)
        (leftover,) = entries(tmp_path)
        assert leftover.startswith(f".{NAME}.part-")

        assert ready(tmp_path) == tmp_path / NAME
        assert entries(tmp_path) == {NAME}

    def test_of_two_processes_one_builds_and_the_other_waits(self, tmp_path: Path) -> None:
        told = [tmp_path / "first.txt", tmp_path / "second.txt"]
        cache = tmp_path / "cache"
        processes = [start_worker(cache, told[0])]
        wait_for(lambda: told[0].exists() and "building" in told[0].read_text())
        processes.append(start_worker(cache, told[1]))
        wait_for(lambda: told[1].exists() and "waiting" in told[1].read_text())
        assert not (cache / NAME).exists()
        (cache / "release").touch()
        for process in processes:
            process.join(PATIENCE_S)
        assert [process.exitcode for process in processes] == [0, 0]
        assert builds(cache) == 1
        assert told[0].read_text().splitlines() == ["building", f"got {cache / NAME}"]
        assert told[1].read_text().splitlines() == [
            f"another process is building {cache / NAME}: waiting for it",
            f"got {cache / NAME}",
        ]

    def test_cache_that_cannot_be_a_folder_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(
            OutputError,
            match=r"^cannot write '.*/file/cache/tiny': Not a directory; set SOFTPROMPT_CACHE",
        ):
            ready(tmp_path / "file" / "cache")


@pytest.mark.parametrize("shown", [True, False])
def test_progress_bars_are_off_and_restored(shown: bool) -> None:
    from transformers import modeling_gguf_pytorch_utils as reader
    from transformers.utils import logging

    own_bar, before = vars(reader)["tqdm"], logging.is_progress_bar_enabled()
    switch = {True: logging.enable_progress_bar, False: logging.disable_progress_bar}
    switch[shown]()
    try:
        with gguf_conversion.no_progress_bars():
            assert not logging.is_progress_bar_enabled()
            assert vars(reader)["tqdm"] is logging.tqdm
        assert logging.is_progress_bar_enabled() == shown
        assert vars(reader)["tqdm"] is own_bar
    finally:
        switch[before]()


class TestGguf:
    @pytest.fixture
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
        return tmp_path / "cache"

    def folders(self, cache: Path) -> set[str]:
        return {path.name for path in cache.iterdir() if path.is_dir()}

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_what_is_loaded_is_what_transformers_unpacks(self, tmp_path: Path, cache: Path, dtype: Any) -> None:
        file = write_gguf(tmp_path / "tiny.gguf", "Q8_0")
        base = load_model(file, device="cpu", dtype=dtype)
        plain = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=dtype)
        weights, expected = base.model.state_dict(), plain.state_dict()
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
        assert base.tokenizer.get_vocab() == tokenizer.get_vocab()
        for text in ("", "a good film <eos>", "  two\n naïve"):
            for options in ({}, {"split_special_tokens": True}):
                assert base.tokenizer(text, **options).input_ids == tokenizer(text, **options).input_ids
        assert getattr(base.model.config, "quantization_config", None) is None

    def test_it_is_converted_once_for_each_content_and_precision(
        self, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told: list[str] = []
        for name in ("one", "two"):
            load_model(write_gguf(tmp_path / f"{name}.gguf"), device="cpu", dtype="float32", progress=told.append)
        assert told == [f"converting one.gguf to float32, once: kept in {cache}"]
        (folder,) = self.folders(cache)
        assert folder == f"gguf-{hashlib.sha256((tmp_path / 'one.gguf').read_bytes()).hexdigest()[:24]}-float32"

        load_model(tmp_path / "one.gguf", device="cpu", dtype="bfloat16", progress=told.append)
        write_gguf(tmp_path / "two.gguf", "F16")
        load_model(tmp_path / "two.gguf", device="cpu", dtype="float32", progress=told.append)
        assert (len(told), len(self.folders(cache))) == (3, 3)

    def test_a_flipped_bit_in_the_cache_is_noticed(self, tmp_path: Path, cache: Path) -> None:
        file = write_gguf(tmp_path / "tiny.gguf")
        first = load_model(file, device="cpu", dtype="float32").model.lm_head.weight.clone()
        (folder,) = (path for path in cache.iterdir() if path.is_dir())
        with (folder / "model.safetensors").open("r+b") as weights:
            weights.seek(-4, os.SEEK_END)
            weights.write(b"\x01\x02\x03\x04")
        # a disk that rots leaves the times as they were
        os.utime(folder / "model.safetensors", ns=(0, 0))
        assert torch.equal(load_model(file, device="cpu", dtype="float32").model.lm_head.weight, first)

    @pytest.mark.parametrize(
        ("template", "turn_end", "ends"),
        [(CHAT, "<|im_end|>", [2, 0]), (None, "<|im_end|>", 2), (CHAT, "<|start|>", 2)],
        ids=["of a chat", "without a template", "another token"],
    )
    def test_the_ends_of_turns_end_answers(
        self, tmp_path: Path, cache: Path, template: str | None, turn_end: str, ends: list[int] | int
    ) -> None:
        file = write_gguf(tmp_path / "tiny.gguf", chat_template=template, turn_end=turn_end)
        base = load_model(file, device="cpu", dtype="float32")
        assert base.model.generation_config.eos_token_id == ends
        assert base.tokenizer.chat_template == template
        assert base.tokenizer("a<|im_end|>").input_ids[-1:] == [0] or turn_end == "<|start|>"

    def test_it_can_be_quantized(self, tmp_path: Path, cache: Path) -> None:
        base = load_model(write_gguf(tmp_path / "tiny.gguf"), device="cpu", dtype="float32", quantize="int8")
        assert base.quantization == "int8"

    def test_a_damaged_file_is_told_and_leaves_nothing(self, tmp_path: Path, cache: Path) -> None:
        (tmp_path / "m.gguf").write_bytes(b"GGUF")
        with pytest.raises(BaseModelError, match=r"cannot load the base model '.*m\.gguf'"):
            load_model(tmp_path / "m.gguf")
        assert self.folders(cache) == set()

    def test_a_prompt_on_it_is_baked_into_a_checkpoint(self, tmp_path: Path, cache: Path) -> None:
        file = write_gguf(tmp_path / "tiny.gguf")
        base = load_model(file, device="cpu", dtype="float32")
        prompt = replace(learned("llama"), base_name=str(file), base_fingerprint=base.fingerprint)
        prompt.save(tmp_path / "p")
        arguments = ["--format", "vocab", "--out", tmp_path / "out", "--device", "cpu", "--dtype", "float32"]
        done = command("export", tmp_path / "p", *arguments, "--json")
        assert done.code == 0, done.err
        model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
        plain = FrozenLM(model, AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf"), "plain")
        baked = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        first, ids = json.loads(done.out)["first_ids"]["p"], text_ids(base)
        front = [*base.bos_ids, *range(first, first + 5)]
        with torch.no_grad():
            logits = baked(input_ids=torch.tensor([[*front, *ids]])).logits[0, -len(ids) :, :320]
        expected = plain_logits(plain, prompt.state.tensor, ids)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
