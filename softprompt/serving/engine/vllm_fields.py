"""Requests, log-probabilities and grammars as vLLM's API writes them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from softprompt.data.encoding.tokenization import safe_tokenizer
from softprompt.engines.exported_model import ExportedModel
from softprompt.inference.generation import GenerationConfig
from softprompt.inference.grammar import Grammar
from softprompt.inference.token_logprobs import ScoredToken

# whatever the model's generation_config.json says, an answer is what the request asks for
PLAIN = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_p": 0.0}


def write_scoring_body(model: str, prompts: list[list[int]], tokens: Sequence[int]) -> dict[str, Any]:
    """The request for the log-probabilities of ``tokens`` behind each of ``prompts``."""
    return {
        "model": model,
        "prompt": prompts,
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 1,
        "logprob_token_ids": list(tokens),
        "return_tokens_as_token_ids": True,
        **PLAIN,
    }


def write_completion_body(
    model: str, ids: list[int], generation: GenerationConfig, exported: ExportedModel, logprobs: int | None
) -> dict[str, Any]:
    """The request for what follows token ids.

    Args:
        exported: says which tokens no answer has, and how a grammar's marks are read.
        logprobs: so many likeliest tokens are told of each.
    """
    more: dict[str, Any] = {}
    if logprobs is not None:
        more |= {"logprobs": logprobs, "return_tokens_as_token_ids": True}
    if generation.grammar is not None:
        more["structured_outputs"] = write_structured_outputs(generation.grammar, exported.tokenizer)
    return {
        "model": model,
        "prompt": ids,
        "max_tokens": generation.max_new_tokens,
        "temperature": generation.temperature if generation.warpers else 0,
        "top_p": generation.top_p,
        "top_k": generation.top_k,
        "seed": generation.seed,
        "stop": list(generation.stop),
        # tokens are what counts here; where the text ends is found again in them
        "include_stop_str_in_output": True,
        "return_token_ids": True,
        "logit_bias": {str(one): -100 for one in exported.never},
        **PLAIN,
        **more,
    }


def read_log_probabilities(choice: Mapping[str, Any]) -> dict[int, float]:
    """Log-probabilities by token of the one place that was asked for."""
    try:
        top = choice["logprobs"]["top_logprobs"][0]
        return {int(name.removeprefix("token_id:")): float(value) for name, value in top.items()}
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise RuntimeError(f"the engine's log-probabilities are none of vLLM's: {type(error).__name__}") from error


def read_scored_tokens(choice: Mapping[str, Any], top: int) -> list[ScoredToken]:
    """The tokens of an event of a stream, each with the ``top`` likeliest in its place."""
    told = choice.get("logprobs") or {"tokens": [], "token_logprobs": [], "top_logprobs": []}
    try:
        rows = zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True)
        return [
            ScoredToken(_read_id(name), float(value), _choose_top({_read_id(one): top_[one] for one in top_}, top))
            for name, value, top_ in rows
        ]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise RuntimeError(f"the engine's log-probabilities are none of vLLM's: {type(error).__name__}") from error


def read_prompt_tokens(choice: Mapping[str, Any], ids: Sequence[int], top: int) -> list[ScoredToken]:
    """The tokens of a text that was read, each with the ``top`` likeliest in its place; the first has none."""
    try:
        known = [
            {int(token): float(one["logprob"]) for token, one in (row or {}).items()}
            for row in choice["prompt_logprobs"]
        ]
        return [
            ScoredToken(token, row.get(token), _choose_top(row, top)) for token, row in zip(ids, known, strict=True)
        ]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise RuntimeError(f"the engine's log-probabilities are none of vLLM's: {type(error).__name__}") from error


def write_structured_outputs(grammar: Grammar, tokenizer: Any) -> dict[str, Any]:
    """A grammar as vLLM takes it."""
    if grammar.kind == "json_schema":
        return {"json": json.loads(grammar.source)}
    if grammar.kind == "regex":
        return {"regex": grammar.source}
    return {"grammar": grammar.to_lark(safe_tokenizer(tokenizer).marks)}


def _read_id(name: str) -> int:
    return int(name.removeprefix("token_id:"))


def _choose_top(values: Mapping[int, float], top: int) -> tuple[tuple[int, float], ...]:
    """The likeliest, the likeliest first; vLLM tells of the chosen token too where it is none of them."""
    ordered = sorted(((token, float(value)) for token, value in values.items()), key=lambda one: -one[1])
    return tuple(ordered[:top])
