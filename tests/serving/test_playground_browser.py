"""The page at ``/`` in a browser: what somebody does there, and reads."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.browser import SMALL, TEXT, Visit, chromium, needs_chromium, playwright
from helpers.tiny_server import BASE_NAME, LABELS, MORE, WORDS, Place, a_store, expected, prompt

from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.serving.engine.engine_requests import DeadlineExceededError, EngineBusyError
from softprompt.serving.http.api_keys import add_key

pytestmark = needs_chromium

MARKUP = "<img src=x onerror=alert(1)><b>bold</b>"


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    store = a_store(tmp_path_factory.mktemp("page"))
    spec = TaskSpec.of(labels=[MARKUP, "plain"], template="<i>{{ text }}</i> " + MARKUP)
    store.put(prompt(spec, seed=5), "marked")
    store.put(prompt(WORDS, seed=6), "damaged")
    (store_file,) = (Path(store.url) / "damaged").rglob("*.safetensors")
    store_file.write_bytes(b"damaged")
    return Place.of_store(store, body_limit=2048)


@pytest.fixture(scope="module")
def address(place: Place) -> Iterator[str]:
    with place.running() as address:
        yield address


@pytest.fixture(autouse=True)
def ready(place: Place) -> Iterator[None]:
    yield
    place.engine.failure = None
    place.engine.hold.clear()
    place.engine.hold_pieces.clear()


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_two_prompts_side_by_side(browser: "playwright.Browser", address: str, scheme: str, width: int) -> None:
    visit = Visit(browser, address, color_scheme=scheme, viewport={"width": width, "height": 800})
    visit.pick("tone@1", "tone@2", "words")
    visit.ask()
    for title, seed in (("tone@1", 1), ("tone@2", 2)):
        (one,) = expected(LABELS, seed, Example(TEXT))
        shown = visit.card(title).inner_text().split("\n")
        likeliest = percent(one["probabilities"][one["label"]])
        assert shown.count(one["label"]) == 2
        assert [line for line in shown if line.endswith("%")].count(likeliest) == 2
        assert f"Answered by {title}" in shown
        # in the task's order, so that cards can be compared
        assert visit.card(title).locator(".bars bdi").all_inner_texts() == list(LABELS.labels)
        widths = visit.card(title).locator(".bars .bar i").evaluate_all("all => all.map(one => one.style.width)")
        assert [float(one.removesuffix("%")) / 100 for one in widths] == pytest.approx(
            list(one["probabilities"].values()), abs=1e-4
        )
    (completion,) = expected(WORDS, 3, Example(TEXT))
    assert visit.card("words").locator(".completion").text_content() == completion["completion"]
    assert visit.card("words").locator("footer").inner_text().count("ms") >= 1
    tops = [visit.card(title).bounding_box()["y"] for title in ("tone@1", "tone@2")]
    assert (tops[0] == tops[1]) is (width == 1280)
    assert visit.page.get_by_role("status").first.inner_text().startswith("3 of 3 answered.")
    assert visit.width() == width
    ground = visit.colour("body", "backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}[scheme]
    assert {one.split("/")[2] for one in visit.requests} == {address.split("/")[2]}
    visit.close()


def test_a_written_prompt_and_none_beside_it(browser: "playwright.Browser", address: str) -> None:
    visit = Visit(browser, address)
    visit.pick("tone", "words")
    visit.page.get_by_label("Written prompt").check()
    visit.page.get_by_label("No prompt").check()
    visit.page.get_by_label("Instruction for tone").fill("Is it <b>good</b>?")
    visit.ask()
    titles = ["tone", "Written prompt", "No prompt", "words", "Written prompt", "No prompt"]
    assert visit.texts("article h4") == titles
    assert "Is it <b>good</b>?" in visit.card("Written prompt").inner_text()
    for title in ("Written prompt", "No prompt"):
        assert f"Answered by {BASE_NAME}" in visit.card(title).inner_text()
        assert visit.card(title).locator(".bars li").count() == len(LABELS.labels)
        assert visit.card(title, 1).locator(".completion").text_content()
    assert json.loads(visit.curl("Written prompt")[-1])["baseline"] == {"instruction": "Is it <b>good</b>?"}
    assert json.loads(visit.curl("No prompt")[-1])["baseline"] == {"template": False}
    # a prompt that comes or goes leaves alone what was typed
    visit.pick("words")
    assert visit.page.get_by_label("Instruction for tone").count() == 0
    visit.pick("words", "more")
    assert visit.page.get_by_label("Instruction for more").input_value() == ""
    visit.close()


def test_curl_asks_the_same(browser: "playwright.Browser", address: str, place: Place) -> None:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    visit = Visit(context, address)  # type: ignore[arg-type]
    visit.pick("tone", "words")
    visit.page.get_by_label("Longest completion").fill("5")
    visit.ask()
    command = visit.curl("tone")
    assert command[:4] == ["curl", f"{address}/v1/classify", "-H", "Content-Type: application/json"]
    assert json.loads(command[-1]) == {"model": "tone", "input": TEXT}
    asked = json.loads(visit.curl("words")[-1])
    assert (asked["prompt"], asked["max_tokens"], asked["stream"]) == (TEXT, 5, True)
    card = visit.card("tone")
    card.get_by_role("button", name="Copy").click()
    card.get_by_text("Copied.").wait_for()
    assert visit.page.evaluate("navigator.clipboard.readText()") == card.locator("pre").inner_text()
    visit.close()
    context.close()


def test_copying_without_a_clipboard(browser: "playwright.Browser", address: str) -> None:
    context = browser.new_context()
    context.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    visit = Visit(context, address)  # type: ignore[arg-type]
    visit.pick("tone")
    visit.ask()
    visit.curl("tone")
    visit.card("tone").get_by_role("button", name="Copy").click()
    visit.card("tone").get_by_text("Copied.").or_(visit.card("tone").get_by_text("Selected:")).wait_for()
    assert visit.page.evaluate("getSelection().toString()") == visit.card("tone").locator("pre").inner_text()
    visit.close()
    context.close()


def test_by_keyboard_alone(browser: "playwright.Browser", address: str) -> None:
    visit = Visit(browser, address, **SMALL)
    visit.page.wait_for_selector("#prompts li")
    keys = visit.page.keyboard

    def tab_to(selector: str) -> None:
        for _ in range(30):
            keys.press("Tab")
            if visit.page.evaluate("selector => document.activeElement.matches(selector)", selector):
                assert visit.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
                return
        raise AssertionError(f"{selector} was not reached")

    tab_to(".skip")
    for one in ("marked", "words"):
        tab_to(f"#prompts input[value={one}]")
        keys.press("Space")
    tab_to("#text")
    keys.type(TEXT)
    tab_to("#written")
    keys.press("Space")
    tab_to("#text") if False else None
    keys.press("Shift+Tab")
    keys.press("Shift+Tab")
    assert visit.page.evaluate("document.activeElement.id") == "text"
    keys.press("Control+Enter")
    visit.answered()
    assert visit.texts("article h4")[-2:] == ["words", "Written prompt"]
    tab_to("#go")
    tab_to("article summary")
    keys.press("Enter")
    tab_to("article button")
    visit.close()


class TestErrors:
    def test_of_one_leaves_the_others_unharmed(self, browser: "playwright.Browser", address: str) -> None:
        visit = Visit(browser, address)
        visit.pick("damaged", "tone")
        assert "cannot be used now" in visit.page.locator("li[data-name=damaged]").inner_text()
        visit.ask()
        failed = visit.card("damaged").inner_text()
        assert "This cannot be asked now." in failed
        assert "'damaged@1' is damaged or cannot be read" in failed
        assert "Answered by tone@1" in visit.card("tone").inner_text()
        assert visit.page.get_by_role("status").first.inner_text().startswith("1 of 2 answered.")
        assert "damaged: This cannot be asked now." in visit.page.get_by_role("status").first.text_content()
        visit.close(quiet=False)

    def test_a_full_queue_says_when_to_try_again(
        self, browser: "playwright.Browser", address: str, place: Place
    ) -> None:
        visit = Visit(browser, address)
        visit.pick("tone", "words")
        place.engine.failure = EngineBusyError(2.2)
        visit.ask()
        for title in ("tone", "words"):
            assert "The server is busy." in visit.card(title).inner_text()
            assert "Try again in 3 seconds." in visit.card(title).inner_text()
        place.engine.failure = None
        visit.card("words").get_by_role("button", name="Try again").click()
        visit.card("words").get_by_text("Answered by words@1").wait_for()
        assert "The server is busy." in visit.card("tone").inner_text()
        assert visit.page.evaluate("document.activeElement.getAttribute('aria-label')") == "words"
        visit.page.get_by_text("1 of 2 answered.").wait_for()
        visit.close(quiet=False)

    def test_a_text_that_is_too_large(self, browser: "playwright.Browser", address: str) -> None:
        visit = Visit(browser, address)
        visit.pick("tone")
        visit.ask("long " * 1000)
        assert "The text is too large for this server." in visit.card("tone").inner_text()
        assert "2,048 bytes" in visit.card("tone").inner_text()
        visit.close(quiet=False)

    def test_no_network(self, browser: "playwright.Browser", address: str) -> None:
        visit = Visit(browser, address)
        visit.pick("tone")
        visit.page.context.set_offline(True)
        visit.ask()
        assert "The server cannot be reached." in visit.card("tone").inner_text()
        visit.page.context.set_offline(False)
        visit.card("tone").get_by_role("button", name="Try again").click()
        visit.card("tone").get_by_text("Answered by tone@1").wait_for()
        visit.close(quiet=False)

    def test_within_a_completion(self, browser: "playwright.Browser", address: str, place: Place) -> None:
        visit = Visit(browser, address)
        visit.pick("words")
        place.engine.hold_pieces.set()
        visit.page.get_by_label("Text", exact=True).fill(TEXT)
        visit.page.get_by_role("button", name="Ask").click()
        grown = visit.card("words").locator(".completion")
        grown.wait_for()
        # as it grows
        whole = expected(WORDS, 3, Example(TEXT))[0]["completion"]
        assert grown.text_content() == whole[:3]
        assert visit.card("words").get_attribute("aria-busy") == "true"
        place.engine.failure = DeadlineExceededError()
        place.engine.hold_pieces.clear()
        visit.answered()
        shown = visit.card("words").inner_text()
        assert "The answer broke off." in shown
        assert "The answer was not there in time: ask for less, or allow more time." in shown
        assert grown.text_content() == whole[:3]
        visit.close()

    def test_stopping(self, browser: "playwright.Browser", address: str, place: Place) -> None:
        visit = Visit(browser, address)
        visit.pick("tone", "words")
        place.engine.hold.set()
        visit.page.get_by_label("Text", exact=True).fill(TEXT)
        visit.page.get_by_role("button", name="Ask").click()
        visit.page.get_by_role("button", name="Stop").click()
        visit.answered()
        assert all("Stopped." in one for one in visit.texts("article"))
        assert not visit.page.get_by_role("button", name="Stop").is_visible()
        visit.close()

    def test_nothing_to_ask(self, browser: "playwright.Browser", address: str) -> None:
        visit = Visit(browser, address)
        visit.pick()
        visit.page.get_by_role("button", name="Ask").click()
        text = visit.page.get_by_label("Text", exact=True)
        assert visit.page.get_by_text("Type a text first.").is_visible()
        assert text.get_attribute("aria-invalid") == "true"
        text.fill(TEXT)
        visit.page.get_by_role("button", name="Ask").click()
        assert visit.page.get_by_text("Pick a prompt first.").is_visible()
        assert not visit.page.get_by_text("Type a text first.").is_visible()
        assert visit.texts("article") == []
        visit.close()


def test_text_is_never_read_as_html(browser: "playwright.Browser", address: str) -> None:
    visit = Visit(browser, address)
    visit.pick("marked", "words")
    visit.page.get_by_label("Written prompt").check()
    visit.page.get_by_label("Instruction for marked").fill(MARKUP)
    visit.ask(MARKUP)
    assert MARKUP in visit.card("marked").inner_text()
    assert MARKUP in visit.card("Written prompt").inner_text()
    assert MARKUP in visit.page.locator("#instructions").inner_text()
    assert visit.page.locator("main img, main i:not(.bar i), #results b b").count() == 0
    visit.close()


def test_each_line_is_a_text(browser: "playwright.Browser", address: str) -> None:
    visit = Visit(browser, address)
    visit.pick("tone", "words")
    visit.page.get_by_label("Each line is a text").check()
    lines = ["one film", "two films", "three"]
    visit.ask("\n\n".join(lines) + "\n")
    for title in ("tone", "words"):
        assert visit.card(title).locator("blockquote").all_inner_texts() == lines
    labels = [one["label"] for one in expected(LABELS, 1, *map(Example, lines))]
    assert visit.card("tone").locator(".label bdi").all_inner_texts() == labels
    completions = [one["completion"] for one in expected(WORDS, 3, *map(Example, lines))]
    assert visit.card("words").locator(".completion").all_text_contents() == completions
    visit.close()


def test_columns_of_the_template(browser: "playwright.Browser", address: str) -> None:
    visit = Visit(browser, address)
    visit.pick("more")
    visit.page.get_by_label("title").fill("T")
    visit.ask()
    (one,) = expected(MORE, 4, Example(TEXT, columns={"title": "T"}))
    assert percent(one["probabilities"]["yes"]) in visit.card("more").inner_text()
    visit.pick("tone")
    assert visit.page.get_by_label("title").count() == 0
    visit.close()


def test_api_keys(browser: "playwright.Browser", tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    tokens = [add_key(file, "some", ["tone"]), add_key(file, "all")]
    with Place.of_store(a_store(tmp_path), keys=str(file)).running() as address:
        visit = Visit(browser, address)
        assert visit.page.get_by_text("This server wants an API key.").first.is_visible()
        assert visit.complaints == []
        field = visit.page.get_by_label("API key")
        field.fill("sp-wrong")
        field.press("Enter")
        visit.page.get_by_text("has got none or a wrong one").wait_for()
        field.fill(tokens[0])
        field.press("Enter")
        visit.page.wait_for_selector("#prompts li")
        assert visit.page.locator("#prompts > li").evaluate_all("all => all.map(one => one.dataset.name)") == ["tone"]
        assert visit.page.get_by_label("Written prompt").is_disabled()
        assert visit.page.get_by_text("which this API key may not ask").is_visible()
        visit.ask()
        assert "Answered by tone@1" in visit.card("tone").inner_text()
        assert "Authorization: Bearer $SOFTPROMPT_KEY" in visit.curl("tone")
        field.fill(tokens[1])
        field.press("Enter")
        visit.page.wait_for_selector("li[data-name=words]")
        assert not visit.page.get_by_label("Written prompt").is_disabled()
        # in no place that outlives the page
        assert not [token for token in tokens if token in visit.page.content()]
        assert visit.page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
        assert not [url for url in visit.requests if any(token in url for token in tokens)]
        visit.close(quiet=False)


def test_below_the_path_of_a_proxy_and_without_javascript(browser: "playwright.Browser", address: str) -> None:
    visit = Visit(browser, address)
    paths = visit.page.evaluate(
        "[...document.querySelectorAll('[src], [href]')].map(e => e.getAttribute('src') ?? e.getAttribute('href'))"
    )
    assert paths
    assert not [path for path in paths if path.startswith("/") or ":" in path]
    visit.close()
    visit = Visit(browser, address, java_script_enabled=False)
    assert "The API answers without it." in visit.page.locator("body").inner_text()
    visit.close()


def test_many_prompts_can_be_filtered(browser: "playwright.Browser", tmp_path: Path) -> None:
    folders = []
    for number in range(10):
        prompt(seed=number).save(tmp_path / f"p{number}")
        folders.append(tmp_path / f"p{number}")
    with Place.of_folders(*folders).running() as address:
        visit = Visit(browser, address)
        visit.page.wait_for_selector("#prompts li")
        visit.page.get_by_role("searchbox").fill("P7")
        # what is chosen stays in sight
        assert visit.page.locator("#prompts > li:visible b").all_inner_texts() == ["p0", "p7"]
        visit.close()


def test_a_prompt_that_is_there_again(browser: "playwright.Browser", tmp_path: Path) -> None:
    store = a_store(tmp_path)
    (file,) = (Path(store.url) / "words").rglob("*.safetensors")
    content = file.read_bytes()
    file.write_bytes(b"damaged")
    place = Place.of_store(store)
    with place.running() as address:
        visit = Visit(browser, address)
        visit.pick("words")
        visit.ask()
        assert "This cannot be asked now." in visit.card("words").inner_text()
        file.write_bytes(content)
        place.registry.refresh()
        visit.page.get_by_role("button", name="Ask").click()
        visit.card("words").get_by_text("Answered by words@1").wait_for()
        assert (
            visit.card("words").locator(".completion").text_content()
            == expected(WORDS, 3, Example(TEXT))[0]["completion"]
        )
        visit.close(quiet=False)
