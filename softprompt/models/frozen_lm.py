"""The frozen language model: found, loaded, checked, fingerprinted.

Shapes: ``B`` batch, ``T`` text length, ``P`` prompt length, ``H`` embedding size, ``V`` vocabulary, ``N`` positions.
"""

import inspect
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from softprompt.data.encoding.tokenization import check_embedding_rows
from softprompt.errors import BaseModelError, SoftpromptError
from softprompt.models.architecture import (
    configure_outputs,
    decode,
    embedding_scale,
    encode,
    find_batch_independent_length,
    is_encoder_decoder,
    list_logit_transforms,
    logits_bias,
    read_special_tokens,
)
from softprompt.models.distributed import SINGLE_PROCESS, ProcessGroup
from softprompt.models.exactness import relative_error
from softprompt.models.fast_attention import replace_slow_parts
from softprompt.models.fingerprint import config_sha256, tokenizer_sha256
from softprompt.models.last_layer import shorten_last_layer
from softprompt.models.quantization import count_values, find_quantization, is_plain, sampled_sha256
from softprompt.models.sharding import iterate_weights
from softprompt.utils.notebook_display import Displayed
from softprompt.utils.summaries import describe_value, summarize


class FrozenLM(Displayed):
    """A language model whose weights never change, with its tokenizer.

    Attributes:
        model: the ``transformers`` model, in evaluation mode, no parameter requiring gradient.
        architecture: what it is made of; the two read prompt, text and answer in places of their own.
        backbone: the part of it that maps embeddings to hidden states, without the output layer.
        tokenizer: the ``transformers`` tokenizer.
        name: what the user called it.
        special_tokens: the tokens around prompt, text and answer.
        bos_ids: those in front of the prompt (often one, BOS; sometimes none).
        embedding_scale: what ``embed`` multiplies the model's token embeddings by.
        lasting: whether its weights stay as they are, and where they are.
        processes: those that share the work of a step or an evaluation, each with this model.
    """

    architecture: Literal["decoder-only", "encoder-decoder"]
    processes: ProcessGroup = SINGLE_PROCESS

    def __init__(self, model: Any, tokenizer: Any, name: str, *, lasting: bool = True) -> None:
        """Freeze ``model`` and check what it can do.

        Args:
            lasting: its weights will not be set to others later, so that they may be folded into faster parts.

        Raises:
            BaseModelError: its logits are not a known function of its hidden states, or its tokenizer is another's.
        """
        self.model: Any = model.eval().requires_grad_(False)
        configure_outputs(model)
        self.architecture = "encoder-decoder" if is_encoder_decoder(model.config) else "decoder-only"
        self.backbone: Any = self.model.base_model
        if self.backbone is self.model and self.architecture == "decoder-only":
            raise BaseModelError(f"'{name}' ({type(model).__name__}) has no separate backbone: expected a causal model")
        self.tokenizer = tokenizer
        self.name = name
        self.config: Any = model.config.get_text_config()
        self.special_tokens = read_special_tokens(model, tokenizer, name)
        self.bos_ids = self.special_tokens.bos
        self.embedding_scale = embedding_scale(model)
        self.lasting = lasting
        self._accepts = frozenset(inspect.signature(self.backbone.forward).parameters)
        check_embedding_rows(
            tokenizer,
            self.vocabulary_size,
            name,
            (*self.special_tokens.bos, *self.special_tokens.suffix, *self.special_tokens.decoder_start),
        )
        try:
            if lasting:
                replace_slow_parts(self.model, self._probe)
            shorten_last_layer(self.backbone, self._probe)
            self._transform_logits = self._find_logit_transform()
        except (SoftpromptError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # what models raise is not of one kind
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise BaseModelError(
                f"'{name}' ({type(model).__name__}) does not run as a language model of one stack, or of an encoder "
                f"and a decoder of one family: {reason}; softprompt cannot use this family yet"
            ) from error

    def __repr__(self) -> str:
        size = f"{self.parameter_count:,} frozen parameters"
        stored = self.quantization and f"quantized as {self.quantization}"
        where = f"{self.precision} on {self.device}"
        return summarize(self, describe_value(self.name), size, stored or "", where, self.architecture)

    @property
    def device(self) -> torch.device:
        """Where token embeddings live, hence where inputs go."""
        return self.embedding_weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding_weight.dtype

    @property
    def precision(self) -> str:
        """What it computes in, as ``--dtype`` takes it."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def quantization(self) -> str | None:
        """How the weights of linear layers are stored, if not as plain floating-point numbers."""
        return find_quantization(self.model.config)

    @property
    def embedding_weight(self) -> Tensor:
        """Token embeddings as stored, before any embedding scale: ``[V, H]``."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight

    @property
    def embedding_size(self) -> int:
        return self.embedding_weight.shape[1]

    @property
    def vocabulary_size(self) -> int:
        return self.embedding_weight.shape[0]

    @cached_property
    def parameter_count(self) -> int:
        """Parameters of the frozen model, tied weights counted once."""
        return sum(count_values(parameter) for parameter in self.model.parameters())

    @property
    def context_length(self) -> int | None:
        """Longest sequence in tokens whose answer depends on nothing beside it, if there is one."""
        names = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len")
        stated = next((one for name in names if isinstance(one := getattr(self.config, name, None), int)), None)
        return min((one for one in (stated, self.batch_independent_length) if one is not None), default=None)

    @property
    def batch_independent_length(self) -> int | None:
        """Tokens up to which a text is read alike whatever stands beside it; ``None``: any number."""
        return find_batch_independent_length(self.config)

    @property
    def generation_config(self) -> Any:
        """How the model itself wants to generate, if it says so."""
        return getattr(self.model, "generation_config", None)

    @property
    def sliding_window(self) -> int | None:
        """Tokens that the narrowest attention layer sees, if any layer sees fewer than all."""
        return find_sliding_window(self.config)

    @cached_property
    def embedding_std(self) -> float:
        """Standard deviation of the token embeddings as the first layer sees them: the unit of the learning rate."""
        return float(self.sampled_embeddings().std())

    def sampled_embeddings(self) -> Tensor:
        """Embeddings of every k-th token ``[N, H]``, float32: enough for moments, in no time."""
        step = max(1, self.vocabulary_size // 16384)
        return self.embed(torch.arange(0, self.vocabulary_size, step, device=self.device)).float()

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids of any shape to embeddings ``[..., H]``, with the model's own embedding scale."""
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        return embedded if self.embedding_scale == 1 else embedded * self.embedding_scale

    def run_backbone(self, **inputs: Any) -> Any:
        """The backbone's forward pass; arguments that this family does not know are left out."""
        return self.backbone(**{name: value for name, value in inputs.items() if name in self._accepts})

    def logits(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """Hidden states ``[N, H]`` to logits in float32: ``[N, V]``, or ``[N, R]`` for the ``R`` token ids ``rows``."""
        head = self.model.get_output_embeddings()
        if rows is None:
            logits = self._apply_head(hidden)
        elif is_plain(head.weight) and head.weight.device == hidden.device:
            bias = getattr(head, "bias", None)
            # in float32: logits of 20 move by eighths in bfloat16, and a few rows cost nothing
            logits = nn.functional.linear(
                hidden.float(), head.weight[rows].float(), None if bias is None else bias[rows].float()
            )
        else:
            logits = self._apply_head(hidden)[:, rows]
        logits = self._transform_logits(logits.float())
        added = logits_bias(self.model)
        return (logits if added is None else logits + (added if rows is None else added[rows]).float()).to(self.device)

    def row_logits(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """Hidden states ``[N, H]`` to logits ``[N, R]`` in float32, by ``rows [R, H]`` for the output layer's own."""
        rows = rows.to(hidden.device, torch.float32)
        return self._transform_logits(nn.functional.linear(hidden.float(), rows)).to(self.device)

    @property
    def has_plain_output_rows(self) -> bool:
        """Whether ``output_rows`` can be read: those of an output layer that is neither quantized nor sharded."""
        return is_plain(self.model.get_output_embeddings().weight)

    def output_rows(self, ids: Tensor) -> Tensor:
        """Rows ``[R, H]`` of the output layer, of token ids ``[R]``; raises BaseModelError if they cannot be read."""
        weight: Tensor = self.model.get_output_embeddings().weight
        if not self.has_plain_output_rows:
            raise BaseModelError(
                f"the output layer of '{self.name}' is quantized or sharded, and labels are learned from its rows: use "
                "--soft-verbalizer never"
            )
        return weight.detach()[ids.to(weight.device)].to(ids.device)

    @cached_property
    def output_std(self) -> float:
        """Standard deviation of the output layer's rows; raises as ``output_rows``."""
        step = max(1, self.vocabulary_size // 16384)
        return float(self.output_rows(torch.arange(0, self.vocabulary_size, step, device=self.device)).float().std())

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """SHA-256 of configuration, tokenizer and weights; the same on every device, in float32 and in bfloat16.

        Weights are sampled (4,096 to 8,191 evenly spaced values of every parameter, or all if it has fewer, rounded to
        bfloat16): this takes a second where hashing all takes a minute, and tells a merged LoRA apart, which leaves
        the embeddings alone. float16 rounds small weights in its own way and may give another hash. Quantized weights
        are hashed as stored, which depends on the dtype that they were quantized from, and the scheme is named.
        """
        return {
            **({} if self.quantization is None else {"quantization": self.quantization}),
            "config": config_sha256(self.config),
            "tokenizer": tokenizer_sha256(self.tokenizer, self.special_tokens),
            "weights": sampled_sha256(iterate_weights(self.model)),
        }

    def _apply_head(self, hidden: Tensor) -> Tensor:
        """Hidden states ``[N, H]`` to what the output layer makes of them ``[N, V]``."""
        head = self.model.get_output_embeddings()
        # some families keep their residual stream in float32
        through: Tensor = head(hidden.to(head.weight.dtype if is_plain(head.weight) else self.dtype))
        return through

    def _probe(self) -> Tensor:
        """Hidden states of two short texts, the second one padded."""
        ids = torch.arange(1, 13, device=self.device).view(2, 6)
        mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]], device=self.device)
        return self._plain_hidden(self.embed(ids), ids, mask)[mask.bool()]

    def _plain_hidden(self, embeddings: Tensor, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Hidden states ``[B, T, H]`` of texts from their embeddings; a decoder is given ``ids`` as answers."""
        if self.architecture == "encoder-decoder":
            return decode(self.model, encode(self.model, embeddings, mask), mask, input_ids=ids)
        hidden: Tensor = self.run_backbone(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
        return hidden

    @torch.no_grad()
    def _find_logit_transform(self) -> Callable[[Tensor], Tensor]:
        """Find what this family does to ``head(hidden)``, by comparing with its own full forward pass on token ids."""
        ids = torch.arange(1, 5, device=self.device)[None]
        answers = {"decoder_input_ids": ids} if self.architecture == "encoder-decoder" else {}
        expected = self.model(input_ids=ids, **answers).logits[0].float()
        if not expected.isfinite().all():
            raise BaseModelError(
                f"'{self.name}' gives numbers that are not finite in {str(self.dtype).removeprefix('torch.')}: give a "
                "precision that holds them (--dtype float32 or bfloat16), or sound weights"
            )
        if (added := logits_bias(self.model)) is not None:
            expected = expected - added.float()
        try:
            # a learned vector is no token's: some families look for the token that an embedding belongs to
            self._plain_hidden(self.embed(ids) * 1.01, ids)
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
            raise BaseModelError(
                f"'{self.name}' ({type(self.model).__name__}) takes only its own tokens' embeddings, and learned "
                "ones are none: softprompt cannot use this family yet"
            ) from error
        # from embeddings, as prompts are fed: some families read more than these from the ids
        hidden = self._plain_hidden(self.embed(ids), ids)[0]
        head = self.model.get_output_embeddings()
        if head is not None:
            raw = self._apply_head(hidden).float()
            # the nearest, not the first within tolerance: a soft cap hardly shows on small logits
            candidates = list_logit_transforms(self.config)
            errors = [relative_error(candidate(raw), expected) for candidate in candidates]
            if min(errors) <= (1e-4 if self.dtype == torch.float32 else 2e-2):
                return candidates[errors.index(min(errors))]
        raise BaseModelError(
            f"'{self.name}' ({type(self.model).__name__}): its logits are not a known function of its embeddings and "
            "hidden states; softprompt cannot use this family yet"
        )


def find_sliding_window(config: Any) -> int | None:
    """Tokens that the narrowest attention layer of a text configuration sees, if any layer sees fewer than all."""
    names = ["window_size", "attention_window_size", "attention_chunk_size"]
    if getattr(config, "use_sliding_window", True) is not False:
        names.append("sliding_window")
    windows = [window for name in names if isinstance(window := getattr(config, name, None), int)]
    return min(windows, default=None)
