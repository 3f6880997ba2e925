"""Position encodings that change with the length of a batch: no text's answer depends on what stands beside it."""

import copy
from typing import Any

import pytest
import torch
from helpers.told import told_lines
from transformers import (
    BigBirdPegasusConfig,
    BigBirdPegasusForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
)

from softprompt.analysis.diagnostics.doctor import diagnose
from softprompt.analysis.diagnostics.tiny_models import EOS, VOCABULARY, make_family_tokenizer
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.inference.generation import GenerationConfig
from softprompt.inference.predictor import Predictor
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.state import PromptState
from softprompt.report.pages.diagnosis_page import make_diagnosis_document

SPARSE = "block_sparse"
PROMPT, THRESHOLD, STATED = 5, 32, 128
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 5.0, 9.0, 20.0]}
SPEC = TaskSpec("classification", "{{ text }}\nLabel:", ("good", "bad"), ("good", "bad"), max_length=100)
LONG = "a good film and a great story, " * 3
TEXTS = ("bad", LONG, "the film is good", "a dull story")


def model_of(name: str) -> Any:
    """A model whose positions change beyond THRESHOLD, its other sizes the same."""
    torch.manual_seed(3)
    if name == "dynamic":
        rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
        model: Any = LlamaForCausalLM(LlamaConfig(**SIZES, max_position_embeddings=THRESHOLD, rope_parameters=rope))
    elif name == "phi3":
        model = Phi3ForCausalLM(
            Phi3Config(
                **SIZES,
                max_position_embeddings=STATED,
                original_max_position_embeddings=THRESHOLD,
                rope_parameters={**LONGROPE, "rope_theta": 10000.0},
            )
        )
    else:
        rope = {**LONGROPE, "rope_theta": 10000.0, "original_max_position_embeddings": THRESHOLD}
        rope |= {"short_mscale": 1.0, "long_mscale": 1.2, "factor": STATED / THRESHOLD}
        sizes = {**SIZES, "num_local_experts": 4}
        model = PhimoeForCausalLM(PhimoeConfig(**sizes, max_position_embeddings=STATED, rope_parameters=rope))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(1.5 * torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5)
    return model.eval()


def alone(model: Any, tokenizer: Any, prompt: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """Logits of the next token, of plain transformers: virtual tokens and one text."""
    embed = model.get_input_embeddings()
    whole = torch.cat(
        [embed(torch.tensor(tokenizer("").input_ids, dtype=torch.long)), prompt, embed(torch.tensor(ids))]
    )
    return model(inputs_embeds=whole[None]).logits[0, -1]


@pytest.mark.parametrize("name", ["phi3", "phimoe", "dynamic"])
class TestPositionsThatChangeWithTheLength:
    @torch.no_grad()
    def test_short_and_long_side_by_side_are_what_the_model_says_of_each_alone(self, name: str) -> None:
        tokenizer = make_family_tokenizer("phi3")
        plain, base = model_of(name), FrozenLM(model_of(name), tokenizer, name)
        prompt = torch.randn(PROMPT, 32)
        predictor = Predictor(base, SPEC, PromptState.of_embeddings(prompt))
        examples = [Example(text) for text in TEXTS]
        found = predictor.label_log_probabilities(examples).exp()
        choices = torch.tensor([tokenizer(f":{separated}").input_ids[1] for separated in (" good", " bad")])
        whole = [tokenizer(f"{text}\nLabel:").input_ids for text in TEXTS]
        cut = [list(ids) for ids in predictor.encoder.encode_texts(examples)]
        assert [one for one, text in zip(cut, TEXTS, strict=True) if text != LONG] == [
            one for one, text in zip(whole, TEXTS, strict=True) if text != LONG
        ]
        assert len(whole[1]) + PROMPT > THRESHOLD >= max(map(len, cut)) + PROMPT
        expected = torch.stack([alone(plain, tokenizer, prompt, ids)[choices].softmax(-1) for ids in cut])
        assert torch.allclose(found, expected, atol=1e-5)
        assert predictor.encoder.truncation_notes()

    @torch.no_grad()
    def test_completions_end_before_positions_change(self, name: str) -> None:
        tokenizer = make_family_tokenizer("phi3")
        plain, base = model_of(name), FrozenLM(model_of(name), tokenizer, name)
        prompt = torch.randn(PROMPT, 32)
        spec, new = TaskSpec("generation", "{{ text }}\nOutput:", max_length=100), 8
        predictor = Predictor(base, spec, PromptState.of_embeddings(prompt), GenerationConfig(max_new_tokens=new))
        examples = [Example(text) for text in TEXTS]
        completions = {one.index: one.completion for one in predictor.predict(examples)}
        for index, ids in enumerate(map(list, predictor.encoder.encode_texts(examples))):
            made: list[int] = []
            while len(made) < new and (not made or made[-1] != tokenizer.convert_tokens_to_ids(EOS)):
                made.append(int(alone(plain, tokenizer, prompt, ids + made).argmax()))
            assert PROMPT + len(ids) + new - 1 <= THRESHOLD
            assert completions[index].strip() == tokenizer.decode(made, skip_special_tokens=True).strip()

    def test_the_doctor_looks_there_and_says_so(self, name: str) -> None:
        diagnosis = diagnose(FrozenLM(model_of(name), make_family_tokenizer("phi3"), name))
        assert (diagnosis.batch_independent_length, diagnosis.longest_text) == (THRESHOLD, THRESHOLD - 4)
        assert {check.verdict for check in diagnosis.checks} == {"exact"}
        assert any(f"beyond {THRESHOLD} tokens" in line for line in told_lines(make_diagnosis_document(diagnosis)))


@torch.no_grad()
def test_blocks_that_only_long_texts_have_are_not_used() -> None:
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers"), 2) | {"d_model": 32, "vocab_size": VOCABULARY}
    sizes |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4) | {"decoder_ffn_dim": 48}
    config = BigBirdPegasusConfig(
        **sizes, encoder_ffn_dim=48, block_size=4, num_random_blocks=1, decoder_start_token_id=0, attention_type=SPARSE
    )
    torch.manual_seed(0)
    plain = BigBirdPegasusForConditionalGeneration(config).eval()
    base = FrozenLM(copy.deepcopy(plain), make_family_tokenizer("bigbird_pegasus"), "x")
    assert (base.batch_independent_length, base.context_length) == (28, 28)
    predictor = Predictor(base, TaskSpec("classification", "{{ text }}:", ("good", "bad"), ("good", "bad")))
    examples = [Example("bad"), Example(LONG)]
    found = predictor.label_log_probabilities(examples).exp()
    alone = torch.cat([predictor.label_log_probabilities([example]).exp() for example in examples])
    assert torch.allclose(found, alone, atol=1e-5)
    ids = torch.tensor([predictor.encoder.encode_inputs(examples)[1]])
    given = {"input_ids": ids, "decoder_input_ids": torch.tensor([[0]])}
    choices = [predictor.encoder.base.tokenizer(word).input_ids[0] for word in ("good", "bad")]
    assert 24 < ids.shape[1] <= 28
    assert torch.allclose(found[1], plain(**given).logits[0, 0, choices].softmax(-1), atol=1e-5)


@pytest.mark.parametrize("name", ["phi3", "phimoe"])
def test_the_doctors_texts_are_such_that_it_would_find_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softprompt.models.frozen_lm.find_batch_independent_length", lambda config: None)
    diagnosis = diagnose(FrozenLM(model_of(name), make_family_tokenizer("phi3"), name))
    assert "refused" in {check.verdict for check in diagnosis.checks}
