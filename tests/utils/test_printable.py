"""What is written for people: nothing that a prompt, a model or a row brings is obeyed by the terminal."""

import json
import logging
import re
import unicodedata
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from helpers.saved_prompts import a_prompt, metric
from helpers.small_tasks import command

from softprompt.cli.evaluate_command import answer_columns
from softprompt.data.task import TaskSpec
from softprompt.errors import ERROR_CHARACTERS, SoftpromptError, printable, printable_json, shorten
from softprompt.export.export_readme import list_task_lines
from softprompt.inference.predictions import Prediction
from softprompt.serving.logging_config import JsonFormatter
from softprompt.training.callbacks.progress import ProgressBar, ProgressPrinter

HOSTILE = "\x1b]0;x\x07\x1b[2J\x9b31m\u202egood\u2066\u2028\n\r\tbad\t0.9999\x7f\u200f\u00ad\ufeff\U000e0041"


def harmless(text: str) -> bool:
    """Whether the Unicode database has no control, format or separator character in a text, but line ends and tabs."""
    return not any(unicodedata.category(one) in ("Cc", "Cf", "Zl", "Zp", "Cs") and one not in "\n\t" for one in text)


class TestShown:
    def test_every_character_that_is_acted_on_is_spelled(self) -> None:
        for code in range(0x11_0000):
            character = chr(code)
            if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Cs") and code not in (0x200C, 0x200D):
                assert re.fullmatch(r"\\[nrtxuU0-9a-f]+", printable(character)), hex(code)
            else:
                assert printable(character) == character

    def test_words_of_all_scripts_stay(self) -> None:
        for text in (
            "naïve café",
            "日本語",
            "\u0645\u06cc\u200c\u062e\u0648",
            "👨\u200d👩\u200d👧",
            "a\u00a0b",
            "e\u0301",
        ):
            assert printable(text) == text

    def test_long_text_is_cut_in_the_middle_and_says_so(self) -> None:
        text = printable("begin " + "x" * 100_000 + " end", 300)
        assert text.startswith("begin x")
        assert text.endswith("x end")
        assert "99,710 characters left out" in text
        assert len(text) < 350

    def test_brief_joins_white_space(self) -> None:
        assert shorten("a\n  b\x1b" + "c" * 100, 10) == "a b\\x1bccccc…"

    def test_json_means_the_same(self) -> None:
        value = {HOSTILE: [HOSTILE, "日本", 1.5, None]}
        assert harmless(printable_json(value))
        assert "\n" not in printable_json(value)
        assert json.loads(printable_json(value)) == value


class TestWhereItIsWritten:
    def test_errors(self) -> None:
        assert harmless(str(SoftpromptError(f"label '{HOSTILE}'")))
        said = str(SoftpromptError(f"expected a name, got '{'x' * 100_000}': give a shorter one"))
        assert len(said) < ERROR_CHARACTERS + 50
        assert said.startswith("expected a name")
        assert said.endswith("give a shorter one")

    @pytest.mark.parametrize("kind", [ProgressPrinter, ProgressBar])
    def test_progress(self, kind: type[ProgressPrinter]) -> None:
        stream = StringIO()
        kind(stream).on_message(HOSTILE)
        assert harmless(stream.getvalue())
        assert stream.getvalue().count("\n") <= 2
        assert "\\u202egood" in stream.getvalue()

    def test_logs(self) -> None:
        record = logging.LogRecord("softprompt.serving", logging.INFO, "", 1, HOSTILE, (), None)
        record.fields = {"model": HOSTILE}
        line = JsonFormatter().format(record)
        assert harmless(line)
        assert "\n" not in line
        assert json.loads(line)["model"] == HOSTILE

    def test_command_line_errors(self) -> None:
        done = command("show", f"{HOSTILE}{'y' * 100_000}")
        assert done.code == 2
        assert harmless(done.err)
        assert done.err.count("\n") == 1
        assert len(done.err) < 3000

    @pytest.mark.parametrize("verb", ["show", "diff", "push", "list", "eval"])
    def test_verbs_on_a_hostile_prompt(self, tmp_path: Path, verb: str) -> None:
        labels = ("bad", HOSTILE)
        prompt = replace(
            a_prompt(parent=HOSTILE),
            base_name=HOSTILE,
            spec=TaskSpec("classification", "{{ text }}" + HOSTILE, labels, labels, 64),
            metrics={HOSTILE: metric(0.5, HOSTILE), "validation": metric(0.5, HOSTILE)},
            training={"learning_rate": HOSTILE, HOSTILE: HOSTILE},
            data={"source": HOSTILE},
            method=HOSTILE,
        )
        prompt.save(tmp_path / "p")
        a_prompt().save(tmp_path / "q")
        if verb == "list":
            assert command("push", tmp_path / "p", f"{tmp_path}/store#name").code == 0
        arguments = {
            "show": [tmp_path / "p"],
            "diff": [tmp_path / "p", tmp_path / "q"],
            "push": [tmp_path / "p", f"{tmp_path}/store#name"],
            "list": [tmp_path / "store", "--name", "name"],
            "eval": [tmp_path / "p", "--data", "embedded:rotten-tomatoes"],
        }[verb]
        for more in ((), ("--json",)):
            done = command(verb, *arguments, *more)
            assert harmless(done.out)
            assert harmless(done.err)
            assert done.code == (2 if verb == "eval" else 0)
            assert "\n0.9999" not in done.out
            assert "bad\t" not in done.out

    def test_the_readme_of_an_export(self) -> None:
        labels = ("bad", HOSTILE)
        lines = list_task_lines(a_prompt(spec=TaskSpec("classification", "{{ text }}", labels, labels, 64)))
        assert harmless("\n".join(lines))
        assert not any("\n0.9999" in line or "bad\t" in line for line in lines)

    def test_an_answer_cannot_forge_another(self, capsys: pytest.CaptureFixture[str]) -> None:
        from softprompt.cli.printing import print_lines

        label = "good\nbad\t0.9999"
        print_lines(
            [
                answer_columns(Prediction(0, label, {label: 0.25})),
                answer_columns(Prediction(1, completion="yes\nno\tmaybe")),
            ]
        )
        assert capsys.readouterr().out == "good\\nbad\\t0.9999\t0.2500\nyes\\nno\\tmaybe\n"
