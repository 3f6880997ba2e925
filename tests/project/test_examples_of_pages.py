"""Every example of README, CONTRIBUTING and docs runs, in the order of its page, and shows what the page shows.

Models are tiny and random, data small, runs a few steps: numbers are not compared, words and keys are.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.output_shape import find_missing, find_missing_headings
from helpers.page_blocks import CONSOLE, PYTHON, ROOT, SHELL, SHOWN, Block, read_blocks
from helpers.page_world import PageWorld, SharedParts, shorten_runs
from helpers.shell_session import SERVER, SERVING, ShellSession, split_session, write_programs

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
GENERATED = ROOT / "docs" / "reference"  # signatures and usages, made from the code: test_reference.py
BLOCKS = {page: list(read_blocks(page)) for page in PAGES if GENERATED not in page.parents}
WITH_EXAMPLES = [page for page, blocks in BLOCKS.items() if any(block.runs for block in blocks)]
LEFT_ALONE = 15  # blocks that say "not run"; another one is to be thought about


def test_every_block_is_known() -> None:
    for blocks in BLOCKS.values():
        for block in blocks:
            known = block.language in (PYTHON, CONSOLE, SHELL, *SHOWN)
            assert known, f"{block.place}: expected a language behind the fence, got '{block.language}'"


def test_few_blocks_are_left_alone() -> None:
    blocks = [block for found in BLOCKS.values() for block in found if "not run" in block.notes]
    told = "\n".join(f"{block.place}: {block.notes['not run']}" for block in blocks)
    assert len(blocks) == LEFT_ALONE, told


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> SharedParts:
    return SharedParts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with ``softprompt`` and the programs that stand in for others."""
    folder = tmp_path_factory.mktemp("programs")
    address = folder / "socket"
    command = [sys.executable, "-m", "helpers.command_server", str(address)]
    path = [str(ROOT / "tests"), str(ROOT)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=_variables(PYTHONPATH=":".join(path))
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield write_programs(folder / "bin", address, sys.executable)
        server.terminate()


# of Trainer where there is no GPU, and of TRL
@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning", "ignore:`gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_examples_run(
    page: Path,
    parts: SharedParts,
    programs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    for program in ("curl", "jq"):
        if any(program in block.text for block in BLOCKS[page]) and shutil.which(program) is None:
            pytest.skip(f"an example of this page uses {program}, which is not installed")
    world = PageWorld(tmp_path / "folder", parts, request.getfixturevalue)
    ports = {"8000": _free_port(), "8100": _free_port()}
    settings = {
        "SOFTPROMPT_CACHE": str(parts.cache),
        "SOFTPROMPT_PORT": ports["8000"],
        "SOFTPROMPT_DRAIN_DELAY": "0",
        "LAUNCH_PORT": _free_port(),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(world.folder)
    shorten_runs(monkeypatch)
    path = f"{programs}:{Path(sys.executable).parent}:{_variables()['PATH']}"
    with ShellSession(world.folder, tmp_path / "scratch", _variables(PATH=path)) as shell:
        for block in BLOCKS[page]:
            for name in block.given:
                if name == "server":
                    assert shell.serve(SERVER)[0] == 0
                else:
                    world.give(name)
            shell.set_variables(world.variables)
            text = re.sub(r"\b(?:8000|8100)\b", lambda found: ports[found[0]], block.text)
            if block.runs and block.language == PYTHON:
                run_python(block, text, world)
            elif block.runs:
                run_commands(block, text, shell)


def run_python(block: Block, text: str, world: PageWorld) -> None:
    """The block in the names of its page; a traceback shows the page's lines."""
    code = compile("\n" * (block.line - 1) + text, ROOT / block.page, "exec")
    if "sp.serve(" in text and "block=False" not in text:
        threading.Thread(target=_interrupt_server, args=[os.environ["SOFTPROMPT_PORT"]]).start()
    exec(code, world.names)


def _interrupt_server(port: str) -> None:
    """Press Ctrl+C once a server of this process answers, or is not there after a minute."""
    for _ in range(600):
        time.sleep(0.1)
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
            break
    os.kill(os.getpid(), signal.SIGINT)


def run_commands(block: Block, text: str, shell: ShellSession) -> None:
    """Each command of the block succeeds, and shows the lines that stand under it."""
    for command, shown in [(text, [])] if block.language == SHELL else split_session(text):
        code, got = shell.serve(command) if SERVING.match(command) else shell.run(command)
        told = f"{block.place}: {command}\n{got}"
        expected = 2 if any(line.startswith("error: ") for line in shown) else 0
        assert code == expected, f"exit code {code} of {told}"
        missing = (find_missing_headings if "recorded" in block.notes else find_missing)(shown, got)
        assert not missing, "\n".join(["the page shows, the command does not:", *missing, told])


def _variables(**more: str) -> dict[str, str]:
    return {**os.environ, **more}


def _free_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])
