"""How much memory a training step and a server need: what the code keeps, as formulas of the model's sizes.

On a CPU, layers built like Llama's are our own (fused_layer.py), and what they keep is written down here, part by part.
Everywhere else ``transformers``' layers run under autograd, and what that saves is counted on a pass without numbers
(meta_model.py). Measured against real peaks by bench/plan_check.py.

Shapes: ``M`` positions, ``T`` text length, ``P'`` prefix length with BOS, ``H`` hidden size, ``F`` feed-forward size,
``Q`` and ``K`` sizes of queries and keys, ``N`` query heads, ``V`` vocabulary, ``L`` layers, ``e`` bytes of a number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from softprompt.analysis.diagnostics.meta_model import MetaModel, SavedBytes, StepBytes, count_saved_bytes
from softprompt.inference.scoring import LOGITS_CHUNK
from softprompt.models.frozen_lm import find_sliding_window
from softprompt.models.kernels.fused_layer import Layer

FLOAT = 4  # bytes of float32

# bytes of a quantized number with its share of the scales: one a row of thousands, or one in float32 for 64
PACKED = {"int8": 1.0, "bnb-int8": 1.0, "bnb-nf4": 0.5 + FLOAT / 64}


@dataclass(frozen=True)
class Activations:
    """What a training pass keeps and works with.

    Attributes:
        own: whether our own layers run.
        checkpointing: whether layers are run again instead of kept.
        passes: what layers keep of the prefix and of one text.
        prefix, text: positions ``P'`` and ``T``.
        work: bytes that the largest step between two layers needs for each position.
        logits: bytes for logits over the whole vocabulary, of as many positions as are held at once.
    """

    own: bool
    checkpointing: bool
    passes: StepBytes
    prefix: int
    text: int
    work: int
    logits: int

    def kept(self, texts: int) -> int:
        """Bytes that a pass over ``texts`` keeps between forward and backward."""
        of_prefix, of_text = self.passes.prefix, self.passes.text
        if not self.checkpointing:
            return texts * of_text.whole + (0 if of_prefix is None else of_prefix.whole)
        layers = len(of_text.layers)
        entering = texts * of_text.entering + (0 if of_prefix is None else of_prefix.entering)
        largest = texts * of_text.largest, 0 if of_prefix is None else of_prefix.largest
        again = sum(largest) if self.own else max(largest)
        return layers * entering + again

    def at_work(self, texts: int) -> int:
        """Bytes that come and go beside them, at most."""
        positions = texts * self.text, self.prefix
        # virtual tokens are read with the texts in our layers, before them elsewhere
        return max((sum(positions) if self.own else max(positions)) * self.work, self.logits)


def activations(
    meta: MetaModel,
    prefix: int,
    text: int,
    *,
    own_layers: bool,
    checkpointing: bool = False,
    generation: bool = False,
    learned_cache: bool = False,
) -> Activations:
    """What a training pass over texts of ``text`` tokens behind ``prefix`` positions keeps.

    Args:
        own_layers: whether ours run, where the model is built so: on a CPU, over weights that are no float16 and not
            quantized.
        generation: whether the loss is over the whole vocabulary.
        learned_cache: whether the prefix is keys and values that learn.

    Raises:
        BaseModelError: the model cannot be run without numbers.
    """
    size = meta.dtype.itemsize
    layers = meta.own_layers if own_layers else None
    window = find_sliding_window(meta.model.config.get_text_config())
    if layers is not None and (window is None or prefix + text <= window):
        passes = _own_passes(layers, prefix, text, size, learned_cache)
        work = max(own_work(layer, prefix + text, size) for layer in layers)
    else:
        layers, passes = None, count_saved_bytes(meta, prefix, text, given=learned_cache)
        positions = text if passes.prefix is not None else prefix + text
        # about what a layer keeps comes by again as gradient
        work = passes.text.largest // max(positions, 1)
    if passes.prefix is None:
        prefix, text = 0, prefix + text
    # in the model's dtype, in float32, their log-softmax and its gradient
    logits = LOGITS_CHUNK * meta.vocabulary_size * (2 * size + 3 * FLOAT) if generation else 0
    return Activations(layers is not None, checkpointing, passes, prefix, text, work, logits)


def own_layer(layer: Layer, seen: int, size: int) -> tuple[int, int]:
    """Bytes that our layer keeps of a position: in attention, and behind it.

    ``e (H + 2Q + 3K + N seen)``: what enters, queries and keys before and after they are turned, values, weights.
    ``e (3H + 2F)``: what attention gives, the sum, what the feed-forward part gives; gate and up.
    """
    before = layer.input_projection
    hidden, queries, keys = before.query.inputs, before.query.outputs, before.key.outputs
    heads = queries // before.size
    roots = FLOAT * (1 + (heads if before.of_query else 0) + (keys // before.size if before.of_key else 0))
    attention = size * (hidden + 2 * queries + 3 * keys + heads * seen) + roots
    return attention, size * (3 * hidden + 2 * layer.feed_forward.gate.outputs) + 3 * FLOAT


def own_work(layer: Layer, seen: int, size: int) -> int:
    """Bytes that our layer needs for a position while its gradient is computed, at most.

    The activation's gradient holds seven tensors ``F`` in float32 (two of them are there anyway in a float32 model)
    beside three in the model's dtype; that of attention five of ``N seen`` beside two.
    """
    hidden, wide = layer.input_projection.query.inputs, layer.feed_forward.gate.outputs
    weights = layer.input_projection.query.outputs // layer.input_projection.size * seen
    own = 0 if size == FLOAT else 2
    feed_forward = (5 + own) * FLOAT * wide + 3 * size * wide + 2 * size * hidden
    return max(feed_forward, weights * (2 * size + 5 * FLOAT))


def _own_passes(layers: Sequence[Layer], prefix: int, text: int, size: int, learned_cache: bool) -> StepBytes:
    of_text: list[int] = []
    of_prefix: list[int] = []
    cache = 0
    for layer in layers:
        last = layer is layers[-1]
        before = layer.input_projection
        keys = before.key.outputs
        cache += 2 * size * keys * prefix
        attention, behind = own_layer(layer, prefix + text, size)
        # behind its attention, the last layer sees one position of each text, and of the prefix none
        of_text.append(text * attention + (1 if last else text) * behind)
        attention, behind = own_layer(layer, prefix, size)
        if last:
            of_prefix.append(prefix * size * (before.query.inputs + before.query.outputs + keys))
        else:
            # its keys, turned, and its values are the cache
            of_prefix.append(prefix * (attention + behind - 2 * size * keys))
    hidden = size * layers[0].input_projection.query.inputs
    of_both = SavedBytes((0,) * len(layers), 0) if learned_cache else SavedBytes(tuple(of_prefix), prefix * hidden)
    return StepBytes(of_both, SavedBytes(tuple(of_text), text * hidden), cache)


def count_weight_bytes(meta: MetaModel, quantize: str | None) -> int:
    """Bytes of all weights."""
    size, packed = meta.dtype.itemsize, meta.in_linears if quantize else 0
    return size * (meta.parameters - packed) + round(PACKED[quantize or "int8"] * packed)
