"""What identifies a base model beside its weights: the parts of its configuration and vocabulary that count, hashed."""

import hashlib
import json
from typing import Any


def identifying(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration, and those nested in it, without what changes with how the model was loaded or saved."""
    passing = {"_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype"}
    passing |= {"use_cache", "quantization_config", "return_dict", "output_attentions", "output_hidden_states"}
    return {
        key: identifying(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in passing
    }


def sha256_of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
