"""The command line: one command a verb. Results go to stdout, everything else to stderr.

Exit code 0 is success, 2 a mistake in what the user gave (one line says which), 1 a failure of ours.
"""

import errno
import io
import os
import sys

import click

from softprompt.cli.console import hush, say
from softprompt.cli.verbs import deploying_verbs, judging_verbs, learning_verbs  # noqa: F401 (they declare verbs)
from softprompt.cli.verbs.lazy_verbs import cli
from softprompt.errors import SoftpromptError
from softprompt.utils.threads import prepare_threads

# said to who gives no verb; on standard error and with exit code 2, for a script that forgot it
BEGINNING = """\
softprompt learns a few virtual tokens for your task on a frozen language model.

Three commands to begin with:

  softprompt demo
      the whole story on a small model and data, on this machine
  softprompt train --model MODEL --data FILE --out prompts/mine
      learn a prompt from rows with a text and a label, or a target; say what it gains
  softprompt predict prompts/mine "a text"
      answer with it

softprompt --help lists all verbs in the order of use, softprompt VERB --help explains one."""

# how to go on after an interruption
RESUMING = {
    **dict.fromkeys(("train", "multitask", "distill"), "; --resume goes on from the last checkpoint"),
    **dict.fromkeys(("compare", "scale", "sweep"), "; the same command again goes on"),
}


def main() -> None:
    """Entry point of ``softprompt``."""
    # closed by whoever started us; what is said is then said to nobody, not to the other stream
    sys.stdout, sys.stderr = sys.stdout or io.StringIO(), sys.stderr or io.StringIO()
    hush()
    prepare_threads()
    try:
        cli.main(prog_name="softprompt", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        for line in (error.format_message() if _verb() else BEGINNING).splitlines():
            say(line)
        sys.exit(2)
    except click.ClickException as error:
        _fail(f"{error.format_message()} (softprompt {_verb()}--help explains)", 2)
    except SoftpromptError as error:
        _fail(str(error), 2)
    except (click.Abort, KeyboardInterrupt):
        _fail(f"interrupted{RESUMING.get(_verb().strip(), '')}", 130)
    except BrokenPipeError:
        # whoever read our output has closed it
        _drop_output()
        sys.exit(1)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            _drop_output()
            _fail("no space left to write the output: free some space", 2)
        if os.environ.get("SOFTPROMPT_TRACEBACK"):
            raise
        _fail(
            f"a failure of softprompt itself: {type(error).__name__}: {error} (SOFTPROMPT_TRACEBACK=1 shows where)", 1
        )


def _verb() -> str:
    return f"{sys.argv[1]} " if len(sys.argv) > 1 and sys.argv[1] in cli.commands else ""


def _drop_output() -> None:
    # what could not be written is still in the buffer; keep the interpreter from trying again at exit
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> None:
    say(f"error: {' '.join(message.split())}")
    sys.exit(code)
