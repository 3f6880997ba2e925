"""CONTRIBUTING names files and definitions that are there, and README keeps to its size and runs."""

import contextlib
import io
import re
from pathlib import Path

import pytest
from helpers.tiny_models import save_tiny

import softprompt as sp

ROOT = Path(__file__).parents[2]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "named", sorted(set(re.findall(r"`((?:softprompt|tests)/[\w/]+\.py(?::\w+)?)`", CONTRIBUTING)))
)
def test_what_contributing_names_is_there(named: str) -> None:
    path, _, name = named.partition(":")
    assert (ROOT / path).is_file(), f"CONTRIBUTING.md names {path}, which is not there"
    code = (ROOT / path).read_text(encoding="utf-8")
    assert not name or re.search(rf"^(async def|def|class) {name}\b", code, re.MULTILINE), (
        f"CONTRIBUTING.md names {name} in {path}, which does not define it"
    )


def test_contributing_draws_every_room() -> None:
    picture = CONTRIBUTING.split("## The rooms")[1].split("## The way")[0]
    rooms = {path.stem for path in (ROOT / "softprompt").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert {room for room in rooms if not room.startswith("_")} <= set(re.findall(r"\w+", picture))


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    for paragraph in re.split(r"\n\s*\n|\n(?=- )", text):
        if not paragraph.startswith("|"):
            assert len(paragraph.split()) <= 80, paragraph


def test_lines_of_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "model", "llama")
    rows = [(f"subject {n}", f"it is broken {n}", ("bug", "question")[n % 2]) for n in range(40)]
    lines = ["subject,body,category", *(",".join(row) for row in rows)]
    (tmp_path / "tickets.csv").write_text("\n".join(lines) + "\n")
    for there, here in (
        ("embedded:gemma-3-270m", "model"),
        ('out="prompts/tickets"', 'out="prompts/tickets", steps=4'),
    ):
        assert there in code, there
        code = code.replace(there, here)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(compile(code, "README.md", "exec"), {})
    assert "accuracy" in shown.getvalue()
    assert "gain over the written prompt" in shown.getvalue()
    assert sp.load_prompt("prompts/tickets").spec.labels == ("bug", "question")
