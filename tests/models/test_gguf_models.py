"""GGUF files as base models: a tiny one, written here."""

from pathlib import Path

import pytest
from helpers.gguf_models import write_gguf

gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama as a GGUF file in float32."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")
