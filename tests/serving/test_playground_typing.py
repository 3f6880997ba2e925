"""The page at ``/`` in a browser: what it says of the prompts, and what is to be typed for them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.browser import Visit, chromium, needs_chromium, playwright
from helpers.tiny_server import Place, a_store, expected, prompt

from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.store.version_store import Store

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with chromium() as started:
        yield started


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_what_to_type_and_what_to_expect(
    browser: "playwright.Browser", tmp_path: Path, scheme: str, width: int
) -> None:
    store = a_store(tmp_path)
    found = {"metric": "accuracy", "value": 0.9125, "low": 0.884, "high": 0.937, "n": 1480, "others": {}}
    many = TaskSpec.of(labels=[f"<b>{number}</b>" for number in range(20)], template="{{ text }}")
    store.put(replace(prompt(many, seed=5), metrics={"test": found}), "aspect")
    with Place.of_store(store, examples={"aspect": "a <i>quiet</i> film"}).running() as address:
        visit = Visit(browser, address, color_scheme=scheme, viewport={"width": width, "height": 800})
        visit.pick("aspect", "tone", "words")
        guide = visit.page.locator("#guide")
        guide.get_by_text("writes an answer to your text").wait_for()
        said = guide.inner_text()
        assert "aspect tells which label a text has: <b>0</b>, <b>1</b>, <b>2</b>" in said
        assert "and 14 more" in said
        assert "accuracy 0.912 [0.884, 0.937] on 1,480 test rows when it was learned." in said
        assert "tone tells which label a text has: bad, good." in said
        assert guide.locator(".template").all_inner_texts() == ["{{ text }}", "{{ text }}:", "{{ text }}\nOutput:"]
        assert "Learned prompts" in visit.page.locator("#ask").inner_text()
        assert visit.texts(".ghosts b") == ["Learned prompt", "Written prompt", "No prompt"]
        guide.get_by_role("button", name="Use this example").click()
        assert visit.page.get_by_label("Text", exact=True).input_value() == "a <i>quiet</i> film"
        visit.page.get_by_role("button", name="Ask").click()
        visit.answered()
        assert "Learned prompt, 4 virtual tokens" in visit.card("aspect").inner_text()
        assert visit.width() == width
        visit.close()


def test_a_prompt_brings_its_example_and_marks_of_direction_stay_where_they_are(
    browser: "playwright.Browser", tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    spec = TaskSpec.of(labels=["a\u202eb", "c\nd\x1b[31m"], template="\u202e{{ text }}\nlabel:")
    store.put(replace(prompt(spec, seed=5), training={"example": "a quiet film"}), "odd")
    with Place.of_store(store).running() as address:
        visit = Visit(browser, address)
        visit.pick("odd")
        guide = visit.page.locator("#guide")
        guide.get_by_role("button", name="Use this example").click()
        assert visit.page.get_by_label("Text", exact=True).input_value() == "a quiet film"
        assert r"odd tells which label a text has: a\u202eb, c\u000ad\u001b[31m." in guide.inner_text()
        assert guide.locator(".template").inner_text() == "\\u202e{{ text }}\nlabel:"
        visit.ask()
        assert visit.texts(".bars bdi") == [r"a\u202eb", r"c\u000ad\u001b[31m"]
        visit.close()


def test_where_the_template_takes_columns_no_text_is_to_be_typed(browser: "playwright.Browser", tmp_path: Path) -> None:
    store = a_store(tmp_path)
    spec = TaskSpec.of(labels=["no", "yes"], template="{{ premise }} so {{ hypothesis }}?")
    store.put(prompt(spec, seed=5), "pairs")
    with Place.of_store(store).running() as address:
        visit = Visit(browser, address)
        visit.pick("pairs")
        visit.page.get_by_text("Fill in hypothesis and premise").wait_for()
        text = visit.page.get_by_label("Text", exact=True)
        assert text.is_hidden()
        visit.page.get_by_label("premise").fill("the cat sat")
        visit.page.get_by_label("hypothesis").fill("a film")
        visit.page.get_by_role("button", name="Ask").click()
        visit.answered()
        (answer,) = expected(spec, 5, Example("", columns={"premise": "the cat sat", "hypothesis": "a film"}))
        card = visit.card("pairs").inner_text()
        assert f"{100 * answer['probabilities'][answer['label']]:.1f}%" in card
        assert "no effect" not in card
        visit.pick("pairs", "tone")
        text.wait_for()
        visit.close()
