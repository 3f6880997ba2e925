"""Where stores lie: a folder, S3 (a local server), and what fsspec has besides."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from softprompt.errors import MissingExtraError, OutputError, StoreError
from softprompt.store import backends
from softprompt.store.artifacts import ArtifactStore
from softprompt.store.backends import FsspecBackend, LocalBackend, StorageBackend, open_backend

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:(aio)?botocore")


@pytest.fixture(params=["folder", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StorageBackend:
    if request.param == "folder":
        return open_backend(tmp_path / "store")
    if request.param == "memory":
        return open_backend(f"memory://{uuid4().hex}")
    return open_backend(request.getfixturevalue("bucket"))


class TestEveryPlace:
    def test_a_file_is_created_once(self, place: StorageBackend) -> None:
        place.create("a/b/c.json", b"first")
        with pytest.raises(FileExistsError):
            place.create("a/b/c.json", b"second")
        assert place.read("a/b/c.json", 100) == b"first"

    def test_a_folder_is_created_once(self, place: StorageBackend) -> None:
        place.create_folder("a/1", {"x": b"1", "y": b""})
        with pytest.raises(FileExistsError):
            place.create_folder("a/1", {"z": b"2"})
        assert place.list_names("a/1") == ["x", "y"]
        assert (place.read("a/1/x", 1), place.read("a/1/y", 1)) == (b"1", b"")

    def test_names(self, place: StorageBackend) -> None:
        assert place.list_names("") == place.list_names("a") == []
        place.create("a/10.json", b"")
        place.create_folder("a/9", {"x": b"1"})
        place.create("b", b"x")
        assert place.list_names("a") == ["10.json", "9"]
        assert place.list_names("") == ["a", "b"]
        assert place.list_names("none") == []

    def test_nothing_there(self, place: StorageBackend) -> None:
        with pytest.raises(FileNotFoundError):
            place.read("a/b", 10)
        place.create("a/c", b"")
        with pytest.raises(FileNotFoundError):
            place.read("a/b", 10)

    def test_more_than_the_limit_is_not_read(self, place: StorageBackend) -> None:
        place.create("a", b"12345")
        assert place.read("a", 5) == b"12345"
        with pytest.raises(StoreError, match=r"cannot read '.*a': expected at most 4 bytes, got 5"):
            place.read("a", 4)

    def test_what_others_wrote_is_seen_at_once(self, place: StorageBackend) -> None:
        other = open_backend(place.url)
        place.create_folder("a/1", {"x": b"1"})
        assert other.list_names("a") == ["1"]
        other.create_folder("a/2", {"x": b"2"})
        assert place.list_names("a") == ["1", "2"]


class TestFolder:
    def test_urls_and_tildes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        urls = {open_backend(url).url for url in ("~/x", f"file://{tmp_path}/x", tmp_path / "x", "x", "./x/../x/")}
        assert urls == {str(tmp_path / "x")}

    @pytest.mark.parametrize(
        "write",
        [lambda place: place.create("n/a", b"1"), lambda place: place.create_folder("n/a", {"x": b"1"})],
        ids=["file", "folder"],
    )
    def test_a_crash_while_writing_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[StorageBackend], None]
    ) -> None:
        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match=r"no space left to write '.*a': free some space, or give another store"):
            write(LocalBackend(tmp_path))
        assert list((tmp_path / "n").iterdir()) == []

    def test_nothing_is_left_beside_what_was_there(self, tmp_path: Path) -> None:
        place = LocalBackend(tmp_path)
        for _ in range(2):
            try:
                place.create("a", b"1")
                place.create_folder("b", {"x": b"1"})
            except FileExistsError:
                continue
        with pytest.raises(FileExistsError):
            place.create_folder("b", {"x": b"2"})
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]

    def test_a_file_system_without_links(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def unable(*_: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", unable)
        with pytest.raises(OutputError, match=r"no permission to write '.*a': give another store"):
            LocalBackend(tmp_path).create("a", b"1")
        assert list(tmp_path.iterdir()) == []

    def test_below_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(OutputError, match=r"cannot write .*give another store"):
            LocalBackend(tmp_path / "file").create("a", b"1")

    @pytest.mark.parametrize("what", ["file", "folder on the way", "pipe", "folder as file", "dangling"])
    def test_links_and_other_kinds_of_files_are_not_read(self, tmp_path: Path, what: str) -> None:
        (tmp_path / "secret").mkdir()
        (tmp_path / "secret" / "x").write_text("secret")
        store = tmp_path / "store"
        (store / "a").mkdir(parents=True)
        if what == "file":
            (store / "a" / "x").symlink_to(tmp_path / "secret" / "x")
        elif what == "dangling":
            (store / "a" / "x").symlink_to(tmp_path / "nowhere")
        elif what == "pipe":
            os.mkfifo(store / "a" / "x")
        elif what == "folder as file":
            (store / "a" / "x").mkdir()
        else:
            (store / "a").rmdir()
            (store / "a").symlink_to(tmp_path / "secret")
            assert LocalBackend(store).list_names("a") == []
        with pytest.raises(
            StoreError, match=r"cannot read '.*x': (expected plain files and folders|expected a regular)"
        ):
            LocalBackend(store).read("a/x", 100)

    def test_nothing_is_written_through_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "store").mkdir()
        (tmp_path / "store" / "a").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(StoreError, match="there is a link in its path, which could lead elsewhere"):
            LocalBackend(tmp_path / "store").create_folder("a/1", {"x": b"1"})
        assert list((tmp_path / "elsewhere").iterdir()) == []

    def test_the_store_itself_may_be_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        LocalBackend(tmp_path / "link").create("a/b", b"1")
        assert LocalBackend(tmp_path / "link").read("a/b", 1) == b"1"


class Careless(MemoryFileSystem):
    """A backend to which creating is writing."""

    protocol = "careless"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        super().pipe_file(path, value, mode="overwrite", **kwargs)


class TestBucket:
    def test_a_backend_that_does_not_keep_writers_apart_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fsspec.register_implementation("careless", Careless, clobber=True)
        url = f"careless://{uuid4().hex}"
        with pytest.raises(
            StoreError, match="does not keep two writers apart: use a folder, S3 or Google Cloud Storage"
        ):
            ArtifactStore(url).add("a", {"x": b"1"})
        assert str(ArtifactStore(url, single_writer=True).add("a", {"x": b"1"})) == "a@1"
        monkeypatch.setenv("SOFTPROMPT_SINGLE_WRITER", "1")
        assert str(ArtifactStore(url).add("a", {"x": b"2"})) == "a@2"

    def test_a_half_written_version_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        store = ArtifactStore(f"memory://{uuid4().hex}")
        store.add("a", {"x": b"1"})
        write = MemoryFileSystem.pipe_file

        def broken(files: Any, path: str, *arguments: Any, **named: Any) -> None:
            if path.endswith("2/y"):
                raise ConnectionError("the line is cut")
            write(files, path, *arguments, **named)

        monkeypatch.setattr(MemoryFileSystem, "pipe_file", broken)
        with pytest.raises(StoreError, match=r"cannot write '.*a/2': the line is cut"):
            store.add("a", {"x": b"2", "y": b"2"})
        assert [str(one) for one in store.versions("a")] == ["a@1"]
        assert str(store.version("a", "latest")) == "a@1"
        with pytest.raises(StoreError, match=r"holds no a@2, its versions are 1$"):
            store.version("a", "2")
        monkeypatch.undo()
        assert str(store.add("a", {"x": b"3"})) == "a@3"
        assert str(store.version("a", "latest")) == "a@3"

    def test_a_conflict_is_tried_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Conflict(Exception):
            response = {"Error": {"Code": "ConditionalRequestConflict"}}  # noqa: RUF012

        write, calls = MemoryFileSystem.pipe_file, []

        def busy(files: Any, path: str, *arguments: Any, **named: Any) -> None:
            calls.append(path)
            if len(calls) < 3:
                raise OSError("busy") from Conflict()
            write(files, path, *arguments, **named)

        monkeypatch.setattr(MemoryFileSystem, "pipe_file", busy)
        monkeypatch.setattr(backends, "PAUSE", 0)
        place = FsspecBackend(f"memory://{uuid4().hex}")
        place.create("a", b"1")
        assert len(calls) == 3
        assert place.read("a", 1) == b"1"

    def test_a_refusal_in_other_words_counts_as_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        place = FsspecBackend(f"memory://{uuid4().hex}")
        place.create("a", b"1")

        def refused(*_: Any, **__: Any) -> None:
            raise OSError(errno.EINVAL, "precondition failed")

        monkeypatch.setattr(MemoryFileSystem, "pipe_file", refused)
        with pytest.raises(FileExistsError):
            place.create("a", b"2")
        with pytest.raises(StoreError, match=r"cannot write '.*b': precondition failed"):
            place.create("b", b"2")

    def test_a_claim_whose_answer_was_lost_is_ours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        write, lost = MemoryFileSystem.pipe_file, []

        def twice(files: Any, path: str, *arguments: Any, **named: Any) -> None:
            write(files, path, *arguments, **named)
            if path.endswith(backends.CLAIM) and not lost:
                lost.append(path)
                write(files, path, *arguments, **named)

        monkeypatch.setattr(MemoryFileSystem, "pipe_file", twice)
        store = ArtifactStore(f"memory://{uuid4().hex}")
        assert str(store.add("a", {"x": b"1"})) == "a@1"
        assert lost

    def test_unknown_kind(self) -> None:
        with pytest.raises(StoreError, match=r"cannot open the store 'nosuch://x': .*expected a folder or a URL"):
            open_backend("nosuch://x")

    def test_package_that_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(*_: object, **__: object) -> None:
            raise ImportError("Install s3fs to access S3")

        monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
        with pytest.raises(
            MissingExtraError, match=r"'s3fs', which is not installed: pip install 'softprompt\[store\]'"
        ):
            open_backend("s3://bucket/x")

    def test_no_such_bucket(self, bucket: str) -> None:
        with pytest.raises(StoreError, match=r"cannot write 's3://no-such-bucket/x/softprompt-store.json': "):
            ArtifactStore("s3://no-such-bucket/x").add("a", {"x": b"1"})

    @pytest.mark.slow
    def test_nobody_answers(self, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        fsspec.filesystem("s3").clear_instance_cache()
        with pytest.raises(StoreError, match=r"cannot read 's3://bucket-x/y/softprompt-store.json': "):
            ArtifactStore("s3://bucket-x/y").names()
