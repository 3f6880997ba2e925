"""lm-eval: answers through conversations, and choices through the probabilities of echoed prompts."""

from pathlib import Path
from typing import Any

import lm_eval
import pytest
from conftest import Server
from lm_eval.tasks import TaskManager

TASKS = Path(__file__).parent / "tasks"


def evaluate(model: str, arguments: dict[str, Any], task: str, folder: Path, **options: Any) -> dict[str, Any]:
    """The task's metrics; its rows are a file of ours."""
    text = (TASKS / f"{task}.yaml").read_text(encoding="utf-8")
    (folder / f"{task}.yaml").write_text(text.replace("CAPITALS", str(TASKS / "capitals.jsonl")), encoding="utf-8")
    found = lm_eval.simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=[task],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        **options,
    )
    metrics: dict[str, Any] = found["results"][task]
    return metrics


def test_answers_in_conversations(server: Server, tmp_path: Path) -> None:
    arguments = {
        "model": server.model,
        "base_url": f"{server.url}/chat/completions",
        "num_concurrent": 2,
        "max_retries": 1,
        "tokenizer_backend": None,
    }
    metrics = evaluate("local-chat-completions", arguments, "capitals_answer", tmp_path, apply_chat_template=True)
    assert metrics["exact_match,first_word"] >= 0.8


@pytest.mark.parametrize("tokenized", [True, False])
def test_choices_by_their_probability(server: Server, tmp_path: Path, tokenized: bool) -> None:
    arguments = {
        "model": server.model,
        "base_url": f"{server.url}/completions",
        "tokenizer": server.tokenizer,
        "tokenizer_backend": "huggingface",
        "tokenized_requests": tokenized,
        "num_concurrent": 1,
        "batch_size": 4,
        "max_retries": 1,
    }
    metrics = evaluate("local-completions", arguments, "capitals_choice", tmp_path)
    assert metrics["acc,none"] >= 0.8
