"""How a prompt learned: a record of each evaluation, as ``history.jsonl`` keeps them."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from softprompt.utils.notebook_display import Displayed
from softprompt.utils.pandas_tables import make_table
from softprompt.utils.summaries import summarize

if TYPE_CHECKING:
    from pandas import DataFrame


def parse_history(content: bytes, chosen: str | None = None) -> list[dict[str, float]]:
    """The records of a ``history.jsonl``; of several prompts that learned together, those of the ``chosen`` one.

    What is no record is left out: anybody may have written into that file.
    """
    records = []
    for line in content.decode(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and (chosen is None or record.get("name") == chosen):
            numbers = {str(k): float(v) for k, v in record.items() if isinstance(v, int | float) and math.isfinite(v)}
            records.append(numbers)
    return records


@dataclass(frozen=True, repr=False)
class TrainingHistory(Displayed):
    """Evaluations while a prompt learned, the first step first.

    Attributes:
        records: each with ``step``, ``train_loss`` (mean of the ``train_loss_steps`` before), ``value`` (the metric on
            validation) and ``validation_loss``, as far as they are known.
        metric: what ``value`` is; ``None`` where it is minus the loss.
        best_step: the step whose prompt was kept.
    """

    records: tuple[Mapping[str, float], ...]
    metric: str | None = None
    best_step: int | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Mapping[str, float]]:
        return iter(self.records)

    def __getitem__(self, index: int) -> Mapping[str, float]:
        return self.records[index]

    def __repr__(self) -> str:
        last = self.records[-1] if self.records else {}
        losses = {name: last.get(name) for name in ("train_loss", "validation_loss")}
        steps = None if "step" not in last else int(last["step"])
        value = {} if self.metric is None else {f"validation_{self.metric}": last.get("value")}
        return summarize(self, f"{len(self)} evaluations", last_step=steps, best_step=self.best_step, **losses, **value)

    def to_pandas(self) -> "DataFrame":
        """A row for each evaluation: ``step``, ``train_loss``, ``validation_loss``, ``validation_METRIC``, ``best``.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        value = {} if self.metric is None else {f"validation_{self.metric}": "value"}
        named = {"train_loss": "train_loss", "validation_loss": "validation_loss", **value}
        rows: list[dict[str, Any]] = [
            {
                "step": int(record.get("step", 0)),
                **{name: record.get(key, math.nan) for name, key in named.items()},
                "best": record.get("step") == self.best_step,
            }
            for record in self.records
        ]
        return make_table(rows, {"step": "int64", **dict.fromkeys(named, "float64"), "best": "bool"})
