"""What a notebook shows of an object: a document, made by whatever the package was given to render them.

Documents are rendered in a later room; ``softprompt/__init__.py``, which stands above all rooms, hands its function in.
Nothing is imported here, for ``import softprompt`` comes by.
"""

from collections.abc import Callable


class Displayed:
    """What a notebook shows as a document, if there is one for its kind."""

    __slots__ = ()

    def _repr_html_(self) -> str | None:
        """HTML that stands by itself within any page; ``None`` where the lines of ``repr`` are all."""
        return _render(self)


def _render_nothing(_: object) -> str | None:
    return None


_render: Callable[[object], str | None] = _render_nothing


def set_renderer(render: Callable[[object], str | None]) -> None:
    """Let ``render`` make the HTML of everything that is ``Displayed``."""
    global _render
    _render = render
