"""What a request is told: counts, what was cut or had no effect, and errors in the words of its fields."""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_models import tiny_base
from helpers.tiny_server import BASE_NAME, LABELS, WORDS, Place, RealPlace, a_store, error_of, prompt, the_base
from starlette.testclient import TestClient
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from softprompt.inference.generation import Completion, GenerationConfig
from softprompt.serving.engine.completion_chunks import CompletionChunk, Detokenizer, InputUsage
from softprompt.serving.http.completion_service import WhitespaceTrimmer
from softprompt.serving.logging_config import JsonFormatter
from softprompt.store.version_store import Store

TEXT = "a fine film"
SHORT = replace(LABELS, max_length=12)


def stocked(folder: Path) -> Store:
    store = a_store(folder)
    store.put(prompt(SHORT, seed=5), "short")
    store.put(prompt(replace(WORDS, max_length=12), seed=6), "brief")
    store.put(prompt(replace(LABELS, template="{{ title }}:"), seed=7), "titled")
    return store


@pytest.fixture(scope="module", params=[Place, RealPlace], ids=["direct", "engine"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    place = request.param.of_store(stocked(tmp_path_factory.mktemp("told")))
    with place.client() as client:
        yield client
        if isinstance(place, RealPlace):
            client.portal.call(place.engine.close)  # type: ignore[union-attr]


def asked(client: TestClient, route: str, **body: Any) -> dict[str, Any]:
    response = client.post(f"/v1/{route}", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def tokens(text: str) -> int:
    """By the tokenizer itself."""
    return len(the_base().tokenizer(text, add_special_tokens=False).input_ids)


class TestUsage:
    def test_of_labels_is_virtual_tokens_template_and_text(self, client: TestClient) -> None:
        texts = ["a fine film", "the cat", "dull"]
        usage = asked(client, "classify", model="tone", input=texts)["usage"]
        read = sum(4 + tokens(f"{text}:") for text in texts)
        assert usage == {"prompt_tokens": read, "completion_tokens": 0, "total_tokens": read}
        as_words = asked(client, "completions", model="tone", prompt=texts)["usage"]
        assert as_words == usage

    def test_of_completions(self, client: TestClient) -> None:
        usage = asked(client, "completions", model="words", prompt=TEXT, max_tokens=3)["usage"]
        assert usage["prompt_tokens"] == 4 + tokens(f"{TEXT}\nOutput:")
        assert asked(client, "completions", model=BASE_NAME, prompt=TEXT)["usage"]["prompt_tokens"] == tokens(TEXT)

    def test_in_every_event_of_a_stream(self, client: TestClient) -> None:
        options = {"include_usage": True, "continuous_usage_stats": True}
        body = {"model": "words", "prompt": TEXT, "stream": True, "stream_options": options}
        lines = client.post("/v1/completions", json=body).text.splitlines()
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        counts = [one["usage"]["completion_tokens"] for one in events]
        assert counts == sorted(counts)
        assert counts[-1] == asked(client, "completions", model="words", prompt=TEXT)["usage"]["completion_tokens"]


class TestWarnings:
    def test_there_are_none_where_nothing_is_to_be_told(self, client: TestClient) -> None:
        assert "warnings" not in asked(client, "classify", model="tone", input=TEXT)
        body = {"model": "words", "prompt": TEXT, "temperature": 1, "top_p": 0.5, "stop": "x", "max_tokens": 2}
        assert "warnings" not in asked(client, "completions", **body)
        neutral = {"temperature": 0, "top_p": 1, "top_k": -1, "seed": 3}
        assert "warnings" not in asked(client, "completions", model="tone", prompt=TEXT, **neutral)
        assert "warnings" not in asked(client, "completions", model="words", prompt=TEXT, **neutral)

    def test_a_text_that_is_cut(self, client: TestClient) -> None:
        long = "a fine film and a dull story of the cat that sat on the mat, " * 3
        for model, route, field in (("short", "classify", "input"), ("brief", "completions", "prompt")):
            answer = asked(client, route, model=model, **{field: ["a", long, "the"]})
            (warning,) = answer["warnings"]
            assert warning.startswith(f"text 1 was cut: it is longer than the 16 tokens that '{model}@1' reads")
        (single,) = asked(client, "classify", model="short", input=long)["warnings"]
        assert single.startswith("text 0 was cut")

    def test_a_text_that_is_cut_in_a_stream(self, client: TestClient) -> None:
        body = {"model": "brief", "prompt": "a fine film " * 20, "stream": True}
        lines = client.post("/v1/completions", json=body).text.splitlines()
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert [len(one.get("warnings", ())) for one in events] == [1, *[0] * (len(events) - 1)]

    def test_a_column_that_the_template_does_not_use(self, client: TestClient) -> None:
        rows = [{"text": TEXT, "title": "T", "titel": "T"}, {"text": "x", "title": "T", "titel": "U"}]
        (warning,) = asked(client, "classify", model="more", input=rows)["warnings"]
        assert warning == "the column 'titel' has no effect: the template of 'more@1' uses text, title"
        (other,) = asked(client, "completions", model="words", prompt=TEXT, columns={"title": "T"})["warnings"]
        assert "'title' has no effect: the template of 'words@1' uses text" in other
        assert len(asked(client, "completions", model=BASE_NAME, prompt=TEXT, columns={"a": 1})["warnings"]) == 1
        # of a comparison it is the prompt's template that counts
        bare = {"model": "more", "input": rows[0], "baseline": {"template": False}}
        assert asked(client, "classify", **bare)["warnings"] == [warning]

    def test_a_text_that_the_template_does_not_use(self, client: TestClient) -> None:
        rows = [{"title": "T"}, {"title": "T", "text": TEXT}]
        assert "warnings" not in asked(client, "classify", model="titled", input=rows[0])
        told = "the text has no effect: the template of 'titled@1' uses title"
        assert asked(client, "classify", model="titled", input=rows)["warnings"] == [told]
        assert asked(client, "completions", model="titled", prompt=TEXT, columns={"title": "T"})["warnings"] == [told]
        bare = {"model": "titled", "input": rows[1], "baseline": {"template": False}}
        assert "warnings" not in asked(client, "classify", **bare)

    @pytest.mark.parametrize(
        "idle", [{"stop": "x"}, {"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 5}, {"max_tokens": 1}], ids=str
    )
    def test_what_changes_no_label(self, client: TestClient, idle: dict[str, Any]) -> None:
        (name,) = idle
        chat = {"messages": [{"role": "user", "content": TEXT}]}
        for route, text in (("completions", {"prompt": TEXT}), ("chat/completions", chat)):
            (warning,) = asked(client, route, model="tone", **text, **idle)["warnings"]
            assert warning == f"{name} has no effect: 'tone@1' answers with the words of the likeliest label"
        error_of(client.post("/v1/classify", json={"model": "tone", "input": TEXT, **idle}), 422)

    def test_sampling_without_a_temperature(self, client: TestClient) -> None:
        warnings = asked(client, "completions", model="words", prompt=TEXT, top_p=0.5, top_k=3)["warnings"]
        assert [one.split()[0] for one in warnings] == ["top_k", "top_p"]

    def test_the_log_counts_them(self, client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "softprompt.serving")
        asked(client, "classify", model="short", input=["a fine film " * 20, "a", "a fine film " * 20])
        line = json.loads(JsonFormatter().format(caplog.records[-1]))
        assert (line["warnings"], line["cut"]) == (2, 2)


class TestLoadTesters:
    @pytest.mark.parametrize(
        "more",
        [
            # vllm bench serve, guidellm, aiperf, and OpenAI's newest fields
            {"repetition_penalty": 1.0, "logprobs": None, "stream": True, "stream_options": {"include_usage": True}},
            {"stop": None, "stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
            {"min_tokens": 0, "ignore_eos": False, "skip_special_tokens": True, "request_id": "r-1", "priority": 0},
            {"prompt_cache_retention": "24h", "prompt_cache_key": "k", "safety_identifier": "s"},
            {"top_k": -1, "min_p": 0, "length_penalty": 1, "stop_token_ids": [], "use_beam_search": False},
        ],
        ids=lambda more: next(iter(more)),
    )
    def test_fields_that_change_nothing(self, client: TestClient, more: dict[str, Any]) -> None:
        response = client.post("/v1/completions", json={"model": "words", "prompt": TEXT, **more})
        assert response.status_code == 200, response.text
        assert "has no effect" not in response.text

    def test_one_that_would(self, client: TestClient) -> None:
        (warning,) = asked(client, "completions", model="words", prompt=TEXT, ignore_eos=True)["warnings"]
        assert warning.startswith("ignore_eos has no effect")
        for changing in ({"repetition_penalty": 1.1}, {"min_tokens": 5}, {"stop_token_ids": [1]}):
            error_of(client.post("/v1/completions", json={"model": "words", "prompt": TEXT, **changing}), 422)


class TestErrors:
    @pytest.mark.parametrize(
        ("route", "body", "param", "message"),
        [
            ("completions", {"prompt": 5}, "prompt", "prompt: expected a string or a list, got 5"),
            ("completions", {"prompt": ["a", 5]}, "prompt[1]", "prompt[1]: expected a string, got 5"),
            (
                "completions",
                {"prompt": ["a", ""]},
                "prompt[1]",
                "prompt[1]: expected at least 1 characters, got an empty",
            ),
            ("completions", {"prompt": " \n"}, "prompt", "prompt: expected more than white space"),
            ("completions", {}, "prompt", "prompt: expected this field, it is not there"),
            (
                "completions",
                {"prompt": TEXT, "max_tokens": "8"},
                "max_tokens",
                "expected a whole number, got a string of",
            ),
            (
                "completions",
                {"prompt": TEXT, "max_tokens": 0},
                "max_tokens",
                "max_tokens: expected at least 1 without echo, got 0",
            ),
            ("completions", {"prompt": TEXT, "temperature": 3}, "temperature", "expected at most 2, got 3"),
            ("completions", {"prompt": TEXT, "stop": ["x", 1]}, "stop[1]", "stop[1]: expected a string, got 1"),
            (
                "completions",
                {"prompt": TEXT, "stream": "yes"},
                "stream",
                "stream: expected true or false, got a string",
            ),
            ("completions", {"prompt": TEXT, "echo": 1}, "echo", "echo: expected true or false, got 1"),
            ("completions", {"prompt": TEXT, "temprature": 1}, "temprature", "this field is not known here"),
            ("classify", {"input": {"text": 5}}, "input.text", "input.text: expected a string, got 5"),
            ("classify", {"input": ["a", {"text": 1}]}, "input[1].text", "input[1].text: expected a string, got 1"),
            ("chat/completions", {"messages": "hi"}, "messages", "messages: expected a list, got a string of 2"),
            (
                "chat/completions",
                {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
                "messages[0].content[0].text",
                "expected this field",
            ),
        ],
    )
    def test_in_the_words_of_the_field(
        self,
        client: TestClient,
        caplog: pytest.LogCaptureFixture,
        route: str,
        body: dict[str, Any],
        param: str,
        message: str,
    ) -> None:
        caplog.set_level(logging.INFO, "softprompt.serving")
        error = error_of(client.post(f"/v1/{route}", json={"model": "tone", **body}), 422)
        assert error["param"] == param
        assert message in error["message"]
        for foreign in ("constrained", "Input should", "[str", "function-", "Row", "TextPart"):
            assert foreign not in error["message"]
        assert json.loads(JsonFormatter().format(caplog.records[-1]))["param"] == param

    def test_a_name_that_may_be_a_text_is_not_in_the_log(
        self, client: TestClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "softprompt.serving")
        body = {"model": "tone", "prompt": TEXT, "my name is Kaspar, and this is a text": 1}
        error_of(client.post("/v1/completions", json=body), 422)
        assert "Kaspar" not in JsonFormatter().format(caplog.records[-1])


class TestWhiteSpace:
    """A completion goes on where its text ends."""

    def of(self, ids: list[int], tokenizer: Any) -> tuple[str, str]:
        completion = Completion(the_base(), GenerationConfig(len(ids)))
        completion._tokenizer = tokenizer
        pieces, found = Detokenizer(completion, tokenizer, InputUsage(1, False)), []
        for token in ids:
            completion.add(token)
            if (piece := pieces.next_chunk()) is not None:
                found.append(piece.text)
        return completion.exact, "".join(found)

    def test_of_a_tokenizer_that_leaves_out_the_first_blank(self) -> None:
        """As Llama 2's: its decoder takes the blank of a first word away."""
        vocabulary = {"<unk>": 0, "</s>": 1, "▁a": 2, "▁the": 3, "▁capital": 4, "▁is": 5, "France": 6, "▁": 7, "a": 8}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
        assert fast.decode([3, 4]) == "the capital"
        assert self.of([3, 4], fast) == (" the capital", " the capital")

    def test_text_and_completion_are_the_whole(self) -> None:
        base = tiny_base("llama")
        whole = "a fine film\n\nthe cat sat  on the mat "
        ids = base.tokenizer(whole, add_special_tokens=False).input_ids
        for at in range(1, len(ids)):
            exact, streamed = self.of(ids[at:], base.tokenizer)
            assert base.tokenizer.decode(ids[:at]) + exact == whole
            assert streamed == exact

    def test_a_chat_has_none_around_it(self) -> None:
        for parts in ([" \n", " a", " b ", "\n", "c", " \n"], ["a"], ["", "  "], [" a b "]):
            trimmed = WhitespaceTrimmer()
            pieces = [CompletionChunk(part, 1, InputUsage(1, False)) for part in parts] + [
                CompletionChunk("", 0, InputUsage(1, False), "stop")
            ]
            assert "".join(trimmed(piece).text for piece in pieces) == "".join(parts).strip()

    def test_completions_and_chats(self, client: TestClient, tmp_path: Path) -> None:
        """A model that begins with a blank."""
        place = Place.of_store(a_store(tmp_path))

        async def generate(*arguments: Any, **more: Any) -> Any:
            yield CompletionChunk(" the", 1, InputUsage(1, False))
            yield CompletionChunk(" capital ", 1, InputUsage(1, False), "stop")

        place.engine.generate = generate
        with place.client() as own:
            for model in ("words", BASE_NAME):
                assert (
                    asked(own, "completions", model=model, prompt="France is")["choices"][0]["text"] == " the capital "
                )
            chat = {"model": "words", "messages": [{"role": "user", "content": "France is"}]}
            assert asked(own, "chat/completions", **chat)["choices"][0]["message"]["content"] == "the capital"
