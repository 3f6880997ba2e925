"""LlamaIndex: OpenAILike with a system message, whole and streamed, and its structured output."""

import pytest
from conftest import Server
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


class Person(BaseModel):
    """A person."""

    name: str
    age: int


@pytest.fixture
def model(server: Server) -> OpenAILike:
    return OpenAILike(
        model=server.model,
        api_base=server.url,
        api_key=server.key,
        is_chat_model=True,
        is_function_calling_model=True,
        context_window=2048,
        max_tokens=60,
        temperature=0,
        max_retries=0,
    )


MESSAGES = [
    ChatMessage(role="system", content="Answer in one short sentence."),
    ChatMessage(role="user", content="What is the capital of France?"),
]


def test_a_system_message(model: OpenAILike) -> None:
    assert "Paris" in model.chat(MESSAGES).message.content


def test_a_stream_is_the_same_answer(model: OpenAILike) -> None:
    said = "".join(part.delta or "" for part in model.stream_chat(MESSAGES))
    assert said == model.chat(MESSAGES).message.content


def test_structured_output(model: OpenAILike) -> None:
    answer = model.as_structured_llm(Person).chat([ChatMessage(role="user", content="Ada is 36 years old.")])
    assert answer.raw == Person(name="Ada", age=36)


def test_a_plain_completion(server: Server) -> None:
    model = OpenAILike(model=server.model, api_base=server.url, api_key=server.key, max_tokens=8, max_retries=0)
    assert model.complete("The capital of France is").text
