"""One thread for every test: tiny models are several times faster on it, and on a busy machine the real one is too."""

import os
from collections.abc import Iterator
from uuid import uuid4

import pytest

# read when torch is imported, and inherited by the processes that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")


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
