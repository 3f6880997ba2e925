"""What identifies a base model beside its weights: the parts of its configuration and vocabulary that count, hashed."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from softprompt.data.encoding.special_tokens import SpecialTokens

_known: WeakKeyDictionary[Any, dict[Any, str]] = WeakKeyDictionary()


@dataclass(frozen=True)
class UnloadedModel:
    """What tells a model from others before its weights are loaded.

    Attributes:
        name: what the user called it.
        quantization: how the weights of its linear layers will be stored, if not as plain numbers.
        fingerprint: the parts of it that need no weights.
    """

    name: str
    quantization: str | None
    fingerprint: Mapping[str, str]


def config_sha256(config: Any) -> str:
    """Of the part of a ``transformers`` configuration that identifies a model."""
    # what differs from the family's defaults: another release of transformers adds defaults of its own
    return hash_json(identifying(config.get_text_config().to_diff_dict()))


def tokenizer_sha256(tokenizer: Any, frame: SpecialTokens) -> str:
    """Of the vocabulary, of what stands around texts, and of how a text is cut; once for all calls that are alike."""
    vocabulary, key = tokenizer.get_vocab(), (frame.bos, frame.suffix, frame.decoder_start)
    known = _known.setdefault(tokenizer, {})
    if (len(vocabulary), key) not in known:
        known[len(vocabulary), key] = _hash_tokenizer(tokenizer, vocabulary, frame)
    return known[len(vocabulary), key]


def _hash_tokenizer(tokenizer: Any, vocabulary: Mapping[str, int], frame: SpecialTokens) -> str:
    return hash_json(
        {
            # words alone are sorted in a fifth of the time that pairs take
            "vocab": {word: vocabulary[word] for word in sorted(vocabulary)},
            "bos": frame.bos,
            **({"back": frame.suffix, "start": frame.decoder_start} if frame.decoder_start else {}),
            "eos": tokenizer.eos_token_id,
            "example": tokenizer("A test: 123,\n\tnaïve.", add_special_tokens=False).input_ids,
        }
    )


def identifying(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration, and those nested in it, without what changes with how the model was loaded or saved."""
    passing = {"_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype"}
    passing |= {"use_cache", "quantization_config", "return_dict", "output_attentions", "output_hidden_states"}
    return {
        key: identifying(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in passing
    }


def hash_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
