"""Tiny random models of the chat families, with the families' own templates and special tokens.

The templates are those that trl carries, read from there; Mistral's two are ours, after its description of them
(tests/fixtures/chat_templates). Special tokens have the flags that the real tokenizers give them, models the real ids
that end an answer. Nothing here is cached on disk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from helpers.tokenizer_styles import BLANK, byte_tokenizer, piece_tokenizer, put_bos_in_front
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from softprompt.analysis.diagnostics.tiny_models import make_family_model
from softprompt.models.frozen_lm import FrozenLM

CONTEXT = 4096  # positions: the templates write system turns and tools out, in tokens of few letters
_OURS = Path(__file__).parent.parent / "fixtures" / "chat_templates"
_TRL = files("trl") / "chat_templates"


@dataclass(frozen=True)
class _Family:
    """What makes a chat family: ``stops`` are the tokens that its generation_config ends an answer at."""

    model: str  # of softprompt's tiny_families.toml
    tokenizer: Callable[[], Tokenizer]
    eos: str
    stops: tuple[str, ...]
    special: tuple[str, ...]
    bos: str | None = None
    pad: str | None = None
    bos_in_front: bool = False  # of every text, by the tokenizer
    takes_blanks_behind: tuple[str, ...] = ()
    words: tuple[str, ...] = ()  # added, but no special tokens


def _nfc_bytes() -> Tokenizer:
    tokenizer = byte_tokenizer([])
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _gemma_pieces() -> Tokenizer:
    tokenizer = piece_tokenizer([])
    tokenizer.normalizer = normalizers.Replace(" ", BLANK)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return tokenizer


def _mistral_pieces() -> Tokenizer:
    tokenizer = piece_tokenizer([])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme="first", split=False)
    return tokenizer


def _phi_pieces() -> Tokenizer:
    tokenizer = piece_tokenizer([])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)])
    return tokenizer


def _qwen(model: str, *thoughts: str) -> _Family:
    return _Family(
        model,
        _nfc_bytes,
        eos="<|im_end|>",
        stops=("<|im_end|>", "<|endoftext|>"),
        pad="<|endoftext|>",
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        words=("<tool_call>", "</tool_call>", *thoughts),
    )


def _llama(*stops: str) -> _Family:
    headers = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>")
    return _Family(
        "llama",
        lambda: byte_tokenizer([]),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        stops=stops,
        special=("<|begin_of_text|>", "<|end_of_text|>", *headers),
        bos_in_front=True,
    )


def _gemma(model: str) -> _Family:
    return _Family(
        model,
        _gemma_pieces,
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        stops=("<eos>", "<end_of_turn>"),
        special=("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
        words=("\n", "\n\n", "<table>", "</table>"),
        bos_in_front=True,
    )


def _mistral(tokenizer: Callable[[], Tokenizer], *marks: str) -> _Family:
    return _Family(
        "mistral",
        tokenizer,
        bos="<s>",
        eos="</s>",
        stops=("</s>",),
        special=("<unk>", "<s>", "</s>", "[INST]", "[/INST]", *marks),
        bos_in_front=True,
    )


def _phi() -> _Family:
    turns = ("<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
    return _Family(
        "phi3",
        _phi_pieces,
        bos="<s>",
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        stops=("<|end|>", "<|assistant|>", "<|endoftext|>"),
        special=("<unk>", "<s>", "<|endoftext|>", *turns),
        takes_blanks_behind=("</s>", *turns),
        words=("</s>",),
    )


def _deepseek() -> _Family:
    begin, end, user, assistant, *tools = (
        f"<\uff5c{name.replace(' ', BLANK)}\uff5c>"
        for name in (
            *("begin of sentence", "end of sentence", "User", "Assistant"),
            *("tool calls begin", "tool calls end", "tool call begin", "tool call end", "tool sep"),
            *("tool outputs begin", "tool outputs end", "tool output begin", "tool output end"),
        )
    )
    return _Family(
        "deepseek_v3",
        lambda: byte_tokenizer([]),
        bos=begin,
        eos=end,
        pad=end,
        stops=(end,),
        special=(begin, end),
        words=(user, assistant, "<think>", "</think>", *tools),
        bos_in_front=True,
    )


_TOOLS = ("[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")
_FAMILIES: dict[str, _Family] = {
    "qwen2_5": _qwen("qwen2"),
    "qwen3": _qwen("qwen3", "<tool_response>", "</tool_response>", "<think>", "</think>"),
    "llama3": _llama("<|end_of_text|>", "<|eot_id|>"),
    "llama3_1": _llama("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    "gemma": _gemma("gemma"),
    "gemma3": _gemma("gemma3"),
    "mistral_v3": _mistral(_mistral_pieces, *_TOOLS),
    "mistral_v7": _mistral(lambda: byte_tokenizer([]), "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    "phi3": _phi(),
    "phi3_5": _phi(),
    "gptoss": _Family(
        "gpt_oss",
        lambda: byte_tokenizer([]),
        bos="<|startoftext|>",
        eos="<|return|>",
        pad="<|endoftext|>",
        stops=("<|return|>", "<|endoftext|>", "<|call|>"),
        special=(
            *("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>"),
            *("<|end|>", "<|message|>", "<|call|>"),
        ),
    ),
    "deepseekv3": _deepseek(),
}
# each named as its template in trl
CHAT_FAMILIES = tuple(_FAMILIES)
# those with another template in trl, which marks what the assistant says by {% generation %}
MARKED_FAMILIES = tuple(name for name in CHAT_FAMILIES if (_TRL / f"{name}_training.jinja").is_file())
WITHOUT_SYSTEM = ("gemma",)  # whose template refuses a system turn
WITH_TOOLS = ("qwen2_5", "qwen3", "llama3_1", "mistral_v3", "gptoss")


@cache
def chat_base(family: str, context: int = CONTEXT) -> FrozenLM:
    """The family's model in float32, frozen; the same object for every test."""
    return FrozenLM(chat_model(family, context), chat_tokenizer(family), f"tiny {family}")


def chat_model(family: str, context: int = CONTEXT) -> PreTrainedModel:
    """A new model of the family with so many positions, always with the same weights."""
    made = _FAMILIES[family]
    tokenizer = chat_tokenizer(family)
    model: Any = make_family_model(made.model, tokenizer, max_position_embeddings=context)[0]
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(list(made.stops))
    return model


@cache
def chat_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """The family's tokenizer, which has its template; its words are bytes or pieces as the real one's are."""
    made = _FAMILIES[family]
    tokenizer = made.tokenizer()
    tokenizer.add_special_tokens([_mark(made, token, special=True) for token in made.special])
    tokenizer.add_tokens([_mark(made, token, special=False) for token in made.words])
    if made.bos_in_front:
        put_bos_in_front(tokenizer, made.bos)
    names = {"bos_token": made.bos, "eos_token": made.eos, "pad_token": made.pad}
    fast: Any = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{name: token for name, token in names.items() if token is not None}
    )
    fast.chat_template = chat_template(family)
    return fast


def _mark(family: _Family, token: str, special: bool) -> AddedToken:
    return AddedToken(token, special=special, normalized=False, rstrip=token in family.takes_blanks_behind)


def chat_template(family: str, marked: bool = False) -> str:
    """The family's template, or the one that marks what the assistant says (of ``MARKED_FAMILIES``)."""
    name = f"{family}_training.jinja" if marked else f"{family}.jinja"
    ours = _OURS / name
    return (ours if ours.is_file() else _TRL / name).read_text(encoding="utf-8")


def save_chat_model(family: str, folder: Path, context: int = CONTEXT) -> Path:
    """Write the family's model, tokenizer and template as a folder that ``from_pretrained`` reads."""
    chat_model(family, context).save_pretrained(folder)
    chat_tokenizer(family).save_pretrained(folder)
    return folder
