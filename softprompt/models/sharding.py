"""Where a base model's weights live, if not whole on one device: shared by several processes, or dealt to devices.

Processes share layers by FSDP2 (``torch.distributed.fsdp.fully_shard``): a layer is put together right before it is
used and let go right behind. Embeddings, output layer and last norm are whole everywhere, for they are looked into.
Devices are filled by ``accelerate``, which moves what enters a layer to where the layer is; what fits on no GPU waits
in memory or on disk and is fetched for each pass.
"""

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from softprompt.errors import BaseModelError, ConfigError, MissingExtraError
from softprompt.models.distributed import ProcessGroup
from softprompt.models.last_layer import find_layers

LAUNCH_EXAMPLE = "torchrun --nproc-per-node 8 -m softprompt train ..."


def check_placement(
    device_map: Any, sharding: str | None, device: str | None, quantize: str | None, processes: ProcessGroup
) -> None:
    """Raise ConfigError unless a model can be placed so, MissingExtraError where that needs ``accelerate``."""
    if sharding not in (None, "fsdp"):
        raise ConfigError(f"unknown sharding '{sharding}': expected fsdp, or none")
    if sharding is not None and processes.world_size == 1:
        raise ConfigError(f"sharding {sharding} is for several processes: start them as in {LAUNCH_EXAMPLE}")
    if sharding is not None and quantize is not None:
        raise ConfigError(f"sharding {sharding} shares plain weights: leave the quantization {quantize} out")
    if device_map is None:
        return
    if isinstance(device_map, str) and device_map != "auto":
        raise ConfigError(f"unknown device map '{device_map}': expected auto, or in Python a device for each module")
    if processes.world_size > 1:
        raise ConfigError("a device map is for one process: give --sharding fsdp to share a model over several")
    if device is not None:
        raise ConfigError(f"a device map says where everything goes: leave the device {device} out")
    if importlib.util.find_spec("accelerate") is None:
        raise MissingExtraError("accelerate", "device-map")


def shard(model: Any, device: torch.device, processes: ProcessGroup, name: str) -> None:
    """Leave each process its part of every layer of ``model``, which all have whole, and the rest on ``device``.

    Raises:
        BaseModelError: the model has no plain row of layers.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model.requires_grad_(False)
    layers = find_layers(model.base_model)
    if not layers or len(layers) != getattr(model.config.get_text_config(), "num_hidden_layers", None):
        raise BaseModelError(
            f"sharding: '{name}' ({type(model).__name__}) has no plain row of layers: use --device-map auto, or "
            "a model that fits on one device"
        )
    shared = {parameter for layer in layers for parameter in layer.parameters()}
    whole = {parameter for parameter in model.parameters() if parameter not in shared}
    for tensor in (*whole, *model.buffers()):
        tensor.data = tensor.data.to(device)
    mesh = init_device_mesh(device.type, (processes.world_size,))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    # with one root above them, a layer is fetched while the one before it computes
    fully_shard(model.base_model, mesh=mesh, ignored_params=whole)


def gather_before_backward(backbone: nn.Module, cache: Any) -> None:
    """Have a shared layer put together when the gradient reaches its keys and values in ``cache``.

    FSDP2 waits for gradient at what a layer returns; that of a shared prefix comes by the cache.
    """
    for layer, kept in zip(find_layers(backbone), cache.layers, strict=True):

        def gather(_: Tensor, layer: Any = layer) -> None:
            layer.unshard()

        for tensor in (kept.keys, kept.values):
            if tensor.requires_grad:
                tensor.register_hook(gather)


def align_hidden_states(model: Any, name: str) -> None:
    """Make a model that ``accelerate`` has dealt to devices give its hidden states where its embeddings are.

    Raises:
        BaseModelError: there was no room for its embeddings on a device.
    """
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    if model.get_input_embeddings().weight.is_meta:
        raise BaseModelError(
            f"the token embeddings of '{name}' fit on no device: free some of its memory, or use a larger one"
        )
    # without a GPU nothing is dealt
    if hasattr(model, "hf_device_map"):
        add_hook_to_module(
            model.base_model, AlignDevicesHook(io_same_device=True, skip_keys="past_key_values"), append=True
        )


def find_layer_devices(backbone: nn.Module, otherwise: torch.device) -> list[torch.device]:
    """Where each layer computes, and so keeps its keys and values."""
    return [next((torch.device(d) for d in _execution_devices(layer)), otherwise) for layer in find_layers(backbone)]


def iterate_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by name, those too that wait in memory or on disk."""
    for name, parameter in model.named_parameters():
        yield name, _fetch_weight(model, name) if parameter.is_meta else parameter


def _fetch_weight(model: nn.Module, name: str) -> Tensor:
    module, _, last = name.rpartition(".")
    for hook in _list_hooks(model.get_submodule(module)):
        if getattr(hook, "weights_map", None) is not None:
            weight: Tensor = hook.weights_map[last]
            return weight
    raise BaseModelError(f"the weight '{name}' of the base model is nowhere: load the model again")


def _list_hooks(module: Any) -> tuple[Any, ...]:
    hook = getattr(module, "_hf_hook", None)
    return tuple(getattr(hook, "hooks", (hook,)))


def _execution_devices(layer: nn.Module) -> Iterator[Any]:
    for module in layer.modules():
        for hook in _list_hooks(module):
            if (device := getattr(hook, "execution_device", None)) is not None:
                yield device
