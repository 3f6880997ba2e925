"""Files of samples that somebody damaged or made: one line of an error, or the sound rows and a count of the others."""

import json
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import pytest
from helpers.planted_traffic import World, sample, samples, write
from helpers.small_tasks import command

from softprompt.errors import DataError
from softprompt.serving.request_log.request_records import parse_span
from softprompt.serving.request_log.sample_files import COLUMNS, read_samples


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "samples.db", samples(World(0).draw(2000)))


def changed(path: Path, *statements: str) -> Path:
    """After SQL."""
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()
    return path


def refused(path: Path) -> str:
    """The one line of the command."""
    done = command("monitor", "--sample-file", path, "--prompt", "tone=/nowhere")
    assert done.code == 2
    return done.error


def test_cut_off(file: Path) -> None:
    whole = file.read_bytes()
    for size in (1, 100, 4096, len(whole) // 2, len(whole) - 4096):
        file.write_bytes(whole[:size])
        assert "is no sound SQLite file of samples" in refused(file)
    file.write_bytes(b"")
    assert "it was not written by softprompt" in refused(file)


def test_bytes_turned_over(file: Path) -> None:
    whole = file.read_bytes()
    for place in range(4096, len(whole), len(whole) // 40):
        file.write_bytes(whole[:place] + bytes(255 - one for one in whole[place : place + 60]) + whole[place + 60 :])
        with suppress(DataError):
            found = read_samples(file)
            assert len(found.samples) + found.damaged <= 2000


@pytest.mark.parametrize(
    ("statements", "words"),
    [
        (["PRAGMA application_id = 5"], "it was not written by softprompt"),
        (["PRAGMA user_version = 9"], "it has schema version 9, expected 2"),
        (["DROP TABLE samples"], "its table has other columns"),
        (["ALTER TABLE samples DROP COLUMN answer"], "its table has other columns"),
        (["ALTER TABLE samples ADD COLUMN more TEXT"], "its table has other columns"),
        (
            ["ALTER TABLE samples RENAME TO other", "CREATE VIEW samples AS SELECT * FROM other"],
            "its table has other columns",
        ),
        (["UPDATE samples SET text = zeroblob(8000000) WHERE id = 7"], "too big"),
    ],
)
def test_another_schema(file: Path, statements: list[str], words: str) -> None:
    error = refused(changed(file, *statements))
    assert words in error
    assert "give the one that softprompt serve wrote" in error


@pytest.mark.parametrize("content", [b"hello\n" * 1000, bytes(range(256)) * 50, b"PK\x03\x04" + bytes(4000)])
def test_no_database(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "samples.db"
    path.write_bytes(content)
    assert "is no sound SQLite file of samples: file is not a database" in refused(path)
    path = path.rename(tmp_path / "samples.jsonl")
    assert "rows is a sample: give the file that serve wrote" in refused(path)


def test_no_file(tmp_path: Path) -> None:
    assert "expected a file that softprompt serve wrote, found none" in refused(tmp_path / "none.db")
    assert "expected a file of samples, got no regular file" in refused(tmp_path)
    assert "expected a file that softprompt serve wrote, found none" in refused(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    "change",
    [
        "time = 'soon'",
        "time = -1.0",
        "time = 9e999",
        "prompt = NULL",
        "tokens = 'many'",
        "tokens = -4",
        "rare = 1.5",
        "milliseconds = 'x'",
        "probabilities = '{\"good\": 7}'",
        "probabilities = '[1]'",
        "probabilities = 'NaN'",
        "probabilities = '" + "[" * 3000 + "'",
        "columns = '[1]'",
        "text = x'ff'",
        "error = '" + "e" * 1000 + "'",
    ],
)
def test_odd_values_cost_their_row_only(file: Path, change: str) -> None:
    found = read_samples(changed(file, f"UPDATE samples SET {change} WHERE id = 7"))
    assert len(found.samples) == 1999
    assert found.damaged == 1


def test_text_that_is_no_text(file: Path) -> None:
    assert "Could not decode" in refused(changed(file, "UPDATE samples SET text = CAST(x'ff' AS TEXT) WHERE id = 7"))


def test_odd_lines_cost_themselves_only(tmp_path: Path) -> None:
    good = sample(number=1).model_dump(exclude_none=True)
    odd = [
        b"\xff\xfe",
        b"[]",
        b"7",
        b"{",
        json.dumps({**good, "more": 1}).encode(),
        json.dumps({**good, "time": "1"}).encode(),
        json.dumps({name: good[name] for name in ("time", "request")}).encode(),
        json.dumps(good).encode().replace(b"12.5", b"NaN"),
        json.dumps(good).encode().replace(b"12.5", b"1e999"),
        json.dumps({**good, "text": "\ud800"}).encode(),
        b'{"a":' * 5000,
        b'{"time": 1, "time": 2}',
    ]
    path = tmp_path / "s.jsonl"
    path.write_bytes(b"\n".join([json.dumps(good).encode(), *odd, b"", json.dumps(good).encode()]))
    found = read_samples(path)
    assert (len(found.samples), found.damaged) == (2, len(odd))


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    with path.open("wb") as stream:
        stream.truncate(50_000_000)
    with pytest.raises(DataError, match="none of its 48 rows is a sample"):
        read_samples(path)


def test_texts_are_held_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softprompt.serving.request_log.sample_files.READ_CHARACTERS", 10_000)
    path = write(tmp_path / "s.db", [sample(number=i, text="x" * 1000) for i in range(50)])
    kept = [one.text is not None for one in read_samples(path).samples]
    assert kept == [False] * (50 - sum(kept)) + [True] * sum(kept)
    assert sum(kept) == 9


def test_hostile_names_are_plain_in_the_terminal(tmp_path: Path) -> None:
    path = write(tmp_path / "s.db", [sample(number=i, prompt="\x1b[31mred@1\n") for i in range(3)])
    assert len(read_samples(path).samples) == 3


@pytest.mark.parametrize(("span", "seconds"), [("7d", 604_800), ("12h", 43_200), ("30m", 1800)])
def test_spans(span: str, seconds: int) -> None:
    assert parse_span(span, "--since") == seconds


def test_columns_are_those_of_a_sample() -> None:
    assert COLUMNS[:3] == ("time", "request", "prompt")
