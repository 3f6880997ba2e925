"""What a notebook shows of a run: one output that is written anew, without widgets; and how it is chosen."""

import io
import sys
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.small_tasks import FAST, Recorder, reviews_task
from helpers.tiny_models import tiny_base
from helpers.told_runs import Clock, Terminal, told

from softprompt.errors import ConfigError
from softprompt.training.callbacks.callback import Callback, CallbackList
from softprompt.training.callbacks.progress import (
    NotebookProgress,
    ProgressBar,
    ProgressPrinter,
    choose_progress,
    show_progress,
)
from softprompt.training.fit import fit


class Outputs:
    """What IPython would show: each output as it was written last."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.contents: list[dict[str, str]] = []
        self.written = 0
        module = pytest.importorskip("IPython.display")
        monkeypatch.setattr(module, "display", self.display)

    def display(self, content: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        assert raw
        assert display_id
        self.contents.append(content)
        place = len(self.contents) - 1
        return SimpleNamespace(update=lambda content, raw: self.write(place, content))

    def write(self, place: int, content: dict[str, str]) -> None:
        self.contents[place] = content
        self.written += 1

    @property
    def html(self) -> str:
        (one,) = self.contents
        return one["text/html"]


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> Outputs:
    return Outputs(monkeypatch)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class _Elements(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


class TestNotebookProgress:
    def test_shows_what_goes_on(self, outputs: Outputs, clock: Clock) -> None:
        bar = NotebookProgress()
        told(bar, clock)
        page = _Elements(outputs.html)
        assert dict(page.found)["progress"] == {"value": "20", "max": "40"}
        for part in (
            "step 20/40",
            "training loss 0.5000",
            "accuracy 0.8750",
            "32.0 examples/s",
            "left",
            "data was split",
        ):
            assert part in page.text
            assert part in outputs.contents[0]["text/plain"]
        bar.on_train_end()
        assert "left" not in _Elements(outputs.html).text
        assert "32.0 examples/s" in _Elements(outputs.html).text

    def test_is_not_written_at_every_step(self, outputs: Outputs, clock: Clock) -> None:
        bar = NotebookProgress()
        bar.on_train_begin(0, 10_000, 1, 1)
        before = outputs.written
        for step in range(1, 1_001):
            clock.now += 0.01
            bar.on_step_end(step, 0.5, 0.3, 32.0)
        assert 30 <= outputs.written - before <= 41

    def test_the_latest_messages_stay(self, outputs: Outputs) -> None:
        bar = NotebookProgress()
        for number in range(30):
            bar.on_message(f"message {number}")
        assert "22 lines before" in outputs.html
        assert "message 21\n" not in outputs.html
        assert "message 22\n" in outputs.html

    def test_messages_are_text(self, outputs: Outputs) -> None:
        NotebookProgress().on_message("<script>alert(1)</script> & {0} \x1b[31m")
        page = _Elements(outputs.html)
        assert {tag for tag, _ in page.found} == {"div", "pre"}
        assert page.text == r"<script>alert(1)</script> & {0} \x1b[31m"

    def test_of_a_whole_run(self, outputs: Outputs) -> None:
        fit(tiny_base("llama"), reviews_task(), callback=NotebookProgress(), **FAST)
        assert "step 12/12" in outputs.html
        assert "step 12  validation accuracy" in outputs.html


class TestChoice:
    def test_lines_where_nobody_looks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        assert type(choose_progress()) is type(choose_progress(True)) is ProgressPrinter

    def test_a_bar_in_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stderr", Terminal())
        assert type(choose_progress()) is ProgressBar

    def test_a_notebook_is_told_from_a_shell(self, monkeypatch: pytest.MonkeyPatch, outputs: Outputs) -> None:
        monkeypatch.setattr(sys, "stderr", Terminal())
        for config, kind in (({}, ProgressBar), ({"IPKernelApp": {}}, NotebookProgress)):
            monkeypatch.setattr(
                sys.modules["IPython"], "get_ipython", lambda config=config: SimpleNamespace(config=config)
            )
            assert type(choose_progress()) is kind

    def test_by_name(self) -> None:
        assert type(choose_progress("lines")) is ProgressPrinter
        assert type(choose_progress("bar")) is ProgressBar
        assert type(choose_progress(False)) is Callback

    @pytest.mark.parametrize("wrong", ["quiet", 3, []])
    def test_another_is_refused(self, wrong: Any) -> None:
        with pytest.raises(ConfigError, match="progress: expected True, False, 'bar', 'lines', 'notebook', got"):
            choose_progress(wrong)

    def test_stands_beside_a_callback_that_shows_nothing(self) -> None:
        recorder = Recorder()
        shown = show_progress(recorder, "lines")
        assert isinstance(shown, CallbackList)
        assert [type(one) for one in shown.callbacks] == [ProgressPrinter, Recorder]
        assert show_progress(recorder, False) is recorder

    def test_is_not_shown_twice(self) -> None:
        both = CallbackList([Recorder(), CallbackList([ProgressPrinter(io.StringIO())])])
        assert show_progress(both) is both
