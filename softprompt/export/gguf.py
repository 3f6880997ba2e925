"""Baked vocabulary in a GGUF file, for llama.cpp: prompts as new tokens of the user's own, possibly quantized, file.

All fields and tensors are copied; tokens are appended, ``token_embd`` grows by a row for each (quantized as the others
are, where PyPI's ``gguf`` can; else all of its rows become Q8_0 or F16), and ``output`` by copies of its row nearest
the mean, so that a new token's logit is that of a token that came before it, and seldom large. An output layer that is
the embedding gets weights of its own, as in a baked checkpoint: else the new tokens are the likeliest answer to nearly
everything, and servers that forbid no tokens would answer nothing else.

Shapes: ``P`` virtual tokens, ``H`` embedding size, ``V`` tokens of the file.
"""

import importlib.util
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softprompt.data.encoding.verbalizer import end_of_turn
from softprompt.errors import BaseModelError, MissingExtraError, PromptFileError
from softprompt.export.export_formats import ExportRequest
from softprompt.export.exported_chat_template import make_open_template
from softprompt.export.ollama_modelfile import make_modelfile
from softprompt.export.virtual_tokens import BakedVocabulary, check_expressible, check_labels
from softprompt.export.vocabulary import describe_baked, embedding_factor, make_rows
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.utils.files import atomic_path, check_free, expand_user
from softprompt.utils.messages import map_read_errors
from softprompt.utils.safe_io import parse_json

USAGE_KEY = "softprompt.tasks"
ALWAYS_TIED = ("gemma", "gemma2", "command-r", "exaone-moe", "openelm", "plm")  # llama.cpp reads no output of theirs
EMBEDDING, HEAD, HEAD_BIAS = "token_embd.weight", "output.weight", "output.bias"

_CONTROL = 3  # the type of tokens that are no text
_FORBIDDEN = -1e4  # a bias far below any logit, and finite in half precision too
_ROWS_AT_ONCE = 8192
_LEAST_LIKENESS = 0.9  # cosine of embeddings in the file and in the base model: coarse quantization keeps 0.99


@dataclass(frozen=True)
class GgufExport:
    """What was written.

    Attributes:
        baked: the prompts' tokens.
        stored_as: how the embedding is quantized now.
        rounding: how far the stored prompts are from the learned ones, relative to their size.
        tied: whether the output layer is the embedding, so that clients must forbid the new tokens.
    """

    baked: BakedVocabulary
    stored_as: str
    rounding: float
    tied: bool


def bake_gguf(
    base: FrozenLM, prompts: Mapping[str, Prompt], source: Path, place: Path, *, tied: bool = False
) -> GgufExport:
    """Write ``source``, a GGUF file of ``base``, with ``prompts``, by their names, as words of its vocabulary.

    Args:
        tied: leave an output layer that is the embedding as it is: ``V*H`` fewer numbers, for clients that forbid the
            new tokens in every request. llama.cpp knows no other for the models of ``ALWAYS_TIED``.

    Raises:
        PromptFileError, ConfigError: prompts that cannot be words of a vocabulary.
        BaseModelError: ``source`` is no GGUF file of this model, or of a kind that cannot be extended.
        MissingExtraError: ``gguf`` is not installed.
        OutputError: the file exists, or cannot be written.
    """
    check_free(place)
    check_labels(prompts)
    check_expressible(base, prompts)
    scale = _find_scale(base)
    import_gguf()
    import gguf

    reader = open_gguf(source)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    words = _read_field(reader, gguf.Keys.Tokenizer.LIST)
    _check_same_model(base, source, tensors, words)
    baked = BakedVocabulary.behind(prompts, len(words))

    rows = make_rows(baked, scale).numpy()
    embedding = tensors[EMBEDDING]
    kind = choose_type(embedding.tensor_type, rows)
    added = gguf.quants.quantize(rows, kind)
    rounding = float(np.linalg.norm(gguf.quants.dequantize(added, kind) - rows) / np.linalg.norm(rows))
    changed = {EMBEDDING: LongerTensor(embedding, kind, added)}
    architecture = _read_field(reader, gguf.Keys.General.ARCHITECTURE)
    tied = HEAD not in tensors and (tied or architecture in ALWAYS_TIED)
    if not tied:
        head = tensors.get(HEAD, embedding)
        # copied as stored: no type is too coarse for it
        changed[HEAD] = LongerTensor(
            head, head.tensor_type, np.repeat(head.data[[_find_middle_row(head)]], len(rows), axis=0)
        )
    if bias := tensors.get(HEAD_BIAS):
        changed[HEAD_BIAS] = LongerTensor(bias, bias.tensor_type, np.full(len(rows), _FORBIDDEN, dtype=bias.data.dtype))

    fields = {
        gguf.Keys.Tokenizer.LIST: [*words, *baked.words],
        gguf.Keys.Tokenizer.TOKEN_TYPE: [*_read_field(reader, gguf.Keys.Tokenizer.TOKEN_TYPE), *[_CONTROL] * len(rows)],
        gguf.Keys.Tokenizer.SCORES: [*_read_field(reader, gguf.Keys.Tokenizer.SCORES), *[0.0] * len(rows)],
        f"{architecture}.vocab_size": baked.size,
        gguf.Keys.Tokenizer.CHAT_TEMPLATE: make_open_template(base, prompts),
        USAGE_KEY: json.dumps(describe_baked(base, baked), ensure_ascii=False),
        **_find_end_of_turn(base, prompts),
    }
    with atomic_path(place) as path:
        copy_gguf(reader, path, fields, changed)
    return GgufExport(baked, kind.name, rounding, tied)


def write(request: ExportRequest) -> dict[str, Any]:
    """``bake_gguf`` as an export format, and a Modelfile for each prompt beside the file."""
    assert request.gguf is not None
    out = request.out
    places = {name: out.with_name(f"{out.stem}.{name}.Modelfile") for name in request.prompts}
    for place in places.values():
        check_free(place)
    done = bake_gguf(request.model, request.prompts, request.gguf, out, tied=request.tied)
    files = {name: make_modelfile(request.model, name, one, out.name) for name, one in request.prompts.items()}
    for name, text in files.items():
        if text is not None:
            with atomic_path(places[name]) as path:
                path.write_text(text, encoding="utf-8")
    told = {"forbid": "the virtual tokens, in every request: the output layer of this model is its embedding"}
    without = ", ".join(name for name, text in files.items() if text is None)
    return {
        "modelfiles": {name: str(places[name]) for name, text in files.items() if text is not None},
        **({"without_modelfile": f"{without}: Ollama's templates cannot write what was learned"} if without else {}),
        "first_ids": dict(done.baked.first),
        "stored_as": done.stored_as,
        "rounding": round(done.rounding, 6),
        **(told if done.tied else {}),
    }


def gguf_usage(path: Path) -> dict[str, Any]:
    """What clients must know of the prompts in a file (see ``client.Tasks``).

    Raises:
        BaseModelError: it is no GGUF file, or has no prompts of ours.
    """
    text = _read_field(open_gguf(path), USAGE_KEY)
    if not text:
        raise BaseModelError(f"'{path}' has no prompts in its vocabulary: expected a file that softprompt wrote")
    try:
        return dict(parse_json(text.encode()))
    except (ValueError, TypeError) as error:
        raise BaseModelError(f"'{path}' is damaged: what it says of its prompts is not JSON ({error})") from error


def import_gguf() -> None:
    """Raise MissingExtraError unless ``gguf`` can be imported."""
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError("gguf", "gguf")


def open_gguf(path: Path) -> Any:
    """A reader of the file; raises BaseModelError if it is no GGUF file."""
    import_gguf()
    from gguf import GGUFReader

    path = expand_user(path)
    if not path.is_file():
        raise BaseModelError(f"GGUF file '{path}' does not exist")
    try:
        with map_read_errors(path):
            return GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError) as error:
        raise BaseModelError(f"'{path}' is no GGUF file, or damaged: {error}") from error


@dataclass(frozen=True)
class LongerTensor:
    """A tensor of the source with more rows behind its own.

    Attributes:
        tensor: the reader's.
        kind: how all rows are stored in the end.
        added: the new rows, stored so.
    """

    tensor: Any
    kind: Any
    added: np.ndarray[Any, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the stored bytes or numbers."""
        return (len(self.tensor.data) + len(self.added), *self.added.shape[1:])

    def parts(self) -> Iterator[np.ndarray[Any, Any]]:
        from gguf.quants import dequantize, quantize

        data, old = self.tensor.data, self.tensor.tensor_type
        for start in range(0, len(data), _ROWS_AT_ONCE):
            part = data[start : start + _ROWS_AT_ONCE]
            yield part if self.kind == old else quantize(dequantize(part, old), self.kind)
        yield self.added


def _find_middle_row(tensor: Any) -> int:
    """The row of a matrix that is nearest to the mean of all."""
    from gguf.quants import dequantize

    def parts() -> Iterator[np.ndarray[Any, Any]]:
        for start in range(0, len(tensor.data), _ROWS_AT_ONCE):
            yield dequantize(tensor.data[start : start + _ROWS_AT_ONCE], tensor.tensor_type)

    mean = sum(part.sum(axis=0, dtype=np.float64) for part in parts()) / len(tensor.data)
    return int(np.concatenate([np.square(part - mean).sum(axis=1) for part in parts()]).argmin())


def _find_scale(base: FrozenLM) -> float:
    """What llama.cpp multiplies embeddings by: the exact root of ``H`` where the model has it rounded to its dtype."""
    factor, root = embedding_factor(base), math.sqrt(base.embedding_size)
    return root if abs(factor / root - 1) < 1e-2 else factor


def choose_type(kind: Any, rows: np.ndarray[Any, Any]) -> Any:
    """The type of the embedding if rows can be quantized to it, else the nearest larger one."""
    import gguf

    for one in (kind, gguf.GGMLQuantizationType.Q8_0):
        try:
            gguf.quants.quantize(rows[:1], one)
        except (NotImplementedError, ValueError, gguf.quants.QuantError):
            continue
        return one
    return gguf.GGMLQuantizationType.F16


def _check_same_model(base: FrozenLM, source: Path, tensors: Mapping[str, Any], words: Any) -> None:
    import gguf

    embedding = tensors.get(EMBEDDING)
    if embedding is None or not isinstance(words, list) or "per_layer_token_embd.weight" in tensors:
        raise BaseModelError(
            f"'{source}' has no vocabulary that can be extended: expected a language model's GGUF file"
        )
    size, rows = (int(one) for one in embedding.shape[:2])
    ids = np.arange(0, min(rows, base.vocabulary_size), max(1, rows // 64))
    like = 0.0
    if size == base.embedding_size:
        stored = gguf.quants.dequantize(np.ascontiguousarray(embedding.data[ids]), embedding.tensor_type)
        own = base.embedding_weight[torch.from_numpy(ids).to(base.device)].float().cpu().numpy()
        like = float((stored * own).sum() / (np.linalg.norm(stored) * np.linalg.norm(own)))
    if like < _LEAST_LIKENESS:
        raise BaseModelError(
            f"'{source}' is no GGUF file of '{base.name}': its embeddings ({rows:,} x {size}) are not those of the "
            f"model ({base.vocabulary_size:,} x {base.embedding_size}) that the prompts were learned on"
        )
    if len(words) != rows:
        raise BaseModelError(f"'{source}' is damaged: {rows:,} embeddings for {len(words):,} tokens")


def _find_end_of_turn(base: FrozenLM, prompts: Mapping[str, Prompt]) -> dict[str, int]:
    """The field of the token that ends an assistant's turn, by which llama.cpp ends an answer; none without turns.

    Raises:
        PromptFileError: several such tokens, and the file has room for one.
    """
    import gguf

    ends = {name: end_of_turn(base.tokenizer, prompt.spec) for name, prompt in prompts.items()}
    known = dict.fromkeys(end for end in ends.values() if end is not None)
    if len(known) > 1:
        raise PromptFileError(
            f"the turns of {', '.join(ends)} end with different tokens ({', '.join(map(str, known))}), and a GGUF file "
            "names one: export them one by one"
        )
    return dict.fromkeys([gguf.Keys.Tokenizer.EOT_ID], *known) if known else {}


def _read_field(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return [] if field is None else field.contents()


def copy_gguf(reader: Any, path: Path, fields: Mapping[str, Any], changed: Mapping[str, LongerTensor]) -> None:
    """Write all of ``reader`` to ``path`` with other values for some fields, and other or further tensors."""
    import gguf

    architecture = gguf.Keys.General.ARCHITECTURE
    writer = gguf.GGUFWriter(path, _read_field(reader, architecture), endianess=reader.endianess)
    writer.data_alignment = reader.alignment
    kinds = {
        gguf.Keys.Tokenizer.CHAT_TEMPLATE: gguf.GGUFValueType.STRING,
        USAGE_KEY: gguf.GGUFValueType.STRING,
        gguf.Keys.Tokenizer.EOT_ID: gguf.GGUFValueType.UINT32,
    }
    new = {key: (kind, fields[key]) for key, kind in kinds.items() if key in fields}
    for field in reader.fields.values():
        if field.name == architecture or field.name.startswith("GGUF.") or field.name in new:
            continue
        kind, inner = field.types[0], field.types[-1]
        value = fields.get(field.name, field.contents())
        writer.add_key_value(field.name, value, kind, sub_type=inner if kind == gguf.GGUFValueType.ARRAY else None)
    for key, (kind, value) in new.items():
        writer.add_key_value(key, value, kind)
    tensors = {tensor.name: changed.get(tensor.name, tensor) for tensor in reader.tensors} | dict(changed)
    for name, tensor in tensors.items():
        longer = isinstance(tensor, LongerTensor)
        shape, dtype = (tensor.shape, tensor.added.dtype) if longer else (tensor.data.shape, tensor.data.dtype)
        size = math.prod(shape) * dtype.itemsize
        writer.add_tensor_info(name, shape, dtype, size, tensor.kind if longer else tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors.values():
        data = np.concatenate(list(tensor.parts())) if isinstance(tensor, LongerTensor) else tensor.data
        writer.write_tensor_data(data, tensor_endianess=reader.endianess)
    writer.close()
