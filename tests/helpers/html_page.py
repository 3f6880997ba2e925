"""A page as tests read it, and a text that tries to be more than text on it."""

from html.parser import HTMLParser

HOSTILE = (
    "</style></script><script>alert(1)</script><img src=x onerror='alert(2)'> "
    "| `a` *b* [c](javascript:d) &amp; \x1b\u202e"
)


class Page(HTMLParser):
    """The elements of a page, its text, and the levels of its headings."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]
