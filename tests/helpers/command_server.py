"""``softprompt`` commands in a tenth of a second: children of one process that has imported everything.

``python -m helpers.command_server SOCKET`` listens, and says ``ready``. ``write_command`` writes a program that is
``softprompt`` to a shell: its arguments, environment, folder and streams are those of the child that is forked.
"""

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import signal
import socket
import sys
import traceback
from pathlib import Path

import pytest

CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    asked = {{"program": {program!r}, "arguments": sys.argv[1:], "folder": os.getcwd(), "variables": dict(os.environ)}}
    socket.send_fds(server, [json.dumps(asked).encode()], [0, 1, 2])
    server.shutdown(socket.SHUT_WR)
    said = server.makefile()
    process = int(said.readline())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: os.kill(process, number))
    sys.exit(int(said.readline()))
"""


def write_command(path: Path, address: Path, program: str = "softprompt") -> None:
    """A program at ``path`` that runs as a child of the server at ``address``."""
    path.write_text(CLIENT.format(python=sys.executable, address=str(address), program=program), encoding="utf-8")
    path.chmod(0o755)


def import_everything() -> None:
    import softprompt

    for module in pkgutil.walk_packages(softprompt.__path__, "softprompt."):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)
    for name in ("peft", "sklearn.linear_model", "transformers.models.gemma3.modeling_gemma3", "helpers.fake_vllm"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def serve(address: str) -> None:
    from helpers.page_world import shorten_runs

    import_everything()
    shorten_runs(pytest.MonkeyPatch())
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen(16)
        print("ready", flush=True)
        while True:
            connection, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _supervise(connection)
            connection.close()


def _supervise(connection: socket.socket) -> None:
    """Run what is asked for in a child, and tell its process id, then its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, streams, _, _ = socket.recv_fds(connection, 1 << 22, 3)
    while True:  # a long environment comes in parts
        try:
            asked = json.loads(message)
            break
        except ValueError:
            message += connection.recv(1 << 22)
    child = os.fork()
    if child == 0:
        connection.close()
        _run(asked, streams)
    for stream in streams:
        os.close(stream)
    connection.sendall(f"{child}\n".encode())
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):
        connection.sendall(f"{os.waitstatus_to_exitcode(status) & 255}\n".encode())
    os._exit(0)


def _run(asked: dict[str, object], streams: list[int]) -> None:
    from helpers.page_world import ask_fake_hub

    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    for number in (0, 1, 2):
        mode = "r" if number == 0 else "w"
        stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 (they are the process's own)
        setattr(sys, ("stdin", "stdout", "stderr")[number], stream)
    code: object = 1
    try:
        os.environ.clear()
        os.environ.update(asked["variables"])  # type: ignore[call-overload]
        os.chdir(str(asked["folder"]))
        sys.argv = [str(asked["program"]), *asked["arguments"]]  # type: ignore[misc]
        ask_fake_hub()
        if asked["program"] == "vllm":
            from helpers.fake_vllm import main
        else:
            from softprompt.cli.main import main
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    serve(sys.argv[1])
