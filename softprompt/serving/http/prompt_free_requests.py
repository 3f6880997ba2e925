"""The base model in a prompt's place, on the same task: by its template, a written instruction, or the bare text."""

import hashlib
from dataclasses import replace
from functools import lru_cache

from softprompt.data.task import TaskSpec
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.written_prompt import written_prompt
from softprompt.serving.engine.engine_types import ServedPrompt
from softprompt.serving.engine.prompt_registry import BARE_TEMPLATE, BaseModelInfo
from softprompt.serving.http.http_errors import ApiError
from softprompt.serving.http.schemas import Baseline

KEPT = 256  # tasks whose form with the bare text is kept


class BaselinePrompts:
    """What prompts are compared with, on one base model."""

    def __init__(self, base: BaseModelInfo) -> None:
        self._base = base

    def of(self, served: ServedPrompt, asked: Baseline) -> ServedPrompt:
        """The task of ``served`` without its learned prompt. From any thread; takes as long as an instruction does.

        Raises:
            ApiError: an instruction, where the model runs elsewhere.
        """
        spec = served.spec if asked.template else _bare(served.spec)
        words = asked.instruction or ""
        state = None
        if words:
            if not isinstance(self._base, FrozenLM):
                why = "instructions need the model in the server's own process, which here runs in vLLM"
                raise ApiError(422, "no_instruction", f"{why}: write it into the text", param="baseline.instruction")
            state = written_prompt(self._base, spec, words)
        form = hashlib.sha256(f"{asked.template} {words}".encode()).hexdigest()[:16]
        return ServedPrompt(f"{served.key} as {form}", spec, () if state is None else (state,))


@lru_cache(KEPT)
def _bare(spec: TaskSpec) -> TaskSpec:
    return replace(spec, template=BARE_TEMPLATE)
