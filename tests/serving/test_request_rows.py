"""Rows that come to the server are those of a file: types are kept, columns have the names that the prompt learned."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_server import Place, expected, prompt
from starlette.testclient import TestClient

from softprompt.data.examples import Columns, Example
from softprompt.data.task import TaskSpec
from softprompt.store.version_store import Store

TEMPLATE = (
    "{% if sure %}Surely{% else %}Maybe{% endif %} {% if n == 0 %}none{% endif %}"
    "{% for tag in tags %}<{{ tag }}>{% endfor %} {{ text }}:"
)
TYPED = TaskSpec.of(labels=["bad", "good"], template=TEMPLATE, columns=Columns("body", "mood"))
TITLES = TaskSpec.of(labels=["bad", "good"], template="{{ title }}:")
VALUES: dict[str, Any] = {"sure": False, "n": 0, "tags": ["a", "b"]}
WRITTEN = "Maybe none<a><b> a fine film:"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder: Path = tmp_path_factory.mktemp("rows")
    store = Store(folder / "store")
    store.put(prompt(TYPED, seed=1), "typed")
    store.put(prompt(TITLES, seed=2), "titles")
    with Place.of_store(store).client() as client:
        yield client


def classify_examples(client: TestClient, model: str, row: Any) -> Any:
    response = client.post("/v1/classify", json={"model": model, "input": row})
    assert response.status_code == 200, response.text
    (found,) = response.json()["results"]
    return found["probabilities"]


def test_types_and_names_are_those_of_training(client: TestClient) -> None:
    as_written = TaskSpec.of(labels=["bad", "good"], template="{{ text }}")
    (direct,) = expected(as_written, 1, Example(WRITTEN))
    for name in ("body", "text"):
        found = classify_examples(client, "typed", {name: "a fine film", **VALUES})
        assert found == pytest.approx(direct["probabilities"], abs=1e-5)


def test_a_row_without_text_where_the_template_needs_none(client: TestClient) -> None:
    (direct,) = expected(TaskSpec.of(labels=["bad", "good"], template="{{ text }}"), 2, Example("Heat:"))
    assert classify_examples(client, "titles", {"title": "Heat"}) == pytest.approx(direct["probabilities"], abs=1e-5)


@pytest.mark.parametrize("row", [{}, {"title": "x"}, {"text": None}, {"body": " "}, {"body": 5}])
def test_a_row_without_text_is_refused_by_the_names_it_may_have(client: TestClient, row: dict[str, Any]) -> None:
    response = client.post("/v1/classify", json={"model": "typed", "input": {**row, **VALUES}})
    assert response.status_code == 422
    assert "body" in response.text or "text" in response.text


def test_the_text_of_a_completion_has_no_second_one(client: TestClient) -> None:
    for name in ("text", "body"):
        asked = {"model": "typed", "prompt": "a film", "columns": {**VALUES, name: "again"}}
        response = client.post("/v1/completions", json=asked)
        assert response.status_code == 422
        assert f"'{name}'" in response.text
