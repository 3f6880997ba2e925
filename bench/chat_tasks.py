"""An instruct model on public tasks as chats: system prompt, solved turns, prompt tuning, LoRA; and the plain template.

For each task two comparisons (``softprompt compare``) land in a folder: with the model's own chat template, and with
the plain one. A second run goes on where the first was stopped. The instruction of a task is the system prompt of
``zero-shot`` and ``few-shot``. ``--placements`` is another experiment: where virtual tokens stand and what they start
from, each learned once and judged on validation alone.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from command import finished, say
from real_models import qwen_folder
from train_vs_peft import machine

import softprompt as sp
from softprompt.experiments.comparison.study_records import Study

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
KEPT = Path(__file__).resolve().parent / "results" / "chat_tasks"
SYSTEM = {
    "sst2": "You judge sentences from film reviews. Answer with one word: positive or negative.",
    "trec": (
        "You say what kind of thing a question asks for. Answer with one word: abbreviation, description, entity, "
        "human, location or number."
    ),
    "subj": (
        "You read sentences about films. Answer with one word: subjective for an opinion, objective for a fact of the "
        "plot."
    ),
    "e2e": "You describe a restaurant in one or two sentences. Use every fact that you are given, and no other.",
}
METHODS = {"chat": "zero-shot,few-shot:8,prompt-tuning,lora", "plain": "zero-shot,prompt-tuning"}
PLACEMENTS = ("first", "system-start", "system-end")
STARTS = ("examples", "text", "text:{system}")


def study(options: argparse.Namespace) -> dict[str, Any]:
    """The comparisons, or the placements, as one object."""
    base = sp.load_model(options.model or str(qwen_folder()))
    report = {"benchmark": "chat_tasks", "machine": machine(), "model": base.name, "steps": options.steps}
    if options.placements:
        return report | {"placements": list(_place(base, options))}
    tasks = {}
    for task in options.tasks:
        for form in options.forms:
            say(f"{task}, {form}")
            found = sp.compare(
                base,
                options.data / task,
                options.methods or METHODS[form],
                options.out / f"{task}-{form}",
                seeds=options.seeds,
                steps=options.steps,
                instruction=SYSTEM[task],
                **({"chat_template": "none"} if form == "plain" else {}),
            )
            tasks.setdefault(task, {})[form] = _rows(found)
    return report | {"seeds": options.seeds, "tasks": tasks}


def _rows(found: Study) -> dict[str, Any]:
    facts = ("seeds", "mean", "deviation", "low", "high", "against_best")
    rows = {row.method: {name: getattr(row, name) for name in facts} for row in found.rows}
    return {"metric": found.metric, "n": len(found.gold), "methods": rows}


def _place(base: sp.FrozenLM, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One run a placement, start and task, kept as it lands; validation chose nothing but the step."""
    kept = options.out / "placements.jsonl"
    options.out.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    for task, start, placement in product(options.tasks, options.starts, PLACEMENTS):
        setting = {"task": task, "placement": placement, "start": start, "steps": options.steps, "model": base.name}
        if (landed := next((one for one in known if setting.items() <= one.items()), None)) is not None:
            yield landed
            continue
        say(", ".join(map(str, setting.values())))
        began = time.monotonic()
        prompt = sp.fit(
            base,
            options.data / task,
            placement=placement,
            init=start.format(system=SYSTEM[task]),
            steps=options.steps,
            length=options.length,
            evaluate_test=False,
            baseline=False,
            progress=False,
        )
        score = prompt.metrics["validation"]
        facts = {name: score[name] for name in ("metric", "value", "low", "high", "n")}
        history = [dict(one) for one in prompt.history]
        row = {**setting, **facts, "seconds": time.monotonic() - began, "history": history}
        with kept.open("a") as file:
            file.write(json.dumps(row) + "\n")
        yield row


def text_report(report: Mapping[str, Any]) -> str:
    """Both experiments as tables."""
    lines = [f"{report['model']}, {report['steps']} steps"]
    for row in report.get("placements", ()):
        told = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        lines.append(f"{row['task']:6} {row['placement']:13} {row['start']:14} {told}")
    for task, forms in report.get("tasks", {}).items():
        for form, found in forms.items():
            for method, row in found["methods"].items():
                told = "failed" if row["mean"] is None else f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
                lines.append(f"{task:6} {form:6} {method:15} {told}  ({found['metric']}, n={found['n']})")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of an instruct model; Qwen2.5-Coder-0.5B-Instruct if not given")
    parser.add_argument("--data", type=Path, default=DATA, help="a folder with one folder a task")
    parser.add_argument("--tasks", nargs="+", default=list(SYSTEM), choices=SYSTEM)
    parser.add_argument("--forms", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--methods", help="in place of each form's own")
    parser.add_argument("--out", type=Path, default=KEPT, help="where results land, and go on from")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--length", type=int, default=100, help="virtual tokens of --placements")
    parser.add_argument("--placements", action="store_true", help="where virtual tokens stand, and their start")
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=STARTS, help="those of --placements")
    parser.add_argument("--json", action="store_true")
    return finished(parser.parse_args(), study, text_report)


if __name__ == "__main__":
    sys.exit(main())
