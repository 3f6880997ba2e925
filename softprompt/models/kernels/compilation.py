"""Where a C++ compiler is installed, what stands between the matrix products of a long run becomes one loop each.

Compiling costs a minute or two, once a machine and release of PyTorch; then it is read from the user's cache, in half a
minute. All shapes that decide how a loop is made are fixed here, and what does not fit it runs as it stands: a run that
goes on after a crash must compute the same bytes, and a request must not wait for a compiler.
"""

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.gguf_conversion import cache_folder
from softprompt.models.kernels import decoder_blocks
from softprompt.models.kernels.fused_decoder import FusedDecoder, find_fused_decoder

# parameters times steps from which on it pays: 200 steps of a model of 270 million
ENOUGH = 5e10
PLAIN = 1  # steps that a run makes as it stands, before it is compiled
SERVED = 1000  # passes that a server is taken to make, at least
_TEXTS, _LENGTH, _PREFIX = 13, 23, 101  # all different: equal ones would be taken for one and the same


def should_compile(base: FrozenLM, wish: Literal["auto", "always", "never"], steps: int) -> bool:
    """Whether a run of ``steps`` on this model and machine is compiled."""
    if wish == "never" or (wish == "auto" and base.parameter_count * steps < ENOUGH):
        return False
    return shutil.which(os.environ.get("CXX", "g++")) is not None and find_fused_decoder(base) is not None


@contextmanager
def compiled(base: FrozenLM, enabled: bool, note: Callable[[str], None], *, learning: bool = True) -> Iterator[None]:
    """Within it our layers are compiled; if the compiler fails, ``note`` says so and they run as they stand.

    Args:
        learning: with their gradient; else for texts that are read behind prompts which are there already.
    """
    decoder = find_fused_decoder(base) if enabled else None
    if decoder is None or not _warm_up(decoder, _learn if learning else _answer, note):
        yield
        return
    with decoder_blocks.compiled(), torch.compiler.set_stance("eager_on_recompile"):
        yield


class CompiledRun:
    """A training run that is compiled once it has shown that it works, or before its first step if that is wished.

    What is wrong with data or settings is then seen in seconds. Where it begins is a matter of the step alone: a run
    that goes on after a crash computes the same bytes.
    """

    def __init__(
        self,
        stack: ExitStack,
        base: FrozenLM,
        wish: Literal["auto", "always", "never"],
        steps: int,
        note: Callable[[str], None],
    ) -> None:
        """``stack`` ends it, ``note`` is told of it."""
        self._stack, self._base, self._note = stack, base, note
        self._plain = 0 if wish == "always" else PLAIN
        self._waits = should_compile(base, wish, steps)

    def before(self, step: int) -> None:
        """To be called before each step, counted from 0."""
        if self._waits and step >= self._plain:
            self._waits = False
            self._note("compiling: about half a minute, two the first time (--compile never leaves it out)")
            self._stack.enter_context(compiled(self._base, True, self._note))


def _warm_up(decoder: FusedDecoder, use: Callable[[FusedDecoder], None], note: Callable[[str], None]) -> bool:
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    # it tells of its own tuning
    logging.getLogger("torch._inductor").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), decoder_blocks.compiled():
            warnings.simplefilter("ignore")
            with torch._dynamo.config.patch(specialize_int=True, recompile_limit=32):
                use(decoder)
    except Exception as error:  # whatever a compiler can fail by: without it the run is only slower
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        note(f"not compiled, which makes the run slower: {first[:200]}")
        return False
    return True


def _learn(decoder: FusedDecoder) -> None:
    """Forward and backward, the last text as long as the others and shorter; the prompt read with the texts, and before
    them."""
    start = _embed_prompt(decoder).requires_grad_()
    with torch.enable_grad():
        for padding in (0, 1):
            prefix = decoder.compute_keys_and_values(start[None])
            for before in ({"prompts": (start,)}, {"prefix": prefix, "lengths": (_PREFIX,)}):
                _read(decoder, _TEXTS, padding, before).float().sum().backward()


@torch.no_grad()
def _answer(decoder: FusedDecoder) -> None:
    """Several texts and one alone, behind a prompt and behind a single token: what is 1 is compiled for itself; and
    each behind a prompt of its own."""
    whole = decoder.compute_keys_and_values(_embed_prompt(decoder)[None])
    for length in (_PREFIX, 1):
        prefix = [(keys[:, :, :length], values[:, :, :length]) for keys, values in whole]
        for texts, padding in ((_TEXTS, 0), (_TEXTS, 1), (1, 0)):
            _read(decoder, texts, padding, {"prefix": prefix, "lengths": (length,)})
    each = [(keys.expand(_TEXTS, -1, -1, -1), values.expand(_TEXTS, -1, -1, -1)) for keys, values in whole]
    for padding in (0, 1):
        behind = {"prefix": each, "lengths": (_PREFIX,) * _TEXTS, "which": torch.arange(_TEXTS)}
        _read(decoder, _TEXTS, padding, behind)


def _embed_prompt(decoder: FusedDecoder) -> Tensor:
    base = decoder.base
    return base.embed(torch.arange(_PREFIX, device=base.device) % base.vocabulary_size).detach()


def _read(decoder: FusedDecoder, texts: int, padding: int, before: Mapping[str, Any]) -> Tensor:
    """Hidden states at the ends of ``texts``, the last one shorter by ``padding``."""
    base = decoder.base
    ids = torch.arange(texts * _LENGTH, device=base.device).view(texts, _LENGTH) % base.vocabulary_size
    mask = torch.ones_like(ids)
    mask[-1, _LENGTH - padding :] = 0
    row = torch.arange(texts, device=base.device)
    return decoder.read(base.embed(ids), mask, row, mask.sum(dim=1) - 1, **before)
