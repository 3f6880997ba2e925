"""Writers at the same time, in processes of their own: on a folder and on S3 nothing is lost."""

import os
import subprocess
import sys
from pathlib import Path

import fsspec

from softprompt.store.artifacts import ArtifactStore

ROOT = Path(__file__).parents[2]

WRITER = """
import sys
from softprompt.store.artifacts import ArtifactStore
from softprompt.errors import StoreError
from softprompt.store.metadata import AliasChange
url, who, turns = sys.argv[1], sys.argv[2], int(sys.argv[3])
store = ArtifactStore(url)
print("ready", flush=True)
sys.stdin.readline()
for turn in range(turns):
    files = {f"{name}.txt": f"{who} {turn} {name}".encode() * 1000 for name in "abc"}
    print(store.add("p", files, by=who).number, flush=True)
for turn in range(2 * turns):
    history = store.alias_changes("p", "prod")
    before = history[-1].to if history else None
    move = AliasChange.new("promote", by=who, name="p", alias="prod", before=before, to=(before or 0) + 1)
    try:
        print(store.append(history, move).token, flush=True)
    except StoreError as error:
        assert "meanwhile" in str(error), error
assert "torch" not in sys.modules
"""
"""Adds versions, then moves an alias, and prints the number or the token of whatever succeeded."""


def together(url: str, writers: int, turns: int, **environment: str) -> list[list[str]]:
    """What each of several processes that started at once printed: ``turns`` numbers, then tokens."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, url, f"writer{number}", str(turns)],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(writers)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * writers, outputs
    return [out.split() for out, _ in outputs]


def check(store: ArtifactStore, printed: list[list[str]], turns: int) -> None:
    numbers = [one[:turns] for one in printed]
    assert sorted(int(number) for own in numbers for number in own) == list(range(1, turns * len(printed) + 1))
    for who, own in enumerate(numbers):
        for turn, number in enumerate(own):
            version = store.version("p", number)
            assert version.by == f"writer{who}"
            assert store.read(version) == {
                f"{name}.txt": f"writer{who} {turn} {name}".encode() * 1000 for name in "abc"
            }
    history = store.alias_changes("p", "prod")
    assert sorted(move.token for move in history) == sorted(token for one in printed for token in one[turns:])
    assert [move.before for move in history] == [None, *(move.to for move in history[:-1])]
    assert [move.to for move in history] == list(range(1, len(history) + 1))


def test_on_a_folder(tmp_path: Path) -> None:
    store = tmp_path / "store"
    check(ArtifactStore(store), together(str(store), 4, 10), 10)
    hidden = [one for one in store.rglob("*") if one.name.startswith(".")]
    assert hidden == []


def test_on_s3(bucket: str, s3_environment: dict[str, str]) -> None:
    check(ArtifactStore(bucket), together(bucket, 2, 4, **s3_environment), 4)


def test_a_bucket_holds_what_a_folder_would(bucket: str, tmp_path: Path) -> None:
    versions = []
    for url in (bucket, tmp_path / "store"):
        ArtifactStore(url).add("p", {"x": b"1"}, by="me")
        versions.append(ArtifactStore(url).version("p", "1").model_copy(update={"created": None}))
    assert versions[0] == versions[1]
    fsspec.filesystem("s3").get(f"{bucket}/p/1", str(tmp_path / "copy"), recursive=True)
    assert {one.name for one in (tmp_path / "copy").iterdir()} == {".claim", "version.json", "x"}
