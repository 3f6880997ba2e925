"""Each prompt's prefix, computed once and kept: bounded in bytes, the one that was not used for longest goes first.

Only the thread that runs the model comes here.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from torch import Tensor

from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.cached_prefix import CachedPrefix, stack_prefixes
from softprompt.prompts.prefix import ConcatenatedPrefix, Prefix, make_prefix
from softprompt.prompts.seq2seq_prefix import EncodedPrefix, stack_encoded_prefixes
from softprompt.prompts.shared_prefix_attention import SharedPrefixes, supports_shared_attention
from softprompt.serving.engine.engine_requests import ServedPrompt

PrefixKey: TypeAlias = str | None  # of a prompt; None is no prompt, which is the same whatever the template

MAX_JOINED = 64


class PrefixCache:
    """The prefixes of one base model.

    Attributes:
        hits, misses: prompts of a batch that were there, and that had to be computed.
        bytes: of all that is kept; above ``max_bytes`` only what one batch needs.
    """

    def __init__(self, base: FrozenLM, max_bytes: int) -> None:
        self._base, self._max_bytes = base, max_bytes
        self._single: OrderedDict[PrefixKey, tuple[tuple[Prefix, ...], int]] = OrderedDict()
        # several of them as one, which batches that mix the same prompts use again
        self._combined: OrderedDict[tuple[PrefixKey, ...], tuple[Prefix | SharedPrefixes, int]] = OrderedDict()
        self.hits = self.misses = self.bytes = 0

    def __len__(self) -> int:
        return len(self._single)

    def prepare(self, served: Iterable[ServedPrompt]) -> dict[str, Exception]:
        """Have their prefixes; of those that cannot be had, why, by their key."""
        found: dict[str, Exception] = {}
        for one in {one.key: one for one in served}.values():
            try:
                self._load(one)
            except Exception as error:  # whatever it is, it is this prompt's alone
                found[one.key] = error
        return found

    def join(self, served: Iterable[ServedPrompt]) -> tuple[Prefix | SharedPrefixes, dict[str, int]]:
        """One prefix for a batch that mixes prompts, and the place of each one's first state in it, by its key.

        Raises what ``make_prefix`` does.
        """
        # in one order, so that the same prompts are the same batch
        different = sorted({one.key: one for one in served}.values(), key=lambda one: one.key)
        prompts = {_make_key(one): one for one in different}
        for key, one in prompts.items():
            if key not in self._single:
                self._load(one)
        keys = tuple(prompts)
        singles = [prefix for key in keys for prefix in self._single[key][0]]
        if keys not in self._combined:
            combined = _join_prefixes(self._base, singles)
            size = 0
            if len(singles) > 1 and isinstance(combined, CachedPrefix | EncodedPrefix):
                size = _count_bytes(combined)
            self._combined[keys] = combined, size
            self.bytes += size
        self._combined.move_to_end(keys)
        self._evict(keys)
        places: dict[PrefixKey, int] = {}
        for key in keys:
            places[key] = sum(len(self._single[before][0]) for before in places)
        return self._combined[keys][0], {one.key: places[_make_key(one)] for one in different}

    def _load(self, served: ServedPrompt) -> None:
        key = _make_key(served)
        if key in self._single:
            self.hits += 1
            self._single.move_to_end(key)
            return
        self.misses += 1
        prefixes = tuple(make_prefix(self._base, state) for state in served.states or (None,))
        self._single[key] = prefixes, sum(map(_count_bytes, prefixes))
        self.bytes += self._single[key][1]

    def _evict(self, needed: tuple[PrefixKey, ...]) -> None:
        """Let go of what is too much: first of what was joined, which is made again faster."""
        while len(self._combined) > 1 and (self.bytes > self._max_bytes or len(self._combined) > MAX_JOINED):
            self.bytes -= self._combined.popitem(last=False)[1][1]
        while self.bytes > self._max_bytes and (oldest := next(iter(self._single))) not in needed:
            self.bytes -= self._single.pop(oldest)[1]
            # what was joined of it would keep it alive
            for combined in [combined for combined in self._combined if oldest in combined]:
                self.bytes -= self._combined.pop(combined)[1]


def _make_key(served: ServedPrompt) -> PrefixKey:
    return served.prefix_key if served.states else None


def _join_prefixes(base: FrozenLM, singles: Sequence[Prefix]) -> Prefix | SharedPrefixes:
    if isinstance(singles[0], CachedPrefix) and supports_shared_attention(base):
        return SharedPrefixes(base, tuple(one for one in singles if isinstance(one, CachedPrefix)))
    if len(singles) == 1:
        return singles[0]
    if base.architecture == "encoder-decoder":
        return stack_encoded_prefixes([one for one in singles if isinstance(one, EncodedPrefix)])
    if isinstance(singles[0], CachedPrefix):
        return stack_prefixes([one for one in singles if isinstance(one, CachedPrefix)])
    return ConcatenatedPrefix(
        base, tuple(rows for one in singles if isinstance(one, ConcatenatedPrefix) for rows in one.embeddings)
    )


def _count_bytes(prefix: Prefix) -> int:
    """Bytes of its tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _list_tensors(prefix))


def _list_tensors(prefix: Prefix) -> list[Tensor]:
    if isinstance(prefix, CachedPrefix):
        layers = [] if prefix.cache is None else prefix.cache.layers
        return [tensor for layer in layers if layer.keys is not None for tensor in (layer.keys, layer.values)]
    if isinstance(prefix, EncodedPrefix):
        parts = [part for part in (prefix.encoder, prefix.decoder) if part is not None]
        return [*prefix.embeddings, *(tensor for part in parts for tensor in part.tensors)]
    return list(prefix.embeddings)
