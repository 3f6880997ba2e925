"""The last layer's work at the positions whose output somebody reads, and nowhere else.

Attention in the last layer needs keys and values of every position, but its queries, its output projection and its
feed-forward part serve one position each. Where only some positions are scored, those parts see only them; everywhere
else the hidden states are wrong and must not be read. A part is exchanged only where this gives the model's own
numbers, which is measured when the model is loaded.

Shapes: ``B`` batch, ``T`` text length, ``N`` scored positions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from softprompt.models.exactness import is_exact

# what families call the parts of a layer that look at one position at a time; all but keys and values
_POSITIONWISE = {
    "mlp",
    "feed_forward",
    "fc1",
    "fc2",
    "up_proj",
    "down_proj",
    "gate_proj",
    "q_proj",
    "o_proj",
    "out_proj",
}
_POSITIONWISE |= {"c_proj", "dense"}
_scored: ContextVar[Tensor | None] = ContextVar("scored", default=None)


@contextmanager
def limit_last_layer(positions: Tensor | None) -> Iterator[None]:
    """Within it, the last layer is right at ``positions [N]`` only (indices into ``B * T``); everywhere if ``None``."""
    token = _scored.set(positions)
    try:
        yield
    finally:
        _scored.reset(token)


def find_layers(backbone: nn.Module) -> list[Any]:
    """The layers of a ``transformers`` backbone, first to last; none where they are not known."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in backbone.modules() if isinstance(module, GradientCheckpointingLayer)]


@torch.no_grad()
def shorten_last_layer(backbone: nn.Module, run: Callable[[], Tensor]) -> None:
    """Make the last layer of ``backbone`` heed ``limit_last_layer``.

    Args:
        run: a forward pass over two rows of six tokens each, of which it gives those of the first row and the first
            three of the second, ``[9, H]``, to compare before and after.
    """
    if not (layers := find_layers(backbone)):
        return
    parts = list(_list_parts(layers[-1]))
    expected = run()
    for part in parts:
        _shorten_part(part)
    # one token of each row; up to there, what run gives is counted as the batch is
    scored = torch.tensor([4, 8], device=expected.device)

    def run_shortened() -> Tensor:
        with limit_last_layer(scored):
            return run()[scored]

    if not is_exact(run_shortened, expected[scored], expected.dtype):
        for part in parts:
            del part.forward


def _list_parts(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost position-wise parts of a layer, those that were exchanged already left out."""
    for name, child in module.named_children():
        if name in _POSITIONWISE:
            if "forward" not in vars(child):
                yield child
        else:
            yield from _list_parts(child)


def _shorten_part(part: Any) -> None:
    everywhere = part.forward

    def forward(hidden: Tensor, *others: Any, **options: Any) -> Any:
        scored = _scored.get()
        places = hidden.shape[:-1].numel()
        # with most positions scored, taking them out costs more than it saves
        if scored is None or others or options or 2 * len(scored) > places:
            return everywhere(hidden, *others, **options)
        scored = scored.to(hidden.device)
        taken = everywhere(hidden.reshape(1, places, -1).index_select(1, scored))
        if not isinstance(taken, Tensor):
            raise TypeError("expected a part that gives one tensor")
        whole = taken.new_zeros(places, taken.shape[-1]).index_copy(0, scored, taken[0])
        return whole.view(*hidden.shape[:-1], -1)

    part.forward = forward
