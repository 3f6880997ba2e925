"""What vLLM reads of a chat request with parts of embeddings, by transformers and torch alone."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

HELD = "<prompt_embeds>"  # vLLM's name for the place of embeddings


def read_part(part: dict[str, Any]) -> Tensor:
    """``[P, H]``"""
    content = base64.b64decode(part["data"], validate=True)
    tensor: Tensor = torch.load(io.BytesIO(content), weights_only=True)
    return tensor


def parse_message(message: dict[str, Any]) -> dict[str, Any]:
    """All content in parts, and what tools are called with as objects."""
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    parts = [{"type": "text", "text": HELD} if one["type"] == "prompt_embeds" else one for one in parts]
    parsed = {**message, "content": parts}
    if "tool_calls" in message:
        parsed["tool_calls"] = [
            {**one, "function": {**one["function"], "arguments": json.loads(one["function"]["arguments"])}}
            for one in message["tool_calls"]
        ]
    return parsed


def read_ids(folder: Path, request: dict[str, Any]) -> tuple[list[int], int]:
    """Token ids of a request by the chat template of ``folder``, and the one that holds the place of embeddings."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": [HELD]})
    messages = [parse_message(one) for one in request["messages"]]
    found = tokenizer.apply_chat_template(messages, tools=request.get("tools"), add_generation_prompt=True)
    return list(found["input_ids"]), tokenizer.convert_tokens_to_ids(HELD)


@torch.no_grad()
def read_embeddings(base: Any, folder: Path, request: dict[str, Any]) -> Tensor:
    """What the model's first layer sees: ``[T, H]``."""
    ids, held = read_ids(folder, request)
    parts = [
        one for message in request["messages"] if not isinstance(message["content"], str) for one in message["content"]
    ]
    (rows,) = [read_part(one) for one in parts if one["type"] == "prompt_embeds"]
    at = ids.index(held)
    assert held not in ids[at + 1 :]
    before, behind = (base.embed(torch.tensor(part, dtype=torch.long)) for part in (ids[:at], ids[at + 1 :]))
    return torch.cat([before, rows.to(before.dtype), behind])
