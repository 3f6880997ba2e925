"""``distill``: a long written prompt, solved examples or a saved prompt to a short soft prompt."""

from pathlib import Path
from typing import Any

from softprompt.cli.base_loading import defer_base, make_callback
from softprompt.cli.option_values import (
    parse_pairs,
    parse_task_settings,
    pop_column_options,
    pop_model_options,
    read_words,
)
from softprompt.cli.printing import print_result
from softprompt.config import DistillConfig, TrainConfig
from softprompt.data.examples import keep_answered
from softprompt.data.task import Task
from softprompt.errors import ConfigError
from softprompt.prompts.written_prompt import choose_shots
from softprompt.report.pages.distillation_page import make_distillation_document
from softprompt.report.report_files import write_document
from softprompt.store.prompt_loading import load_prompt
from softprompt.training.distillation.distill import distill, make_length_configs


def run_distill(
    model_name: str,
    shots: int,
    shots_seed: int,
    keep_system: str | None,
    teacher: str | None,
    data: str,
    out: Path,
    lengths: str | None,
    template: str | None,
    labels: str | None,
    verbalizer: tuple[str, ...],
    metric: str | None,
    method_option: tuple[str, ...],
    no_measure: bool,
    config: Path | None,
    resume: bool,
    restart: bool,
    track: tuple[str, ...],
    no_test: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    model, columns = pop_model_options(settings), pop_column_options(settings)
    how = DistillConfig.build(**{name: settings.pop(name) for name in DistillConfig.model_fields})
    settings["method_options"] = parse_pairs("--method-option", method_option, "NAME=VALUE", "encoder=lstm") or None
    if lengths is not None and settings["length"] is not None:
        raise ConfigError("--length and --lengths exclude each other: give one of them")
    chosen = TrainConfig.load(config, **settings)
    if teacher is not None and (columns.get("system") or keep_system or shots or template or labels or verbalizer):
        raise ConfigError(
            "--teacher brings its own task, --system, --keep-system, --shots, --template, --labels and --verbalizer "
            "are for text: leave them or --teacher out"
        )
    members = {"": chosen} if lengths is None else make_length_configs(chosen, _numbers(lengths))
    kept = None if keep_system is None else read_words("--keep-system", keep_system)
    prompt = None if teacher is None else load_prompt(teacher).judged_by(metric)
    task = Task.of_inputs(
        data,
        spec=None if prompt is None else prompt.spec,
        max_length=chosen.max_length if "max_length" in chosen.model_fields_set else None,
        **parse_task_settings(template, labels, verbalizer, metric),
        **columns,
    )
    solved = choose_shots(keep_answered(task.train), shots, shots_seed) if shots else []
    done = distill(
        defer_base(model_name, model),
        task,
        prompt or "",
        shots=solved,
        keep_system=kept,
        config=members,
        **how.model_dump(),
        out=out,
        callback=make_callback(as_json),
        track=track,
        resume=resume,
        restart=restart,
        evaluate_test=not no_test,
        measure=not no_measure,
    )
    reports = {name: one.report for name, one in done.items()}
    described = {
        name: {"prompt": str(out / name), "metrics": one.prompt.metrics, **reports[name].model_dump()}
        for name, one in done.items()
    }
    result = described[""] if lengths is None else {"prompts": described}
    document = make_distillation_document(reports, out)
    write_document(document, out, "distillation")
    print_result(result, document, as_json)


def _numbers(lengths: str) -> list[int]:
    try:
        return [int(part) for part in lengths.split(",")]
    except ValueError as error:
        raise ConfigError(f"--lengths '{lengths}': expected numbers with commas between them, as in 4,8,16") from error
