"""Seconds a training step on conversations of eight turns: softprompt against TRL's SFTTrainer with prompt tuning.

Each contestant runs in a process of its own, and one runs at a time: a few steps, then the next one's turn, round after
round, so that whatever else the machine does meets all of them alike. A step is timed from the end of the step before
it to its own end, data loading included; each contestant's first step warms up and is not counted.

All learn the assistant's turns of the same conversations: TRL by ``assistant_only_loss`` and its own template of the
family, in which these turns are marked, everything else as its documentation has it.
"""

import argparse
import importlib.util
import json
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from aims import aim_lines, judged
from command import finished, say
from contestants import PEFT_RATE, WARMUP, Contestant, Gate, Measured, Pipe, batch_order, telling
from real_models import QWEN, qwen_folder
from train_vs_peft import compare, contestant_lines, machine, take_turns

from softprompt.errors import ConfigError, DataError, MissingExtraError

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "e2e" / "train.jsonl"
SYSTEM = "You describe restaurants in one sentence. Use every fact that you are given, and no other."
TURNS = 8  # of user and assistant in turn, behind the system message
VALIDATION = 4  # conversations, which are not reached
TEMPLATE = "qwen2_5_training.jinja"
# times softprompt's seconds a step
AIMS = {"trl-float32": 10.0}
CONTESTANTS = ("softprompt", "trl-float32", "trl-bf16")


@dataclass(frozen=True)
class Setup:
    """What all contestants share.

    Attributes:
        folder: of the model.
        rows: a folder with ``train.jsonl`` and ``validation.jsonl``, conversations as OpenAI writes them.
        batch_size: conversations a step.
        length: virtual tokens.
        threads: of PyTorch; its own choice if ``None``.
        compile: as ``softprompt.fit`` takes it; a tiny model of a test is not worth a compiler's time.
    """

    folder: str
    rows: str
    batch_size: int
    length: int
    threads: int | None
    compile: Literal["auto", "always"] = "auto"


def write_conversations(source: Path, count: int, folder: Path) -> Path:
    """``count`` conversations of ``TURNS`` turns to learn from in ``folder``, and some for validation.

    They are drawn by a fixed seed from the rows of ``source``, each with a ``text`` and its ``target``.

    Raises:
        DataError: ``source`` cannot be read, or has fewer rows than a conversation asks.
    """
    try:
        rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
        pairs = [(row["text"], row["target"]) for row in rows]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"expected JSON lines with text and target in '{source}', got {error!r}") from error
    if len(pairs) < TURNS // 2:
        raise DataError(f"expected at least {TURNS // 2} rows in '{source}', got {len(pairs)}")
    draw = random.Random(0)
    for name, size in (("train", count), ("validation", VALIDATION)):
        chats = [{"messages": _conversation(draw.sample(pairs, TURNS // 2))} for _ in range(size)]
        lines = "".join(json.dumps(chat) + "\n" for chat in chats)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def _conversation(pairs: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    turns = [(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
    return [{"role": role, "content": text} for role, text in [("system", SYSTEM), *turns]]


def run_softprompt(connection: Pipe, setup: Setup, steps: int) -> None:
    """``softprompt.fit`` with its default settings."""
    import torch

    import softprompt as sp
    from softprompt.config import TrainConfig
    from softprompt.data.chats.chat_resolution import resolve_chat
    from softprompt.data.encoding.batching import batch_by_token_budget
    from softprompt.data.encoding.encoder import ExampleEncoder

    base = sp.load_model(setup.folder, device="cpu")
    task = resolve_chat(base, sp.Task.of(setup.rows))
    # it evaluates at the last step, which it is stopped behind: nothing but steps is measured
    config = TrainConfig.build(
        length=setup.length, batch_size=setup.batch_size, steps=steps, eval_every=steps, compile=setup.compile
    )
    encoder = ExampleEncoder(base, task.spec, setup.length)
    items, placement = encoder.training_items(task.train), encoder.placement
    order = batch_order([len(item.ids) for item in items], setup.batch_size, config.seed, steps)

    def tokens(step: int) -> int:
        chunks = batch_by_token_budget([items[i] for i in order[step]], config.token_budget, config.micro_batch_size)
        prefix = len(placement.before) + setup.length + len(placement.behind)
        return sum(prefix + len(chunk) * max(len(item.ids) for item in chunk) for chunk in chunks)

    facts = {"dtype": base.precision, "threads": torch.get_num_threads()}

    class Timer:
        def on_train_begin(self, first_step: int, steps: int, learned: int, frozen: int) -> None:
            self.gate = Gate(connection, facts, tokens)

        def on_step_end(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
            self.gate.step_done()

    sp.fit(base, task, config=config, baseline=False, progress=False, callback=Timer())


def run_trl(connection: Pipe, setup: Setup, steps: int, bf16: bool) -> None:
    """``SFTTrainer`` with ``PromptTuningConfig``; gradient checkpointing and the rest as they are by default."""
    import torch
    import transformers
    from datasets import load_dataset
    from peft import PromptTuningConfig, PromptTuningInit, TaskType
    from trl import SFTConfig, SFTTrainer

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(setup.folder)
    tokenizer.chat_template = (files("trl") / "chat_templates" / TEMPLATE).read_text(encoding="utf-8")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(setup.folder, dtype=torch.float32)
    learned = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        prompt_tuning_init=PromptTuningInit.TEXT,
        prompt_tuning_init_text=SYSTEM,
        num_virtual_tokens=setup.length,
        tokenizer_name_or_path=setup.folder,
    )
    facts = {"dtype": "float32 under bf16 autocast" if bf16 else "float32", "threads": torch.get_num_threads()}
    sizes: list[int] = []

    class Timer(transformers.TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.gate = Gate(connection, facts, sizes.__getitem__)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.gate.step_done()

    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            assistant_only_loss=True,
            per_device_train_batch_size=setup.batch_size,
            learning_rate=PEFT_RATE,
            max_steps=steps,
            bf16=bf16,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=load_dataset("json", data_files=f"{setup.rows}/train.jsonl", split="train", cache_dir=folder),
            processing_class=tokenizer,
            peft_config=learned,
            callbacks=[Timer()],
        )
        pad = trainer.data_collator

        def collate(features: Any) -> Any:
            batch = pad(features)
            examples, width = batch["input_ids"].shape
            sizes.append(examples * (setup.length + width))
            return batch

        trainer.data_collator = collate
        trainer.train()


def work(connection: Pipe, name: str, setup: Setup, steps: int) -> None:
    """A contestant's process."""
    with telling(connection, name, setup.threads):
        if name == "softprompt":
            run_softprompt(connection, setup, steps)
        else:
            run_trl(connection, setup, steps, name == "trl-bf16")


def measure(setup: Setup, rounds: int, steps: Mapping[str, int]) -> dict[str, Measured]:
    """Let the contestants take turns of ``steps[name]`` steps, ``rounds`` times."""
    running: list[Contestant] = []
    for name in CONTESTANTS:
        say(f"loading {name}")
        running.append(Contestant(name, work, setup, WARMUP + rounds * steps[name]))
    return take_turns("conversations", running, rounds, steps)


def text_report(report: Mapping[str, Any]) -> str:
    """The report as a table for people."""
    box, setup = report["machine"], report["configuration"]
    flags = ", ".join(box["bf16_flags"]) or "no bfloat16 instructions"
    lines = [
        f"{box['cpu']}, {box['cores']} cores, {flags}",
        ", ".join(f"{name} {number}" for name, number in box["versions"].items()),
        f"{setup['model']}, batch {setup['batch_size']}, {setup['virtual_tokens']} virtual tokens, "
        f"{setup['conversations']} conversations of {TURNS} turns",
        "",
        *contestant_lines("conversations", report["steps"]),
        "",
    ]
    return "\n".join([*lines, *aim_lines(report)])


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; the whole report."""
    for package in ("trl", "peft"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "dev")
    began, described = time.perf_counter(), machine()
    described["versions"]["trl"] = version("trl")
    folder = Path(options.model).resolve() if options.model else qwen_folder(say)
    if not folder.is_dir():
        raise ConfigError(f"expected the folder of a model, got '{options.model}'")
    with tempfile.TemporaryDirectory() as place:
        rows = write_conversations(Path(options.data), options.conversations, Path(place))
        # as a run of the default 300 steps of the real model would be
        compiled: Literal["auto", "always"] = "auto" if options.model else "always"
        setup = Setup(str(folder), str(rows), options.batch_size, options.length, options.threads, compiled)
        steps = {**dict.fromkeys(CONTESTANTS, options.steps), "softprompt": options.softprompt_steps}
        found = compare(measure(setup, options.rounds, steps))
    return {
        "benchmark": "chat_step",
        "machine": described,
        "configuration": {
            "model": options.model or QWEN,
            "data": options.data,
            "conversations": options.conversations,
            "turns": TURNS,
            "batch_size": setup.batch_size,
            "virtual_tokens": setup.length,
            "rounds": options.rounds,
            "steps_per_round": steps,
            "warmup_steps": WARMUP,
        },
        "steps": found,
        "aims": [
            judged(f"step, {name}", found["ratios"][name]["seconds_per_step"], aim, "times the seconds")
            for name, aim in AIMS.items()
        ],
        "total_seconds": round(time.perf_counter() - began, 1),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for a mistake in what the user gave, 1 for a failure of ours."""
    return finished(parser().parse_args(arguments), benchmark, text_report)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--json", action="store_true", help="print one JSON object")
    made.add_argument("--rounds", type=int, default=4, help="turns of each contestant (default: %(default)s)")
    made.add_argument("--steps", type=int, default=1, help="steps a turn of TRL (default: %(default)s)")
    made.add_argument("--softprompt-steps", type=int, default=5, help="steps a turn of softprompt (%(default)s)")
    made.add_argument("--conversations", type=int, default=640, help="to learn from (default: %(default)s)")
    made.add_argument("--batch-size", type=int, default=16, help="conversations a step (default: %(default)s)")
    made.add_argument("--length", type=int, default=20, help="virtual tokens (default: %(default)s)")
    made.add_argument("--threads", type=int, help="threads of PyTorch (default: its own choice, the same for all)")
    made.add_argument("--model", help=f"folder of a model with Qwen's template (default: {QWEN} from PyPI)")
    made.add_argument("--data", default=str(SHARED_DATA), help="rows of text and target (default: %(default)s)")
    return made


if __name__ == "__main__":
    sys.exit(main())
