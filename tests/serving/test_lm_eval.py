"""lm-evaluation-harness scores choices and texts through the server as plain transformers does."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_models import plain_logits, random_prompt, tiny_tokenizer
from helpers.tiny_server import BASE_NAME, RealPlace, a_store, the_base

pytest.importorskip("lm_eval")

ROWS = [
    {"text": "what is the film about?", "choices": ["a cat", "the great mat"], "right": 0},
    {"text": "a dull story:", "choices": ["good", "bad", "neutral"], "right": 1},
    {"text": "the cat sat on", "choices": ["the mat", "a film"], "right": 0},
]
CHOICES = """
task: choices
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{text}}"
doc_to_choice: "{{choices}}"
doc_to_target: right
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
ROLLING = """
task: rolling
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}]
"""


@dataclass
class Harness:
    """The server's address, and a folder with tasks, rows and the tokenizer."""

    url: str
    folder: Path

    def run(self, task: str, model: str, *, tokenized: bool) -> list[dict[str, Any]]:
        """What was logged of each row."""
        out = self.folder / f"{task} {model} {tokenized}"
        arguments = {
            "model": model,
            "base_url": f"{self.url}/v1/completions",
            "tokenizer": str(self.folder / "tokenizer"),
            "tokenizer_backend": "huggingface",
            "tokenized_requests": tokenized,
            "num_concurrent": 1,
            "max_retries": 1,
            "max_length": 100,
        }
        given = ",".join(f"{name}={value}" for name, value in arguments.items())
        command = [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", given]
        options = ["--tasks", task, "--include_path", str(self.folder), "--log_samples", "--output_path", str(out)]
        options += ["--batch_size", "2"]
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(self.folder / "cache"),
            "HF_HOME": str(self.folder / "home"),
        }
        done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        (samples,) = out.rglob("samples_*.jsonl")
        found = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
        return sorted(found, key=lambda one: int(one["doc_id"]))


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    folder = tmp_path_factory.mktemp("harness")
    tiny_tokenizer("llama").save_pretrained(folder / "tokenizer")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    for name, text in (("choices", CHOICES), ("rolling", ROLLING)):
        (folder / f"{name}.yaml").write_text(text.replace("ROWS", str(rows)), encoding="utf-8")
    with RealPlace.of_store(a_store(folder)).running() as url:
        yield Harness(url, folder)


def ids_of(text: str) -> list[int]:
    return list(the_base().tokenizer(text, add_special_tokens=False).input_ids)


@torch.no_grad()
def score(model: str, ids: Sequence[int], start: int) -> tuple[float, bool]:
    """The log-likelihood of ``ids`` from ``start`` on, and whether they are the likeliest, by transformers alone."""
    prompt = random_prompt(the_base(), 4, 3).detach() if model == "words" else None
    rows = plain_logits(the_base(), prompt, ids).float().log_softmax(-1)[start - 1 : -1]
    targets = torch.tensor(ids[start:])
    return float(rows.gather(1, targets[:, None]).sum()), bool((rows.argmax(-1) == targets).all())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["words", BASE_NAME])
@pytest.mark.parametrize("tokenized", [True, False], ids=["ids", "strings"])
def test_choices(harness: Harness, model: str, tokenized: bool) -> None:
    for row, sample in zip(ROWS, harness.run("choices", model, tokenized=tokenized), strict=True):
        text = str(row["text"])
        for choice, answer in zip(row["choices"], sample["resps"], strict=True):  # type: ignore[call-overload]
            value, greedy = score(model, ids_of(f"{text} {choice}"), len(ids_of(text)))
            ((found, likeliest),) = answer
            assert float(found) == pytest.approx(value, abs=1e-3)
            assert str(likeliest) == str(greedy)


@pytest.mark.slow
def test_whole_texts(harness: Harness) -> None:
    """Of a text without context the harness asks for all tokens behind BOS."""
    base = the_base()
    for row, sample in zip(ROWS, harness.run("rolling", BASE_NAME, tokenized=True), strict=True):
        ids = [*base.bos_ids, *ids_of(str(row["text"]))]
        with torch.no_grad():
            rows = base.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        value = float(rows[:-1].gather(1, torch.tensor(ids[1:])[:, None]).sum())
        ((found,),) = sample["resps"]
        assert float(found) == pytest.approx(value, abs=1e-3)
