"""What a notebook shows of each kind of object: the document that its page is made from, or a shorter one."""

from collections.abc import Callable
from typing import Any

from softprompt.report.render.document import Document
from softprompt.report.render.html import render_html

DOCUMENTS: dict[type, Callable[[Any], Document]] = {}


def render_for_notebook(shown: object) -> str | None:
    """HTML that stands by itself; ``None`` for what has no document."""
    make = next((DOCUMENTS[kind] for kind in type(shown).__mro__ if kind in DOCUMENTS), None)
    return None if make is None else render_html(make(shown))
