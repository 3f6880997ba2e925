"""Multitask prompt tuning (Wang, Panda, Karlinsky, Feris, Sun and Kim 2023), the parametrisation; see ../multitask.py.

    prompt of task k = shared * (u_k v_k^T),   shared [P, H] for all tasks, u_k [P] and v_k [H] for each

The shared matrix carries what the tasks have in common, the rank-one matrices what is a task's own; each task folds
to a plain prompt. Deviations from the paper: ``shared`` is ``init + unit * theta`` with ``theta`` from zero, and the
rank-one matrices start at one, so every task starts at the words of ``init``.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from softprompt.prompts.state import PromptState

# a factor of every value of a virtual token is learned in smaller steps than the values
FACTOR_RATE = 0.1


class MultitaskPrompt(nn.Module):
    """One shared prompt and a rank-one matrix for each task."""

    init: Tensor

    def __init__(self, init: Tensor, unit: float, tasks: int) -> None:
        """``init``: ``[P, H]``; ``unit``: what one step of the shared prompt is worth; ``tasks``: how many."""
        super().__init__()
        self.unit = unit
        self.register_buffer("init", init.detach().float().clone(), persistent=True)
        self.theta = nn.Parameter(torch.zeros_like(self.init))
        # one beside the learned part: it starts at zero, as everything that learns
        self.rows = nn.Parameter(torch.zeros(tasks, init.shape[0]))
        self.columns = nn.Parameter(torch.zeros(tasks, init.shape[1]))

    def read_state(self, task: int) -> PromptState:
        """The prompt ``[P, H]`` of one task, float32, with gradient to what it shares and what is its own."""
        shared = self.init + self.unit * self.theta
        return PromptState.of_embeddings(shared * (1 + self.rows[task])[:, None] * (1 + self.columns[task]))

    def rate_factors(self) -> Mapping[str, float]:
        """The rank-one matrices learn in smaller steps."""
        return {"rows": FACTOR_RATE, "columns": FACTOR_RATE}
