"""Prompt embeddings for vLLM: what a request carries, and a client in front of a server that records it."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.embedded_messages import read_embeddings, read_ids
from helpers.learned_prompts import learned, text_ids
from helpers.small_tasks import command
from helpers.tiny_models import save_tiny, tiny_base
from jinja2 import TemplateError
from safetensors.torch import load_file

from softprompt.data.encoding.placement import Placement
from softprompt.data.task import TaskSpec
from softprompt.errors import BaseModelError, ConfigError, OutputError, PromptFileError
from softprompt.export.engine_client import Tasks
from softprompt.export.vllm_embeddings import EmbeddedTasks, encode_embeddings, write_embeds

FIRST = Placement(behind_bos=False)

TEXT = "a good film and a bad story"


def exported(folder: Path, family: str) -> EmbeddedTasks:
    prompts = {"one": learned(family), "free": replace(learned(family, length=3, seed=2), spec=TaskSpec.of())}
    write_embeds(tiny_base(family), prompts, folder)
    return EmbeddedTasks.load(folder)


class TestRequests:
    # BOS and an embedding scale, BOS without, and neither
    @pytest.mark.parametrize("family", ["gemma3", "llama", "gpt2"])
    def test_carry_what_the_first_layer_sees(self, tmp_path: Path, family: str) -> None:
        base, tasks = tiny_base(family), exported(tmp_path / "out", family)
        ids = text_ids(base, f"{TEXT}; label:")
        bos, text = (base.embed(torch.tensor(part, dtype=torch.long)) for part in (base.bos_ids, ids))
        expected = torch.cat([bos, learned(family).state.tensor, text])
        assert torch.equal(read_embeddings(base, tmp_path / "out", tasks.request("one", TEXT, model="m")), expected)

    def test_a_prompt_that_does_not_stand_behind_bos(self, tmp_path: Path) -> None:
        base, state = tiny_base("llama"), learned("llama").state
        prompt = replace(learned("llama"), states=(replace(state, placement=FIRST),))
        write_embeds(base, {"one": prompt}, tmp_path / "out")
        request = EmbeddedTasks.load(tmp_path / "out").request("one", "a", model="m")
        assert torch.equal(read_embeddings(base, tmp_path / "out", request)[:5], state.tensor)

    def test_the_folder_holds_rows_of_prompts_alone(self, tmp_path: Path) -> None:
        exported(tmp_path / "out", "llama")
        rows = load_file(tmp_path / "out" / "prompts.safetensors")
        assert {name: tuple(one.shape) for name, one in rows.items()} == {"one": (5, 32), "free": (3, 32)}

    def test_a_view_is_sent_without_what_it_is_a_view_of(self) -> None:
        assert len(encode_embeddings(torch.zeros(100_000, 8)[:2])) < 10_000

    def test_a_template_of_other_columns_is_filled_in_by_the_client(self, tmp_path: Path) -> None:
        spec = TaskSpec("generation", "{{ title | upper }}: {{ text }}.")
        write_embeds(tiny_base("llama"), {"one": replace(learned("llama"), spec=spec)}, tmp_path / "out")
        request = EmbeddedTasks.load(tmp_path / "out").request("one", "a film", model="m", title="up")
        ids, held = read_ids(tmp_path / "out", request)
        assert ids == [*tiny_base("llama").bos_ids, held, *text_ids(tiny_base("llama"), "UP: a film.")]

    def test_what_vllm_would_read_as_something_else_is_refused(self, tmp_path: Path) -> None:
        tasks = exported(tmp_path / "out", "llama")
        for text in ("an <eos> here", "a film " * 100):
            with pytest.raises(ConfigError, match="the formats vocab and vllm-kv send token ids"):
                tasks.request("one", text, model="m")

    def test_of_labels_and_of_words(self, tmp_path: Path) -> None:
        tasks = exported(tmp_path / "out", "llama")
        held = tasks.request("one", TEXT, model="m")
        assert (held["max_tokens"], len(held["allowed_token_ids"])) == (1, 2)
        said = {"role": "user", "content": TEXT}
        assert held["messages"] == [tasks.message("one"), said]
        assert [part["type"] for part in held["messages"][0]["content"]] == ["prompt_embeds", "text"]
        free = tasks.request("free", TEXT, model="m", max_tokens=9)
        assert free["max_tokens"] == 9
        # no token was added, so there is none to forbid
        assert set(free) == {"model", "messages", "temperature", "max_tokens"}

    def test_a_model_without_a_chat_template_answers_tasks_alone(self, tmp_path: Path) -> None:
        exported(tmp_path / "out", "llama")
        with pytest.raises(TemplateError, match="this model has no chat template: begin with the message of a task"):
            read_ids(tmp_path / "out", {"messages": [{"role": "user", "content": "Hello"}]})


class TestRefused:
    def test_keys_and_values_ensembles_encoder_decoders_and_taken_places(self, tmp_path: Path) -> None:
        prompt, out = learned("llama"), tmp_path / "out"
        with pytest.raises(PromptFileError, match="is keys and values of every layer"):
            write_embeds(tiny_base("llama"), {"one": learned("llama", "key_values")}, out)
        with pytest.raises(PromptFileError, match="is an ensemble of 2"):
            write_embeds(tiny_base("llama"), {"one": replace(prompt, states=prompt.states * 2)}, out)
        with pytest.raises(BaseModelError, match="is an encoder-decoder model, for which vLLM takes no embeddings"):
            write_embeds(tiny_base("t5"), {"one": learned("t5")}, out)
        out.mkdir()
        with pytest.raises(OutputError, match="exists already"):
            write_embeds(tiny_base("llama"), {"one": prompt}, out)
        assert not any(out.iterdir())

    def test_damaged_folders(self, tmp_path: Path) -> None:
        exported(tmp_path / "out", "llama")
        path = tmp_path / "out" / "prompts.safetensors"
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(PromptFileError, match=r"prompts\.safetensors' is missing or damaged"):
            EmbeddedTasks.load(tmp_path / "out")
        usage = json.loads((tmp_path / "out" / "softprompt.json").read_text())
        with pytest.raises(PromptFileError, match="reach an engine as ids, not as parts: read them with Tasks"):
            EmbeddedTasks(tiny_base("llama").tokenizer, {**usage, "input": "ids"}, {})
        with pytest.raises(PromptFileError, match="lacks 'free': export the prompts again"):
            EmbeddedTasks(tiny_base("llama").tokenizer, usage, {"one": torch.zeros(5, 32)})


class Server:
    """Answers every request with ``reply``, and keeps what it was asked."""

    def __init__(self) -> None:
        self.reply: tuple[int, bytes] = (200, b"{}")
        self.asked: list[tuple[str, dict[str, Any]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.asked.append((self.path, json.loads(body)))
                self.send_response(server.reply[0])
                self.end_headers()
                self.wfile.write(server.reply[1])

            def log_message(self, *_: Any) -> None:
                pass

        self._http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


class TestAsk:
    def test_one_request_one_answer(self, tmp_path: Path, server: Server) -> None:
        tasks = exported(tmp_path / "out", "llama")
        (token, *_) = tasks.request("one", TEXT, model="m")["allowed_token_ids"]
        said = tiny_base("llama").tokenizer.decode([token])
        read = len(tiny_base("llama").bos_ids) + 5 + len(text_ids(tiny_base("llama"), f"{TEXT}; label:"))
        answer = {"choices": [{"message": {"content": said}}], "usage": {"prompt_tokens": read}}
        server.reply = (200, json.dumps(answer).encode())
        assert tasks.ask(server.url, "one", TEXT, model="m") in ("good", "bad")
        assert server.asked == [("/v1/chat/completions", tasks.request("one", TEXT, model="m"))]
        # by another chat template it would have read others
        answer["usage"] = {"prompt_tokens": read + 1}
        server.reply = (200, json.dumps(answer).encode())
        with pytest.raises(ConfigError, match=f"the engine read {read + 1} tokens where {read} were sent"):
            tasks.ask(server.url, "one", TEXT, model="m")

    @pytest.mark.parametrize(
        ("reply", "words"),
        [
            ((400, b'{"error": "no such model"}'), 'refuses: {"error": "no such model"}'),
            ((200, b"<html>"), "expected an OpenAI-compatible server there"),
            ((200, b"{}"), "expected an OpenAI-compatible server there"),
            ((200, b'{"choices": []}'), "expected an OpenAI-compatible server there"),
            ((200, b'{"choices": [], "usage": null}'), "expected an OpenAI-compatible server there"),
        ],
    )
    def test_what_else_a_server_may_say(
        self, tmp_path: Path, server: Server, reply: tuple[int, bytes], words: str
    ) -> None:
        server.reply = reply
        with pytest.raises(ConfigError) as caught:
            exported(tmp_path / "out", "llama").ask(server.url, "one", TEXT, model="m")
        assert words in str(caught.value)

    def test_no_server(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"no answer from http://127\.0\.0\.1:9/v1"):
            exported(tmp_path / "out", "llama").ask("http://127.0.0.1:9/v1", "one", TEXT, model="m")


def test_from_the_command_line(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", "llama")
    replace(learned("llama"), base_name=str(tmp_path / "model")).save(tmp_path / "p")
    done = command("export", tmp_path / "p", "--format", "vllm-embeds", "--out", tmp_path / "out", "--device", "cpu")
    assert (done.code, done.out.strip()) == (0, f"5 virtual tokens of 32 written to {tmp_path}/out")
    assert "--enable-prompt-embeds" in (tmp_path / "out" / "README.md").read_text()
    assert EmbeddedTasks.load(tmp_path / "out").names == ["p"]
    # whose token ids hold the place of rows that no token id brings
    with pytest.raises(PromptFileError, match=r"reach an engine as parts, not as ids: read them with .*EmbeddedTasks"):
        Tasks.load(tmp_path / "out")
