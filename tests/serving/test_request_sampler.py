"""Samples of requests: what is kept, for whom, how much; and that nothing about them reaches the answers."""

import json
import logging
import os
import resource
import sqlite3
import stat
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.planted_traffic import NOW, World, profile, sample, samples, write
from helpers.tiny_server import BASE_NAME, LABELS, WORDS, Place, a_store, error_of, prompt, the_base
from starlette.testclient import TestClient

from softprompt.data.examples import Example
from softprompt.errors import ConfigError, PromptFileError
from softprompt.serving.engine.engine_requests import EngineBusyError, ServedPrompt
from softprompt.serving.request_log import request_sampler
from softprompt.serving.request_log.request_records import RequestRecord, Retention
from softprompt.serving.request_log.request_sampler import RequestAnswer, RequestOutcome, RequestSampler
from softprompt.serving.request_log.sample_files import (
    JsonlSampleFile,
    SampleFile,
    SqliteSampleFile,
    open_samples,
    read_samples,
)
from softprompt.store.input_profile import PROFILE_FILE, InputProfile

ENDINGS = ("samples.db", "samples.jsonl")


def no_profile(which: str) -> InputProfile | None:
    return None


def taken(text: str = "a fine film", number: int = 0, **changes: Any) -> RequestOutcome:
    fields: dict[str, Any] = {
        "time": NOW + number,
        "id": f"r{number}",
        "model": "tone@1",
        "served": ServedPrompt("tone@1:x", LABELS, prompt().states),
        "key": "ci",
        "route": "/v1/classify",
        "examples": [Example(text)],
        "answers": [RequestAnswer("good", {"bad": 0.25, "good": 0.75})],
        "seconds": 0.0125,
        "status": 200,
        "code": "",
    }
    return RequestOutcome(**{**fields, **changes})


class Memory:
    """A file that can be held, or fail."""

    def __init__(self) -> None:
        self.rows: list[RequestRecord] = []
        self.go = threading.Event()
        self.go.set()
        self.failure: Exception | None = None
        self.closed = False

    def write(self, samples: Sequence[RequestRecord]) -> None:
        rows = list(samples)
        assert self.go.wait(30)
        if self.failure is not None:
            raise self.failure
        self.rows += rows

    def close(self) -> None:
        self.closed = True


def sampler(
    file: SampleFile, counts: "Counter[str]", *, text: bool = True, profile: Any = no_profile
) -> RequestSampler:
    return RequestSampler(the_base(), file, profile, lambda what, n: counts.update({what: n}), rate=1.0, text=text)


class TestSampler:
    def test_what_a_sample_holds(self) -> None:
        known = profile(World(0)).model_copy(update={"frequent": (1,)})
        for text in (True, False):
            file, counts = Memory(), Counter[str]()
            writing = sampler(file, counts, text=text, profile=lambda which: {"tone@1": known}[which])
            writing.offer(taken("a fine film", examples=[Example("a fine film", columns={"title": "x"})]))
            writing.close()
            (row,) = file.rows
            assert (row.prompt, row.key, row.route, row.request) == ("tone@1", "ci", "/v1/classify", "r0")
            assert (row.answer, row.confidence, row.milliseconds) == ("good", 0.75, 12.5)
            assert row.characters == 11
            assert (
                row.tokens == row.rare == len(the_base().tokenizer("a fine film:", add_special_tokens=False).input_ids)
            )
            assert (row.text, row.columns) == (("a fine film", {"title": "x"}) if text else (None, None))
            assert (counts, file.closed) == ({"written": 1}, True)

    def test_a_completion_is_text_of_the_users(self) -> None:
        for text in (True, False):
            file = Memory()
            writing = sampler(file, Counter(), text=text)
            writing.offer(
                taken(served=ServedPrompt("w", WORDS, prompt(WORDS).states), answers=[RequestAnswer("secret words")])
            )
            writing.close()
            assert file.rows[0].answer == ("secret words" if text else None)
            assert file.rows[0].probabilities is None

    def test_a_request_that_failed(self) -> None:
        file = Memory()
        writing = sampler(file, Counter())
        writing.offer(taken(answers=[], status=504, code="deadline"))
        writing.close()
        assert (file.rows[0].answer, file.rows[0].status, file.rows[0].error) == (None, 504, "deadline")

    def test_nothing_queued_is_lost_at_the_end(self) -> None:
        file, counts = Memory(), Counter[str]()
        file.go.clear()
        writing = sampler(file, counts)
        for number in range(1000):
            writing.offer(taken(number=number))
        threading.Timer(0.1, file.go.set).start()
        writing.close()
        assert [row.request for row in file.rows] == [f"r{number}" for number in range(1000)]
        assert counts == {"written": 1000}
        writing.offer(taken())
        assert counts["dropped"] == 1

    def test_under_load_only_what_is_counted_is_lost(self, tmp_path: Path) -> None:
        counts = Counter[str]()
        lock = threading.Lock()

        def count(what: str, n: int) -> None:
            with lock:
                counts.update({what: n})

        file = open_samples(tmp_path / "s.db", Retention.parse("1000000"))
        writing = RequestSampler(the_base(), file, no_profile, count, rate=1.0, text=True)

        def offer(start: int) -> None:
            for number in range(start, start + 3000):
                writing.offer(taken(number=number))

        threads = [threading.Thread(target=offer, args=(3000 * index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        writing.close()
        assert counts["written"] + counts["dropped"] == 12_000
        assert counts["failed"] == 0
        kept = [one.request for one in read_samples(tmp_path / "s.db").samples]
        assert len(kept) == len(set(kept)) == counts["written"]

    def test_a_full_queue_drops_and_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(request_sampler, "QUEUE", 5)
        file, counts = Memory(), Counter[str]()
        file.go.clear()
        writing = sampler(file, counts)
        for number in range(20):
            writing.offer(taken(number=number))
        file.go.set()
        writing.close()
        # one batch may have left the queue before it was full
        assert 5 <= counts["written"] <= 10
        assert counts["written"] + counts["dropped"] == 20

    def test_large_texts_do_not_fill_the_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(request_sampler, "QUEUE_CHARACTERS", 1000)
        file, counts = Memory(), Counter[str]()
        file.go.clear()
        writing = sampler(file, counts)
        for number in range(20):
            writing.offer(taken("x" * 400, number))
        file.go.set()
        writing.close()
        assert counts["dropped"] >= 15

    def test_a_long_text_is_cut(self) -> None:
        file = Memory()
        writing = sampler(file, Counter())
        writing.offer(taken("ab " * 30_000))
        writing.close()
        assert (len(file.rows[0].text or ""), file.rows[0].characters) == (20_000, 90_000)

    def test_one_line_in_the_log_however_often_it_fails(self, caplog: pytest.LogCaptureFixture) -> None:
        file, counts = Memory(), Counter[str]()
        with caplog.at_level(logging.INFO, "softprompt.serving"):
            writing = sampler(file, counts)
            file.failure = OSError(28, "No space left on device")
            for number in range(3):
                writing.offer(taken(number=number))
                until(lambda number=number: counts["failed"] > number)
            file.failure = None
            writing.offer(taken(number=3))
            writing.close()
        assert [one.message for one in caplog.records] == [
            "samples not written, tried again with the next ones",
            "samples are written again",
        ]
        assert caplog.records[0].fields == {"reason": "No space left on device"}  # type: ignore[attr-defined]
        assert counts == {"failed": 3, "written": 1}
        assert [row.request for row in file.rows] == ["r3"]

    def test_a_damaged_profile_costs_only_the_rare_tokens(self, caplog: pytest.LogCaptureFixture) -> None:
        def damaged(which: str) -> InputProfile | None:
            raise PromptFileError("it is damaged")

        file = Memory()
        writing = sampler(file, Counter(), profile=damaged)
        writing.offer(taken())
        writing.offer(taken(number=1))
        writing.close()
        assert [(row.rare, bool(row.tokens)) for row in file.rows] == [(None, True)] * 2
        assert [one.message for one in caplog.records] == ["profile not read"]


def until(condition: Any) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited in vain")


@pytest.mark.parametrize("name", ENDINGS)
class TestFiles:
    def test_written_and_read(self, tmp_path: Path, name: str) -> None:
        some = [*samples(World(0).draw(30)), sample(number=99, columns={"title": "é\n"}, text=None, answer=None)]
        path = write(tmp_path / name, some)
        assert list(read_samples(path).samples) == some
        assert list(read_samples(path, since=NOW + 99).samples) == some[-1:]
        few = read_samples(path, most=10)
        assert (list(few.samples), few.left_out) == (some[-10:], 21)

    def test_only_its_owner_reads_it(self, tmp_path: Path, name: str) -> None:
        umask = os.umask(0)
        try:
            file = open_samples(tmp_path / name, Retention.parse("9"))
            file.write([sample()])
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
            file.close()
            (tmp_path / name).chmod(0o644)
            write(tmp_path / name, samples(World(0).draw(30)), "9")
        finally:
            os.umask(umask)
        assert set(modes.values()) == {0o600}
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600

    def test_the_oldest_go(self, tmp_path: Path, name: str) -> None:
        for start in range(0, 500, 20):
            write(tmp_path / name, [sample(number=start + i) for i in range(20)], "100")
        found = read_samples(tmp_path / name)
        assert 100 <= len(found.samples) <= 110
        assert found.samples[-1].request == "r499"
        assert [one.request for one in found.samples] == [
            f"r{500 - len(found.samples) + i}" for i in range(len(found.samples))
        ]

    def test_those_of_a_span_stay(self, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("softprompt.serving.request_log.sample_files._WHOLE", 10)
        old = [sample(number=i, time=time.time() - 7200) for i in range(20)]
        new = [sample(number=i, time=time.time()) for i in range(100, 120)]
        write(tmp_path / name, old + new, "1h")
        assert [one.request for one in read_samples(tmp_path / name).samples] == [one.request for one in new]

    def test_a_full_disk(self, tmp_path: Path, name: str) -> None:
        file = open_samples(tmp_path / name, Retention.parse("100000"))
        file.write([sample(number=0)])
        with limited(200_000), pytest.raises((OSError, sqlite3.Error)):
            file.write([sample(number=i, text="x" * 20_000) for i in range(1, 60)])
        file.write([sample(number=70)])
        file.close()
        found = read_samples(tmp_path / name)
        assert [one.request for one in found.samples] == ["r0", "r70"]
        assert found.damaged == 0

    def test_what_is_something_else_is_left_alone(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text('{"a": "letter"}\nof mine\n')
        with pytest.raises(
            ConfigError, match=rf"samples cannot be written to '.*{name}': .*; give another --sample-file"
        ):
            open_samples(tmp_path / name, Retention.parse("9"))
        assert (tmp_path / name).read_text() == '{"a": "letter"}\nof mine\n'

    @pytest.mark.parametrize("kind", ["folder", "pipe", "no folder"])
    def test_no_place_to_write(self, tmp_path: Path, name: str, kind: str) -> None:
        path = tmp_path / name
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path = tmp_path / "none" / name
        with pytest.raises(ConfigError, match="samples cannot be written to"):
            open_samples(path, Retention.parse("9"))

    def test_two_writers_and_a_reader(self, tmp_path: Path, name: str) -> None:
        files = [open_samples(tmp_path / name, Retention.parse("100000")) for _ in range(2)]
        for number in range(40):
            files[number % 2].write([sample(number=number)])
            assert len(read_samples(tmp_path / name).samples) == number + 1
        for file in files:
            file.close()


def test_who_was_cut_off_does_not_spoil_the_next_row(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", [sample(number=0), sample(number=1)])
    path.write_bytes(path.read_bytes()[:-30])
    write(path, [sample(number=2)])
    found = read_samples(path)
    assert ([one.request for one in found.samples], found.damaged) == (["r0", "r2"], 1)


@contextmanager
def limited(size: int) -> Iterator[None]:
    """No file grows beyond so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "7w", "", "99999999999", "1 d"])
def test_keep_is_rows_or_a_span(text: str) -> None:
    assert (Retention.parse("500"), Retention.parse("2d")) == (Retention(rows=500), Retention(seconds=172_800))
    with pytest.raises(ConfigError, match="sample_keep: expected a number of rows, as 100000, or a span, as 30d, got"):
        Retention.parse(text)


class TestServed:
    """In a server."""

    @contextmanager
    def served(
        self, tmp_path: Path, *, rate: float = 1.0, text: bool = True
    ) -> Iterator[tuple[TestClient, Place, Path]]:
        path = tmp_path / "samples.db"
        place = Place.of_store(a_store(tmp_path), sampling=(path, rate, text))
        with place.client() as client:
            yield client, place, path

    def test_each_text_of_a_request(self, tmp_path: Path) -> None:
        with self.served(tmp_path) as (client, place, path):
            said = client.post("/v1/classify", json={"model": "tone", "input": ["a fine film", "dull"]})
            client.post("/v1/classify", json={"model": "more", "input": {"text": "a", "title": "b"}})
            chat = {"model": "words", "messages": [{"role": "user", "content": "a film"}], "stream": True}
            streamed = client.post("/v1/chat/completions", json=chat)
            client.post("/v1/completions", json={"model": "tone@latest", "prompt": "dull"})
            client.post("/v1/completions", json={"model": BASE_NAME, "prompt": "not a prompt"})
            place.engine.failure = EngineBusyError(1.0)
            error_of(client.post("/v1/classify", json={"model": "tone", "input": "refused"}), 429)
            error_of(client.post("/v1/classify", json={"model": "none", "input": "unknown"}), 404)
        found = read_samples(path).samples
        assert [(one.prompt, one.text) for one in found] == [
            ("tone@1", "a fine film"),
            ("tone@1", "dull"),
            ("more@1", "a"),
            ("words@1", "a film"),
            ("tone@2", "dull"),
            ("tone@1", "refused"),
        ]
        results = said.json()["results"]
        assert [one.probabilities for one in found[:2]] == [one["probabilities"] for one in results]
        assert found[0].request == found[1].request == said.headers["x-request-id"]
        assert found[2].columns == {"title": "b"}
        parts = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
        assert found[3].answer == "".join(part["choices"][0]["delta"].get("content", "") for part in parts)
        assert (found[4].answer in LABELS.labels, found[4].confidence is not None) == (True, True)
        assert (found[5].status, found[5].error, found[5].answer) == (429, "queue_full", None)

    def test_no_text_unless_asked_for(self, tmp_path: Path) -> None:
        with self.served(tmp_path, text=False) as (client, _, path):
            client.post("/v1/classify", json={"model": "more", "input": {"text": "user's words", "title": "t1tle"}})
            client.post("/v1/completions", json={"model": "words", "prompt": "user's words"})
        content = b"".join(one.read_bytes() for one in path.parent.glob("samples.db*"))
        assert b"user's words" not in content
        assert b"t1tle" not in content
        assert [one.answer in ("yes", "no") for one in read_samples(path).samples] == [True, False]

    def test_a_share_of_them(self, tmp_path: Path) -> None:
        with self.served(tmp_path, rate=0.3) as (client, _, path):
            for _ in range(200):
                client.post("/v1/classify", json={"model": "tone", "input": "dull"})
        assert 25 <= len(read_samples(path).samples) <= 100

    def test_counted(self, tmp_path: Path) -> None:
        with self.served(tmp_path) as (client, _, path):
            client.post("/v1/classify", json={"model": "tone", "input": "dull"})
            until(lambda: 'softprompt_samples_total{result="written"} 1.0' in client.get("/metrics").text)
        assert len(read_samples(path).samples) == 1

    def test_a_disk_that_fails_fails_no_request(self, tmp_path: Path) -> None:
        with self.served(tmp_path) as (client, place, _):
            assert place.sampler is not None
            file = Memory()
            file.failure = sqlite3.OperationalError("database or disk is full")
            place.sampler._file = file
            for _ in range(5):
                assert client.post("/v1/classify", json={"model": "tone", "input": "dull"}).status_code == 200
            until(lambda: 'softprompt_samples_total{result="failed"} 5.0' in client.get("/metrics").text)

    def test_rare_tokens_by_the_profile_of_the_version(self, tmp_path: Path) -> None:
        store = a_store(tmp_path)
        known = profile(World(0)).model_copy(update={"frequent": (1,)})
        one = prompt()
        with_profile = type(one)(**{**vars(one), "extra_files": {PROFILE_FILE: known.to_bytes().decode()}})
        version = store.put(with_profile, "tone")
        place = Place.of_store(store, sampling=(tmp_path / "samples.db", 1.0, False))
        with place.client() as client:
            for which in ("tone@1", str(version)):
                client.post("/v1/classify", json={"model": which, "input": "dull"})
        old, new = read_samples(tmp_path / "samples.db").samples
        assert (old.rare, new.rare) == (None, new.tokens)


def test_the_kind_of_file_is_told_by_its_name(tmp_path: Path) -> None:
    assert isinstance(open_samples(tmp_path / "a.jsonl", Retention.parse("9")), JsonlSampleFile)
    assert isinstance(open_samples(tmp_path / "a.sqlite", Retention.parse("9")), SqliteSampleFile)
