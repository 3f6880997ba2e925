"""The table of forms in docs/how-to/data.md: every row of it is read as what it says, and every form stands there."""

import json
import re
from pathlib import Path

from softprompt.data.chats.conversation_rows import FORMS
from softprompt.data.chats.message_parsing import parse_messages
from softprompt.data.splits import read_splits

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "data.md"


def test_every_form_of_the_page_is_read_as_it_says() -> None:
    rows = re.findall(r"^\| (.+?) \| `(\{.+\})` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for name, _ in rows} == {form.name for form in FORMS}
    for name, row in rows:
        splits = read_splits([json.loads(row)])
        assert splits.notes[0].startswith(f"These are {name}: ")
        assert splits["all"][0].references == ("3",)


def test_every_role_of_the_page_is_known() -> None:
    (line,) = re.findall(r"^\| roles \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    roles = re.findall("`(.+?)`", line)
    assert len(roles) > 12
    for role in roles:
        content = '{"name": "f"}' if role in ("function_call", "tool_call") else "x"
        assert len(parse_messages([{"role": role, "content": content}])) == 1
