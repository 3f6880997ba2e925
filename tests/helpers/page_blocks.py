"""The fenced blocks of a Markdown page, in order, with what the comment in front of each says of it.

A comment is one or more lines of ``word: text``::

    <!-- given: prompts/sentiment, task -->      what must be there before the block runs
    <!-- recorded: on the real model -->         the commands run, the output is of another run
    <!-- not run: needs two machines -->         the block is left alone, for this reason
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PYTHON, CONSOLE, SHELL = "python", "console", "sh"
SHOWN = ("text", "json", "toml", "yaml", "nginx", "crontab", "ini", "bibtex")  # nothing to be run
NOTES = ("given", "recorded", "not run")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: its path below the root.
        line: of the page, where its first line stands, from 1.
        language: the word behind the fence.
        notes: what the comment in front of it says, by word.
    """

    page: str
    line: int
    language: str
    text: str
    notes: dict[str, str]

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def runs(self) -> bool:
        return self.language in (PYTHON, CONSOLE, SHELL) and "not run" not in self.notes

    @property
    def given(self) -> list[str]:
        return [name.strip() for name in self.notes.get("given", "").split(",") if name.strip()]


def read_blocks(page: Path) -> Iterator[Block]:
    """Every block of ``page``; raises AssertionError for a note that is none."""
    place = page.relative_to(ROOT).as_posix()
    notes: dict[str, str] = {}
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block":
            notes |= _read_notes(token.content, place)
        elif token.type == "fence":
            assert token.map is not None
            language = token.info.split(" ")[0]
            yield Block(place, token.map[0] + 2, language, token.content, notes)
            notes = {}
        elif not token.hidden and token.type not in ("list_item_open", "paragraph_open"):
            assert not notes, f"{place}: the note {notes} stands in front of no block"


def _read_notes(html: str, place: str) -> dict[str, str]:
    notes: dict[str, str] = {}
    for comment in re.findall(r"<!--(.*?)-->", html, re.DOTALL):
        for line in comment.strip().splitlines():
            word, colon, text = line.strip().partition(":")
            if colon and word in NOTES:
                assert text.strip(), f"{place}: expected something behind '{word}:'"
                notes[word] = text.strip()
    return notes
