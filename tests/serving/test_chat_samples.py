"""Samples of conversations, and what the drift monitor makes of them."""

from pathlib import Path
from typing import Any

import pytest
from helpers.chat_models import chat_base
from helpers.chat_server import ChatPlace

import softprompt as sp
from softprompt.analysis.drift.monitor import monitor
from softprompt.serving.request_log.sample_files import RecordedRequests, read_samples
from softprompt.store.prompt_sources import StoreSource
from softprompt.store.version_store import Store

FAMILY, SYSTEM = "qwen2_5", "Be brief."


def turns(number: int, system: str = SYSTEM) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": f"Number {number}?"},
        {"role": "assistant", "content": f"It is {number}."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": f"Yes, {number}."},
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("samples")
    rows = [{"messages": turns(number)} for number in range(160)]
    settings: Any = {"steps": 2, "batch_size": 4, "length": 4, "init": "text:Say it.", "progress": False}
    sp.fit(chat_base(FAMILY), rows, out=folder / "talk", **settings)
    store = Store(folder / "store")
    store.put(folder / "talk", "talk")
    return store


def sampled(store: Store, path: Path, asked: list[list[dict[str, str]]], *, text: bool = True) -> RecordedRequests:
    place = ChatPlace.of_family(FAMILY, store, sampling=(path, 1.0, text))
    with place.client() as client:
        for messages in asked:
            body = {"model": "talk", "messages": messages, "max_tokens": 2}
            assert client.post("/v1/chat/completions", json=body).status_code == 200
    assert place.sampler is not None
    place.sampler.close()
    return read_samples(path)


@pytest.mark.parametrize("ending", ["db", "jsonl"])
def test_conversations_are_kept_as_rows_have_them(store: Store, tmp_path: Path, ending: str) -> None:
    asked = [turns(1)[:-1], turns(2, "Talk at length, please.")[:-1], turns(3)[1:2]]
    read = sampled(store, tmp_path / f"samples.{ending}", asked)
    kept = sorted(read.samples, key=lambda one: one.time)
    assert [None if one.columns is None else one.columns["messages"] for one in kept] == [asked[0], asked[1], None]
    assert kept[0].text == f"System: {SYSTEM}\nUser: Number 1?\nAssistant: It is 1.\nUser: Sure?"
    assert kept[2].text == "Number 3?"
    assert all(one.tokens and one.rare is not None for one in kept)
    # the kept system message is not read with each
    assert (kept[1].tokens or 0) > (kept[0].tokens or 0)


def test_no_text_is_kept_unless_that_is_wanted(store: Store, tmp_path: Path) -> None:
    (kept,) = sampled(store, tmp_path / "samples.db", [turns(1)[:-1]], text=False).samples
    assert (kept.text, kept.columns, kept.answer) == (None, None, None)
    assert kept.tokens


def test_the_monitor_reads_them_again(store: Store, tmp_path: Path) -> None:
    asked = [turns(number, SYSTEM if number % 4 else "Talk at length.")[:-1] for number in range(60)]
    read = sampled(store, tmp_path / "samples.db", asked)
    forgotten = [one.model_copy(update={"rare": None, "tokens": None}) for one in read.samples]
    found = monitor(
        RecordedRequests(forgotten, read.damaged, read.left_out),
        StoreSource(str(store.url)),
        model=lambda prompt: chat_base(FAMILY),
        states=True,
    )
    (talk,) = found.prompts
    assert talk.samples == talk.texts == 60
    told = {one.name: one.live_n for one in talk.signals}
    # those that begin as the prompt was learned
    assert told["hidden"] == 45, told
