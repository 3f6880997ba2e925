"""``softprompt serve``: settings from file, environment and options; what it refuses; its whole life as a process."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import pytest
from helpers.small_tasks import command
from helpers.tiny_models import save_tiny
from helpers.tiny_server import LABELS, WORDS, error_of, expected, prompt, wait_for

from softprompt.cli.verbs import lazy_verbs
from softprompt.data.examples import Example
from softprompt.errors import ConfigError
from softprompt.models.loading import load_model
from softprompt.serving.http.api_keys import add_key
from softprompt.serving.http.server_settings import ServerSettings
from softprompt.serving.http.settings_sources import load_server_settings
from softprompt.serving.request_log.sample_files import read_samples
from softprompt.serving.uvicorn_server import listen
from softprompt.store.version_store import Store

LEAST = {"model": "tiny", "store": "store"}


def gathered(file: Path | None = None, environment: dict[str, str] | None = None, **options: Any) -> ServerSettings:
    return settings_of(file, {**LEAST, **options}, environment or {})


def settings_of(file: Path | None, options: dict[str, Any], environment: dict[str, str]) -> ServerSettings:
    with patch.dict(os.environ, environment, clear=True):
        return load_server_settings(file, options)


class TestSettings:
    def test_options_over_environment_over_file(self, tmp_path: Path) -> None:
        file = tmp_path / "serve.toml"
        file.write_text(
            'port = 1\ntimeout = 1.5\nrefresh = 3\ncors_origins = ["https://a.example"]\n[engine]\nrows = 8\n'
        )
        environment = {"SOFTPROMPT_PORT": "2", "SOFTPROMPT_TIMEOUT": "2.5", "SOFTPROMPT_LOG_TEXT": "true"}
        config = gathered(file, environment, port=3)
        assert (config.port, config.timeout, config.refresh, config.log_text) == (3, 2.5, 3, True)
        assert config.cors_origins == ("https://a.example",)
        assert config.engine == {"rows": 8}

    def test_lists_and_the_engine_from_the_environment(self) -> None:
        environment = {"SOFTPROMPT_ALLOWED_HOSTS": "a.example, b.example", "SOFTPROMPT_ENGINE": "rows=8,gather=0.01"}
        config = gathered(
            environment={**environment, "SOFTPROMPT_KEYS": " ", "SOFTPROMPT_TRACEBACK": "1"}, no_auth=True
        )
        assert config.allowed_hosts == ("a.example", "b.example")
        assert config.engine == {"rows": "8", "gather": "0.01"}
        assert config.keys is None

    def test_samples(self) -> None:
        environment = {
            "SOFTPROMPT_SAMPLE_FILE": "s.db",
            "SOFTPROMPT_SAMPLE_RATE": "0.5",
            "SOFTPROMPT_SAMPLE_KEEP": "7d",
        }
        config = gathered(environment=environment, sample_text=True)
        assert (config.samples_path, config.sample_rate, config.sample_text) == (Path("s.db"), 0.5, True)
        assert (gathered().samples_path, gathered().sample_rate, gathered().sample_text) == (None, 0.01, False)
        for options, words in (
            ({"sample_rate": 0.5}, "sample_rate is for samples of requests: give --sample-file too, or leave it out"),
            ({"sample_file": "s", "sample_rate": 0.0}, "sample_rate"),
            ({"sample_file": "s", "sample_rate": 1.5}, "sample_rate"),
            ({"sample_file": "s", "sample_keep": "many"}, "sample_keep: expected a number of rows, as 100000, or a"),
        ):
            with pytest.raises(ConfigError, match=words):
                gathered(**options)

    def test_a_yaml_file(self, tmp_path: Path) -> None:
        (tmp_path / "serve.yaml").write_text("model: tiny\nprompts: [a, b=c]\n")
        config = settings_of(tmp_path / "serve.yaml", {}, {})
        assert config.prompts == ("a", "b=c")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"model": None}, "expected a base model, got none"),
            ({"store": None}, "expected a store or saved prompts, got neither"),
            ({"prompts": ("a",)}, "expected a store or saved prompts, got both"),
            ({"host": "0.0.0.0"}, "others reach the address '0.0.0.0', and there are no API keys"),
            ({"host": "::"}, "others reach the address '::'"),
            ({"host": "192.168.0.1"}, "others reach the address"),
            ({"host": "my-machine"}, "others reach the address"),
            ({"keys": "keys.json", "no_auth": True}, "leave one of them out"),
            ({"port": 70000}, "setting 'port'"),
            ({"tiemout": 3}, "did you mean 'timeout'"),
            ({"default_max_tokens": 2000}, "must be at most max_tokens"),
            ({"timeout": float("nan")}, "setting 'timeout'"),
        ],
    )
    def test_mistakes(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=re.escape(message)):
            gathered(**options)

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
    def test_this_machine_needs_no_keys(self, host: str) -> None:
        config = gathered(host=host)
        assert config.is_local
        assert host in config.hosts

    @pytest.mark.parametrize(
        "options", [{"root_path": "/prompts"}, {"allowed_hosts": ("localhost", "api.example.com")}]
    )
    def test_behind_a_proxy_others_ask(self, options: dict[str, Any]) -> None:
        """Though the address is this machine's."""
        with pytest.raises(ConfigError, match="others reach the server through a proxy, and there are no API keys"):
            gathered(**options)
        assert not gathered(**options, no_auth=True).is_private
        assert not gathered(**options, keys="keys.json").is_private
        assert gathered(allowed_hosts=("LocalHost:8000", "[::1]:8000")).is_private

    def test_hosts_are_compared_as_requests_name_them(self) -> None:
        names = ("API.Example.com", "b.example:8443", "[::1]:80", "::1")
        assert gathered(allowed_hosts=names, no_auth=True).hosts == ("api.example.com", "b.example", "::1", "::1")

    def test_prompts_given_win_over_a_store_of_the_environment(self, tmp_path: Path) -> None:
        (tmp_path / "serve.toml").write_text('store = "c"\n')
        environment = {"SOFTPROMPT_MODEL": "tiny", "SOFTPROMPT_STORE": "b"}
        config = settings_of(tmp_path / "serve.toml", {"prompts": ("a",)}, environment)
        assert (config.prompts, config.store) == (("a",), None)
        environment = {"SOFTPROMPT_MODEL": "tiny", "SOFTPROMPT_PROMPTS": "a"}
        config = settings_of(None, {"store": "b", "prompts": ()}, environment)
        assert (config.prompts, config.store) == ((), "b")

    def test_other_addresses_with_keys_or_without_saying(self) -> None:
        assert gathered(host="0.0.0.0", keys="keys.json").hosts == ()
        assert gathered(host="0.0.0.0", no_auth=True).hosts == ()
        assert gathered(host="0.0.0.0", no_auth=True, allowed_hosts=("a",)).hosts == ("a",)


def test_the_docs_have_every_setting_and_default() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "serve.md").read_text(encoding="utf-8")
    table = page.partition("| setting | default | |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in table.splitlines()[2:]]
    told = {
        name.strip(" `"): default.strip(" `")
        for names, defaults in rows
        for name, default in zip_longest(names.split(","), defaults.split(","), fillvalue=defaults)
    }
    assert set(told) == set(ServerSettings.model_fields)
    for name, field in ServerSettings.model_fields.items():
        if isinstance(field.default, int | float | str):
            assert told[name].lower() == str(field.default).lower().removesuffix(".0") or field.default == ""


class TestCommand:
    @pytest.fixture(autouse=True)
    def _no_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [name for name in os.environ if name.startswith("SOFTPROMPT_")]:
            monkeypatch.delenv(name)

    def test_mistakes_are_one_line(self, tmp_path: Path) -> None:
        ended = command("serve", "--store", tmp_path)
        assert ended.code == 2
        assert ended.error.startswith("expected a base model")
        assert "API keys" in command("serve", "--model", "x", "--store", tmp_path, "--host", "0.0.0.0").error

    def test_without_the_extra(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(lazy_verbs.EXTRAS, "serve", ("no_such_package",))
        ended = command("serve", "--model", "x", "--store", tmp_path)
        assert ended.code == 2
        assert ended.error.endswith("pip install 'softprompt[serve]'")

    def test_a_port_that_is_taken(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="cannot listen on"):
            listen("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(ConfigError, match=r"cannot listen on 'no-such-host\.invalid'"):
            listen("no-such-host.invalid", 0)


class TestProcess:
    @pytest.fixture(autouse=True)
    def _engine(self) -> None:
        pytest.importorskip("softprompt.serving.engine.inference_engine")

    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        folder = save_tiny(tmp_path / "tiny-llama", "llama")
        base = load_model(folder, dtype="float32")
        store = Store(tmp_path / "store")
        for saved, name in (
            (prompt(LABELS, 1, base), "tone"),
            (prompt(LABELS, 2, base), "tone"),
            (prompt(WORDS, 3, base), "words"),
        ):
            store.put(saved, name)
        store.promote("tone@1", "prod")
        return folder

    @contextmanager
    def serving(self, model: Path, *options: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
        """The process and its address; ended by SIGTERM, with exit code 0 and nothing on standard output."""
        arguments = ["--model", model, "--store", model.parent / "store", "--port", 0, "--dtype", "float32", *options]
        with subprocess.Popen(
            [sys.executable, "-m", "softprompt", "serve", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "SOFTPROMPT_DEFAULT_MAX_TOKENS": "8",
                "SOFTPROMPT_REFRESH": "0",
                "SOFTPROMPT_DRAIN_DELAY": "0",
            },
        ) as process:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if found := re.search(r"listening on (http://\S+),", line):
                    break
            else:
                raise AssertionError("".join(said))
            try:
                wait_for(lambda: reaches(found[1]))
                yield process, found[1]
            finally:
                process.send_signal(signal.SIGTERM)
                out, self.err = process.communicate(timeout=60)
        assert out == ""
        assert process.returncode == 0, self.err

    def test_it_answers_and_ends(self, model: Path) -> None:
        with self.serving(model) as (_, address):
            names = {one["id"] for one in httpx.get(f"{address}/v1/models").json()["data"]}
            assert {"tiny-llama", "tone@prod", "words@1"} <= names
            answer = httpx.post(
                f"{address}/v1/classify", json={"model": "tone", "input": "a fine film"}, timeout=60
            ).json()
            (direct,) = expected(LABELS, 1, Example("a fine film"))
            assert answer["results"][0]["probabilities"] == pytest.approx(direct["probabilities"], abs=1e-4)
            body = {"model": "words", "prompt": "a fine film", "stream": True}
            streamed = httpx.post(f"{address}/v1/completions", json=body, timeout=60).text
            parts = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
            text = "".join(part["choices"][0]["text"] for part in parts)
            assert text == expected(WORDS, 3, Example("a fine film"))[0]["completion"]
            metrics = httpx.get(f"{address}/metrics").text
            assert 'softprompt_batch_rows_count{what="label"} 1.0' in metrics
        lines = [json.loads(line) for line in self.err.splitlines() if line.startswith("{")]
        assert [line["route"] for line in lines if line["event"] == "request"][-1] == "/metrics"
        assert "a fine film" not in self.err

    def test_samples_that_are_queued_are_written_at_the_end(self, model: Path, tmp_path: Path) -> None:
        path = tmp_path / "samples.db"
        options = ("--sample-file", path, "--sample-rate", 1, "--sample-text")
        with self.serving(model, *options) as (_, address):
            for number in range(40):
                httpx.post(f"{address}/v1/classify", json={"model": "tone", "input": f"film {number}"}, timeout=60)
        assert [one.text for one in read_samples(path).samples] == [f"film {number}" for number in range(40)]
        assert "film 1" not in self.err

    def test_a_file_for_samples_that_is_none(self, model: Path, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("a letter, with a hundred words and more: " + "word " * 100)
        options = ("--model", model, "--store", model.parent / "store", "--sample-file", tmp_path / "mine.txt")
        assert "samples cannot be written to" in command("serve", *options).error

    def test_keys(self, model: Path, tmp_path: Path) -> None:
        token = add_key(tmp_path / "keys.json", "ci", ["tone"])
        with self.serving(model, "--keys", tmp_path / "keys.json", "--host", "0.0.0.0") as (_, address):
            address = address.replace("0.0.0.0", "127.0.0.1")
            error_of(httpx.get(f"{address}/v1/models"), 401)
            assert httpx.get(f"{address}/v1/models", headers={"Authorization": f"Bearer {token}"}).status_code == 200

    def test_sigterm_is_seen_by_a_balancer_before_the_port_closes(self, model: Path) -> None:
        with self.serving(model, "--drain-delay", 60) as (process, address):
            process.send_signal(signal.SIGTERM)
            wait_for(lambda: httpx.get(f"{address}/readyz").status_code == 503)
            body = {"model": "tone", "input": "a fine film"}
            assert httpx.post(f"{address}/v1/classify", json=body, timeout=60).status_code == 200
            # the second one, at the end, does not wait
            began = time.monotonic()
        assert time.monotonic() - began < 50

    def test_unknown_settings_of_the_engine(self, model: Path, tmp_path: Path) -> None:
        (tmp_path / "serve.toml").write_text("[engine]\nrosw = 8\n")
        options = ("--model", model, "--store", tmp_path / "store", "--config", tmp_path / "serve.toml")
        assert "unknown setting 'engine.rosw': expected one of" in command("serve", *options).error


def reaches(address: str) -> bool:
    """Whether it is ready."""
    try:
        return httpx.get(f"{address.replace('0.0.0.0', '127.0.0.1')}/readyz").status_code == 200
    except httpx.TransportError:
        return False
