"""Files that somebody damaged or made up: one clear error, in bounded time and memory, and never anything else."""

import hashlib
import io
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.saved_prompts import a_prompt, with_manifest
from helpers.tiny_models import tiny_base
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from softprompt.errors import PromptFileError, SoftpromptError, StoreError
from softprompt.inference.predictor import Predictor
from softprompt.prompts.saved_prompt import MANIFEST_FILE, TENSOR_FILE, Prompt, parse_prompt
from softprompt.prompts.state import PromptState
from softprompt.report.pages.training_page import make_prompt_document
from softprompt.report.render.terminal import render_terminal
from softprompt.store.artifacts import ArtifactStore
from softprompt.store.metadata import AliasChange, Marker, Version
from softprompt.store.prompt_loading import load_prompt
from softprompt.store.version_store import Store
from softprompt.utils.safe_io import FILE_LIMIT, TEXT_LIMIT, check_header, parse_json, read_file
from softprompt.utils.seals import seal, unseal

FILES = a_prompt().files()
QUICK, MANY = 150, 5000  # made-up files a test: in a default run, and in a slow one
SECONDS = 5.0  # that no file may take, on a busy machine


@contextmanager
def in_time() -> Iterator[None]:
    """Fail if what is done takes longer than any file may."""
    began = time.process_time()
    yield
    assert time.process_time() - began < SECONDS


def tensors(content: bytes) -> dict[str, bytes]:
    """The saved prompt with this as its tensor file, the digest being right."""
    return with_manifest({**FILES, TENSOR_FILE: content}, sha256=hashlib.sha256(content).hexdigest())


def header(text: bytes, size: int | None = None, data: bytes = b"") -> bytes:
    return (len(text) if size is None else size).to_bytes(8, "little") + text + data


def manifest(text: bytes) -> dict[str, bytes]:
    return {**FILES, MANIFEST_FILE: text}


def zip_bomb() -> bytes:
    """Fifty megabytes of zeros in fifty kilobytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("prompt", bytes(50 * 2**20))
    return stream.getvalue()


HUGE = 2**62
ONE = b'{"prompt":{"dtype":"F32","shape":[%s],"data_offsets":[0,%d]}}'

HOSTILE: dict[str, tuple[Callable[[], dict[str, bytes]], str]] = {
    "empty tensor file": (lambda: tensors(b""), "its header claims 0 bytes of 0"),
    "cut before the header": (lambda: tensors(b"\x01\x02"), "its header claims"),
    "header of 2**62 bytes": (lambda: tensors(header(b"{}", HUGE)), f"its header claims {HUGE:,} bytes of 10"),
    "header of all that is there and more": (lambda: tensors(header(b"{}", 3)), "claims 3 bytes of 10"),
    "header of 5 MB": (lambda: tensors(header(b" " * (TEXT_LIMIT + 1))), f"at most {TEXT_LIMIT:,} are read"),
    "tensors named twice": (
        lambda: tensors(header(b'{"prompt":{},"prompt":{}}')),
        "it has the key 'prompt' twice",
    ),
    "a tensor of 2**62 numbers": (lambda: tensors(header(ONE % (b"%d" % HUGE, 4 * 2**30), data=bytes(8))), "damaged"),
    "shape that overflows": (lambda: tensors(header(ONE % (b"4294967296,4294967296", 16), data=bytes(16))), "damaged"),
    "offsets outside": (lambda: tensors(header(ONE % (b"1,4", 16), data=bytes(4))), "damaged"),
    "negative shape": (lambda: tensors(header(ONE % (b"-1,4", 16), data=bytes(16))), "damaged"),
    "deep header": (lambda: tensors(header(b"[" * 100_000)), "nested too deep"),
    "zip bomb": (lambda: tensors(zip_bomb()), "its header claims"),
    "no virtual tokens": (lambda: tensors(save({"prompt": torch.zeros(0, 8)})), r"shape \(0, 8\)"),
    "half precision": (lambda: tensors(save({"prompt": torch.zeros(3, 8).half()})), "of torch.float16"),
    "eight bits": (lambda: tensors(save({"prompt": torch.zeros(3, 8).to(torch.float8_e5m2)})), "of torch.float8"),
    "one more tensor": (
        lambda: tensors(save({"prompt": torch.zeros(3, 8), "more": torch.zeros(1)})),
        "2 tensors, expected 1",
    ),
    "members that overlap": (
        lambda: with_manifest(tensors(save({"prompt": torch.zeros(3, 8)})), members=10**9),
        "with 1000000000 members in 1 tensors",
    ),
    "not a number": (lambda: tensors(save({"prompt": torch.full((3, 8), torch.nan)})), "values that are not numbers"),
    "infinite": (lambda: tensors(save({"prompt": torch.full((3, 8), -torch.inf)})), "values that are not numbers"),
    "other length": (lambda: tensors(save({"prompt": torch.zeros(4, 8)})), "4 virtual tokens, its length says 3"),
    "deep JSON": (lambda: manifest(b'{"a":' * 100_000), "its values are nested too deep"),
    "deep lists": (lambda: manifest(b"[" * 2_000_000), "its values are nested too deep"),
    "keys twice": (lambda: manifest(b'{"schema_version": 1, "schema_version": 1}'), "the key 'schema_version' twice"),
    "keys twice, within": (lambda: manifest(b'{"a": [{"b": 1, "c": 2, "b": 3}]}'), "it has the key 'b' twice"),
    "enormous integer": (lambda: manifest(b'{"seed": %s}' % (b"9" * 4000)), "a whole number of 4,000 digits"),
    "more enormous integer": (lambda: manifest(b'{"seed": %s}' % (b"9" * 10**6)), "of 1,000,000 digits"),
    "large JSON": (lambda: manifest(b" " * TEXT_LIMIT + b"{}"), f"at most {TEXT_LIMIT:,} bytes of JSON"),
    "half a surrogate pair": (lambda: manifest(b'{"a": "\\ud800"}'), "it has text that is not Unicode"),
    "not UTF-8": (lambda: manifest(b"\xff\xfe{}"), "is damaged"),
    "zip bomb as JSON": (lambda: manifest(zip_bomb()), "is damaged"),
    "no manifest": (lambda: {TENSOR_FILE: FILES[TENSOR_FILE]}, "is no saved prompt, it holds no prompt.json"),
    "endless template": (
        lambda: with_manifest(FILES, task={**a_prompt().spec.to_dict(), "template": "{{ text }}{{ 9**9**9 }}"}),
        r"the template uses arithmetic \('\*\*'\)",
    ),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_hostile_files_end_in_one_line(how: str, tmp_path: Path) -> None:
    make, words = HOSTILE[how]
    files = make()
    if not words:
        with in_time():
            parse_prompt(files, "it")
    else:
        with in_time(), pytest.raises(PromptFileError, match=words) as caught:
            parse_prompt(files, "it")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000
        # the same from a folder, and nothing of it gets into a store
        folder = tmp_path / "p"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        with pytest.raises(PromptFileError):
            load_prompt(folder)
        with pytest.raises(PromptFileError):
            Store(tmp_path / "store").put(folder, "p")
        assert not (tmp_path / "store").exists()


class TestKindsOfFiles:
    @pytest.mark.parametrize("name", [MANIFEST_FILE, TENSOR_FILE])
    @pytest.mark.parametrize("kind", ["pipe", "folder", "device", "sparse"])
    def test_only_regular_files_of_bounded_size_are_read(self, tmp_path: Path, name: str, kind: str) -> None:
        path = a_prompt().save(tmp_path / "p") / name
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            with path.open("wb") as stream:
                stream.truncate(2**40)
        with pytest.raises(PromptFileError, match=r"expected (a regular file|at most [0-9,]+ bytes, got 1,099,)"):
            load_prompt(path.parent)

    def test_limits(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(b"12345")
        assert read_file(tmp_path / "x", 5) == b"12345"
        with pytest.raises(ValueError, match="expected at most 4 bytes, got 5"):
            read_file(tmp_path / "x", 4)

    def test_a_store_refuses_links_to_elsewhere(self, tmp_path: Path) -> None:
        store = Store(tmp_path / "store")
        store.put(a_prompt(), "p")
        path = tmp_path / "store" / "p" / "1" / TENSOR_FILE
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(StoreError, match="got a link or another kind of file"):
            store.get("p@1")

    def test_a_record_cannot_name_what_lies_elsewhere(self, tmp_path: Path) -> None:
        store = Store(tmp_path / "store")
        store.put(a_prompt(), "p")
        path = tmp_path / "store" / "p" / "1" / "version.json"
        for name in ("../../secret", "/etc/passwd", "a/b", ".claim", "..", "a\n"):
            facts = {"size": 1, "sha256": "0" * 64}
            path.write_text(json.dumps(seal({**unseal(json.loads(path.read_text())), "files": {name: facts}})))
            with pytest.raises(StoreError, match=r"version.json' in the store .* is damaged: files"):
                store.get("p@1")

    def test_a_record_cannot_ask_for_more_than_the_limit(self) -> None:
        facts = {"size": FILE_LIMIT + 1, "sha256": "0" * 64}
        values = {"schema_version": 1, "name": "p", "number": 1, "created": "2026-01-01T00:00:00Z", "by": "me"}
        with pytest.raises(ValueError, match=r"files\.x\.size"):
            Version.from_bytes(json.dumps({**values, "files": {"x": facts}}).encode())
        many = {f"f{index}": {**facts, "size": 1} for index in range(65)}
        with pytest.raises(ValueError, match="files: Dictionary should have at most 64 items"):
            Version.from_bytes(json.dumps({**values, "files": many}).encode())


@pytest.mark.parametrize(
    "shapes", [[(2, 2, 3, 8)], [(2, 2, 3, 8)] * 9, [(2, 1, 3, 8)] * 2, [(2, 2, 3, 5)] * 2], ids=str
)
def test_keys_and_values_of_another_shape_than_the_base_has(shapes: list[tuple[int, ...]]) -> None:
    base = tiny_base("llama")
    state = PromptState("key_values", tuple(torch.zeros(shape) for shape in shapes))
    prompt = replace(a_prompt(), states=(state,), base_fingerprint=base.fingerprint)
    loaded = parse_prompt(prompt.files(), "it")
    with pytest.raises(PromptFileError, match=r"keys and values of \d layers that are not as 'tiny llama' has them"):
        _ = Predictor.of_prompt(base, loaded).prefix


def test_virtual_tokens_of_another_size_than_the_base_has() -> None:
    base = tiny_base("llama")
    prompt = replace(a_prompt(), base_fingerprint=base.fingerprint)
    with pytest.raises(PromptFileError, match=r"virtual tokens of 8 numbers, 'tiny llama' has 32, though"):
        prompt.check_base(base)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """``content`` with some bytes changed, cut out, put in or said twice."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(found)))
        piece = draw(st.binary(max_size=12))
        until = at + draw(st.sampled_from([0, 1, len(piece), 40, len(found)]))
        found[at:until] = draw(st.sampled_from([piece, bytes(found[at:until]) * 2, b"\x00" * len(piece)]))
    return bytes(found)


@st.composite
def changed(draw: st.DrawFn, values: Any) -> Any:
    """A JSON value with another one somewhere in it, or something missing."""
    if isinstance(values, dict) and values and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(values)))
        if not draw(st.integers(0, 5)):
            return {name: value for name, value in values.items() if name != key}
        return {**values, key: draw(changed(values[key]))}
    return draw(JSON_VALUES)


@st.composite
def broken_prompts(draw: st.DrawFn) -> dict[str, bytes]:
    """The files of a saved prompt, one of them not as it was; its digest is right half of the time."""
    how = draw(st.sampled_from(["bytes of both", "tensors", "header", "manifest", "random"]))
    if how == "random":
        return {MANIFEST_FILE: draw(st.binary(max_size=200)), TENSOR_FILE: draw(st.binary(max_size=200))}
    if how == "bytes of both":
        return {name: draw(mutated(content)) for name, content in FILES.items()}
    if how == "manifest":
        values = draw(changed(json.loads(FILES[MANIFEST_FILE])))
        return manifest(json.dumps(values).encode("utf-8", "surrogatepass"))
    content = FILES[TENSOR_FILE]
    size = int.from_bytes(content[:8], "little")
    if how == "header":
        values = draw(changed(json.loads(content[8 : 8 + size])))
        text = json.dumps(values).encode("utf-8", "surrogatepass")
        return tensors(header(text, data=content[8 + size :]))
    return tensors(draw(mutated(content)))


def check_prompt(files: dict[str, bytes]) -> None:
    """Either a prompt that can be told of, or one line."""
    try:
        with in_time():
            prompt = parse_prompt(files, "it")
    except PromptFileError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    assert isinstance(prompt, Prompt)
    assert all(torch.isfinite(tensor).all() for state in prompt.states for tensor in state.tensors)
    told = render_terminal(make_prompt_document(prompt))
    assert all(letter.isprintable() for letter in told.replace("\n", ""))


def check_record(content: bytes) -> None:
    for kind in (Marker, Version, AliasChange):
        try:
            record = kind.from_bytes(content)
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert kind.from_bytes(record.to_bytes()) == record


def check_reader(content: bytes) -> None:
    for read in (parse_json, check_header):
        try:
            read(content)
        except ValueError:
            continue


def records() -> list[bytes]:
    move = AliasChange.new("promote", by="me", name="p", alias="prod", before=None, to=1, gate={"p": 0.5})
    version = Version.new("p", 1, {}, by="me")
    return [one.to_bytes() for one in (move, version, Marker())]


fuzzed = settings(deadline=None, max_examples=QUICK, suppress_health_check=list(HealthCheck), derandomize=True)
fuzzed_long = settings(fuzzed, max_examples=MANY, derandomize=False)


@fuzzed
@given(broken_prompts())
def test_fuzzed_prompts(files: dict[str, bytes]) -> None:
    check_prompt(files)


@fuzzed
@given(st.sampled_from(records()).flatmap(mutated) | st.binary(max_size=100))
def test_fuzzed_records(content: bytes) -> None:
    check_record(content)
    check_reader(content)


@pytest.mark.slow
@fuzzed_long
@given(broken_prompts())
def test_fuzzed_prompts_by_the_thousand(files: dict[str, bytes]) -> None:
    check_prompt(files)


@pytest.mark.slow
@fuzzed_long
@given(st.sampled_from(records()).flatmap(mutated) | st.binary(max_size=100))
def test_fuzzed_records_by_the_thousand(content: bytes) -> None:
    check_record(content)
    check_reader(content)


@fuzzed
@given(st.text(max_size=20))
def test_fuzzed_references_touch_nothing(text: str) -> None:
    """Whatever is asked of an empty store, the answer is one line; nothing is made and no path leads out of it."""
    store = ArtifactStore("memory://never-written")
    with pytest.raises(SoftpromptError) as caught:
        Store(store.url).get(text)
    assert "\n" not in str(caught.value)
