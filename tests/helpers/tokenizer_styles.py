"""Small tokenizers in the styles of well-known models, made with the `tokenizers` library as their files have them."""

from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WORDS = (
    "a good film and a great story, a bad film and a dull story; the film is good, the story is bad. "
    "what is the film? the story is great! positive negative neutral: Label: Output: user model assistant system"
)
BLANK = "\u2581"


def piece_tokenizer(extra: list[str], blank: str = BLANK) -> Tokenizer:
    """A BPE over characters with byte fallback, as sentencepiece's are written by transformers."""
    trained = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    trained.normalizer = normalizers.Replace(" ", blank)
    trained.pre_tokenizer = pre_tokenizers.Split(Regex(f"(?={blank})"), "isolated")
    special = ["<unk>", "<s>", "</s>", *extra, *(f"<0x{one:02X}>" for one in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420 + len(extra), special_tokens=special, show_progress=False)
    trained.train_from_iterator([WORDS], trainer)
    model = trained.model
    plain = Tokenizer(model)
    plain.decoder = decoders.Sequence([decoders.Replace(blank, " "), decoders.ByteFallback(), decoders.Fuse()])
    return plain


def byte_tokenizer(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [WORDS],
        trainers.BpeTrainer(vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return tokenizer


def put_bos_in_front(tokenizer: Tokenizer, bos: str) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )


def add_marks(tokenizer: Tokenizer, marks: list[str], **flags: bool) -> None:
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False, special=True, **flags) for mark in marks])


def llama2_legacy() -> Any:
    """A blank in front of every piece, by a normalizer."""
    tokenizer = piece_tokenizer([])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)])
    add_marks(tokenizer, ["<unk>", "<s>", "</s>"])
    put_bos_in_front(tokenizer, "<s>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _metaspace(scheme: str, marks: list[str]) -> Any:
    tokenizer = piece_tokenizer(marks)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme=scheme, split=False)
    add_marks(tokenizer, ["<unk>", "<s>", "</s>", *marks])
    put_bos_in_front(tokenizer, "<s>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def llama2() -> Any:
    """A blank at the beginning only."""
    return _metaspace("first", [])


def mistral() -> Any:
    """Turn marks among the vocabulary's first words."""
    return _metaspace("first", ["[INST]", "[/INST]"])


def always() -> Any:
    """A blank in front of every piece, by a pre-tokenizer."""
    return _metaspace("always", ["[INST]", "[/INST]"])


def phi3() -> Any:
    """Turn marks that take in the blanks behind them."""
    tokenizer = piece_tokenizer([])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)])
    add_marks(tokenizer, ["<unk>", "<s>", "</s>"])
    add_marks(tokenizer, ["<|user|>", "<|assistant|>", "<|end|>"], rstrip=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def gemma() -> Any:
    """Runs of line breaks and HTML tags are added words, no blank in front."""
    tokenizer = piece_tokenizer(["<start_of_turn>", "<end_of_turn>"])
    tokenizer.normalizer = normalizers.Replace(" ", BLANK)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    add_marks(tokenizer, ["<unk>", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>"])
    words = ["\n", "\n\n", "<table>", "</table>"]
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    put_bos_in_front(tokenizer, "<s>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def qwen() -> Any:
    """Bytes, NFC, no BOS; thoughts are added words that the chat template spells."""
    tokenizer = byte_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in ("<think>", "</think>", "<tool>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = "{{ messages[0].content }}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    return fast


def gpt_oss() -> Any:
    """Bytes; a mark that takes in the blanks before it, and one that stands for itself only between words."""
    tokenizer = byte_tokenizer(["<|endoftext|>"])
    add_marks(tokenizer, ["<mask>"], lstrip=True)
    add_marks(tokenizer, ["<w>"], single_word=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


def t5() -> Any:
    """A Unigram that holds marks as words of its vocabulary, with NFKC and lower case."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>", "<extra_id_0>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator([WORDS + "<>/|_[]0123"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens=["<extra_id_0>"],
    )


def bert() -> Any:
    """Whole words and parts of them."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=160, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([WORDS + " [ ] < > / |"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", sep_token="[SEP]", cls_token="[CLS]", eos_token="[SEP]"
    )


# by name, with a turn's template in the marks of each
STYLES: dict[str, tuple[Callable[[], Any], str]] = {
    "llama2": (llama2, "<s>[INST] {{ text }} [/INST]</s><s>again {{ text }}"),
    "llama2_legacy": (llama2_legacy, "<s>[INST] {{ text }} [/INST]</s><s>again {{ text }}"),
    "mistral": (mistral, "[INST] {{ text }} [/INST] yes</s>[INST] {{ text }}[/INST]"),
    "always": (always, "[INST] {{ text }} [/INST] yes</s>[INST] {{ text }}[/INST]"),
    "phi3": (phi3, "<|user|>\n{{ text }}<|end|>\n<|assistant|>\n"),
    "gemma": (gemma, "<start_of_turn>user\n{{ text }}<end_of_turn>\n<start_of_turn>model\n\n<table>"),
    "qwen": (qwen, "<|im_start|>user\n{{ text }}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    "gpt_oss": (gpt_oss, "a film  <mask>{{ text }} <w> is <w>{{ text }}"),
    "t5": (t5, "Film {{ text }} </s> <extra_id_0>{{ text }}"),
    "bert": (bert, "[CLS] {{ text }} [SEP] the {{ text }} [MASK] [SEP]"),
}


@cache
def style(name: str) -> Any:
    """The tokenizer of a style."""
    return STYLES[name][0]()
