"""A second reference: plain transformers on the tokens of `tokenizer(text)`, in every family that softprompt takes.

Nothing of softprompt computes the right values here: the model's own forward pass reads the embeddings of BOS, the
virtual tokens and the tokens of the whole filled-in template, one text at a time and without a cache.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from softprompt.analysis.diagnostics.tiny_models import BOS, ENCODER_DECODERS, EOS, FAMILIES, PAD, make_family_model
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.errors import BaseModelError
from softprompt.inference.generation import GenerationConfig
from softprompt.inference.predictor import Predictor
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.state import PromptState

TURNS = f"{PAD}user\n{{{{ text }}}}{EOS}\n{PAD}model:"
TEXTS = ("bad", "a good film and a great story, " * 3, "the film is good", f"is {EOS}{BOS} dull")
VERBALIZERS = ("good", "bad", "good story")
NEW, PROMPT = 6, 5


class Plain:
    """One family's model as transformers has it, behind virtual tokens."""

    def __init__(self, family: str) -> None:
        self.model, self.tokenizer = make_family_model(family)
        self.apart = family in ENCODER_DECODERS
        self.embed = self.model.get_input_embeddings()
        self.scale = (getattr(self.model.get_encoder(), "embed_scale", None) or 1.0) if self.apart else 1.0
        generator = torch.Generator().manual_seed(5)
        every = self.embed(torch.arange(300)) * self.scale
        self.prompt = torch.randn(PROMPT, every.shape[1], generator=generator) * every.std()

    def ids(self, text: str) -> list[int]:
        """Of the filled-in template, with what a text spells read as plain words."""
        before, after = TURNS.split("{{ text }}")
        words = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        if "<" in text:
            # a turn mark stands on neither side of the text's own words
            head = self.tokenizer(before + "x", add_special_tokens=False).input_ids[:-1]
            return [*head, *words, *self.tokenizer(after, add_special_tokens=False).input_ids]
        return list(self.tokenizer(TURNS.replace("{{ text }}", text), add_special_tokens=False).input_ids)

    def next(self, text: list[int], answer: list[int]) -> Tensor:
        """Logits of the token that follows a text and the beginning of an answer."""
        whole = self.tokenizer("").input_ids
        front, back = (whole[:1], whole[1:]) if whole and self.tokenizer.bos_token_id == whole[0] else ([], whole)
        read = [*text, *(back if self.apart else answer)]
        first, last = (self.embed(torch.tensor(ids, dtype=torch.long)) * self.scale for ids in (front, read))
        given: dict[str, Any] = {"inputs_embeds": torch.cat([first, self.prompt, last])[None]}
        if self.apart:
            start = [self.model.config.decoder_start_token_id, *front]
            given["decoder_input_ids"] = torch.tensor([[*start, *answer]])
        logits: Tensor = self.model(**given, use_cache=False).logits[0, -1].float()
        return logits

    def probabilities(self, text: list[int], answers: list[list[int]]) -> Tensor:
        """Of answers, when decoding is held to them: at each step among the tokens that go on with one of them."""
        end = self.tokenizer.eos_token_id
        closed = [
            [*one, end] if any(other != one and other[: len(one)] == one for other in answers) else one
            for one in answers
        ]
        found = torch.ones(len(closed))
        for index, one in enumerate(closed):
            for step, token in enumerate(one):
                choices = sorted({other[step] for other in closed if other[:step] == one[:step] and len(other) > step})
                if len(choices) > 1:
                    shares = self.next(text, one[:step])[choices].softmax(-1)
                    found[index] *= shares[choices.index(token)]
        return found

    def greedy(self, text: list[int]) -> str:
        made: list[int] = []
        while len(made) < NEW and (not made or made[-1] != self.tokenizer.eos_token_id):
            made.append(int(self.next(text, made).argmax()))
        return str(self.tokenizer.decode(made, skip_special_tokens=True)).strip()


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_probabilities_and_completions_are_those_of_plain_transformers(family: str) -> None:
    plain = Plain(family)
    try:
        base = FrozenLM(*make_family_model(family), family)
    except BaseModelError:
        pytest.skip("refused when loading")
    state = PromptState.of_embeddings(plain.prompt)
    examples = [Example(text) for text in TEXTS]
    texts = [plain.ids(text) for text in TEXTS]
    spec = TaskSpec("classification", TURNS, ("a", "b", "c"), VERBALIZERS)
    predictor = Predictor(base, spec, state)
    assert [list(ids) for ids in predictor.encoder.encode_texts(examples)] == texts
    front = "" if plain.apart else "model:"
    head = plain.tokenizer(front, add_special_tokens=False).input_ids
    gap = "" if plain.apart else spec.answer_separator
    answers = [
        plain.tokenizer(f"{front}{gap}{one}", add_special_tokens=False).input_ids[len(head) :] for one in VERBALIZERS
    ]
    found = predictor.label_log_probabilities(examples).exp()
    expected = torch.stack([plain.probabilities(text, answers) for text in texts])
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    words = Predictor(base, TaskSpec("generation", TURNS), state, GenerationConfig(max_new_tokens=NEW))
    completions = {one.index: str(one.completion).strip() for one in words.predict(examples)}
    assert [completions[index] for index in range(len(texts))] == [plain.greedy(text) for text in texts]
