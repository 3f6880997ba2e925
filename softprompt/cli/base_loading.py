"""Base models as options name them, and what shows how a run goes."""

import functools
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import click

from softprompt.cli.console import launched, say
from softprompt.models.deferred_base import DeferredBase
from softprompt.models.distributed import SINGLE_PROCESS, ProcessGroup, join_process_group
from softprompt.models.fingerprint import UnloadedModel
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model, silence_transformers
from softprompt.models.quantization import SCHEMES
from softprompt.prompts.saved_prompt import Prompt
from softprompt.training.callbacks.callback import Callback
from softprompt.training.callbacks.progress import ProgressBar, ProgressPrinter

Run = TypeVar("Run", bound=Callable[..., None])


def load_base(name: str, options: dict[str, Any], check: Callable[[UnloadedModel], None] | None = None) -> FrozenLM:
    """The model called ``name``; ``check`` raises for one that is not wanted, before its weights are loaded."""
    silence_transformers()
    say(f"loading {name}")
    return load_model(name, progress=say, processes=_own_processes(), check=check, **options)


def defer_base(name: str, options: dict[str, Any]) -> DeferredBase:
    """The model called ``name``, for a run that loads it once everything else is checked."""
    processes = replace(_own_processes(), in_lockstep=options.get("sharding") is not None)
    return DeferredBase(lambda check: load_base(name, options, check), processes)


def _own_processes() -> ProcessGroup:
    context = click.get_current_context(silent=True)
    return (context.find_object(ProcessGroup) if context else None) or SINGLE_PROCESS


def load_base_of(prompt: Prompt, name: str | None, options: dict[str, Any], *, fixed: bool = False) -> FrozenLM:
    """The model that a saved prompt was learned on, quantized as it was; or the one called ``name``, if given.

    Says so if it is loaded in another precision than the prompt was learned in; ``fixed``: what is made takes no other.
    """
    known = prompt.quantization if prompt.quantization in SCHEMES else None
    options = {**options, "quantize": options["quantize"] or known}
    base = load_base(name or prompt.base_name, options, prompt.check_base)
    if (note := prompt.precision_note(base, fixed=fixed)) is not None:
        say(note)
    return base


def make_callback(as_json: bool) -> Callback:
    return ProgressBar() if sys.stderr.isatty() and not as_json else ProgressPrinter()


def join_processes(run: Run) -> Run:
    """``run``, which has ``device`` among its options, as one of the processes that a launcher may have started."""

    @functools.wraps(run)
    def joining(**options: Any) -> None:
        if not launched():
            return run(**options)
        try:
            with join_process_group(options["device"]) as processes:
                click.get_current_context().obj = processes
                return run(**options)
        except BaseException:
            # the one process that says what went wrong may be another than the main one
            sys.stderr = sys.__stderr__
            raise

    return joining  # type: ignore[return-value]
