"""The official ``openai`` client, unchanged, against a running server."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from helpers.tiny_server import BASE_NAME, LABELS, WORDS, Place, a_store, expected

from softprompt.data.examples import Example
from softprompt.serving.engine.engine_requests import EngineBusyError
from softprompt.serving.http.api_keys import add_key

TEXT = "a fine film"


class Running:
    """A server with keys, its address, and what belongs to it."""

    def __init__(self, place: Place, address: str, token: str) -> None:
        self.place, self.url, self.token = place, f"{address}/v1", token
        self.client = openai.OpenAI(base_url=self.url, api_key=token, max_retries=0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder: Path = tmp_path_factory.mktemp("client")
    token = add_key(folder / "keys.json", "ci", ["tone", "words", BASE_NAME])
    place = Place.of_store(a_store(folder), keys=str(folder / "keys.json"))
    with place.running() as address:
        running = Running(place, address, token)
        yield running
        running.client.close()


def completed(seed: int = 3) -> str:
    (direct,) = expected(WORDS, seed, Example(TEXT))
    return str(direct["completion"])


class TestAnswers:
    def test_models(self, server: Running) -> None:
        names = [model.id for model in server.client.models.list()]
        assert {"tone", "tone@prod", "tone@2", "words@1", BASE_NAME} <= set(names)
        assert server.client.models.retrieve("tone@prod").owned_by == "softprompt"

    def test_completion(self, server: Running) -> None:
        answer = server.client.completions.create(model="words@1", prompt=TEXT, max_tokens=8)
        assert answer.choices[0].text == completed()
        assert answer.choices[0].finish_reason == "stop"
        assert answer.model == "words@1"
        assert answer.usage is not None
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens

    def test_completion_as_a_stream(self, server: Running) -> None:
        stream = server.client.completions.create(
            model="words", prompt=TEXT, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == completed()
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens > 0

    def test_chat(self, server: Running) -> None:
        answer = server.client.chat.completions.create(
            model="words", messages=[{"role": "user", "content": TEXT}], max_completion_tokens=8, temperature=0, n=1
        )
        assert answer.choices[0].message.content == completed()
        assert answer.choices[0].message.role == "assistant"

    def test_chat_as_a_stream(self, server: Running) -> None:
        stream = server.client.chat.completions.create(
            model="words", messages=[{"role": "user", "content": TEXT}], stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == completed()

    def test_chat_by_the_stream_helper(self, server: Running) -> None:
        with server.client.chat.completions.stream(
            model="words", messages=[{"role": "user", "content": TEXT}]
        ) as stream:
            final = stream.get_final_completion()
        assert final.choices[0].message.content == completed()

    def test_classification_says_the_words_of_the_label(self, server: Running) -> None:
        answer = server.client.chat.completions.create(model="tone", messages=[{"role": "user", "content": TEXT}])
        (direct,) = expected(LABELS, 1, Example(TEXT))
        assert answer.choices[0].message.content == {"bad": "bad", "good": "great"}[direct["label"]]

    def test_columns_as_extra_body(self, server: Running) -> None:
        plain = server.client.completions.create(model="tone", prompt=TEXT)
        extra = server.client.completions.create(model="tone", prompt=TEXT, extra_body={"columns": {"unused": 1}})
        assert extra.choices[0].text == plain.choices[0].text

    def test_many_at_once(self, server: Running) -> None:
        async def ask() -> list[str]:
            async with openai.AsyncOpenAI(base_url=server.url, api_key=server.token, max_retries=0) as client:
                asked = [client.completions.create(model="words", prompt=TEXT) for _ in range(12)]
                return [answer.choices[0].text for answer in await asyncio.gather(*asked)]

        assert asyncio.run(ask()) == [completed()] * 12


class TestErrors:
    def test_their_classes_and_fields(self, server: Running) -> None:
        create = server.client.completions.create
        with pytest.raises(openai.NotFoundError) as unknown:
            create(model="tone@9", prompt=TEXT)
        assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.UnprocessableEntityError, match="n: expected at most 16, got"):
            create(model="tone", prompt=TEXT, n=17)
        with pytest.raises(openai.PermissionDeniedError):
            create(model="more", prompt=TEXT)
        with (
            pytest.raises(openai.AuthenticationError) as refused,
            openai.OpenAI(base_url=server.url, api_key="sp-wrong", max_retries=0) as other,
        ):
            other.models.list()
        assert refused.value.request_id

    def test_a_full_queue_is_tried_again(self, server: Running) -> None:
        server.place.engine.failure = EngineBusyError(0.1)
        try:
            with pytest.raises(openai.RateLimitError) as full:
                server.client.completions.create(model="tone", prompt=TEXT)
            assert full.value.response.headers["retry-after"] == "1"
        finally:
            server.place.engine.failure = None

    def test_an_error_within_a_stream(self, server: Running) -> None:
        server.place.engine.hold_pieces.set()
        try:
            stream = server.client.completions.create(model="words", prompt=TEXT, stream=True)
            next(stream)
            server.place.engine.failure = RuntimeError("inside")
            server.place.engine.hold_pieces.clear()
            with pytest.raises(openai.APIError, match="a failure of the server") as failed:
                list(stream)
            assert failed.value.code == "internal_error"
        finally:
            server.place.engine.failure = None
            server.place.engine.hold_pieces.clear()
