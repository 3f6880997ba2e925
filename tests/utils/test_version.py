"""Versions are told without importing what they are of, and a build's commit where it is known."""

import json
import platform
from importlib.metadata import Distribution, version
from pathlib import Path

import pytest
from helpers.small_tasks import command

from softprompt import __version__
from softprompt.utils.version import VERSION, describe_version, read_revision, read_versions


def test_versions() -> None:
    found = read_versions()
    assert found["softprompt"] == VERSION == __version__
    assert found["python"] == platform.python_version()
    assert found["torch"] == version("torch")


def test_the_command_tells_them() -> None:
    ended = command("--version")
    assert ended.code == 0
    assert ended.out == f"{describe_version()}\n"
    assert ended.out.startswith(f"softprompt {VERSION} (")
    assert f"torch {version('torch')}" in ended.out


class TestRevision:
    def test_of_an_image(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOFTPROMPT_REVISION", "0123456789abcdef")
        assert read_revision() == "0123456789abcdef"
        assert describe_version().startswith(f"softprompt {VERSION} (revision 0123456789ab, Python")

    @pytest.mark.parametrize(
        ("noted", "revision"),
        [
            ({"url": "https://host/softprompt.git", "vcs_info": {"vcs": "git", "commit_id": "cafe"}}, "cafe"),
            ({"url": "file:///here", "dir_info": {"editable": True}}, None),
            (None, None),
        ],
    )
    def test_of_what_pip_installed(
        self, noted: dict[str, object] | None, revision: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if noted is not None:
            (tmp_path / "direct_url.json").write_text(json.dumps(noted))
        monkeypatch.delenv("SOFTPROMPT_REVISION", raising=False)
        monkeypatch.setattr(Distribution, "from_name", lambda name: Distribution.at(tmp_path))
        assert read_revision() == revision
