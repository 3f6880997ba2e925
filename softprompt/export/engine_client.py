"""The side of whoever calls an engine: a user's text to token ids and requests, and answers back to labels.

Nothing here loads a model. What a user writes never becomes a special token, virtual tokens included: the text is
tokenised apart, as plain text, and sent as token ids.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from softprompt.data.chats.message_parsing import parse_conversation
from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.encoding.placement import Placement
from softprompt.data.encoding.special_tokens import SpecialTokens
from softprompt.data.encoding.verbalizer import Verbalizer, end_of_turn
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.errors import ConfigError, PromptFileError
from softprompt.export.export_readme import USAGE_FILE, list_front, read_placement, read_usage
from softprompt.inference.chat_answers import find_beginning
from softprompt.prompts.state import PromptState

TIMEOUT = 600  # seconds until an engine must have answered

Asked = str | Sequence[Mapping[str, Any]]  # a text, which is what a user says in a conversation; or messages


@dataclass(frozen=True)
class _KnownOfBase:
    """The part of a base model that turns texts into tokens."""

    tokenizer: Any
    special_tokens: SpecialTokens
    context_length: int | None
    architecture: str = "decoder-only"


class Tasks:
    """The tasks of a checkpoint with baked prompts.

    Attributes:
        names: of the tasks.
        never: token ids that must never be generated.
    """

    _ENDPOINT = "completions"
    _INPUT = "ids"

    def __init__(self, tokenizer: Any, usage: Mapping[str, Any]) -> None:
        """Take what ``softprompt.json`` says.

        Raises:
            PromptFileError: it says something else.
        """
        self._tokenizer = tokenizer
        if (kind := usage.get("input", "ids")) != self._INPUT:
            raise PromptFileError(
                f"these prompts reach an engine as {kind}, not as {self._INPUT}: read them with "
                + ("softprompt.export.vllm_embeddings.EmbeddedTasks" if kind == "parts" else "Tasks")
            )
        try:
            bos = tuple(int(one) for one in usage["bos_ids"])
            self._known = known = _KnownOfBase(tokenizer, SpecialTokens(bos), usage["context_length"])
            self.never: tuple[int, ...] = tuple(usage.get("never_generate", ()))
            self._encoders: dict[str, ExampleEncoder] = {}
            self._virtual: dict[str, tuple[int, ...]] = {}
            self._states: dict[str, PromptState] = {}
            self._label_ids: dict[str, tuple[int, ...]] = {}
            self._keys: dict[str, str] = {}
            for name, task in usage["tasks"].items():
                spec = TaskSpec.from_dict(task["task"])
                place, self._virtual[name] = read_placement(task), tuple(int(one) for one in task.get("ids", ()))
                # what stands there is the engine's
                self._states[name] = PromptState("embeddings", (torch.zeros(int(task["length"]), 1),), place)
                labels = tuple(int(one) for one in task.get("label_ids", ()))
                if labels and len(labels) != len(spec.labels):
                    raise ValueError(f"{len(labels)} tokens for {len(spec.labels)} labels")
                self._encoders[name] = ExampleEncoder(known, spec, task["length"], label_ids=labels)
                self._label_ids[name] = labels
                if "key" in task:
                    self._keys[name] = str(task["key"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PromptFileError(f"{USAGE_FILE} lacks or misuses {error}: export the prompts again") from error

    @classmethod
    def load(cls, folder: str | Path) -> "Tasks":
        """The tasks of an exported folder; raises PromptFileError if it is none."""
        from transformers import AutoTokenizer

        usage = read_usage(Path(folder))
        return cls(AutoTokenizer.from_pretrained(folder), usage)

    @property
    def names(self) -> list[str]:
        return list(self._encoders)

    def ids(self, task: str, text: Asked, **columns: Any) -> list[int]:
        """BOS, virtual tokens and the template around ``text`` as token ids; the text is cut to the task's length.

        Args:
            text: of a prompt that was learned from conversations also the messages of one, as OpenAI has them.
            columns: what the template uses beside ``{{ text }}``; of messages the ``tools`` that they offer.

        Raises:
            ConfigError: messages for a prompt that was learned from single texts, or that begin as none that a prompt
                of keys and values was learned with.
            DataError: messages that are no conversation, or that the chat template refuses.
        """
        place, ids = self._encode(task, text, columns)
        if task in self._keys and place.before != self._states[task].placement.before:
            raise ConfigError(
                f"these messages do not begin as those that '{task}' was learned with, behind which its keys and "
                "values were computed: leave the system message out"
            )
        return [*list_front(self._known.special_tokens.bos, place, self._virtual[task]), *ids]

    def text_ids(self, task: str, text: Asked, **columns: Any) -> list[int]:
        """``ids`` behind BOS, virtual tokens and all that is the same in front of every text.

        Raises:
            ConfigError, DataError: as ``ids``, and for messages that do not begin as all others do.
        """
        place, ids = self._encode(task, text, columns)
        if place != self._states[task].placement:
            raise ConfigError(
                f"these messages do not begin as those that '{task}' was learned with: leave system message and tools "
                "out, which stand among the rows of this export"
            )
        return ids

    def _encode(self, task: str, text: Asked, columns: Mapping[str, Any]) -> tuple[Placement, list[int]]:
        """What stands around the virtual tokens in front of a text, and the text."""
        encoder = self._encoders[self._check_known(task)]
        state = self._states[task]
        if isinstance(text, str):
            return state.placement, list(encoder.encode_texts([Example(text, columns=columns)])[0])
        if encoder.spec.chat is None:
            raise ConfigError(f"task '{task}' was learned from single texts, not from conversations: give a text")
        example = Example("", conversation=parse_conversation(text, columns.get("tools")).without_answer())
        found = find_beginning(self._known, encoder.spec, [state], example.conversation)
        if found.name:
            state, encoder = found.states[0], ExampleEncoder(self._known, found.spec, state.length)
        return state.placement, list(encoder.encode_texts([example])[0])

    def request(self, task: str, text: Asked, *, model: str, max_tokens: int = 64, **columns: Any) -> dict[str, Any]:
        """The body of a request to vLLM: greedy, and held to the labels if the task has some.

        Of ``/v1/completions``, or of ``/v1/chat/completions`` for ``EmbeddedTasks``.
        """
        return {
            "model": model,
            **self._make_input(task, text, columns),
            "temperature": 0,
            **self._restrict_answer(task, max_tokens),
        }

    def labels(self, task: str) -> list[int]:
        """The tokens that the task's labels begin with, if the first one tells them apart.

        Raises:
            ConfigError: the task has no labels, or they part later: hold answers to their words instead.
        """
        verbalizer = self._encoders[self._check_known(task)].verbalizer
        if verbalizer is None or not _is_told_at_once(verbalizer):
            raise ConfigError(f"task '{task}' has no labels that their first token tells apart: see Tasks.request")
        return list(verbalizer.rows)

    def answer(self, task: str, completion: str) -> str:
        """The label that a completion stands for; of a task without labels the completion, without blanks around it."""
        words = completion.strip()
        return self._list_answers(task).get(words, words)

    def ask(self, url: str, task: str, text: Asked, *, model: str, **options: Any) -> str:
        """One request to the engine at ``url`` (``http://host:port/v1``), and its answer.

        Raises:
            ConfigError: nothing answers there, or it refuses.
        """
        body = self.request(task, text, model=model, **options)
        request = urllib.request.Request(
            f"{url.rstrip('/')}/{self._ENDPOINT}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
            method="POST",
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                completion = self._read_completion(body, json.load(response))
        except urllib.error.HTTPError as error:
            with error:
                reason = error.read(2000).decode(errors="replace")
            raise ConfigError(f"the engine at {url} refuses: {reason}") from error
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise ConfigError(f"no answer from {url}: {error}; expected an OpenAI-compatible server there") from error
        return self.answer(task, completion)

    def _read_completion(self, asked: Mapping[str, Any], answered: Any) -> str:
        """What an answer of the engine says."""
        return str(answered["choices"][0]["text"])

    def _make_input(self, task: str, text: Asked, columns: Mapping[str, Any]) -> dict[str, Any]:
        key = self._keys.get(task)
        named = {} if key is None else request_fields(key)
        return {"prompt": self.ids(task, text, **columns), **named}

    def _check_known(self, task: str) -> str:
        if task not in self._encoders:
            raise ConfigError(f"unknown task '{task}': expected one of {', '.join(self._encoders)}")
        return task

    def _restrict_answer(self, task: str, max_tokens: int) -> dict[str, Any]:
        """What keeps an answer to the labels, or off the virtual tokens."""
        spec, verbalizer = self._encoders[task].spec, self._encoders[task].verbalizer
        if verbalizer is None:
            bias = {"logit_bias": {str(one): -100 for one in self.never}} if self.never else {}
            end = end_of_turn(self._tokenizer, spec)
            return {"max_tokens": max_tokens, **bias, **({} if end is None else {"stop_token_ids": [end]})}
        if _is_told_at_once(verbalizer):
            # the labels part at their first token, which is then all that is asked
            # tokens of labels are shown as what they are called
            shown = {"skip_special_tokens": False} if self._label_ids[task] else {}
            return {"max_tokens": 1, "allowed_token_ids": self.labels(task), **shown}
        longest = max(len(sequence) for sequence in verbalizer.sequences)
        words = [spec.answer_separator + words for words in spec.verbalizers]
        return {"max_tokens": longest + 1, "structured_outputs": {"choice": words}}

    def _list_answers(self, task: str) -> dict[str, str]:
        """Label by what a completion may say."""
        spec, verbalizer = self._encoders[self._check_known(task)].spec, self._encoders[task].verbalizer
        said = {words.strip(): label for label, words in zip(spec.labels, spec.verbalizers, strict=True)}
        if verbalizer is not None and _is_told_at_once(verbalizer):
            decision = verbalizer.decisions[0]
            for label, choice in decision.choice_of_label.items():
                said[self._tokenizer.decode([decision.choices[choice]]).strip()] = spec.labels[label]
        return said


def request_fields(key: str) -> dict[str, Any]:
    """What names a prompt of keys and values in a request of vLLM, and keeps its cache apart from those of others."""
    return {"kv_transfer_params": {"softprompt": key}, "cache_salt": key}


def _is_told_at_once(verbalizer: Verbalizer) -> bool:
    """Whether the first token of an answer tells its label."""
    return [decision.path for decision in verbalizer.decisions] == [()]
