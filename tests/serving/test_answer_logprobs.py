"""Log-probabilities, choices and echoed texts, by the ``openai`` client; values are those of plain transformers."""

from collections.abc import Iterator, Sequence
from typing import Any

import openai
import pytest
import torch
from helpers.tiny_models import plain_logits, random_prompt
from helpers.tiny_server import BASE_NAME, RealPlace, a_store, the_base
from openai.types import Completion
from torch import Tensor

from softprompt.data.encoding.token_bytes import token_bytes

TEXT = "a fine film"
FILLED = f"{TEXT}\nOutput:"
ASKED: Any = [{"role": "user", "content": TEXT}]
ATOL = 1e-4


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    place = RealPlace.of_store(a_store(tmp_path_factory.mktemp("logprobs")))
    with (
        place.running() as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as one,
    ):
        yield one


def ids_of(text: str) -> list[int]:
    return list(the_base().tokenizer(text, add_special_tokens=False).input_ids)


def named(token: int) -> str:
    spelled = token_bytes(the_base().tokenizer).spell(token)
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def token_of(spelled: Sequence[int]) -> int:
    """The token that spells these bytes."""
    base = the_base()
    (found,) = [one for one in range(len(base.tokenizer)) if token_bytes(base.tokenizer).spell(one) == bytes(spelled)]
    return found


@torch.no_grad()
def scores(ids: Sequence[int], seed: int | None = 3) -> Tensor:
    """Log-probabilities behind each of ``ids [T, V]``, behind the prompt ``words``, by transformers alone."""
    base = the_base()
    prompt = None if seed is None else random_prompt(base, 4, seed).detach()
    return plain_logits(base, prompt, ids).float().log_softmax(-1)


class TestChats:
    @pytest.mark.parametrize("temperature", [0.0, 1.5])
    def test_values_are_the_model_s_own(self, client: openai.OpenAI, temperature: float) -> None:
        choice = client.chat.completions.create(
            model="words", messages=ASKED, max_tokens=8, logprobs=True, top_logprobs=3, temperature=temperature, seed=5
        ).choices[0]
        assert choice.logprobs is not None
        content = choice.logprobs.content or []
        ids = [token_of(one.bytes or []) for one in content]
        assert ids
        rows = scores([*ids_of(FILLED), *ids])[len(ids_of(FILLED)) - 1 :]
        for row, token, one in zip(rows, ids, content, strict=False):
            assert one.token == named(token)
            assert one.logprob == pytest.approx(float(row[token]), abs=ATOL)
            values, likeliest = row.topk(3)
            assert [other.token for other in one.top_logprobs] == [named(int(other)) for other in likeliest]
            assert [other.logprob for other in one.top_logprobs] == pytest.approx(values.tolist(), abs=ATOL)
            if not temperature:
                assert one.token == one.top_logprobs[0].token
        spelled = b"".join(bytes(one.bytes or []) for one in content)
        assert spelled.decode(errors="replace").strip() == choice.message.content

    def test_a_schema_changes_none_of_them(self, client: openai.OpenAI) -> None:
        asked: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["bad", "good"]}}}
        choice = client.chat.completions.create(
            model="words", messages=ASKED, max_tokens=16, logprobs=True, response_format=asked
        ).choices[0]
        assert choice.logprobs is not None
        content = choice.logprobs.content or []
        ids = [token_of(one.bytes or []) for one in content]
        rows = scores([*ids_of(FILLED), *ids])[len(ids_of(FILLED)) - 1 :]
        expected = [float(row[token]) for row, token in zip(rows, ids, strict=False)]
        assert [one.logprob for one in content] == pytest.approx(expected, abs=ATOL)
        assert all(one.top_logprobs == [] for one in content)

    def test_as_a_stream(self, client: openai.OpenAI) -> None:
        settings: Any = {"model": "words", "messages": ASKED, "max_tokens": 8, "logprobs": True, "top_logprobs": 2}
        whole = client.chat.completions.create(**settings).choices[0]
        chunks = list(client.chat.completions.create(**settings, stream=True))
        told = [one for chunk in chunks if (logs := chunk.choices[0].logprobs) for one in logs.content or []]
        assert whole.logprobs is not None
        assert [one.model_dump() for one in told] == [one.model_dump() for one in whole.logprobs.content or []]

    def test_not_asked_for(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(model="words", messages=ASKED, max_tokens=4, top_logprobs=2)
        assert answer.choices[0].logprobs is None
        assert answer.model_extra is not None
        assert answer.model_extra["warnings"] == ["top_logprobs has no effect without logprobs"]


class TestCompletions:
    def test_their_own_form(self, client: openai.OpenAI) -> None:
        choice = client.completions.create(model="words", prompt=TEXT, max_tokens=8, logprobs=2).choices[0]
        told = choice.logprobs
        assert told is not None
        assert told.tokens is not None
        assert told.token_logprobs is not None
        assert told.top_logprobs is not None
        assert told.text_offset is not None
        assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset)
        row = scores(ids_of(FILLED))[-1]
        assert told.token_logprobs[0] == pytest.approx(float(row.max()), abs=ATOL)
        assert list(told.top_logprobs[0]) == [named(int(one)) for one in row.topk(2).indices]
        for offset, token in zip(told.text_offset, told.tokens, strict=True):
            assert token.startswith("bytes:") or choice.text[offset:].startswith(token)

    def test_the_token_that_ends_it_stands_last(self, client: openai.OpenAI) -> None:
        """Harnesses count on a value for each token that was chosen."""
        for seed in range(60):
            settings: Any = {"model": "words", "max_tokens": 32, "temperature": 1.5, "seed": seed}
            choice = client.completions.create(**settings, prompt=TEXT, logprobs=1).choices[0]
            if choice.finish_reason == "stop":
                break
        told = choice.logprobs
        assert choice.finish_reason == "stop"
        assert told is not None
        assert (told.tokens or [])[-1] == the_base().tokenizer.eos_token
        assert (told.text_offset or [])[-1] == len(choice.text)
        chat = client.chat.completions.create(**settings, messages=ASKED, logprobs=True).choices[0]
        assert chat.logprobs is not None
        content = chat.logprobs.content or []
        assert [one.token for one in content] == (told.tokens or [])[:-1]

    def test_what_is_cut_by_a_stop_is_not_told(self, client: openai.OpenAI) -> None:
        whole = client.completions.create(model="words", prompt=TEXT, max_tokens=8, logprobs=0).choices[0]
        assert whole.logprobs is not None
        tokens = whole.logprobs.tokens or []
        place = next(index for index, one in enumerate(tokens) if index > 1 and not one.startswith("bytes:"))
        settings: Any = {"model": "words", "prompt": TEXT, "max_tokens": 8, "logprobs": 0, "stop": tokens[place]}
        cut = client.completions.create(**settings).choices[0]
        assert cut.logprobs is not None
        assert cut.logprobs.tokens == tokens[: tokens.index(tokens[place])]
        chunks = list(client.completions.create(**settings, stream=True))
        told = [one for chunk in chunks if (logs := chunk.choices[0].logprobs) for one in logs.tokens or []]
        assert told == cut.logprobs.tokens

    def test_a_prompt_for_labels_has_none(self, client: openai.OpenAI) -> None:
        answer = client.completions.create(model="tone", prompt=TEXT, logprobs=2, n=2)
        assert [choice.logprobs for choice in answer.choices] == [None, None]
        assert answer.model_extra is not None
        assert any("/v1/classify" in one for one in answer.model_extra["warnings"])


class TestChoices:
    def test_each_is_sampled_for_itself(self, client: openai.OpenAI) -> None:
        settings: Any = {"model": "words", "messages": ASKED, "temperature": 1.5, "max_tokens": 6, "seed": 3}
        answer = client.chat.completions.create(**settings, n=4)
        said = [choice.message.content for choice in answer.choices]
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert len(set(said)) == 4
        assert [one.message.content for one in client.chat.completions.create(**settings, n=4).choices] == said
        single = client.chat.completions.create(**settings)
        assert single.choices[0].message.content == said[0]
        assert answer.usage is not None
        assert single.usage is not None
        assert answer.usage.prompt_tokens == single.usage.prompt_tokens
        assert answer.usage.completion_tokens > single.usage.completion_tokens

    def test_as_a_stream_of_several_texts(self, client: openai.OpenAI) -> None:
        settings: Any = {"model": "words", "prompt": [TEXT, "a dull story"], "n": 2, "temperature": 1, "seed": 1}
        whole = [choice.text for choice in client.completions.create(**settings).choices]
        grown = [""] * 4
        for chunk in client.completions.create(**settings, stream=True):
            grown[chunk.choices[0].index] += chunk.choices[0].text
        assert grown == whole

    def test_greedy_ones_are_the_same_and_it_is_said(self, client: openai.OpenAI) -> None:
        answer = client.completions.create(model="words", prompt=TEXT, n=3, max_tokens=4)
        assert len({choice.text for choice in answer.choices}) == 1
        assert answer.model_extra is not None
        assert "all choices of a text are the same" in answer.model_extra["warnings"][0]


def assert_echo(answer: Completion, index: int, ids: Sequence[int], seed: int | None) -> None:
    """The choice begins with ``ids``, whose values are transformers' own."""
    told = answer.choices[index].logprobs
    assert told is not None
    assert told.token_logprobs is not None
    assert told.tokens is not None
    rows = scores(ids, seed)
    assert told.tokens[: len(ids)] == [named(one) for one in ids]
    assert told.token_logprobs[0] is None
    expected = [float(row[token]) for row, token in zip(rows, ids[1:], strict=False)]
    assert told.token_logprobs[1 : len(ids)] == pytest.approx(expected, abs=ATOL)


class TestEcho:
    @pytest.mark.parametrize(("model", "seed"), [("words", 3), ("tone@1", 1), (BASE_NAME, None)])
    @pytest.mark.parametrize("as_ids", [True, False])
    def test_texts_are_read_as_they_are(
        self, client: openai.OpenAI, model: str, seed: int | None, as_ids: bool
    ) -> None:
        texts = ["what is the film about?", "the cat sat"]
        ids = [ids_of(text) for text in texts]
        prompt: Any = ids if as_ids else texts
        answer = client.completions.create(model=model, prompt=prompt, max_tokens=0, echo=True, logprobs=1)
        for index, one in enumerate(ids):
            assert answer.choices[index].text == texts[index]
            assert answer.choices[index].finish_reason == "length"
            assert_echo(answer, index, one, seed)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 0

    def test_what_follows_is_told_behind_it(self, client: openai.OpenAI) -> None:
        ids = ids_of(TEXT)
        answer = client.completions.create(model="words", prompt=ids, max_tokens=3, echo=True, logprobs=1)
        choice = answer.choices[0]
        assert choice.text.startswith(TEXT)
        assert_echo(answer, 0, ids, 3)
        assert choice.logprobs is not None
        values = choice.logprobs.token_logprobs or []
        assert len(values) == len(ids) + 3
        assert values[len(ids)] == pytest.approx(float(scores(ids)[-1].max()), abs=ATOL)
        plain = client.completions.create(model="words", prompt=ids, max_tokens=3)
        assert choice.text == TEXT + plain.choices[0].text

    def test_bos_is_the_one_in_front_of_everything(self, client: openai.OpenAI) -> None:
        base = the_base()
        ids = ids_of(TEXT)
        answer = client.completions.create(
            model=BASE_NAME, prompt=[*base.bos_ids, *ids], max_tokens=0, echo=True, logprobs=1
        )
        told = answer.choices[0].logprobs
        assert told is not None
        with torch.no_grad():
            rows = base.model(torch.tensor([[*base.bos_ids, *ids]])).logits[0].log_softmax(-1)
        expected = [float(row[token]) for row, token in zip(rows, ids, strict=False)]
        assert (told.token_logprobs or [])[1:] == pytest.approx(expected, abs=ATOL)

    def test_without_logprobs(self, client: openai.OpenAI) -> None:
        answer = client.completions.create(model="words", prompt=TEXT, max_tokens=2, echo=True)
        assert answer.choices[0].text.startswith(TEXT)
        assert answer.choices[0].logprobs is None

    def test_as_a_stream(self, client: openai.OpenAI) -> None:
        settings: Any = {"model": "words", "prompt": ids_of(TEXT), "max_tokens": 4, "echo": True, "logprobs": 1}
        whole = client.completions.create(**settings).choices[0]
        chunks = [chunk.choices[0] for chunk in client.completions.create(**settings, stream=True)]
        assert "".join(chunk.text for chunk in chunks) == whole.text
        assert whole.logprobs is not None
        for name in ("tokens", "token_logprobs", "text_offset"):
            grown = [one for chunk in chunks if chunk.logprobs for one in getattr(chunk.logprobs, name)]
            assert grown == getattr(whole.logprobs, name)

    @pytest.mark.parametrize(
        ("ids", "words"),
        [
            ([5000], "token id 5,000: expected those of the base model, from 0 to 319"),
            ([7] * 400, "a text of 400 tokens behind 4 virtual ones"),
        ],
    )
    def test_ids_that_cannot_be_read(self, client: openai.OpenAI, ids: list[int], words: str) -> None:
        with pytest.raises(openai.UnprocessableEntityError, match=words):
            client.completions.create(model="words", prompt=ids, echo=True, max_tokens=0)

    def test_columns_are_the_template_s(self, client: openai.OpenAI) -> None:
        answer = client.completions.create(model="words", prompt=[7], max_tokens=2, extra_body={"columns": {"a": 1}})
        assert answer.model_extra is not None
        assert answer.model_extra["warnings"] == ["columns has no effect: the text is read without the template"]
