"""How help is laid out: verbs in the order of use, a verb's first options in front, the others in groups by name.

An option means the same in every verb, so its group is told once for all of them.
"""

from collections.abc import Sequence
from typing import Any

import click

from softprompt.cli.verbs.option_hints import explain_unknown_option, explain_unknown_verb

VERBS: dict[str, tuple[str, ...]] = {
    "Learn": ("demo", "train", "multitask", "distill", "sweep"),
    "Use": ("predict", "eval"),
    "Judge": ("compare", "scale", "inspect", "prune", "similar"),
    "Keep": ("list", "show", "diff", "push", "pull", "promote", "rollback"),
    "Deploy": ("serve", "keys", "monitor", "export", "import"),
    "Before you begin": ("doctor", "plan"),
}


def _names(*lines: str) -> list[str]:
    return " ".join(lines).split()


GROUPS: dict[str, list[str]] = {
    "Data": _names(
        "data shift_data template labels verbalizer text_column label_column target_column bad_rows split",
        "limit train_rows streaming max_length example",
    ),
    "Chats": _names("system keep_system chat_template chat_template_arg learn placement"),
    "Written prompt": _names("instruction shots shots_seed"),
    "Teacher": _names(
        "teacher teachers distillation distillation_temperature teacher_top_k greedy samples",
        "sample_temperature sample_seed stop",
    ),
    "What is learned": _names("method method_option length lengths init soft_verbalizer recipe config seed"),
    "Several at once": _names("seeds grid ensemble trials space pruning backend workers rates current"),
    "Optimisation": _names(
        "steps epochs budget batch_size learning_rate rate_unit schedule warmup optimizer weight_decay",
        "clip averaging eval_every patience validation_limit alarm_after shuffle_buffer",
    ),
    "Speed and memory": _names("micro_batch_size token_budget gradient_checkpointing compile"),
    "Machine and work": _names("gpus gpu_memory text_length tasks generation"),
    "Model": _names("model_name model device dtype quantize device_map sharding trust_remote_code"),
    "Scoring": _names("metric tolerance max_new_tokens vote no_test no_measure no_baseline baseline"),
    "Server": _names(
        "store prompts engine_kind engine_url engine_prompts host port base_name refresh timeout drain_delay",
        "shutdown_timeout",
    ),
    "Keys and log": _names("keys no_auth requests_per_minute tokens_per_minute log_text"),
    "Samples of requests": _names("sample_file sample_rate sample_text sample_keep"),
    "Other programs": _names("engine_python engine_gguf gguf price_per_hour"),
    "Saving and going on": _names("out keep checkpoint_every resume restart track html"),
}
FEW = 12  # options, up to which they need no groups


class GroupedCommand(click.Command):
    """A verb whose help shows the options that matter first, then the others in their groups."""

    def __init__(self, *args: Any, first: Sequence[str] = (), **options: Any) -> None:
        """``first``: names of the options that matter first, in order, where a verb has many."""
        super().__init__(*args, **options)
        self.first = tuple(first)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, options in group_options(self, ctx).items():
            with formatter.section(heading):
                formatter.write_dl([shown for one in options if (shown := one.get_help_record(ctx)) is not None])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise explain_unknown_option(error, self, ctx) from error


def group_options(command: click.Command, context: click.Context | None = None) -> dict[str, list[click.Option]]:
    """The options of a verb's help by their headings; all under one where they are few."""
    shown = command.get_params(context) if context is not None else command.params
    options = {one.name: one for one in shown if isinstance(one, click.Option) and not one.hidden}
    if len(options) <= FEW:
        return {"Options": list(options.values())}
    first = [name for name in getattr(command, "first", ()) if name in options]
    found: dict[str, list[click.Option]] = {"Most used": [options.pop(name) for name in first]} if first else {}
    for heading, names in GROUPS.items():
        if chosen := [options.pop(name) for name in names if name in options]:
            found[heading] = chosen
    if options:
        found["Output"] = list(options.values())
    return found


class GroupedVerbs(click.Group):
    """All verbs, in the order of use."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.commands))
        limit = formatter.width - width - 6
        for heading, commands in self.sections().items():
            with formatter.section(heading):
                rows = [(name.ljust(width), one.get_short_help_str(limit)) for name, one in commands.items()]
                formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise explain_unknown_verb(error, args[0], ctx) from error

    def sections(self) -> dict[str, dict[str, click.Command]]:
        """Verbs by heading and name."""
        listed = {heading: {name: self.commands[name] for name in names} for heading, names in VERBS.items()}
        return {heading: commands for heading, commands in listed.items() if commands}
