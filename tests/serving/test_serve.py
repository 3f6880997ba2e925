"""serve in a program: the command line's server in a thread, its prompts by name, by folder, from a store."""

import json
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_server import LABELS, MORE, prompt, the_base

import softprompt as sp
from softprompt.errors import ConfigError, PromptFileError, StoreError
from softprompt.inference.predictor import Predictor
from softprompt.models.deferred_base import DeferredBase
from softprompt.serving.serve import RunningServer

NEVER: dict[str, Any] = {"port": 0, "block": False, "compile": "never"}


def ask(server: RunningServer, path: str, body: Any = None) -> Any:
    request = urllib.request.Request(
        f"{server.url}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def names(server: RunningServer) -> set[str]:
    """Of the prompts."""
    found = {one["id"].partition("@")[0] for one in ask(server, "/v1/models")["data"]}
    return found - {the_base().name}


def test_answers_as_a_predictor_does() -> None:
    made = prompt()
    with sp.serve(the_base(), {"tone": made}, **NEVER) as server:
        found = ask(server, "/v1/classify", {"model": "tone", "input": ["a film", "a bad film"]})["results"]
    expected = Predictor.of_prompt(the_base(), made).predict(["a film", "a bad film"])
    assert [one["label"] for one in found] == expected.labels
    for one, other in zip(found, expected, strict=True):
        assert one["probabilities"] == pytest.approx(other.probabilities, rel=1e-4)


def test_ends_with_close_and_its_port_is_free_again() -> None:
    before = threading.active_count()
    server = sp.serve(the_base(), {"tone": prompt()}, **NEVER)
    port = int(server.url.rpartition(":")[2])
    server.close()
    server.close()
    assert threading.active_count() <= before + 1  # the engine's own thread may still be ending
    with sp.serve(the_base(), {"tone": prompt()}, **NEVER | {"port": port}) as again:
        assert names(again) == {"tone"}
    with pytest.raises(OSError, match="refused"):
        ask(again, "/v1/models")
    assert "closed=True" in repr(again)


def test_prompts_from_folders_and_from_a_store(tmp_path: Path) -> None:
    prompt().save(tmp_path / "prompts" / "tone")
    prompt(MORE).save(tmp_path / "prompts" / "more")
    store = sp.Store(tmp_path / "store")
    store.put(prompt(LABELS), "stored")
    for given, expected in (
        (tmp_path / "prompts" / "tone", {"tone"}),
        (tmp_path / "prompts", {"tone", "more"}),
        (str(tmp_path / "prompts"), {"tone", "more"}),
        ({"mine": tmp_path / "prompts" / "tone", "other": prompt(MORE)}, {"mine", "other"}),
        (store, {"stored"}),
        (str(tmp_path / "store"), {"stored"}),
    ):
        with sp.serve(DeferredBase(lambda _: the_base()), given, **NEVER) as server:
            assert names(server) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"prompts": prompt()}, "expected a name for each, got a prompt without one: give {'NAME': prompt}"),
        ({"prompts": {}}, "got an empty mapping"),
        ({"prompts": 3}, "expected a store, a folder of saved prompts, or prompts by name"),
        ({"base": prompt(), "prompts": the_base()}, "the base model comes first"),
        ({"port": 99999}, "port"),
        ({"host": "0.0.0.0"}, "keys|no_auth"),
        ({"tiemout": 3}, "unknown setting 'tiemout': did you mean 'timeout'"),
        ({"prompts": {"a name!": prompt()}}, "expected the name of a prompt"),
        ({"port": "8000"}, r"serve\(port=...\): expected a whole number, got '8000'"),
    ],
    ids=range(9),
)
def test_mistakes_are_told_before_the_model_is_loaded(given: dict[str, Any], words: str) -> None:
    def never(_: Any) -> Any:
        raise AssertionError("loaded")

    call = {"base": DeferredBase(never), "prompts": {"tone": prompt()}, **NEVER, **given}
    with pytest.raises((ConfigError, PromptFileError, StoreError), match=words):
        sp.serve(**call)


def test_port_that_is_taken() -> None:
    with sp.serve(the_base(), {"tone": prompt()}, **NEVER) as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(ConfigError, match=f"cannot listen on '127.0.0.1' port {port}"):
            sp.serve(the_base(), {"tone": prompt()}, **NEVER | {"port": port})
