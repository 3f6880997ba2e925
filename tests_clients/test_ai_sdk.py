"""The AI SDK of JavaScript: `system`, a stream, an object, a tool."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import Server

FOLDER = Path(os.environ.get("SOFTPROMPT_AI_SDK") or Path(__file__).parent / "ai_sdk")
pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or not (FOLDER / "node_modules").is_dir(), reason="expected node, and the SDK by npm"
)


def ask(way: str, server: Server) -> Any:
    place = {"SOFTPROMPT_URL": server.url, "SOFTPROMPT_MODEL": server.model}
    done = subprocess.run(
        ["node", str(FOLDER / "ask.mjs"), way], env=os.environ | place, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_system_message(server: Server) -> None:
    answer = ask("text", server)
    assert "Ada" in answer["text"]
    assert answer["finishReason"] == "stop"
    assert answer["usage"]["outputTokens"] > 0


def test_a_stream_is_the_same_answer(server: Server) -> None:
    assert ask("stream", server)["text"] == ask("text", server)["text"]


def test_an_object(server: Server) -> None:
    assert ask("object", server)["object"] == {"name": "Ada", "age": 36}


def test_a_tool_is_called(server: Server) -> None:
    answer = ask("tool", server)
    assert answer["calls"][0]["toolName"] == "weather"
    assert "Paris" in answer["calls"][0]["input"]["city"]
    assert answer["results"] == 1
