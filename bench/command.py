"""How the command of a benchmark ends, the same for all: a report, as a table or JSON, or one line and an exit code."""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from contestants import BenchmarkFailure

from softprompt.errors import SoftpromptError


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def finished(
    options: argparse.Namespace,
    benchmark: Callable[[argparse.Namespace], dict[str, Any]],
    text_report: Callable[[dict[str, Any]], str],
) -> int:
    """Run it and print its report; the exit code: 0, 2 for a mistake in what the user gave, 1 for a failure of ours."""
    try:
        report = benchmark(options)
    except SoftpromptError as error:
        say(f"error: {error}")
        return 2
    except BenchmarkFailure as error:
        say(f"failed: {error}")
        return 1
    print(json.dumps(report, indent=2) if options.json else text_report(report))
    return 0
