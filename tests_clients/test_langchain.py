"""LangChain: messages of several roles, structured output, tools, a stream."""

import pytest
from conftest import Server
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Person(BaseModel):
    """A person."""

    name: str
    age: int


@tool
def find_weather(city: str) -> str:
    """Find the weather of a city."""
    return f"sunny in {city}"


@pytest.fixture
def model(server: Server) -> ChatOpenAI:
    return ChatOpenAI(
        model=server.model, base_url=server.url, api_key=server.key, temperature=0, max_tokens=60, max_retries=0
    )


CONVERSATION = [
    SystemMessage("Answer in one short sentence."),
    HumanMessage("My name is Ada."),
    AIMessage("Nice to meet you, Ada."),
    HumanMessage("What is my name?"),
]


def test_a_conversation_with_a_system_message(model: ChatOpenAI) -> None:
    answer = model.invoke(CONVERSATION)
    assert "Ada" in answer.content
    assert answer.usage_metadata["output_tokens"] > 0


def test_a_stream_is_the_same_answer(model: ChatOpenAI) -> None:
    said = "".join(chunk.content for chunk in model.stream(CONVERSATION))
    assert said == model.invoke(CONVERSATION).content


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_structured_output(model: ChatOpenAI, method: str) -> None:
    asked = "Ada is 36 years old. Answer with a JSON object that has the keys name and age."
    person = model.with_structured_output(Person, method=method).invoke([HumanMessage(asked)])
    assert person == Person(name="Ada", age=36)


def test_a_tool_is_called_and_its_result_read(model: ChatOpenAI) -> None:
    able = model.bind_tools([find_weather], tool_choice="any")
    asked = [HumanMessage("What is the weather in Paris?")]
    called = able.invoke(asked)
    (call,) = called.tool_calls
    assert (call["name"], "Paris" in call["args"]["city"]) == ("find_weather", True)
    # this small model would call again if it could
    answer = model.invoke([*asked, called, find_weather.invoke(call)])
    assert "sunny" in answer.content
