"""A shell in which the commands of a page are typed one after the other, and programs that stand in for others.

``softprompt`` is the real program; ``pip`` and ``make`` check what they are asked for and change nothing, ``torchrun``
and ``accelerate launch`` start two processes, ``vllm`` is the small server of ``fake_vllm``.
"""

import re
import shlex
import subprocess
import time
from pathlib import Path
from typing import Self

from helpers.command_server import write_command
from helpers.page_blocks import ROOT

SERVING = re.compile(r"(?:softprompt serve|vllm serve)\b(?!.*--help)")
LISTENING = "listening on"
SERVER = "softprompt serve --model embedded:gemma-3-270m --store prompts/store"  # what "given: server" starts
SECONDS = 120  # until a server listens

PIP = """#!/usr/bin/env bash
set -e
[ "$1" = install ] || {{ echo "pip $1 is not known here"; exit 2; }}
shift
exec {python} - {root}/pyproject.toml "$@" <<'PROGRAM'
import re, sys, tomllib
from pathlib import Path
project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
words = sys.argv[2:]
while "-c" in words:
    at = words.index("-c")
    assert (Path(sys.argv[1]).parent / words[at + 1]).is_file(), words[at + 1]
    del words[at : at + 2]
for word in words:
    found = re.fullmatch(r"(?:\\.|softprompt)(?:\\[([\\w,-]+)\\])?(?:==[\\w.]+)?|[-\\w.=<>:/+]+", word)
    assert found, word
    for extra in filter(None, (found[1] or "").split(",")):
        assert extra in project["optional-dependencies"], extra
PROGRAM
"""
MAKE = """#!/usr/bin/env bash
exec /usr/bin/make --dry-run --directory {root} "$@" > /dev/null
"""
LAUNCH = """#!/usr/bin/env bash
set -e
while [ "$1" != -m ]; do shift; done
[ "$2" = softprompt ]
shift 2
export WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=$LAUNCH_PORT
RANK=1 LOCAL_RANK=1 softprompt "$@" --device cpu &
RANK=0 LOCAL_RANK=0 softprompt "$@" --device cpu
wait $!
"""


def write_programs(folder: Path, server: Path, python: str) -> Path:
    """A folder for ``PATH``."""
    folder.mkdir()
    write_command(folder / "softprompt", server)
    write_command(folder / "vllm", server, "vllm")
    for name, text in {"pip": PIP, "make": MAKE, "torchrun": LAUNCH, "accelerate": LAUNCH}.items():
        (folder / name).write_text(text.format(python=python, root=ROOT) if name in ("pip", "make") else text)
        (folder / name).chmod(0o755)
    return folder


class ShellSession:
    """One ``bash`` for a page: variables and functions stay from command to command."""

    def __init__(self, folder: Path, scratch: Path, variables: dict[str, str]) -> None:
        self._scratch, self._count = scratch, 0
        scratch.mkdir()
        self._shell = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )
        self._type("set -o pipefail")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_servers()
        self._shell.communicate(timeout=30)

    def run(self, script: str) -> tuple[int, str]:
        """Exit code of the first command that failed, or 0, and what was written to both streams."""
        self._count += 1
        file, output = (self._scratch / f"{self._count}.{end}" for end in ("sh", "txt"))
        file.write_text(script, encoding="utf-8")
        self._type(f"failed=0; trap 'failed=$?' ERR; . {file} < /dev/null > {output} 2>&1; trap - ERR")
        return int(self._ask("$failed")), output.read_text(encoding="utf-8")

    def serve(self, command: str) -> tuple[int, str]:
        """Start a server in the background, in place of those that run: 0 once it listens, and what it wrote."""
        if "vllm serve" not in command:
            self.stop_servers("softprompt")
        self._count += 1
        output = self._scratch / f"{self._count}.txt"
        self._type(f"{command} < /dev/null > {output} 2>&1 &")
        ends = time.monotonic() + SECONDS
        while LISTENING not in (text := output.read_text(encoding="utf-8") if output.exists() else ""):
            if self._ask("$(jobs -pr | wc -l)") == "0" or time.monotonic() > ends:
                return 1, text
            time.sleep(0.05)
        return 0, text

    def set_variables(self, variables: dict[str, str]) -> None:
        for name, value in variables.items():
            self._type(f"export {name}={shlex.quote(value)}")

    def stop_servers(self, name: str = "") -> None:
        """End them as a service manager would; raises AssertionError if one does not end well."""
        for job in self._ask("$(jobs -p)").split():
            command = self._ask(f"$(tr '\\0' ' ' < /proc/{job}/cmdline)")
            if name in command:
                self._type(f"kill {job}; wait {job}")
                code = self._ask("$?")
                assert "softprompt" not in command or code == "0", f"{command} ended with {code}"

    def _type(self, line: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(line + "\n")

    def _ask(self, expression: str) -> str:
        assert self._shell.stdout is not None
        self._type(f"echo {expression}")
        return self._shell.stdout.readline().strip()


def split_session(text: str) -> list[tuple[str, list[str]]]:
    """The commands of a console block, each with the lines that are shown under it.

    Commands stand behind ``$``; where no line has one, each line is a command.
    """
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    if not any(line.startswith("$ ") for line in lines):
        return [(line, []) for line in lines if line.strip()]
    found: list[tuple[str, list[str]]] = []
    for line in lines:
        if line.startswith("$ "):
            found.append((line.removeprefix("$ "), []))
        elif line.strip():
            assert found, f"expected a command behind '$' first, got {line!r}"
            found[-1][1].append(line)
    return found
