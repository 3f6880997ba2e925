"""Small saved prompts that need no model, and stores of them."""

import json
from collections.abc import Mapping
from typing import Any

import torch

from softprompt.data.task import TaskSpec
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState

SIZE = 8  # of virtual tokens


def metric(value: float, name: str = "accuracy") -> dict[str, Any]:
    """As an evaluation leaves it in a manifest."""
    return {"metric": name, "value": value, "low": value - 0.1, "high": value + 0.1, "n": 50, "others": {}}


def a_prompt(seed: int = 0, *, accuracy: float = 0.5, parent: str | None = None, **settings: Any) -> Prompt:
    """Three virtual tokens that no other seed has."""
    tokens = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(seed))
    return Prompt(
        states=(PromptState.of_embeddings(tokens),),
        spec=TaskSpec("classification", "{{ text }}:", ("bad", "good"), ("bad", "good"), 64),
        base_name="tiny",
        base_fingerprint={"config": "c" * 64, "weights": "e" * 64},
        method="prompt-tuning",
        metrics={"validation": metric(accuracy)},
        training={"steps": 3, **settings},
        data={"source": "here"},
        seed=seed,
        versions={"torch": "2"},
        parent=parent,
        extra_files={"history.jsonl": '{"step": 1}\n'},
    )


def parsed(line: str) -> Any:
    """The one JSON object of a command's output."""
    return json.loads(line)


def with_manifest(files: Mapping[str, bytes], **changes: Any) -> dict[str, bytes]:
    """The files of a saved prompt with other values in the manifest; ``...`` takes one out."""
    values = {**json.loads(files["prompt.json"]), "description_sha256": ..., **changes}
    kept = {name: value for name, value in values.items() if value is not ...}
    return {**files, "prompt.json": json.dumps(kept).encode()}
