"""Where a store lies: a folder, or any URL that fsspec knows. Both can create a file or a folder once and for all.

Two writers are kept apart by that alone, without locks that a crash would leave behind: of two that create the same
path, one gets FileExistsError. A folder does it with a hard link (files) and a rename (folders); a URL with
``mode="create"`` of fsspec, which S3 and Google Cloud Storage turn into a conditional request (S3: ``If-None-Match``)
and other backends into a mere look before the write.
"""

import errno
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from softprompt.errors import MissingExtraError, SoftpromptError, StoreError, map_write_errors
from softprompt.utils.files import clear_leftovers, expand_user, write_durably
from softprompt.utils.safe_io import read_open_file

CLAIM = ".claim"  # in a folder of a bucket: who may write it
ATTEMPTS, PAUSE = 5, 0.2  # at a write that another one is in the way of; seconds between them


class StorageBackend(Protocol):
    """Files by path, with ``/`` between names that were checked already.

    All raise FileNotFoundError or FileExistsError where the names say so, else StoreError or OutputError.
    """

    url: str

    def read(self, path: str, limit: int) -> bytes:
        """The bytes of a file; StoreError if it has more than ``limit``."""
        ...

    def list_names(self, path: str) -> list[str]:
        """Of files and folders in a folder, those that are hidden left out; none if it is no folder."""
        ...

    def create(self, path: str, content: bytes) -> None:
        """Write a file that is not there yet, whole or not at all; FileExistsError if it is."""
        ...

    def create_folder(self, path: str, files: Mapping[str, bytes]) -> None:
        """Write a folder that is not there yet; FileExistsError if it is. Who finds its last file finds all."""
        ...


def open_backend(url: str | Path) -> StorageBackend:
    """The place of a folder or URL; nothing is made or asked yet.

    Raises:
        StoreError: a URL of a kind that fsspec does not know.
        MissingExtraError: its package is not installed.
    """
    text = str(url)
    if text.startswith("file://"):
        return LocalBackend(Path(text.removeprefix("file://")))
    return FsspecBackend(text) if "://" in text else LocalBackend(expand_user(url))


class LocalBackend:
    """A place on a file system. Links below it are not followed: they could lead out of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self.url = os.path.normpath(self._folder)

    def read(self, path: str, limit: int) -> bytes:
        with _map_read_errors(f"{self.url}/{path}"):
            return read_open_file(self._open(path, os.O_NONBLOCK), limit)

    def list_names(self, path: str) -> list[str]:
        with _map_read_errors(f"{self.url}/{path}"):
            try:
                descriptor = self._open(path, os.O_DIRECTORY)
            except (FileNotFoundError, NotADirectoryError):
                return []
        try:
            with os.scandir(descriptor) as found:
                return sorted(one.name for one in found if not one.name.startswith("."))
        finally:
            os.close(descriptor)

    def create(self, path: str, content: bytes) -> None:
        target = self._folder / path
        with self._writing_to(target):
            temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
            try:
                write_durably(temporary, content)
                os.link(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)

    def create_folder(self, path: str, files: Mapping[str, bytes]) -> None:
        target = self._folder / path
        with self._writing_to(target):
            temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            try:
                for name, content in files.items():
                    write_durably(temporary / name, content)
                temporary.chmod(0o755)
                temporary.rename(target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def _open(self, path: str, flags: int) -> int:
        """A descriptor of what lies there, each step to it being taken from the one before."""
        *folders, last = (one for one in path.split("/") if one) if path else (".",)
        within = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        for name, how in [*((folder, os.O_DIRECTORY) for folder in folders), (last, flags)]:
            try:
                inner = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | how, dir_fd=within)
            finally:
                os.close(within)
            within = inner
        return within

    @contextmanager
    def _writing_to(self, target: Path) -> Iterator[None]:
        """Make the folder of ``target`` first, and put it on the disk after."""
        taken = False
        with map_write_errors(target, "give another store"):
            target.parent.mkdir(parents=True, exist_ok=True)
            clear_leftovers(target.parent)
            if target.parent.resolve() != self._folder.resolve() / target.parent.relative_to(self._folder):
                raise StoreError(f"cannot write '{target}': there is a link in its path, which could lead elsewhere")
            try:
                yield
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                taken = True
            with suppress(OSError):  # not every file system can
                descriptor = os.open(target.parent, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        if taken:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))


class FsspecBackend:
    """A place behind a URL of fsspec."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        protocol = url.partition("://")[0]
        try:
            # what others wrote a moment ago must be seen
            self._files, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            if protocol in ("s3", "s3a"):
                raise MissingExtraError("s3fs", "store") from error
            raise StoreError(f"cannot open the store '{url}': {error}") from error
        except Exception as error:  # of whichever package it is
            raise StoreError(f"cannot open the store '{url}': {error}; expected a folder or a URL of fsspec") from error

    def read(self, path: str, limit: int) -> bytes:
        where = self._locate(path)
        with _map_read_errors(f"{self.url}/{path}"):
            size = self._files.info(where)["size"]
            if size > limit:
                raise ValueError(f"expected at most {limit:,} bytes, got {size:,}")
            return bytes(self._files.cat_file(where))

    def list_names(self, path: str) -> list[str]:
        where = self._locate(path)
        try:
            with _map_read_errors(f"{self.url}/{path}"):
                found = self._files.ls(where, detail=False)
        except FileNotFoundError:
            return []
        names = {one.rstrip("/").rpartition("/")[2] for one in found if one.rstrip("/") != where}
        return sorted(name for name in names if not name.startswith("."))

    def create(self, path: str, content: bytes) -> None:
        where = self._locate(path)
        with _map_write_errors(f"{self.url}/{path}"):
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    self._files.pipe_file(where, content, mode="create")
                    return
                except OSError as error:
                    if self._files.exists(where):
                        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from error
                    # another writer was in the way, and may have failed
                    if _find_code(error) not in ("ConditionalRequestConflict", "409") or attempt == ATTEMPTS:
                        raise
                    time.sleep(PAUSE)

    def create_folder(self, path: str, files: Mapping[str, bytes]) -> None:
        claim = secrets.token_hex(16).encode()
        try:
            self.create(f"{path}/{CLAIM}", claim)
        except FileExistsError:
            # a request that was sent again, its first answer being lost, finds what it wrote itself
            if self.read(f"{path}/{CLAIM}", len(claim)) != claim:
                raise
        with _map_write_errors(f"{self.url}/{path}"):
            for name, content in files.items():
                self._files.pipe_file(self._locate(f"{path}/{name}"), content)

    def _locate(self, path: str) -> str:
        return f"{self._root}/{path}".rstrip("/")


@contextmanager
def _map_read_errors(what: str) -> Iterator[None]:
    """Turn whatever goes wrong, but a file that is not there, into one StoreError."""
    try:
        yield
    except (FileNotFoundError, SoftpromptError):
        raise
    except Exception as error:  # backends have classes of their own
        link = isinstance(error, OSError) and error.errno in (errno.ELOOP, errno.EMLINK, errno.ENOTDIR)
        reason = (
            "expected plain files and folders, got a link or another kind of file" if link else _describe_error(error)
        )
        raise StoreError(f"cannot read '{what}': {reason}") from error


@contextmanager
def _map_write_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, SoftpromptError):
        raise
    except Exception as error:  # backends have classes of their own
        raise StoreError(f"cannot write '{what}': {_describe_error(error)}") from error


def _find_code(error: Exception) -> str:
    """What botocore calls an error, if it is one of its."""
    response: Any = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _describe_error(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
