"""The wheel and the source distribution: what they hold, what they say, and that the same files give the same."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes, message_from_string
from email.message import Message
from pathlib import Path

import pytest

from softprompt.utils.version import VERSION

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "softprompt"
ENVIRONMENT = {"SOURCE_DATE_EPOCH": "1700000000"}

for needed in ("build", "hatchling", "hatch_fancy_pypi_readme", "twine"):
    pytest.importorskip(needed)


def run(*arguments: object) -> str:
    """What a module of this Python says; fails if it does."""
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **ENVIRONMENT})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run("build", "--no-isolation", "--outdir", folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    return message_from_bytes(wheel.read(f"softprompt-{VERSION}.dist-info/METADATA"))


def test_the_index_takes_them(built: Path) -> None:
    names = sorted(path.name for path in built.iterdir())
    assert names == [f"softprompt-{VERSION}-py3-none-any.whl", f"softprompt-{VERSION}.tar.gz"]
    assert run("twine", "--no-color", "check", "--strict", *built.iterdir()).count("PASSED") == 2


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    ours = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*") if path.is_file()}
    ours = {name for name in ours if "__pycache__" not in name}
    held = {name for name in wheel.namelist() if not name.startswith(f"softprompt-{VERSION}.dist-info/")}
    assert held == ours
    assert {"softprompt/py.typed", "softprompt/__init__.pyi", "softprompt/serving/http/static/index.html"} <= held


def test_what_it_says(metadata: Message, wheel: zipfile.ZipFile) -> None:
    assert metadata["Version"] == VERSION
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {"demo", "serve", "data", "peft"} <= set(metadata.get_all("Provides-Extra", ()))
    told = wheel.read(f"softprompt-{VERSION}.dist-info/entry_points.txt").decode()
    command = ["[console_scripts]", "softprompt", "=", "softprompt.cli.main:main"]
    plugin = ["[vllm.general_plugins]", "softprompt", "=", "softprompt.engines.vllm_requests:register"]
    assert told.split() == [*command, *plugin]


def test_the_page_on_installing_has_every_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    page = (ROOT / "docs" / "how-to" / "install.md").read_text(encoding="utf-8")
    rows = page.partition("| extra |")[2].partition("\n\n")[0].splitlines()[2:]
    assert {name for row in rows for name in re.findall(r"`([\w-]+)`", row.split("|")[1])} == set(extras)


def test_its_page_leads_nowhere_that_is_not_there(metadata: Message) -> None:
    """An index has no files beside the page: words of links stay, their targets and pictures do not."""
    page = metadata.get_payload()
    assert isinstance(page, str)
    assert page.lstrip().startswith("# softprompt")
    assert [link for link in re.findall(r"\]\(([^)]*)\)", page) if not link.startswith(("https://", "mailto:"))] == []
    assert "()" not in page.replace("()`", "").partition("```")[0]
    assert len(page) > 0.7 * len((ROOT / "README.md").read_text(encoding="utf-8"))


def test_the_source_distribution_has_what_tests_and_pages_need(built: Path) -> None:
    with tarfile.open(built / f"softprompt-{VERSION}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        read = archive.extractfile(f"softprompt-{VERSION}/PKG-INFO")
        assert read is not None
        assert message_from_string(read.read().decode())["Version"] == VERSION
    for folder in ("tests", "docs", "bench", "deploy", "tests_clients", "tests_engines", "tests_soak", ".github"):
        kept = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.*") if path.is_file()}
        kept = {name for name in kept if "__pycache__" not in name and not name.endswith(".pyc")}
        assert kept - names == set(), folder
    assert {"LICENSE", "CHANGELOG.md", "CITATION.cff", "SECURITY.md", "constraints.txt", "Makefile"} <= names


def test_the_same_files_give_the_same_bytes(built: Path, tmp_path: Path) -> None:
    """The wheel out of the source distribution, and one made here later."""
    run("hatchling", "build", "--target", "wheel", "--directory", tmp_path)
    (here,) = tmp_path.iterdir()
    assert here.read_bytes() == (built / here.name).read_bytes()
