"""Model families, each as a model of a few thousand weights: what `softprompt doctor --families` and the tests measure.

The tiny models are built without any file or network, in the sizes of tiny_families.toml. Weights are random but
seeded, and large enough that logits differ clearly.
"""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
VOCABULARY = 320  # tokens, the bytes and some merges
CONTEXT = 160  # positions
WINDOW = 8  # tokens that a sliding layer sees, its own counted

_TABLES = tomllib.loads((files("softprompt.analysis.diagnostics") / "tiny_families.toml").read_text(encoding="utf-8"))


def _resolve(table: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that it begins with, then its own."""
    own = dict(table)
    like = own.pop("like", None)
    return own if like is None else {**_resolve(_TABLES["settings"][like]), **own}


_FAMILIES = {name: _resolve(table) for name, table in _TABLES["families"].items()}
FAMILIES = tuple(_FAMILIES)
ENCODER_DECODERS = tuple(name for name, settings in _FAMILIES.items() if "start" in settings)
DECODERS = tuple(name for name in FAMILIES if name not in ENCODER_DECODERS)
# what the tokenizers of these models do: they put nothing in front of a text
WITHOUT_BOS = tuple(name for name, settings in _FAMILIES.items() if not settings.get("bos", True))

_WORDS = (
    "a good film and a great story, a bad film and a dull story; the film is good, the story is bad. "
    "what is the film? the story is great! positive negative neutral: Label: Output: the cat sat on the mat"
)


def make_family_model(family: str, tokenizer: Any = None, **changes: Any) -> tuple[Any, Any]:
    """A new model of the family, in float32 and always with the same weights, and its tokenizer.

    Args:
        tokenizer: another than the family's of ``make_family_tokenizer``.
        changes: settings of its configuration that are to be others than in tiny_families.toml.

    Raises:
        KeyError: ``family`` is not one of ``FAMILIES``.
    """
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    tokenizer = make_family_tokenizer(family) if tokenizer is None else tokenizer
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    maker: Any = AutoModelForCausalLM
    settings = {name: value for name, value in _FAMILIES[family].items() if name not in ("type", "bos", "start")}
    if family in ENCODER_DECODERS:
        ids["decoder_start_token_id"] = tokenizer.convert_tokens_to_ids(_FAMILIES[family]["start"])
        maker = AutoModelForSeq2SeqLM
    model_type = _FAMILIES[family].get("type", family)
    config = CONFIG_MAPPING[model_type](**{**settings, **ids, "vocab_size": len(tokenizer), **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = maker.from_config(config).eval()
    generator = torch.Generator().manual_seed(sum(map(ord, family)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            # state-space constants have ranges of their own
            if parameter.ndim < 2 or name.endswith("A_log"):
                parameter.add_(0.1 * noise)
                # else Gemma's large embeddings, which are its output layer too, make it repeat its input
                if "post_" in name and family.startswith("gemma"):
                    parameter.add_(4.0)
            else:
                parameter.copy_(1.5 * noise / parameter.shape[-1] ** 0.5)
        if (bias := getattr(model, "final_logits_bias", None)) is not None:
            bias.copy_(0.5 * torch.randn(bias.shape, generator=generator))
    return model, tokenizer


def make_family_tokenizer(family: str) -> Any:
    """A byte-level BPE with a few merges.

    It puts BOS in front unless the family is one of ``WITHOUT_BOS``, and EOS behind if it has an encoder.
    """
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_str(_byte_pairs())
    front = [BOS] if family not in WITHOUT_BOS else []
    back = [EOS] if family in ENCODER_DECODERS else []
    if front or back:
        single, pair = ([*front, text, *back] for text in ("$A", "$B"))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(single),
            pair=" ".join([*single, *pair]),
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in {*front, *back}],
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD)


@cache
def _byte_pairs() -> str:
    """The tokenizer that all families share, as JSON."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_WORDS], trainer)
    return str(tokenizer.to_str())
