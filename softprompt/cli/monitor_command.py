"""``softprompt monitor``: does live traffic look like what the prompts were measured on?"""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softprompt.cli.options import (
    GIVEN,
    PLACE,
    column_options,
    columns_of,
    json_option,
    load_base_of,
    model_of,
    model_options,
    print_result,
    say,
)
from softprompt.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from softprompt.models.frozen_lm import FrozenLM
    from softprompt.prompts.saved_prompt import Prompt

DRIFT = 3  # exit code: 1 is a failure of ours, 2 a mistake in what was given


@click.command(name="monitor")
@click.option("--samples", type=PLACE, required=True, metavar="FILE", help="What serve --sample-file wrote.")
@click.option("--store", type=GIVEN, help="Folder or URL of the store that was served.")
@click.option(
    "--prompt", "prompts", type=GIVEN, multiple=True, metavar="[NAME=]FOLDER", help="A saved prompt, or more, instead."
)
@click.option("--since", type=GIVEN, metavar="SPAN", help="Only samples of the last 7d, 12h or 30m.")
@click.option("--data", type=GIVEN, help="What a prompt saved without a profile was learned on; as for train.")
@click.option("--model", "model_name", type=GIVEN, help="The base model; then hidden states are compared too.")
@click.option("--report", type=PLACE, metavar="FILE", help="Write a page, complete in one file.")
@click.option("--fail-on-drift", is_flag=True, help=f"End with exit code {DRIFT} if a prompt drifts.")
@column_options
@model_options
@json_option
def monitor_command(
    samples: Path,
    store: str | None,
    prompts: tuple[str, ...],
    since: str | None,
    data: str | None,
    model_name: str | None,
    report: Path | None,
    fail_on_drift: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Tell which prompts get other texts than they were measured on.

    Compares samples of live requests with the profile that each prompt was saved with (docs/monitor.md).
    """
    from softprompt.report.pages.drift_text import monitoring_lines
    from softprompt.serving.request_log.request_samples import read_samples, seconds_of

    chosen, columns = model_of(options), columns_of(options)
    if (store is None) == (not prompts):
        got = "neither" if store is None else "both"
        raise ConfigError(f"expected a store or saved prompts, got {got}: give --store or --prompt")
    if columns and data is None:
        raise ConfigError("--text-column, --label-column and --target-column are for --data: give it too")
    if report is not None and report.is_dir():
        raise OutputError(f"'{report}' is a folder: give --report the name of a file")
    begins = 0.0 if since is None else time.time() - seconds_of(since, "--since")
    read = read_samples(samples, begins)

    from softprompt.analysis.drift.monitor import monitor
    from softprompt.store.prompt_sources import FolderSource, StoreSource

    found = monitor(
        read,
        FolderSource(prompts) if store is None else StoreSource(store),
        place=str(samples),
        since=begins,
        data=data,
        columns=columns,
        model=_Models(model_name, chosen),
        states=model_name is not None,
        progress=say,
    )
    if report is not None:
        from softprompt.report.pages.drift_page import write_monitoring

        write_monitoring(found, report)
        say(f"page written to {report}")
    print_result(found.model_dump(mode="json"), monitoring_lines(found), as_json)
    if fail_on_drift and found.drifting:
        sys.exit(DRIFT)


class _Models:
    """Base models of prompts, each loaded once."""

    def __init__(self, name: str | None, options: dict[str, Any]) -> None:
        """``name``: of the one to take for all."""
        self._name, self._options = name, options
        self._loaded: dict[tuple[str, str | None], FrozenLM] = {}

    def __call__(self, prompt: "Prompt") -> "FrozenLM":
        which = self._name or prompt.base_name, prompt.quantisation
        if which not in self._loaded:
            self._loaded[which] = load_base_of(prompt, self._name, self._options)
        return self._loaded[which]
