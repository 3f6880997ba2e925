"""The files that a host of repositories reads, by their public schemas; versions in them are the package's."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.public_schemas import find_mistakes

from softprompt.utils.version import VERSION

ROOT = Path(__file__).parents[2]
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_citation() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert find_mistakes(citation, "https://citation-file-format.github.io/1.2.0/schema.json") == []
    assert citation["version"] == VERSION


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_forms_of_issues(path: Path) -> None:
    form = read(path)
    assert find_mistakes(form, "https://json.schemastore.org/github-issue-forms.json") == []
    named = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert len(named) == len(set(named))


def test_how_issues_are_opened() -> None:
    config = read(ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml")
    assert find_mistakes(config, "https://json.schemastore.org/github-issue-config.json") == []


def test_a_mistake_is_found() -> None:
    assert find_mistakes({"name": "x", "body": []}, "https://json.schemastore.org/github-issue-forms.json") != []


def test_the_changelog_has_the_version() -> None:
    """Of what is released, or to be released next."""
    assert VERSION in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
