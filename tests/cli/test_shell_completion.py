"""Completion in real shells, with a home of their own, and its installation, which may be asked for again."""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import pytest
from click.testing import CliRunner
from helpers.saved_prompts import a_prompt

from softprompt.cli.main import cli
from softprompt.store.version_store import Store

ROOT = Path(__file__).parents[2]


def needs(shell: str) -> str:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    return shell


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a command ``softprompt`` of this source, and a store in the folder where one stands."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "softprompt"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m softprompt "$@"\n')
    command.chmod(0o755)
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR", "SOFTPROMPT_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    store = Store(tmp_path / "here" / "kept")
    store.put(a_prompt(), "sentiment")
    store.promote("sentiment@1", "prod")
    return tmp_path


def install(shell: str) -> str:
    done = CliRunner().invoke(cli, ["--install-completion", shell])
    assert done.exit_code == 0, done.output
    return done.output


class Typist:
    """Types into an interactive shell, and reads what it shows."""

    def __init__(self, shell: str) -> None:
        self._process, self._terminal = pty.fork()
        if self._process == 0:
            os.environ.update(TERM="xterm", PS1="ready> ", COLUMNS="200", INPUTRC="/dev/null")
            os.execvp(shell, [shell, "-i"])
        self._read_until(r"\S")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._terminal)
        os.kill(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)

    def shows(self, typed: str, wanted: str) -> str:
        """What is shown after ``typed``, until it matches ``wanted``; the line is taken back."""
        os.write(self._terminal, typed.encode())
        shown = self._read_until(wanted)
        os.write(self._terminal, b"\x15")
        return shown

    def _read_until(self, wanted: str, seconds: float = 60) -> str:
        shown, ends = "", time.monotonic() + seconds
        while time.monotonic() < ends and not re.search(wanted, shown):
            if select.select([self._terminal], [], [], 0.2)[0]:
                shown += os.read(self._terminal, 65536).decode()
                shown = re.sub(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|[=>])|[\x07\x08]", "", shown)
        return shown


CASES = (
    ("softprompt mult\t", r"itask "),
    ("softprompt train --templ\t", r"--template "),
    ("softprompt predict --vote maj\t", r"majority "),
    ("softprompt export kept/senti\t", r"kept/sentiment/"),
    ("softprompt show kept#sent\tpr\t", r"prod "),
)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_completes(shell: str, home: Path) -> None:
    needs(shell)
    install(shell)
    with Typist(shell) as typist:
        for typed, wanted in CASES:
            shown = typist.shows(typed, wanted)
            assert re.search(wanted, shown), (typed, shown)


def test_fish_completes(home: Path) -> None:
    needs("fish")
    install("fish")
    for typed, wanted in (("softprompt mult", "multitask"), ("softprompt predict --vote maj", "majority")):
        done = subprocess.run(["fish", "-c", f"complete -C '{typed}'"], capture_output=True, text=True, timeout=120)
        assert wanted in done.stdout.split(), done.stderr


class TestInstallation:
    @pytest.mark.parametrize(
        ("shell", "script", "startup"),
        [
            ("bash", ".local/share/bash-completion/completions/softprompt", ".bashrc"),
            ("zsh", ".local/share/softprompt/completion.zsh", ".zshrc"),
            ("fish", ".config/fish/completions/softprompt.fish", None),
        ],
    )
    def test_twice_is_once(self, shell: str, script: str, startup: str | None, home: Path) -> None:
        if startup is not None:
            (home / startup).write_text("alias ll='ls -l'")
        told = install(shell)
        assert str(home / script) in told
        before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
        again = install(shell)
        assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before
        assert "_SOFTPROMPT_COMPLETE" in (home / script).read_text()
        if startup is not None:
            assert "a line was added" in told
            assert "reads it already" in again
            lines = (home / startup).read_text().splitlines()
            assert lines[0] == "alias ll='ls -l'"
            assert [str(home / script) in line for line in lines] == [False, True]

    def test_the_shell_is_that_of_the_environment(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SHELL", "/usr/bin/zsh")
        assert CliRunner().invoke(cli, ["--install-completion"]).output.startswith("completion for zsh is in")
        shown = CliRunner().invoke(cli, ["--show-completion", "bash"]).output
        assert "complete -o nosort -F _softprompt_completion softprompt" in shown

    def test_another_shell(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SHELL", "/bin/tcsh")
        error = CliRunner().invoke(cli, ["--install-completion"]).exception
        assert str(error) == "expected bash, zsh or fish, got 'tcsh' in SHELL: name one, as --install-completion bash"
        assert list(home.glob(".*")) == []

    def test_a_file_that_cannot_be_written(self, home: Path) -> None:
        (home / ".bashrc").mkdir()
        assert "cannot write" in str(CliRunner().invoke(cli, ["--install-completion", "bash"]).exception)


def test_the_store_of_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTPROMPT_STORE", str(home / "here" / "kept"))
    asked = {"COMP_CWORD": "2", "_SOFTPROMPT_COMPLETE": "bash_complete"}
    for words, expected in (
        ("softprompt\nshow\nsent", ["sentiment@prod", "sentiment@latest", "sentiment@1"]),
        ("softprompt\npush\nkept/", None),
    ):
        done = CliRunner().invoke(cli, env={**asked, "COMP_WORDS": words}, prog_name="softprompt")
        found = done.output.split()
        assert found == ([f"plain,{one}" for one in expected] if expected else ["file,kept/"])


def test_completion_loads_no_torch(home: Path) -> None:
    code = (
        "import sys\nfrom softprompt.cli.main import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    asked = {"COMP_WORDS": "softprompt\nshow\nkept#", "COMP_CWORD": "2", "_SOFTPROMPT_COMPLETE": "bash_complete"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **asked, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.splitlines() == [
        *(f"plain,kept#sentiment@{one}" for one in ("prod", "latest", "1")),
        "[]",
    ], done.stderr
