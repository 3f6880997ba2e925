"""The contract of prompts in conversations: however they are read, the same conversation has the same logits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.chat_models import CHAT_FAMILIES, WITHOUT_SYSTEM, chat_base, chat_template
from helpers.chat_prompts import (
    LINES,
    LONG,
    SHORT,
    SYSTEM,
    TOOL,
    WITH_CALLS,
    chat_prompt,
    example_of,
    spelling_marks,
    takes_tools,
)
from helpers.learned_prompts import CLOSE
from torch import Tensor

from softprompt.data.chats.chat_format import PLACEMENTS
from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.examples import Example
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.prefix import front_ids, make_concatenated_prefix, make_prefix, read_one_more
from softprompt.prompts.saved_prompt import Prompt
from softprompt.store.prompt_loading import load_prompt

NO_KEYS = ("deepseekv3", "key_values")
ASKED = (SHORT, LONG, LINES)


def prompts_of(family: str, kind: str) -> list[Prompt]:
    """In the three places, beside a system prompt, an empty one and none, and where each brings its own."""
    system = None if family in WITHOUT_SYSTEM else SYSTEM
    return [
        chat_prompt(family, kind, placement="system-start", system=system),
        chat_prompt(family, kind, placement="system-end", system=system, seed=2, length=3),
        chat_prompt(family, kind, placement="first", system=system, seed=3),
        chat_prompt(family, kind, system="", seed=4),
        chat_prompt(family, kind, placement="first", shared=False, seed=5, length=6),
    ]


def read_texts(base: FrozenLM, prompt: Prompt, examples: list[Example]) -> list[tuple[int, ...]]:
    return ExampleEncoder(base, prompt.spec, prompt.state.length).encode_texts(examples)


def examples_of(family: str, prompt: Prompt) -> list[Example]:
    found = [example_of(one) for one in (*ASKED, spelling_marks(family))]
    if takes_tools(family) and prompt.spec.chat is not None and not prompt.spec.chat.shared:
        found.append(example_of(WITH_CALLS, [TOOL]))
    return found


def pad(texts: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, texts))
    ids = torch.tensor([[*text, *[1] * (width - len(text))] for text in texts])
    return ids, torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])


@torch.no_grad()
def last_logits(base: FrozenLM, prefix: Any, texts: list[tuple[int, ...]], which: Tensor | None = None) -> Tensor:
    ids, mask = pad(texts)
    hidden = prefix.hidden(ids, mask, which)
    return base.logits(hidden[torch.arange(len(texts)), mask.sum(dim=1) - 1])


@torch.no_grad()
def plain_logits(base: FrozenLM, prompt: Prompt, text: tuple[int, ...]) -> Tensor:
    """By transformers alone: all that stands around the virtual tokens as ids, these as embeddings."""
    place, embed = prompt.state.placement, base.model.get_input_embeddings()
    before, behind = (
        embed(torch.tensor(ids, dtype=torch.long)) for ids in (front_ids(base, place), (*place.behind, *text))
    )
    rows = torch.cat([before, prompt.state.tensor.to(behind.dtype), behind])[None]
    model: Any = base.model
    logits: Tensor = model(inputs_embeds=rows).logits[0, -1].float()
    return logits


# DeepSeek's keys and values are of different sizes, which prompts of them are refused for
@pytest.mark.parametrize(
    ("family", "kind"),
    [(one, kind) for one in CHAT_FAMILIES for kind in ("embeddings", "key_values") if (one, kind) != NO_KEYS],
)
class TestFamilies:
    def test_alone_padded_mixed_saved_and_token_by_token(self, family: str, kind: str, tmp_path: Path) -> None:
        base, prompts = chat_base(family), prompts_of(family, kind)
        mixed: list[tuple[int, tuple[int, ...], Tensor]] = []
        for number, prompt in enumerate(prompts):
            prefix = make_prefix(base, prompt.state)
            texts = read_texts(base, prompt, examples_of(family, prompt))
            alone = torch.cat([last_logits(base, prefix, [text]) for text in texts])
            torch.testing.assert_close(last_logits(base, prefix, texts), alone, **CLOSE)
            if kind == "embeddings":
                concatenated = last_logits(base, make_concatenated_prefix(base, prompt.state), texts)
                torch.testing.assert_close(concatenated, alone, **CLOSE)
                if base.embedding_scale == 1:
                    plain = torch.stack([plain_logits(base, prompt, text) for text in texts])
                    torch.testing.assert_close(plain, alone, **CLOSE)
            saved = load_prompt(prompt.save(tmp_path / str(number)))
            assert saved.spec == prompt.spec
            assert saved.state.placement == prompt.state.placement
            assert read_texts(base, saved, examples_of(family, saved)) == texts
            torch.testing.assert_close(last_logits(base, make_prefix(base, saved.state), texts), alone, **CLOSE)
            mixed += [(number, text, logits) for text, logits in zip(texts, alone, strict=True)]
        together = make_prefix(base, *(prompt.state for prompt in prompts))
        which = torch.tensor([number for number, _, _ in mixed])
        logits = last_logits(base, together, [text for _, text, _ in mixed], which)
        torch.testing.assert_close(logits, torch.stack([one for _, _, one in mixed]), **CLOSE)

    @torch.no_grad()
    def test_turn_by_turn_behind_the_cache(self, family: str, kind: str, tmp_path: Path) -> None:
        base, prompt = chat_base(family), chat_prompt(family, kind)
        prefix: Any = make_prefix(base, prompt.state)
        (text,) = read_texts(base, prompt, [example_of(LONG)])
        ids, mask = pad([text])
        which = torch.zeros(1, dtype=torch.long)
        cache = prefix.expand(which)
        start = len(text) - 3
        prefix.hidden(ids[:, :start], mask[:, :start], which, cache)
        for place in range(start, len(text)):
            seen = torch.cat([prefix.mask(which), mask[:, : place + 1]], dim=1)
            last = read_one_more(base, ids[:, place], seen, prefix.starts(which) + place, cache)
        torch.testing.assert_close(base.logits(last), last_logits(base, prefix, [text]), **CLOSE)


@pytest.mark.parametrize(
    ("family", "source", "day"),
    [
        ("gptoss", chat_template("gptoss"), "2025-03-09"),
        ("llama3_1", chat_template("llama3_1").replace('"26 Jul 2024"', 'strftime_now("%d %b %Y")'), "09 Mar 2025"),
    ],
)
def test_the_day_of_learning_stays(family: str, source: str, day: str) -> None:
    base, prompt = chat_base(family), chat_prompt(family, template=source)
    assert "strftime_now(" in source
    assert prompt.spec.chat is not None
    assert "strftime_now(" not in prompt.spec.chat.template.replace("strftime_now is defined", "")
    place = prompt.state.placement
    written = base.tokenizer.decode([*front_ids(base, place), *place.behind])
    assert day in written


@pytest.mark.parametrize("family", [one for one in CHAT_FAMILIES if one not in WITHOUT_SYSTEM])
@pytest.mark.parametrize("place", PLACEMENTS)
def test_an_empty_system_message_is_that_of_the_template(family: str, place: Any) -> None:
    base = chat_base(family)
    empty, none = (chat_prompt(family, placement=place, system=system) for system in ("", None))
    # inside the turn there is one anyway; before it none is the template's own
    assert empty.state.placement == none.state.placement
    assert read_texts(base, replace(empty, states=none.states), [example_of(SHORT)]) == read_texts(
        base, none, [example_of(SHORT)]
    )
