"""Has the prompt learned training texts by heart? A difference in differences of log-likelihoods.

    gain of a text  =  log-likelihood a token behind the prompt - behind nothing
    memorisation    =  mean gain of training texts - mean gain of held-out texts

A prompt changes how well the model continues any text of the domain; what only training texts gain is what it knows of
them in particular. Held-out rows that are near duplicates of training rows are left out by the caller. A probe can show
leakage, not prove its absence: it looks at likelihoods, not at what an attacker with other means could find.
"""

from collections.abc import Sequence

import numpy as np
import torch

from softprompt.analysis.inspection.inspection_records import Memorization
from softprompt.analysis.inspection.score_records import measure_losses
from softprompt.data.encoding.encoder import EncodedSequence
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.errors import DataError
from softprompt.inference.chat_answers import make_bare_state
from softprompt.inference.scoring import AnswerScorer
from softprompt.metrics import hypothesis_tests
from softprompt.metrics.bootstrap import Floats
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.prefix import make_prefix
from softprompt.prompts.state import PromptState
from softprompt.prompts.text_encoder import make_text_encoder

FEWEST = 10  # texts on each side


def measure_memorization(
    base: FrozenLM,
    spec: TaskSpec,
    state: PromptState,
    train: Sequence[Example],
    held_out: Sequence[Example],
    *,
    same_data: bool,
) -> Memorization:
    """Compare what training and held-out texts gain: the texts themselves, or the outputs that were learned.

    Raises:
        DataError: too few texts on a side, or an encoder-decoder model for classification, which completes no texts.
    """
    what = "outputs" if spec.kind == "generation" else "texts"
    if base.architecture == "encoder-decoder" and spec.kind == "classification":
        raise DataError("an encoder-decoder model does not complete the texts that it reads")
    trained, other = (_gains(base, spec, state, some) for some in (train, held_out))
    if min(len(trained), len(other)) < FEWEST:
        raise DataError(
            f"expected at least {FEWEST} training and {FEWEST} held-out {what}, got {len(trained)} and {len(other)}"
        )
    return Memorization(
        what=what,
        trained=hypothesis_tests.bootstrap_mean(trained),
        held_out=hypothesis_tests.bootstrap_mean(other),
        difference=hypothesis_tests.mean_difference(trained, other),
        auc=hypothesis_tests.area_under_roc_curve(trained, other),
        same_data=same_data,
    )


def _gains(base: FrozenLM, spec: TaskSpec, state: PromptState, examples: Sequence[Example]) -> Floats:
    """Gain of each text, nats a token; texts of a single token have none."""
    encoder = make_text_encoder(base, spec, [state])
    if spec.kind == "generation":
        items = encoder.training_items(examples)
    else:
        # the first token is left out: some models have nothing in front of it
        texts = [ids for ids in encoder.encode_texts(examples) if len(ids) > 1]
        items = [
            EncodedSequence(i, ids[:-1], tuple(range(len(ids) - 1)), targets=ids[1:]) for i, ids in enumerate(texts)
        ]
    if not items:
        return np.zeros(0)
    with torch.no_grad():
        prefix = make_prefix(base, make_bare_state(base, spec), state)
    losses = measure_losses(AnswerScorer(base, None), prefix, items, 2, len(items))
    gains: Floats = losses[0] - losses[1]
    return gains
