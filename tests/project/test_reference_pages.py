"""The reference in docs says what the code says."""

import importlib.util
from pathlib import Path

import pytest

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


@pytest.mark.parametrize("name", ["python.md", "command-line.md"])
def test_page_is_up_to_date(name: str) -> None:
    found = importlib.util.spec_from_file_location("generate", REFERENCE / "generate.py")
    assert found is not None
    assert found.loader is not None
    generate = importlib.util.module_from_spec(found)
    found.loader.exec_module(generate)
    written = (REFERENCE / name).read_text(encoding="utf-8")
    assert generate.pages()[name] == written, f"docs/reference/{name} is older than the code: run `make reference`"
