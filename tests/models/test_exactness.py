"""The one measure of how far a faster way is from the plain one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from softprompt.models.exactness import is_exact, relative_error


def fail() -> Tensor:
    raise ValueError("not for this model")


def test_relative_error_is_a_share_of_the_norm() -> None:
    expected = torch.tensor([3.0, 4.0], requires_grad=True)
    assert relative_error(expected + torch.tensor([0.0, 0.5]), expected) == pytest.approx(0.1)
    assert relative_error(expected, expected) == 0
    assert relative_error(torch.tensor([1.5]).bfloat16(), torch.tensor([1.0]).bfloat16()) == 0.5


@pytest.mark.parametrize(
    ("compute", "dtype", "same"),
    [
        (lambda: torch.tensor([1.0 + 1e-6]), torch.float32, True),
        (lambda: torch.tensor([1.0 + 1e-4]), torch.float32, False),
        (lambda: torch.tensor([1.0 + 1e-4]), torch.bfloat16, True),
        (lambda: torch.tensor([1.1]), torch.bfloat16, False),
        (lambda: torch.tensor([torch.nan]), torch.bfloat16, False),
        (fail, torch.bfloat16, False),
    ],
)
def test_what_is_the_same_depends_on_the_dtype(compute: Callable[[], Tensor], dtype: torch.dtype, same: bool) -> None:
    assert is_exact(compute, torch.tensor([1.0]), dtype) is same


def test_each_of_several_tensors_has_to_be() -> None:
    pair = (torch.ones(2), torch.zeros(3) + 1)
    assert is_exact(lambda: pair, pair, torch.float32)
    assert not is_exact(lambda: (pair[0], pair[1] + 0.1), pair, torch.float32)
    assert is_exact(lambda: (pair[0], pair[1] + 0.1), pair, torch.float32, float32=0.2)
