"""serve: saved prompts over HTTP, from a program or a notebook."""

import logging
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from softprompt.errors import ConfigError, MissingExtraError
from softprompt.models.deferred_base import BaseSource, load_checked, resolve_base
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import MANIFEST_FILE, Prompt
from softprompt.serving.logging_config import SERVER, configure_logging
from softprompt.store.prompt_loading import resolve_saved_prompt
from softprompt.store.prompt_sources import FolderSource, StoreSource
from softprompt.store.version_store import Store
from softprompt.utils.arguments import check_arguments, refuse_argument
from softprompt.utils.files import expand_user
from softprompt.utils.summaries import summarize

if TYPE_CHECKING:
    from softprompt.serving.server_assembly import OpenedServer

log = logging.getLogger(SERVER)

_STARTS_WITHIN = 60  # seconds, once the model is loaded
_EXPECTED = "a store, a folder of saved prompts, or prompts by name as {'NAME': prompt}"
_ADVICE = {
    "FrozenLM": "the base model comes first, the prompts behind it",
    "Predictor": "give {'NAME': prompt}, the base model comes first",
    "Task": "give the prompt that was learned for it",
}


class RunningServer:
    """A server in a thread of its own.

    Attributes:
        url: where it is reached; its OpenAPI page is at ``/docs``.
    """

    def __init__(self, opening: "AbstractContextManager[OpenedServer]") -> None:
        """Open and start it; it answers when this returns."""
        self._opening = opening
        self._opened = opening.__enter__()
        self.url = self._opened.url
        self._thread = threading.Thread(target=self._opened.serve, name="softprompt server", daemon=True)
        self._closed = False
        self._thread.start()
        self._wait()

    def close(self) -> None:
        """Finish what runs, and end it; once is enough."""
        if self._closed:
            return
        self._closed = True
        self._opened.server.stop()
        self._thread.join()
        self._opening.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return summarize(self, self.url, closed=self._closed or None)

    def _wait(self) -> None:
        for _ in range(_STARTS_WITHIN * 100):
            if self._opened.server.started:
                return
            self._thread.join(0.01)
            if not self._thread.is_alive():
                break
        self.close()
        raise ConfigError(f"the server at {self.url} did not start: the log says why")


@check_arguments
def serve(
    base: BaseSource,
    prompts: Prompt | Store | str | Path | Mapping[str, Prompt | str | Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    block: bool = True,
    **settings: Any,
) -> RunningServer | None:
    """Answer over HTTP, by OpenAI's API, with the server of ``softprompt serve``.

    Args:
        base: the model that the prompts were learned on, or its name. While the server runs, leave it to the server.
        prompts: a store, whose prompts come and go; a saved prompt's folder, or a folder of such folders; or prompts
            by the name that requests call them by, each a prompt or its place.
        host, port: to listen on; port 0 is a free one.
        block: answer until Ctrl+C; else in a thread of its own, until the server that is returned is closed.
        settings: as in the server's configuration file (``keys=``, ``timeout=``, ...; docs/how-to/serve.md).

    Returns:
        Without ``block``, the running server: ``.url``, ``.close()``, a context manager.

    Raises:
        ConfigError: a setting is wrong, or the port is taken.
        PromptFileError, StoreError: the prompts cannot be read, or were learned on another model.
        MissingExtraError: the extra ``serve`` is not installed.
    """
    model, (source, kept) = resolve_base(base), _find_source(prompts)
    try:
        from softprompt.serving.http.server_settings import ServerSettings
        from softprompt.serving.server_assembly import open_server
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), "serve") from error
    name = model.name if isinstance(model, FrozenLM) else str(base)
    waits = {} if block else {"drain_delay": 0}
    chosen = ServerSettings.build(**{"model": name, "host": host, "port": port, **kept, **waits, **settings})
    chosen.check()
    opening = open_server(chosen, source, partial(load_checked, model), log.info)
    if not block:
        return RunningServer(opening)
    configure_logging(text=chosen.log_text)
    with opening as opened:
        log.info("listening", extra={"fields": {"url": opened.url, "docs": f"{opened.url}/docs"}})
        opened.serve()
    return None


def _find_source(prompts: Any) -> tuple[StoreSource | FolderSource, dict[str, Any]]:
    """Where prompts come from, and what the settings are told of it."""
    if isinstance(prompts, Store):
        return StoreSource(prompts.url), {"store": prompts.url}
    if isinstance(prompts, Prompt):
        raise ConfigError("prompts: expected a name for each, got a prompt without one: give {'NAME': prompt}")
    if isinstance(prompts, Mapping):
        if not prompts:
            raise ConfigError(f"prompts: expected {_EXPECTED}, got an empty mapping: give at least one")
        places = {str(name): str(one) for name, one in prompts.items() if isinstance(one, str | Path)}
        held = {str(name): resolve_saved_prompt(one) for name, one in prompts.items()}
        return FolderSource.of_prompts(held, places), {"prompts": tuple(held)}
    if not isinstance(prompts, str | Path) or not str(prompts).strip():
        raise refuse_argument("prompts", _EXPECTED, prompts, _ADVICE)
    folder = expand_user(prompts)
    if not folder.is_dir() or not (found := _find_folders(folder)):
        return StoreSource(str(prompts)), {"store": str(prompts)}
    return FolderSource([str(one) for one in found]), {"prompts": tuple(map(str, found))}


def _find_folders(folder: Path) -> list[Path]:
    """Saved prompts that are, or lie directly in, a folder; none in a store, which has versions below names."""
    if (folder / MANIFEST_FILE).exists():
        return [folder]
    return sorted(one.parent for one in folder.glob(f"*/{MANIFEST_FILE}"))
