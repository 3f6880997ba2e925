"""One thread for every test: tiny models are several times faster on it, and on a busy machine the real one is too."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from helpers.fake_hub import FakeHub

    from softprompt.models.frozen_lm import FrozenLM

CHAT_MARK = "chat"

# read when torch is imported, and inherited by the processes that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs the instruct model, half a gigabyte from PyPI, unless `-m` speaks of it."""
    if CHAT_MARK in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker(CHAT_MARK)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker(CHAT_MARK)]


@pytest.fixture(scope="session")
def qwen_folder() -> Path:
    """The checkpoint of Qwen2.5-Coder-0.5B-Instruct, for tests marked `chat`."""
    import real_models

    return real_models.qwen_folder()


@pytest.fixture(scope="session")
def qwen_base(qwen_folder: Path) -> "FrozenLM":
    """That model, frozen, in the precision that this machine is fast in."""
    from softprompt.models.loading import load_model

    return load_model(qwen_folder, device="cpu")


@pytest.fixture(scope="session")
def s3_environment() -> Iterator[dict[str, str]]:
    """The environment variables of a local S3 server, while it runs."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    from helpers.s3_server import CREDENTIALS, s3_server

    with s3_server() as address:
        yield {**CREDENTIALS, "AWS_ENDPOINT_URL": address}


@pytest.fixture
def bucket(s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a folder in a new bucket of it."""
    import fsspec

    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    name = f"bucket-{uuid4().hex}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}/prompts"


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["FakeHub"]:
    """Hugging Face's hub in memory, which ``huggingface_hub`` of this process asks."""
    import huggingface_hub.constants
    from helpers.fake_hub import FakeHub

    with FakeHub() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        address = f"http://127.0.0.1:{server.server_port}"
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield server
        server.shutdown()
        thread.join()
