"""Completion in the shell, by click's own scripts: shown, or put where the shell reads it; what values may be."""

import os
import shlex
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, TypeVar

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class, get_completion_class

from softprompt.errors import ConfigError, SoftpromptError, map_write_errors
from softprompt.store.references import ENVIRONMENT, LATEST
from softprompt.utils.files import write_file

Command = TypeVar("Command", bound=Callable[..., object])

SHELLS = ("bash", "zsh", "fish")
FOUND = "$SHELL"  # the value of an option that names no shell
EMBEDDED = "embedded:gemma-3-270m"


class ShellFiles(NamedTuple):
    """Where a shell finds the completion of a command.

    Attributes:
        script: the completion itself.
        startup: file that the shell reads when it starts, None where it finds the script by itself.
        line: in ``startup``, that reads the script.
    """

    script: Path
    startup: Path | None
    line: str


def add_completion_options(command: Command) -> Command:
    """``--install-completion`` and ``--show-completion``, for the shell that is named, or that of ``$SHELL``."""
    for name, told, act in (
        ("--show-completion", "Print the shell's completion script.", _show),
        ("--install-completion", "Complete verbs, options and values in bash, zsh or fish.", _install),
    ):
        command = click.option(
            *(name,),
            type=click.Choice((*SHELLS, FOUND)),
            metavar="[SHELL]",
            is_flag=False,
            flag_value=FOUND,
            is_eager=True,
            expose_value=False,
            callback=act,
            help=told,
        )(command)
    return command


def find_shell_files(shell: str) -> ShellFiles:
    """The places of ``shell`` for this user; only zsh's own ``ZDOTDIR`` and the XDG folders move them."""
    home = Path.home()
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
    if shell == "fish":
        settings = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        return ShellFiles(settings / "fish/completions/softprompt.fish", None, "")
    if shell == "zsh":
        script = data / "softprompt/completion.zsh"
        begin = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }; "
        return ShellFiles(
            script, Path(os.environ.get("ZDOTDIR") or home) / ".zshrc", f"{begin}source {shlex.quote(str(script))}"
        )
    script = data / "bash-completion/completions/softprompt"
    return ShellFiles(script, home / ".bashrc", f"source {shlex.quote(str(script))}")


def complete_value(option: click.Parameter, typed: str) -> "list[CompletionItem[str]]":
    """What may stand where ``typed`` begins: prompts of a store, the embedded model, or a file."""
    found: list[str] = []
    if "PROMPT" in (option.metavar or "") or "NAME@" in (option.metavar or ""):
        found = _list_prompts(typed)
    elif option.name == "model_name" and typed and EMBEDDED.startswith(typed):
        found = [EMBEDDED]
    return [CompletionItem(value) for value in found] or [CompletionItem(typed, type="file")]


def _list_prompts(typed: str) -> list[str]:
    """References that begin with ``typed``, of the store that it names or that of the environment; none of a URL."""
    place, mark, _ = typed.rpartition("#")
    store = place if mark else os.environ.get(ENVIRONMENT, "")
    if not store or "://" in store:
        return []
    with suppress(SoftpromptError):
        artifacts = import_module("softprompt.store.artifacts").ArtifactStore(store)
        start = f"{place}{mark}"
        named = [(name, typed.startswith(f"{start}{name}@")) for name in artifacts.names()]
        whole = [name for name, chosen in named if chosen]
        which = [
            f"{start}{name}@{one}"
            for name in whole or [name for name, _ in named]
            for one in (*sorted(artifacts.aliases(name)), LATEST, *map(str, artifacts.numbers(name)))
        ]
        return [one for one in which if one.startswith(typed)]
    return []


class JoinedWords(BashComplete):
    """Bash takes ``name@prod`` for three words, and wants the last of them alone as the answer."""

    _BREAKS = frozenset("@:=")

    def get_completion_args(self) -> tuple[list[str], str]:
        args, typed = super().get_completion_args()
        words: list[str] = []
        glued = False
        for word in (*args, typed):
            breaks = bool(word) and self._BREAKS.issuperset(word)
            if words and (breaks or glued):
                words[-1] += word
            else:
                words.append(word)
            glued = breaks
        self._typed = words.pop()
        return words, self._typed

    def format_completion(self, item: "CompletionItem[str]") -> str:
        known = max(self._typed.rfind(one) for one in self._BREAKS) + 1
        if known and item.value.startswith(self._typed[:known]):
            item = CompletionItem(item.value[known:], type=item.type)
        return super().format_completion(item)


add_completion_class(JoinedWords)


def _chosen_shell(value: str) -> str:
    shell = Path(os.environ.get("SHELL", "")).name if value == FOUND else value
    if shell not in SHELLS:
        raise ConfigError(f"expected bash, zsh or fish, got {shell!r} in SHELL: name one, as --install-completion bash")
    return shell


def _write_script(context: click.Context, shell: str) -> str:
    kind = get_completion_class(shell)
    assert kind is not None
    return kind(context.command, {}, "softprompt", "_SOFTPROMPT_COMPLETE").source()


def _tell(*lines: str) -> None:
    import_module("softprompt.cli.printing").print_lines(lines)


def _show(context: click.Context, option: click.Parameter, value: str | None) -> None:
    if value is not None and not context.resilient_parsing:
        _tell(*_write_script(context, _chosen_shell(value)).splitlines())
        context.exit()


def _install(context: click.Context, option: click.Parameter, value: str | None) -> None:
    if value is None or context.resilient_parsing:
        return
    shell = _chosen_shell(value)
    script, startup, line = find_shell_files(shell)
    write_file(script, _write_script(context, shell).encode(), "mend its permissions")
    told = [f"completion for {shell} is in {script}"]
    if startup is not None:
        told.append(f"{startup} {'reads it: a line was added' if _add_line(startup, line) else 'reads it already'}")
    _tell(*told, f"a new {shell} completes softprompt")
    context.exit()


def _add_line(path: Path, line: str) -> bool:
    """Put ``line`` at the end of a text file, if it is not in it; whether it was put there."""
    with map_write_errors(path, "mend its permissions"):
        text = path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else ""
        if line in text.splitlines():
            return False
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{'' if text.endswith(chr(10)) or not text else chr(10)}{line}\n")
    return True
