"""A system prompt of a page distilled into virtual tokens: what is kept of its quality, and what a request saves.

An instruct model answers two public tasks as chats behind a page of about 600 tokens (``system_prompts``): TREC, its
questions with a label, and E2E, descriptions to be written. Virtual tokens learn to take the page's place from inputs
alone; labels and references only judge both, on the test split.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aims import aim_lines, judged
from chat_tasks import DATA
from command import finished, say
from real_models import qwen_folder
from train_vs_peft import machine

import softprompt as sp
from softprompt.errors import DataError

PAGES = Path(__file__).resolve().parent / "system_prompts"
LABELS = ("abbreviation", "description", "entity", "human", "location", "number")
KEPT = 0.95  # of the teacher's quality, at least
HELD_OUT = 64  # inputs of E2E that choose the step: its own validation has few


@dataclass(frozen=True)
class Distilled:
    """A task and how its page is distilled.

    Attributes:
        metric: that judges teacher and student.
        steps: optimiser steps of 16 inputs; a completion teaches at each of its tokens, a label once.
        settings: further ones of ``sp.distill``.
    """

    metric: str
    steps: int
    settings: Mapping[str, Any] = field(default_factory=dict)


TASKS = {
    "trec": Distilled(
        "accuracy", 600, {"labels": ["abbreviation", "description", "entity", "human", "location", "number"]}
    ),
    # a sampled answer beside the greedy one: few inputs are different, and a student also leaves the teacher's way
    "e2e": Distilled("bleu", 300, {"max_new_tokens": 96, "samples": 1, "sample_temperature": 0.7}),
}


def distill_pages(options: argparse.Namespace) -> dict[str, Any]:
    """Both tasks, or those that were asked for, as one object."""
    base = sp.load_model(options.model or str(qwen_folder()))
    tasks = {}
    for name in options.tasks:
        say(f"{name}: the page in {PAGES / f'{name}.md'}")
        began = time.perf_counter()
        found = dict(_distill_page(base, name, options))
        seconds = round(time.perf_counter() - began, 1)
        tasks[name] = {"lengths": found, "seconds": seconds, "steps": options.steps or TASKS[name].steps}
    return {
        "benchmark": "distill_system_prompt",
        "machine": machine(),
        "model": base.name,
        "tasks": tasks,
        "aims": list(_judge(tasks)),
    }


def _distill_page(base: sp.FrozenLM, name: str, options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """The report of each length, by the length."""
    how, page = TASKS[name], (PAGES / f"{name}.md").read_text(encoding="utf-8").strip()
    splits = write_inputs(name, options.data / name, page, options.inputs, options.held_out)
    configs = {
        str(length): sp.TrainConfig(length=length, steps=options.steps or how.steps, seed=options.seed)
        for length in options.lengths
    }
    with tempfile.TemporaryDirectory() as folder:
        for split, rows in splits.items():
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (Path(folder) / f"{split}.jsonl").write_text(lines, encoding="utf-8")
        done = sp.distill(
            base,
            folder,
            system=page,
            metric=how.metric,
            config=configs,
            progress="lines",
            measure=not options.no_measure,
            out=options.out and options.out / name,
            **how.settings,
        )
    for length, one in done.items():
        yield length, {**one.report.model_dump(), "best_step": one.prompt.training["best_step"]}


def write_inputs(
    name: str, folder: Path, page: str, inputs: int | None, held_out: int | None
) -> dict[str, list[dict[str, Any]]]:
    """The rows of each split: TREC's as logs of a service, with the page in front; E2E's as what a user says.

    Args:
        inputs, held_out: so many rows to learn from, and of each other split, at most.

    Raises:
        DataError: ``folder`` cannot be read.
    """
    try:
        read = {
            split: [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
            for split in ("train", "validation", "test")
        }
    except (OSError, ValueError) as error:
        raise DataError(f"expected JSON lines of train, validation and test in '{folder}', got {error!r}") from error
    if name == "e2e":
        # its rows repeat their inputs, each with another reference
        texts = list(dict.fromkeys(row["text"] for row in (*read["train"], *read["validation"])))
        random.Random(0).shuffle(texts)
        found = {
            "train": [{"text": text} for text in texts[HELD_OUT:]],
            "validation": [{"text": text} for text in texts[:HELD_OUT]],
            "test": [{"text": row["text"], "references": row["references"]} for row in read["test"]],
        }
    else:
        found = {split: [_log(row, page, learned=split == "train") for row in rows] for split, rows in read.items()}
    return {split: rows[: inputs if split == "train" else held_out] for split, rows in found.items()}


def _log(row: Mapping[str, str], page: str, *, learned: bool) -> dict[str, Any]:
    """A conversation that was logged; its label is left out where it is to be learned from."""
    turns = [{"role": "system", "content": page}, {"role": "user", "content": row["text"]}]
    return {"messages": turns, **({} if learned else {"label": row["label"]})}


def _judge(tasks: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, found in tasks.items():
        for length, report in found["lengths"].items():
            kept = report["held_out"]["test"]["kept"]
            if kept is not None:
                what = f"{name}, {length} virtual tokens: share of the teacher's {TASKS[name].metric}"
                yield judged(what, kept["value"], KEPT, "")


def text_report(report: Mapping[str, Any]) -> str:
    """A row a task and length, and the aims."""
    lines = [str(report["model"])]
    for name, found in report["tasks"].items():
        for length, one in found["lengths"].items():
            near, tokens = one["held_out"]["test"], one["tokens"]
            scores = {part: near[part] and near[part]["value"] for part in ("teacher", "student", "kept")}
            told = ", ".join(f"{part} {value:.3f}" for part, value in scores.items() if value is not None)
            lines.append(f"{name}, {length} virtual tokens, {found['steps']} steps: {TASKS[name].metric} {told}")
            lines += [
                f"  agreement {near['agreement']['value']:.3f}, KL {near['kl']['value']:.3f} nats, n={near['n']}",
                f"  tokens a request: {tokens['before']:.0f} before, {tokens['after']:.0f} after",
                f"  answered in {one['teacher_seconds']:.0f} s, learned in {one['training_seconds']:.0f} s",
                *_savings(one),
            ]
    return "\n".join([*lines, *aim_lines(dict(report))])


def _savings(report: Mapping[str, Any]) -> Iterator[str]:
    for how, paid in (("read anew", report["against_read"]), ("cached", report["against_cached"])):
        for kind, name in (("single", "one by one"), ("batched", "in batches")):
            if paid is not None:
                saved, after = 1000 * paid[f"{kind}_seconds"], paid[kind]
                told = "never" if after is None else f"after {after:,} requests"
                yield f"  against the teacher {how}, {name}: {saved:.0f} ms saved a request, pays {told}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of an instruct model; Qwen2.5-Coder-0.5B-Instruct if not given")
    parser.add_argument("--data", type=Path, default=DATA, help="a folder with one folder a task")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--lengths", nargs="+", type=int, default=[32], help="virtual tokens; several learn together")
    parser.add_argument("--steps", type=int, help="optimiser steps, in place of each task's own")
    parser.add_argument("--inputs", type=int, help="so many rows to learn from, at most")
    parser.add_argument("--held-out", type=int, help="so many rows of validation and test, at most")
    parser.add_argument("--no-measure", action="store_true", help="time no requests")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a folder for the prompts and their pages")
    parser.add_argument("--json", action="store_true")
    return finished(parser.parse_args(arguments), distill_pages, text_report)


if __name__ == "__main__":
    sys.exit(main())
