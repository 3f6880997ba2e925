"""instructor: a validated object out of a conversation, in its three modes."""

import instructor
import pytest
from conftest import Server
from openai import OpenAI
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.JSON, instructor.Mode.JSON_SCHEMA])
def test_an_object_comes_back(server: Server, mode: instructor.Mode) -> None:
    client = instructor.from_openai(OpenAI(base_url=server.url, api_key=server.key), mode=mode)
    person = client.chat.completions.create(
        model=server.model,
        response_model=Person,
        max_retries=1,
        temperature=0,
        messages=[
            {"role": "system", "content": "Extract the person."},
            {"role": "user", "content": "Ada is 36 years old."},
        ],
    )
    assert (person.name, person.age) == ("Ada", 36)
