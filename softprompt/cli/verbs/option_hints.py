"""What to say of a verb or an option that is not there: its name here, where it has or had another one."""

from collections.abc import Mapping

import click

_RATE = "which counts standard deviations of the model's token embeddings: leave it out to begin with"
# as transformers, PEFT, TRL and axolotl spell them
FOREIGN: dict[str, str] = {
    "model-name-or-path": "--model",
    "model-name": "--model",
    "base-model": "--model",
    "pretrained-model-name-or-path": "--model",
    "train-file": "--data, a file or a folder with train, validation and test files",
    "validation-file": "--data, a folder with train, validation and test files",
    "test-file": "--data, a folder with train, validation and test files",
    "dataset": "--data",
    "dataset-name": "--data hf:NAME",
    "datasets": "--data",
    "dataset-text-field": "--text-column",
    "text-column-name": "--text-column",
    "label-column-name": "--label-column",
    "labels-column": "--label-column",
    "output-dir": "--out",
    "output": "--out",
    "save-dir": "--out",
    "num-epochs": "--epochs",
    "num-train-epochs": "--epochs",
    "epoch": "--epochs",
    "max-steps": "--steps",
    "num-steps": "--steps",
    "per-device-train-batch-size": "--batch-size",
    "train-batch-size": "--batch-size",
    "per-device-eval-batch-size": "--token-budget, padded tokens per forward pass",
    "eval-batch-size": "--token-budget, padded tokens per forward pass",
    "gradient-accumulation-steps": "--micro-batch-size, examples per forward pass: --batch-size stays as it is",
    "learning-rate": f"--learning-rate, {_RATE}",
    "lr-scheduler-type": "--schedule",
    "lr-scheduler": "--schedule",
    "warmup-ratio": "--warmup, a share of the steps",
    "warmup-steps": "--warmup, a share of the steps",
    "optim": "--optimizer",
    "max-grad-norm": "--clip",
    "num-virtual-tokens": "--length",
    "num-tokens": "--length",
    "prompt-length": "--length",
    "peft-type": "--method",
    "tuner": "--method",
    "adapter": "--method",
    "prompt-tuning-init": "--init",
    "prompt-tuning-init-text": "--init 'text:WORDS'",
    "max-seq-length": "--max-length",
    "max-seq-len": "--max-length",
    "sequence-len": "--max-length",
    "model-max-length": "--max-length",
    "max-source-length": "--max-length",
    "max-target-length": "--max-new-tokens",
    "max-tokens": "--max-new-tokens",
    "eval-steps": "--eval-every",
    "evaluation-strategy": "--eval-every, in steps",
    "eval-strategy": "--eval-every, in steps",
    "logging-dir": "--track tensorboard:FOLDER",
    "report-to": "--track",
    "save-steps": "--checkpoint-every",
    "early-stopping-patience": "--patience",
    "resume-from-checkpoint": "--resume",
    "overwrite-output-dir": "--restart, for an unfinished run; a finished prompt is never written over",
    "bf16": "--dtype bfloat16",
    "fp16": "--dtype float16",
    "torch-dtype": "--dtype",
    "load-in-8bit": "--quantize bnb-int8",
    "load-in-4bit": "--quantize bnb-nf4",
    "use-cpu": "--device cpu",
    "no-cuda": "--device cpu",
    "metric-for-best-model": "--metric",
    "do-sample": "--temperature, above 0",
    "num-few-shot": "--shots",
    "num-fewshot": "--shots",
    "tasks": "--data",
}
# as git, ollama, transformers and others call what these do
FOREIGN_VERBS: dict[str, str] = {
    "add": "push",
    "benchmark": "compare",
    "chat": "serve",
    "classify": "predict",
    "convert": "export",
    "evaluate": "eval",
    "finetune": "train",
    "fine-tune": "train",
    "fit": "train",
    "generate": "predict",
    "info": "show",
    "infer": "predict",
    "init": "demo",
    "learn": "train",
    "load": "import",
    "log": "list",
    "ls": "list",
    "run": "predict",
    "score": "eval",
    "search": "sweep",
    "start": "serve",
    "status": "list",
    "test": "eval",
    "tune": "train",
    "validate": "eval",
}
# names that an option had in a verb, before one name had one meaning in all of them
RENAMED: dict[tuple[str, str], str] = {
    ("distill", "--prompt"): "--system",
    ("distill", "--teacher-text"): "--system",
    ("distill", "--inputs"): "--data",
    ("distill", "--temperature"): "--distillation-temperature (or --sample-temperature, of sampled completions)",
    ("distill", "--top-k"): "--teacher-top-k",
    ("inspect", "--store"): "--among",
    ("inspect", "--template"): "--served-template",
    ("monitor", "--report"): "--html",
    ("monitor", "--samples"): "--sample-file",
    ("similar", "--store"): "--among",
    ("sweep", "--engine"): "--backend",
}


def explain_unknown_option(
    error: click.NoSuchOption, command: click.Command, context: click.Context
) -> click.UsageError:
    """The error to raise in place of ``error``, with what its option is called here, as far as that is known."""
    given, verb = error.option_name, str(command.name)
    known = {name: one for one in command.params for name in (*one.opts, *one.secondary_opts)}
    hyphened = given.lower().replace("_", "-")
    meant = RENAMED.get((verb, given))
    if meant is None and hyphened in known:
        unit = f" ({_RATE.removeprefix('which ')})" if hyphened == "--learning-rate" else ""
        meant = f"{hyphened}{unit}"
    if meant is None and (foreign := FOREIGN.get(hyphened.lstrip("-"))) is not None:
        meant = foreign if foreign.split()[0].rstrip(",") in known else None
    if meant is not None:
        return click.UsageError(f"No such option '{given}': here it is {meant}", context)
    if verbs := _verbs_that_have(hyphened, context):
        return click.UsageError(f"No such option '{given}' of {verb}: it is one of {', '.join(verbs)}", context)
    return error


def explain_unknown_verb(error: click.UsageError, given: str, context: click.Context) -> click.UsageError:
    """The error to raise in place of ``error``, with what the verb is called here, if it is known elsewhere."""
    if (meant := FOREIGN_VERBS.get(given.lower())) is not None:
        return click.UsageError(f"No such verb '{given}': here it is softprompt {meant}", context)
    return error


def _verbs_that_have(name: str, context: click.Context) -> list[str]:
    root = context.find_root().command
    verbs: Mapping[str, click.Command] = root.commands if isinstance(root, click.Group) else {}
    return [verb for verb, one in verbs.items() if any(name in option.opts for option in one.params)]
