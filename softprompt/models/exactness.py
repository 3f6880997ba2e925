"""Whether a faster way of computing gives a model's own numbers: measured on each model, never assumed."""

from collections.abc import Callable, Sequence
from functools import update_wrapper
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

# what models of unknown families raise where a way is not one for them
_REFUSALS = (RuntimeError, TypeError, ValueError, IndexError, AttributeError, KeyError)

Model = TypeVar("Model")
Result = TypeVar("Result")


class OncePerModel(Generic[Model, Result]):
    """A function of a model that is computed once for each, and known as long as there is the model.

    Attributes:
        known: by the model.
    """

    def __init__(self, compute: Callable[[Model], Result]) -> None:
        update_wrapper(self, compute)
        self._compute, self.known = compute, WeakKeyDictionary[Model, Result]()

    def __call__(self, base: Model) -> Result:
        if base not in self.known:
            self.known[base] = self._compute(base)
        return self.known[base]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """``||actual - expected|| / ||expected||``."""
    return float((actual - expected).detach().float().norm() / expected.detach().float().norm())


def is_exact(
    compute: Callable[[], Tensor | Sequence[Tensor]],
    expected: Tensor | Sequence[Tensor],
    dtype: torch.dtype,
    *,
    float32: float = 1e-5,
    rounded: float = 2e-2,
) -> bool:
    """Whether ``compute`` gives what is expected, to the rounding of ``dtype``; not where it fails.

    Args:
        float32: relative error of each tensor, below which it does in this dtype.
        rounded: in dtypes of fewer bits.
    """
    try:
        actual = compute()
    except _REFUSALS:
        return False
    alone = isinstance(actual, Tensor) and isinstance(expected, Tensor)
    pairs = [(actual, expected)] if alone else zip(actual, expected, strict=True)
    tolerance = float32 if dtype == torch.float32 else rounded
    return all(relative_error(*pair) < tolerance for pair in pairs)
