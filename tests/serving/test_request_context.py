"""The base model in a prompt's place: it answers as softprompt's own baselines do, to whoever may ask it."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.chat_models import chat_base
from helpers.served_prompts import TWO, assert_same, collected, completed, said, tokens
from helpers.tiny_server import BASE_NAME, LABELS, MORE, WORDS, Place, a_store, error_of, the_base
from starlette.testclient import TestClient

from softprompt.data.chats.chat_resolution import resolve_chat
from softprompt.data.examples import Example
from softprompt.data.task import Task, TaskSpec
from softprompt.inference.generation import GenerationConfig
from softprompt.inference.predictions import Prediction
from softprompt.inference.predictor import Predictor
from softprompt.prompts.written_prompt import write_prompt, written_prompt
from softprompt.serving.engine.engine_requests import ServedPrompt
from softprompt.serving.engine.inference_engine import InferenceEngine
from softprompt.serving.http.api_keys import add_key
from softprompt.serving.http.request_context import make_baseline
from softprompt.serving.http.schemas.request_schemas import MAX_INSTRUCTION_LENGTH, Baseline

TEXT = "a fine film"
WORDS_IN_FRONT = "Is the film good?"
FORMS: list[dict[str, Any]] = [
    {},
    {"instruction": WORDS_IN_FRONT},
    {"template": False},
    {"instruction": WORDS_IN_FRONT, "template": False},
    {"instruction": "<bos> {{ text }} \ue000"},
    {"instruction": None},
    {"instruction": ""},
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with Place.of_store(a_store(tmp_path_factory.mktemp("baseline"))).client() as client:
        yield client


def direct(spec: TaskSpec, form: dict[str, Any], *texts: str, tokens: int = 8) -> list[Prediction]:
    """What evaluating the written prompt, or none, gives."""
    if not form.get("template", True):
        spec = replace(spec, template="{{ text }}")
    state = written_prompt(the_base(), spec, form.get("instruction") or "")
    predictor = Predictor(the_base(), spec, state, GenerationConfig(max_new_tokens=tokens))
    return sorted(predictor.predict([Example(text) for text in texts]), key=lambda one: one.index)


class TestAnswers:
    @pytest.mark.parametrize("form", FORMS, ids=str)
    def test_labels(self, client: TestClient, form: dict[str, Any]) -> None:
        texts = [TEXT, "dull", "<eos> the cat"]
        answer = client.post("/v1/classify", json={"model": "tone@2", "input": texts, "baseline": form}).json()
        assert answer["model"] == BASE_NAME
        for found, one in zip(answer["results"], direct(LABELS, form, *texts), strict=True):
            assert found["label"] == one.label
            assert found["probabilities"] == pytest.approx(one.probabilities, abs=1e-5)

    def test_a_baseline_is_not_the_prompt(self, client: TestClient) -> None:
        body = {"model": "tone", "input": TEXT}
        forms: list[dict[str, Any]] = [{}, *({"baseline": form} for form in FORMS[:4])]
        found = [client.post("/v1/classify", json={**body, **form}).json()["results"][0] for form in forms]
        assert len({round(one["probabilities"]["good"], 5) for one in found}) == len(forms)

    @pytest.mark.parametrize("form", FORMS[:4], ids=str)
    def test_completions(self, client: TestClient, form: dict[str, Any]) -> None:
        body = {"model": "words", "prompt": TEXT, "baseline": form, "max_tokens": 8}
        answer = client.post("/v1/completions", json=body).json()
        (one,) = direct(WORDS, form, TEXT)
        assert (answer["model"], answer["choices"][0]["text"]) == (BASE_NAME, one.completion)
        chat = {"model": "words", "messages": [{"role": "user", "content": TEXT}], "baseline": form, "max_tokens": 8}
        message = client.post("/v1/chat/completions", json=chat).json()["choices"][0]["message"]
        assert message["content"] == one.completion

    def test_the_bare_text_is_what_the_base_model_is_asked(self, client: TestClient) -> None:
        bodies = ({"model": "words", "baseline": {"template": False}}, {"model": BASE_NAME})
        answers = [client.post("/v1/completions", json={**body, "prompt": TEXT}).json() for body in bodies]
        assert answers[0]["choices"] == answers[1]["choices"]
        assert answers[0]["usage"] == answers[1]["usage"]

    def test_words_in_front_are_counted(self, client: TestClient) -> None:
        def read(form: dict[str, Any]) -> int:
            body = {"model": "words", "prompt": TEXT, "baseline": form}
            return int(client.post("/v1/completions", json=body).json()["usage"]["prompt_tokens"])

        assert read({"template": False}) < read({}) < read({"instruction": WORDS_IN_FRONT})

    def test_the_bare_text_needs_no_columns(self, client: TestClient) -> None:
        body = {"model": "more", "input": TEXT}
        assert client.post("/v1/classify", json={**body, "baseline": {"template": False}}).status_code == 200
        error = error_of(client.post("/v1/classify", json={**body, "baseline": {}}), 422)
        assert "title" in error["message"]
        row = {"text": TEXT, "title": "T"}
        answer = client.post("/v1/classify", json={"model": "more", "input": row, "baseline": {}}).json()
        (one,) = Predictor(the_base(), MORE, None).predict([Example(TEXT, columns={"title": "T"})])
        assert answer["results"][0]["probabilities"] == pytest.approx(one.probabilities, abs=1e-5)

    def test_the_base_model_takes_an_instruction_too(self, client: TestClient) -> None:
        body = {"model": BASE_NAME, "prompt": TEXT, "baseline": {"instruction": WORDS_IN_FRONT}}
        answer = client.post("/v1/completions", json=body).json()
        bare = TaskSpec.of(template="{{ text }}")
        assert answer["choices"][0]["text"] == direct(bare, {"instruction": WORDS_IN_FRONT}, TEXT)[0].completion

    @pytest.mark.parametrize(
        "form",
        [
            {"instruction": "x" * (MAX_INSTRUCTION_LENGTH + 1)},
            {"instruction": 3},
            {"template": "no"},
            {"more": 1},
            "",
            [],
        ],
        ids=lambda form: str(form)[:30],
    )
    def test_mistakes(self, client: TestClient, form: Any) -> None:
        response = client.post("/v1/classify", json={"model": "tone", "input": TEXT, "baseline": form})
        assert str(error_of(response, 422)["param"]).startswith("baseline")

    def test_an_instruction_that_leaves_no_room(self, client: TestClient) -> None:
        body = {"model": "tone", "input": TEXT, "baseline": {"instruction": "film " * 300}}
        assert error_of(client.post("/v1/classify", json=body), 422)["code"] == "unusable_text"

    def test_it_counts_for_the_base_model(self, tmp_path: Path) -> None:
        with Place.of_store(a_store(tmp_path)).client() as client:
            client.post("/v1/classify", json={"model": "tone", "input": TEXT, "baseline": {}})
            lines = client.get("/metrics").text.splitlines()
        counted = f'softprompt_requests_total{{route="/v1/classify",status="200",task="{BASE_NAME}"}} 1.0'
        assert counted in lines
        assert not [line for line in lines if 'task="tone"' in line]


class TestAccess:
    @pytest.mark.parametrize(
        ("names", "status"), [(["tone"], 403), ([BASE_NAME], 403), (["tone", BASE_NAME], 200), (["*"], 200)], ids=str
    )
    def test_a_key_must_be_for_both(self, tmp_path: Path, names: list[str], status: int) -> None:
        token = add_key(tmp_path / "keys.json", "one", names)
        place = Place.of_store(a_store(tmp_path), keys=str(tmp_path / "keys.json"))
        with place.client(token) as client:
            body = {"model": "tone", "input": TEXT, "baseline": {"instruction": "Write a poem."}}
            assert client.post("/v1/classify", json=body).status_code == status
            asked = {"model": "tone", "prompt": TEXT, "baseline": {}}
            assert client.post("/v1/completions", json=asked).status_code == status
            chat = {"model": "tone", "messages": [{"role": "user", "content": TEXT}], "baseline": {}}
            assert client.post("/v1/chat/completions", json=chat).status_code == status
        assert len(place.engine.asked) == (3 if status == 200 else 0)


def test_prompts_and_baselines_share_batches() -> None:
    base = the_base()
    prompt = ServedPrompt("tone@1", TWO, (tokens(base, 4),))
    words = ServedPrompt("words@1", TaskSpec.of(template="{{ text }}\nOutput:"), (tokens(base, 4, 9),))
    baselines = partial(make_baseline, base)
    forms = [Baseline(**form) for form in FORMS]
    mixed = [prompt, *(baselines(prompt, form) for form in forms)]
    # no instruction is one and the same, however it is not given
    assert len({one.key for one in mixed}) == 1 + len(FORMS) - 2
    texts, generation = [Example(TEXT), Example("dull")], GenerationConfig(max_new_tokens=5)

    async def ask() -> tuple[list[list[Prediction]], list[str]]:
        async with InferenceEngine(base) as engine:
            labels = await asyncio.gather(*(engine.classify(one, texts) for one in mixed))
            grown = [baselines(words, form) for form in forms[:3]]
            pieces = await asyncio.gather(*(collected(engine.generate(one, texts[0], generation)) for one in grown))
            return list(labels), [said(one) for one in pieces]

    labels, completions = asyncio.run(ask())
    for served, found in zip(mixed, labels, strict=True):
        assert_same(found, sorted(Predictor(base, served.spec, served.states).predict(texts), key=lambda p: p.index))
    expected = [completed(base, baselines(words, form), texts[0], generation) for form in forms[:3]]
    assert completions == expected


@pytest.mark.parametrize("form", [{}, {"instruction": WORDS_IN_FRONT}, {"template": False}])
@pytest.mark.parametrize("kept", [None, "Be kind."])
def test_of_conversations_it_is_the_written_prompt(form: dict[str, Any], kept: str | None) -> None:
    base = chat_base("qwen2_5")
    rows = [{"text": f"a film {index}", "label": ("no", "yes")[index % 2]} for index in range(8)]
    spec = resolve_chat(base, Task.of(rows, **({} if kept is None else {"system": kept}))).spec
    found = make_baseline(base, ServedPrompt("tone@1", spec, ()), Baseline(**form))
    assert spec.chat is not None
    if form.get("template") is False:
        spec = replace(spec, chat=replace(spec.chat, system=None))
    written, _ = write_prompt(base, spec, form.get("instruction", ""))
    assert found.spec == written
    asked = [Example(TEXT)]
    scores = (Predictor(base, written, states).label_log_probabilities(asked) for states in (None, found.states))
    assert torch.equal(*scores)
