"""Full fine-tuning: every weight of the model learns, in a copy of it.

On a base in bfloat16 the copy computes in bfloat16 and learns in float32: with Adam's two averages and the gradients
that makes 16 to 18 bytes a parameter. A base in float16 is tuned and served in float32, for its small gradients vanish.
"""

import time
from pathlib import Path

import torch

from softprompt.base import FrozenLM
from softprompt.baselines.copies import with_own_weights
from softprompt.baselines.fitted import Fitted, bytes_of, described
from softprompt.baselines.tuned import TunedConfig, limited, tune
from softprompt.converted import no_progress_bars
from softprompt.errors import BaseModelError
from softprompt.folders import check_free, new_folder, write_durably
from softprompt.generate import Sampling
from softprompt.predict import Predictor
from softprompt.task import Task
from softprompt.train import Observer, check_trainable

RATE = 2e-5


def fit_full(
    base: FrozenLM, task: Task, config: TunedConfig, observer: Observer, *, sampling: Sampling | None = None
) -> Fitted:
    """Tune a copy of the whole model; ``save`` writes it with its tokenizer, for ``from_pretrained``.

    Args:
        sampling: how completions are made (generation).

    Raises:
        BaseModelError: the base is quantised.
        DataError, TemplateError: the data cannot be used.
        TrainingError: the loss is no longer a number.
    """
    began = time.perf_counter()
    if base.quantisation is not None:
        raise BaseModelError(
            f"full fine-tuning needs a base model with plain weights, '{base.name}' is quantised ({base.quantisation}):"
            " load it without --quantise, or use LoRA"
        )
    task = limited(task, config)
    check_trainable(task)
    own = with_own_weights(base)
    if base.dtype == torch.float16:
        own.float()
    learning = FrozenLM(own, base.tokenizer, base.name, lasting=False)
    tuning = tune(learning, task, config, list(own.parameters()), observer, default_rate=RATE, began=began)
    model = FrozenLM(own, base.tokenizer, base.name)

    def save(folder: Path) -> None:
        check_free(folder)
        with new_folder(folder) as place, no_progress_bars():
            own.save_pretrained(place)
            base.tokenizer.save_pretrained(place)
            write_durably(place / "task.json", described(base, task.spec))

    return tuning.fitted(Predictor(model, task.spec, None, sampling), base_bytes=0, task_bytes=bytes_of(own), save=save)
