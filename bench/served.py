"""``softprompt serve`` in a process of its own, for whoever asks it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

LISTENING = "listening on "
LOADING_SECONDS = 600.0
ENDING_SECONDS = 60.0


class NotServed(Exception):
    """The server did not begin to listen; ``str(error)`` is one line."""


@contextmanager
def served(
    options: Sequence[str], log: Path, variables: Mapping[str, str]
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """The address of ``softprompt serve OPTIONS`` on a free port, and its process, which is ended behind it.

    Args:
        log: what the server says.
        variables: of the environment, beside those of this process.

    Raises:
        NotServed: it does not begin to listen.
    """
    command = [sys.executable, "-m", "softprompt", "serve", "--port", "0", *options]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env={**os.environ, **variables})
    try:
        yield _address(log, process), process
    finally:
        process.terminate()
        try:
            process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(log: Path, process: "subprocess.Popen[bytes]") -> str:
    ends = time.monotonic() + LOADING_SECONDS
    while time.monotonic() < ends and process.poll() is None:
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(LISTENING):
                return line.removeprefix(LISTENING).partition(",")[0]
        time.sleep(0.1)
    said = " ".join(log.read_text(encoding="utf-8", errors="replace").split())
    raise NotServed(f"softprompt serve does not listen: {said[-500:]}")
