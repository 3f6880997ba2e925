"""``serve``: prompts over HTTP."""

from functools import partial
from pathlib import Path
from typing import Any

from softprompt.cli.base_loading import load_base
from softprompt.cli.console import say
from softprompt.serving.http.settings_sources import load_server_settings
from softprompt.serving.logging_config import configure_logging
from softprompt.serving.server_assembly import open_server
from softprompt.store.prompt_sources import FolderSource, StoreSource


def run_serve(config: Path | None, trust_remote_code: bool, **options: Any) -> None:
    settings = load_server_settings(config, options)
    source = FolderSource(settings.prompts) if settings.store is None else StoreSource(settings.store)
    model = {"device": settings.device, "dtype": settings.dtype, "quantize": settings.quantize}
    load = partial(load_base, str(settings.model), {**model, "trust_remote_code": trust_remote_code})
    with open_server(settings, source, load, say) as opened:
        configure_logging(text=settings.log_text)
        say(f"listening on {opened.url}, docs at /docs")
        opened.serve()
