"""Conversations on the page at ``/``, in a browser: several turns, the system message, answers as they grow."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from helpers.browser import Visit, chromium, needs_chromium, playwright
from helpers.chat_server import SYSTEM, ChatPlace, chat_spec, chat_store

pytestmark = needs_chromium

FAMILY = "qwen2_5"
FIRST, SECOND = "My name is <b>Ada</b>.", "What is my name?"


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    specs = {"kept": chat_spec(FAMILY, system=SYSTEM), "none": chat_spec(FAMILY)}
    store = chat_store(FAMILY, tmp_path_factory.mktemp("chat page"), **specs)
    with ChatPlace.of_family(FAMILY, store).running() as address:
        yield address


def answered(address: str, model: str, messages: list[Any]) -> str:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        answer = client.chat.completions.create(model=model, messages=messages, max_tokens=8)
    return answer.choices[0].message.content or ""


def shown(visit: Visit, title: str) -> list[tuple[str, str]]:
    """Who says what in a card, from top to bottom."""
    turns = visit.card(title).locator(".turn").all()
    return [(one.locator("> .hint").inner_text(), one.locator("> .completion").inner_text()) for one in turns]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_a_conversation_goes_on(browser: "playwright.Browser", address: str, scheme: str, width: int) -> None:
    visit = Visit(browser, address, color_scheme=scheme, viewport={"width": width, "height": 900})
    visit.pick("kept", "none")
    visit.page.get_by_label("Longest completion").fill("8")
    visit.ask(FIRST)
    asked: list[Any] = [{"role": "user", "content": FIRST}]
    answer = answered(address, "kept", asked)
    assert [one[0] for one in shown(visit, "kept")] == ["System", "You", "Answer"]
    assert shown(visit, "kept")[0][1] == SYSTEM
    assert shown(visit, "kept")[1][1] == FIRST
    assert visit.card("kept").locator(".turn.assistant > .completion").last.text_content() == answer
    assert [one[0] for one in shown(visit, "none")] == ["You", "Answer"]
    visit.page.get_by_label("Reply to kept").fill(SECOND)
    visit.page.get_by_role("button", name="Send to kept").click()
    visit.card("kept").get_by_label("Reply to kept").wait_for()
    turns = visit.card("kept").locator(".turn")
    assert turns.count() == 5
    asked += [{"role": "assistant", "content": answer}, {"role": "user", "content": SECOND}]
    assert turns.last.locator("> .completion").text_content() == answered(address, "kept", asked)
    assert json.loads(visit.curl("kept")[-1])["messages"] == asked
    assert visit.width() == width
    visit.close()


def test_a_system_message_of_ones_own(browser: "playwright.Browser", address: str) -> None:
    visit = Visit(browser, address)
    visit.pick("none")
    assert not visit.page.get_by_label("System message").is_visible()
    visit.pick("kept")
    field = visit.page.get_by_label("System message")
    assert field.get_attribute("placeholder") == SYSTEM
    field.fill("Talk at length.")
    visit.page.get_by_label("Longest completion").fill("8")
    visit.ask(FIRST)
    asked = [{"role": "system", "content": "Talk at length."}, {"role": "user", "content": FIRST}]
    assert shown(visit, "kept")[0] == ("System", "Talk at length.")
    assert visit.card("kept").locator(".turn.assistant > .completion").last.text_content() == answered(
        address, "kept", asked
    )
    visit.close()


def test_beside_the_written_prompt_and_several_texts(browser: "playwright.Browser", address: str) -> None:
    visit = Visit(browser, address)
    visit.pick("kept")
    visit.page.get_by_label("Written prompt").check()
    visit.page.get_by_label("Instruction for kept").fill("Be kind.")
    visit.page.get_by_label("Longest completion").fill("8")
    visit.ask(FIRST)
    assert shown(visit, "Written prompt")[0] == ("System", "Be kind.")
    visit.page.get_by_label("Each line is a text").check()
    visit.ask("one\ntwo")
    assert visit.card("kept").locator(".many > li").count() == 2
    visit.close()
