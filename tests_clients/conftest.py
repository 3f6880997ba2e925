"""Where the clients find the server: it runs already, and the environment names it."""

import os
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Server:
    """A running softprompt server.

    Attributes:
        url: its address with ``/v1``, as clients want it.
        model: what answers conversations there.
        tokenizer: the folder of its base model, whose tokenizer some clients read.
        key: what clients must send; the server may want none.
    """

    url: str
    model: str
    tokenizer: str
    key: str = "none"


@pytest.fixture(scope="session")
def server() -> Server:
    names = ("SOFTPROMPT_URL", "SOFTPROMPT_MODEL", "SOFTPROMPT_TOKENIZER")
    if missing := [name for name in names if not os.environ.get(name)]:
        pytest.fail(f"expected a running server in {', '.join(names)}, without {missing}: run tests_clients/run.py")
    # clients read proxies from the environment; this server is on this machine
    os.environ["NO_PROXY"] = "127.0.0.1,localhost"
    return Server(*(os.environ[name] for name in names))
