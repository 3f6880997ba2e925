"""Which softprompt this is, and on what it runs."""

import json
import os
import platform

# written here once: the distribution, its pages and its images take it from here
VERSION = "0.1.0"
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors")


def read_versions() -> dict[str, str]:
    """Versions of Python, softprompt and the libraries whose numbers a prompt is; none of them is imported."""
    return {
        "python": platform.python_version(),
        "softprompt": VERSION,
        **{name: _installed(name) for name in LIBRARIES},
    }


def read_revision() -> str | None:
    """The commit that this was built from: ``SOFTPROMPT_REVISION``, which images set, else what pip noted.

    None where neither tells, as for a release from an index.
    """
    from importlib.metadata import Distribution, PackageNotFoundError  # takes longer than all else that --help needs

    if told := os.environ.get("SOFTPROMPT_REVISION", "").strip():
        return told
    try:
        noted = Distribution.from_name("softprompt").read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    revision: str | None = json.loads(noted or "{}").get("vcs_info", {}).get("commit_id")
    return revision


def describe_version() -> str:
    """One line for people: ``softprompt 0.1.0 (Python 3.12.4, torch 2.13.0, ...)``."""
    found, revision = read_versions(), read_revision()
    libraries = ", ".join(f"{name} {found[name]}" for name in LIBRARIES[:2])
    built = "" if revision is None else f"revision {revision[:12]}, "
    return f"softprompt {VERSION} ({built}Python {found['python']}, {libraries})"


def _installed(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
