"""``predict`` from standard input: in order, as rows arrive, and what came before a bad line is answered."""

import contextlib
import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from helpers.small_tasks import FAST, command, reviews_task
from helpers.tiny_models import save_tiny

from softprompt.cli.evaluate_command import AT_ONCE
from softprompt.data.examples import Example
from softprompt.data.templates.template import Template
from softprompt.errors import DataError
from softprompt.inference.predictor import arriving_examples
from softprompt.models.loading import load_model
from softprompt.training.fit import fit

CPU = ["--device", "cpu", "--dtype", "float32"]


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stdin")
    base = load_model(save_tiny(folder / "model", "llama"), device="cpu", dtype="float32")
    fit(base, reviews_task(), out=folder / "prompt", **FAST)
    return folder / "prompt"


def rows(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


class Arriving(io.RawIOBase):
    """A stream that gives one piece at a time, and notes what was taken."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self.pieces.pop(0) if self.pieces else b""
        buffer[: len(piece)] = piece
        return len(piece)


def texts(stream: BinaryIO | io.RawIOBase, most: int = 32) -> list[list[str]]:
    reader: Any = io.BufferedReader(stream) if isinstance(stream, io.RawIOBase) else stream
    return [[example.text for example in chunk] for chunk in arriving_examples(reader, most)]


class TestArrivingExamples:
    def test_what_is_there_comes_together(self) -> None:
        assert texts(Arriving(rows("a", "b"), rows("c"), rows("d", "e"))) == [["a", "b"], ["c"], ["d", "e"]]

    def test_no_row_waits_for_the_next(self) -> None:
        stream = Arriving(rows("a"), rows("b"))
        chunks = arriving_examples(io.BufferedReader(stream), 32)
        assert [one.text for one in next(chunks)] == ["a"]
        assert stream.pieces == [rows("b")]

    def test_blank_lines_keep_no_row_waiting(self) -> None:
        stream = Arriving(rows("a") + b"\n  \n", rows("b"))
        chunks = arriving_examples(io.BufferedReader(stream), 32)
        assert [one.text for one in next(chunks)] == ["a"]
        assert stream.pieces == [rows("b")]

    def test_rows_in_pieces_are_put_together(self) -> None:
        whole = rows("ä", "b")
        for cut in range(1, len(whole)):
            assert list(chain(*texts(Arriving(whole[:cut], whole[cut:])))) == ["ä", "b"]

    def test_at_most_so_many_at_once(self) -> None:
        chunks = texts(io.BytesIO(rows(*map(str, range(70)))), 32)
        assert [len(chunk) for chunk in chunks] == [32, 32, 6]
        assert list(chain(*chunks)) == list(map(str, range(70)))

    def test_last_line_needs_no_end(self) -> None:
        assert texts(io.BytesIO(rows("a") + rows("b").rstrip(b"\n"))) == [["a"], ["b"]]
        assert texts(io.BytesIO(b"")) == []

    def test_other_columns_are_read_as_those_of_training(self) -> None:
        stream = io.BytesIO(b'{"text": "a", "title": "t", "n": 3, "ok": true, "none": null}\n')
        (chunk,) = arriving_examples(stream, 32)
        assert chunk == [Example("a", columns={"title": "t", "n": 3, "ok": True, "none": None})]

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            (b"not json", "'standard input' line 4: expected JSON"),
            (b'"a string"', "'standard input' line 4: expected an object"),
            (b'{"txt": "x"}', "'standard input' line 4: expected a column 'text', got 'txt': rename it"),
            (b'{"text": 5}', "'standard input' line 4: expected a string in column 'text', got a number"),
            (b'{"text": " "}', "'standard input' line 4: expected a string in column 'text', got a blank string"),
            (b'{"text": "\\ud800"}', "'standard input' line 4: expected Unicode text in column 'text'"),
            (b'{"text": "\xff"}', "'standard input' line 4: expected UTF-8"),
        ],
    )
    def test_rows_before_a_bad_one_come_first(self, line: bytes, words: str) -> None:
        chunks = arriving_examples(io.BytesIO(rows("a", "b") + b"\n" + line + b"\n" + rows("c")), 32)
        assert [one.text for one in next(chunks)] == ["a", "b"]
        with pytest.raises(DataError, match=words):
            next(chunks)

    def test_row_that_does_not_fill_the_template_is_told_by_its_number(self) -> None:
        stream = io.BytesIO(b'{"text": "a", "title": "t"}\n' + rows("b"))
        chunks = arriving_examples(stream, 32, Template("{{ title }}: {{ text }}"))
        assert [one.text for one in next(chunks)] == ["a"]
        with pytest.raises(DataError, match="'standard input' line 2: the template uses a name that the data lacks"):
            next(chunks)


class TestInThisProcess:
    def test_order_and_numbers(self, prompt: Path) -> None:
        some = [f"the film is {word} {i}" for i, word in enumerate(["fine", "dull", "great and great"] * 25)]
        assert len(some) > 2 * AT_ONCE
        done = command("predict", prompt, *CPU, stdin=rows(*some))
        assert done.code == 0
        found = [json.loads(line) for line in done.out.splitlines()]
        assert [answer["index"] for answer in found] == list(range(75))
        one_by_one = command("predict", prompt, *CPU, *some).out.splitlines()
        assert [answer["label"] for answer in found] == [line.split("\t")[0] for line in one_by_one]
        assert len({answer["label"] for answer in found}) == 2

    def test_bad_line_is_told_behind_the_answers_to_those_before_it(self, prompt: Path) -> None:
        done = command("predict", prompt, *CPU, stdin=rows("fine", "dull") + b"{oops\n" + rows("great"))
        assert done.code == 2
        assert len(done.out.splitlines()) == 2
        assert done.err.splitlines()[-1].startswith("error: 'standard input' line 3: expected JSON")

    def test_bad_line_leaves_no_half_object_with_json(self, prompt: Path) -> None:
        done = command("predict", prompt, "--json", *CPU, stdin=rows("fine") + b"{oops\n")
        assert done.code == 2
        assert "'standard input' line 2: expected JSON" in done.error

    def test_no_rows_no_answers(self, prompt: Path) -> None:
        assert command("predict", prompt, *CPU)[:2] == (0, "")
        assert command("predict", prompt, *CPU, "--json").out == '{"predictions": []}\n'

    def test_terminal_is_not_waited_for(self, prompt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Terminal(io.TextIOWrapper):
            def isatty(self) -> bool:
                return True

        monkeypatch.setattr(io, "TextIOWrapper", Terminal)
        done = command("predict", prompt)
        assert done.code == 2
        assert done.error == "expected texts as arguments, or JSONL on standard input; got neither"


class Process:
    """``softprompt predict`` with pipes on both sides."""

    def __init__(self, prompt: Path) -> None:
        self.running = subprocess.Popen(
            [sys.executable, "-m", "softprompt", "predict", str(prompt), *CPU],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # a shell's background jobs ignore it, and so would what they start
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def tell(self, content: bytes) -> None:
        assert self.running.stdin is not None
        self.running.stdin.write(content)
        self.running.stdin.flush()

    def answers(self, count: int, seconds: float = 90.0) -> list[dict[str, Any]]:
        """The next answers; fails when they do not come while standard input is open."""
        assert self.running.stdout is not None
        deadline, content = time.monotonic() + seconds, b""
        while content.count(b"\n") < count:
            ready, _, _ = select.select([self.running.stdout], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no answer: {content!r}"
            piece = os.read(self.running.stdout.fileno(), 1 << 16)
            assert piece, self.running.communicate()[1]
            content += piece
        return [json.loads(line) for line in content.splitlines()]

    def error(self) -> list[str]:
        """Lines on standard error that are no progress."""
        assert self.running.stderr is not None
        lines = self.running.stderr.read().decode().splitlines()
        self.running.wait(30)
        return [line for line in lines if not line.startswith("loading ")]


@pytest.fixture
def process(prompt: Path) -> Iterator[Process]:
    started = Process(prompt)
    yield started
    started.running.kill()
    started.running.wait()
    for stream in (started.running.stdin, started.running.stdout, started.running.stderr):
        assert stream is not None
        with contextlib.suppress(BrokenPipeError):
            stream.close()


class TestInAProcessOfItsOwn:
    def test_answers_while_the_input_is_open_until_interrupted(self, process: Process) -> None:
        process.tell(rows("fine"))
        assert [answer["index"] for answer in process.answers(1)] == [0]
        process.tell(rows("dull", "great") + b"\n")
        assert [answer["index"] for answer in process.answers(2)] == [1, 2]
        process.tell(rows("great")[:-5])
        process.running.send_signal(signal.SIGINT)
        assert [line for line in process.error() if line] == ["error: interrupted"]
        assert process.running.returncode == 130

    def test_is_quiet_when_nobody_reads_on(self, process: Process) -> None:
        process.tell(rows("fine"))
        process.answers(1)
        assert process.running.stdout is not None
        process.running.stdout.close()
        process.tell(rows("dull"))
        assert process.error() == []
        assert process.running.returncode == 1
