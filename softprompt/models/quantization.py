"""Base models with quantized weights: by torchao on any device, or by bitsandbytes; frozen, so only read.

A learned prompt needs the gradient with respect to a layer's input, which a quantized linear layer gives as any other
does; its weights need none.
"""

import hashlib
import importlib.util
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from softprompt.errors import BaseModelError, MissingExtraError


def _torchao_int8(dtype: torch.dtype) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def _bitsandbytes_int8(dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True)


def _bitsandbytes_nf4(dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


SCHEMES: Mapping[str, tuple[str, Callable[[torch.dtype], Any]]] = {
    "int8": ("torchao", _torchao_int8),
    "bnb-int8": ("bitsandbytes", _bitsandbytes_int8),
    "bnb-nf4": ("bitsandbytes", _bitsandbytes_nf4),
}
"""By the name that ``quantize`` takes: the package, and what ``from_pretrained`` gets for a compute dtype."""

# the extra that brings a package, by the name that configurations give its method
_EXTRAS = {"torchao": "quantized", "bitsandbytes": "bitsandbytes"}
# transformers itself unpacks these into plain weights
_UNPACKED = {"mxfp4"}


def loading_options(
    config: Any, quantize: str | None, device: torch.device, dtype: torch.dtype, name: str
) -> dict[str, Any]:
    """What ``from_pretrained`` needs beside the usual to load the model with this configuration; nothing if plain.

    Args:
        config: of the model.
        quantize: one of ``SCHEMES``, or ``None`` to take the weights as they are saved, quantized or not.

    Raises:
        BaseModelError: no such scheme, or the model is saved in another one, or in one that cannot be used here.
        MissingExtraError: the package is not installed.
    """
    if quantize is not None and quantize not in SCHEMES:
        raise BaseModelError(f"unknown quantization '{quantize}': expected one of {', '.join(SCHEMES)}")
    saved = find_quantization(config)
    if saved is not None:
        package = SCHEMES[saved][0] if saved in SCHEMES else saved.split()[0]
        if package not in _EXTRAS:
            raise BaseModelError(
                f"the weights of '{name}' are quantized by {saved}: expected {' or '.join(_EXTRAS)}, or weights that "
                "are not quantized"
            )
        if quantize not in (None, saved):
            raise BaseModelError(
                f"the weights of '{name}' are saved as {saved} and cannot be quantized again, as {quantize}: leave "
                "the quantization out, or give the model that is not quantized"
            )
    elif quantize is not None:
        package = SCHEMES[quantize][0]
    else:
        return {}
    four_bits = package == "bitsandbytes" and (saved or quantize) != "bnb-int8"
    if four_bits and device.type == "cpu":
        # there it repacks its weights for inference at the first pass, and the gradient ends at them
        raise BaseModelError(
            f"'{name}' cannot be used on a CPU in the four bits of bitsandbytes, which give no gradient there: use the "
            "quantization int8, or a GPU"
        )
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(package, _EXTRAS[package])
    options: dict[str, Any] = {}
    if saved is None and quantize is not None:
        with silence_logging():
            options["quantization_config"] = SCHEMES[quantize][1](dtype)
    if package == "bitsandbytes":
        # it tells at every layer of every pass that eight bits are multiplied in float16
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        # cannot be moved once it is there
        options["device_map"] = {"": str(device)}
    return options


def find_quantization(config: Any) -> str | None:
    """How a configuration says that weights are quantized: one of ``SCHEMES``, or method and type; ``None`` if not."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    facts = found if isinstance(found, Mapping) else found.to_dict()
    method = str(getattr(facts.get("quant_method"), "value", facts.get("quant_method")))
    if method in _UNPACKED:
        return None
    if method == "torchao":
        kind = facts.get("quant_type")
        kind = kind.get("default", kind) if isinstance(kind, Mapping) else {}
        settings = kind.get("_data", {})
        per_row = settings.get("group_size") is None and settings.get("granularity", {}).get("_type") == "PerRow"
        name = str(kind.get("_type"))
        return "int8" if name == "Int8WeightOnlyConfig" and per_row else f"torchao {name}"
    if method == "bitsandbytes":
        if facts.get("load_in_8bit"):
            return "bnb-int8"
        kind = facts.get("bnb_4bit_quant_type")
        return "bnb-nf4" if kind == "nf4" else f"bitsandbytes {kind}"
    return method


def check_quantized(model: Any, quantize: str, name: str) -> None:
    """Raise BaseModelError if the scheme found nothing in ``model`` that it can quantize."""
    if all(is_plain(parameter) for parameter in model.parameters()):
        raise BaseModelError(
            f"'{name}' ({type(model).__name__}) has no layers that the quantization {quantize} works on: load it as it "
            f"is, or try another one of {', '.join(SCHEMES)}"
        )


class _QuantizedLinear(torch.autograd.Function):
    """``x [..., in]`` times a quantized ``weight [out, in]``, which is unpacked anew for the gradient.

    Autograd would keep what the product was made with, the unpacked weights: of all layers until the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (gradient,) = grad_outputs
        return gradient @ ctx.weight.dequantize().to(gradient.dtype), None, None


def keep_packed(model: nn.Module) -> None:
    """Let torchao's linear layers keep nothing unpacked for the backward pass."""
    for module in model.modules():
        if type(module) is nn.Linear and hasattr(module.weight, "__tensor_flatten__"):
            module.forward = MethodType(_multiply, module)  # type: ignore[method-assign]


def _multiply(layer: nn.Linear, input: Tensor) -> Any:
    return _QuantizedLinear.apply(input, layer.weight, layer.bias)  # type: ignore[no-untyped-call]


def is_plain(weight: Tensor) -> bool:
    """Whether a weight is there as floating-point numbers."""
    return weight.is_floating_point() and not hasattr(weight, "__tensor_flatten__")


def sampled_sha256(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """Digest of a sample of every parameter, by name: 4,096 to 8,191 of its values, floating-point ones in bfloat16."""
    digest = hashlib.sha256()
    for name, parameter in sorted(parameters, key=lambda one: one[0]):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        for part in iterate_plain_tensors(parameter):
            flat = part.reshape(-1)
            sample = flat[:: max(1, flat.numel() // 4096)].cpu()
            sample = sample.to(torch.bfloat16).view(torch.int16) if sample.is_floating_point() else sample
            digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def iterate_plain_tensors(weight: Tensor) -> Iterator[Tensor]:
    """The plain tensors that a weight is made of: itself, or numbers and scales of a quantized one."""
    if hasattr(weight, "full_tensor"):  # of which this process has a part
        yield weight.full_tensor().detach()
        return
    if not hasattr(weight, "__tensor_flatten__"):
        yield weight.detach()
        return
    names, _ = weight.__tensor_flatten__()
    for part in names:
        yield from iterate_plain_tensors(getattr(weight, part))


def count_values(weight: Tensor) -> int:
    """Values of a weight, also where several share a byte."""
    packed = getattr(weight, "quant_state", None)
    return weight.numel() if packed is None else math.prod(packed.shape)


@contextmanager
def silence_logging() -> Iterator[None]:
    """Keep off the terminal what packages log while they are imported, such as kernels for other devices."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
