"""A checkpoint with baked prompts as a server in front of an engine knows it."""

from collections.abc import Mapping
from typing import Any

from softprompt.data.encoding.placement import Placement
from softprompt.engines.exported_model import ExportedModel
from softprompt.errors import PromptFileError
from softprompt.export.export_readme import list_front, read_placement
from softprompt.prompts.saved_prompt import Prompt


class BakedCheckpoint(ExportedModel):
    """A folder of ``--format vocab``; see ``ExportedModel``."""

    def _read_tasks(self, usage: Mapping[str, Any]) -> None:
        self._tasks = {
            str(task["digest"]): (
                str(name),
                read_placement(task),
                tuple(int(one) for one in task["ids"]),
                tuple(int(one) for one in task.get("label_ids", ())),
            )
            for name, task in usage["tasks"].items()
        }

    @property
    def names(self) -> list[str]:
        """Of the baked tasks."""
        return [name for name, *_ in self._tasks.values()]

    def front(self, digest: str, placement: Placement | None = None) -> tuple[int, ...]:
        """See ``ExportedModel``."""
        if digest not in self._tasks:
            raise PromptFileError(
                f"it is none of the prompts in the checkpoint ({', '.join(self.names)}): bake it with softprompt "
                "export --format vocab, and restart the engine and this server on the new checkpoint"
            )
        _, place, virtual, _ = self._tasks[digest]
        return list_front(self.special_tokens.bos, placement or place, virtual)

    def label_ids(self, digest: str) -> tuple[int, ...]:
        """See ``ExportedModel``."""
        return self._tasks[digest][-1]

    def request_fields(self, digest: str) -> Mapping[str, Any]:
        """None: token ids say all."""
        return {}

    def check(self, prompt: Prompt) -> None:
        """Raise PromptFileError unless ``prompt``, as it is, was baked."""
        self.front(prompt.digest)
