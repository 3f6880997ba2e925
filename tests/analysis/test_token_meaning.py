"""What is told of virtual tokens: neighbours, scale, movement, removal, attention, and what the model says alone."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small_tasks import FAST, reviews, reviews_task
from helpers.tiny_models import NOT_SHARING, as_state, plain_logits, random_prompt, tiny_base

from softprompt.analysis.inspection.ablation import (
    add_ablations,
    keep_tokens,
    leave_out_token,
    rebuild_starts,
    select_seen_rows,
)
from softprompt.analysis.inspection.attention_weights import measure_attention
from softprompt.analysis.inspection.token_meaning import continue_prompt, describe_tokens
from softprompt.config import TrainConfig, make_population
from softprompt.data.task import TaskSpec
from softprompt.errors import BaseModelError
from softprompt.inference.predictor import Predictor
from softprompt.prompts.prefix import compute_keys_and_values
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState
from softprompt.training.data_loader import BatchSampler
from softprompt.training.fit import fit

SPEC = TaskSpec("classification", "{{ text }}:", ("bad", "good"), ("bad", "good"), 64)
EXAMPLES = list(reviews(4, 4, 6).test)


def a_state(family: str, length: int = 4) -> PromptState:
    state = as_state(random_prompt(tiny_base(family), length))
    assert state is not None
    return state.detached()


class TestNeighbours:
    def test_words_are_their_own_nearest_and_the_scale_leaves_them_out(self) -> None:
        base = tiny_base("llama")
        ids = torch.tensor([40, 50, 60])
        vocabulary, found = describe_tokens(base, [PromptState.of_embeddings(base.embed(ids).float())], None)
        assert [one.by_cosine[0].token_id for one in found] == [40, 50, 60]
        assert [one.by_cosine[0].value for one in found] == pytest.approx([1.0] * 3, abs=1e-5)
        assert [one.by_distance[0].value for one in found] == pytest.approx([0.0] * 3, abs=1e-4)
        # nearer to a word than any word is to another
        assert all(one.nearer_by_cosine == 0 and one.nearer_by_distance == 0 for one in found)
        assert vocabulary is not None
        assert vocabulary.cosine.most < 0.999
        assert vocabulary.distance.least > 0.01

    def test_figures_by_plain_computation(self) -> None:
        base, state = tiny_base("gemma3"), a_state("gemma3")
        vocabulary, found = describe_tokens(base, [state], None)
        special = {*base.tokenizer.all_special_ids, *base.tokenizer.added_tokens_decoder}
        ids = torch.tensor([i for i in range(len(base.tokenizer)) if i not in special])
        words = base.embed(ids).float()
        cosines = torch.nn.functional.cosine_similarity(state.tensor[:, None], words[None], dim=2)
        distances = torch.cdist(state.tensor, words)
        for index, one in enumerate(found):
            assert one.by_cosine[0].token_id == int(ids[cosines[index].argmax()])
            assert one.by_cosine[0].value == pytest.approx(float(cosines[index].max()), abs=1e-5)
            assert one.by_distance[0].token_id == int(ids[distances[index].argmin()])
            assert one.by_distance[0].value == pytest.approx(float(distances[index].min()), abs=1e-4)
            assert one.norm == pytest.approx(float(state.tensor[index].norm()), abs=1e-5)
            assert one.norm_share == pytest.approx(float((words.norm(dim=1) < one.norm).float().mean()), abs=0.01)
        among = torch.nn.functional.cosine_similarity(words[:, None], words[None], dim=2).fill_diagonal_(-2)
        assert vocabulary is not None
        assert vocabulary.sampled == len(ids)
        assert vocabulary.cosine.median == pytest.approx(float(among.max(dim=1).values.median()), abs=0.01)
        nearer = (among.max(dim=1).values > cosines[0].max()).float().mean()
        assert found[0].nearer_by_cosine == pytest.approx(float(nearer), abs=0.01)

    def test_keys_and_values_have_no_place_among_words(self) -> None:
        base = tiny_base("llama")
        vocabulary, found = describe_tokens(base, [compute_keys_and_values(base, a_state("llama").tensor)], None)
        assert vocabulary is None
        assert [one.by_cosine for one in found] == [()] * 4
        assert all(one.norm > 0 for one in found)


class TestStart:
    @pytest.mark.parametrize("method", ["prompt-tuning", "p-tuning", "residual", "prefix-tuning"])
    @pytest.mark.parametrize("init", ["text", "labels", "vocab", "random", "examples", "text:a good film"])
    def test_is_made_again(self, method: str, init: str) -> None:
        """A run with next to no rate ends where it began."""
        base, task = tiny_base("llama"), reviews_task()
        settings: dict[str, Any] = {**FAST, "steps": 2, "learning_rate": 1e-9, "length": 30, "seed": 3}
        prompt = fit(base, task, **{**settings, "method": method, "init": init})
        starts = rebuild_starts(prompt, base, task.train)
        assert not isinstance(starts, str)
        for now, before in zip(prompt.state.tensors, starts[0].tensors, strict=True):
            assert torch.allclose(now, before, atol=1e-5)

    def test_movement_and_names(self) -> None:
        base, task = tiny_base("llama"), reviews_task()
        prompt = fit(base, task, **FAST)
        starts = rebuild_starts(prompt, base, None)
        assert not isinstance(starts, str)
        _, found = describe_tokens(base, prompt.states, starts)
        by_hand = (prompt.state.tensor - starts[0].tensor).square().mean(dim=1).sqrt() / base.embedding_std
        assert [one.moved for one in found] == pytest.approx(by_hand.tolist(), rel=1e-4)
        assert [str(one.start_token).strip() for one in found] == ["bad", "good", "bad", "good"]

    def test_of_each_member_of_an_ensemble(self) -> None:
        base, task = tiny_base("llama"), reviews_task()
        config = TrainConfig.build(**{**FAST, "steps": 2, "learning_rate": 1e-9, "init": "vocab"})
        prompt = fit(base, task, config=make_population(config, seeds=3), ensemble=True)
        starts = rebuild_starts(prompt, base, None)
        assert not isinstance(starts, str)
        assert len(starts) == 3
        for state, start in zip(prompt.states, starts, strict=True):
            assert torch.allclose(state.tensor, start.tensor, atol=1e-5)

    def test_of_another_prompt(self, tmp_path: Path) -> None:
        base, task = tiny_base("llama"), reviews_task()
        first = fit(base, task, **FAST)
        first.save(tmp_path / "first")
        settings = {**FAST, "steps": 2, "learning_rate": 1e-9, "init": f"prompt:{tmp_path / 'first'}"}
        starts = rebuild_starts(fit(base, task, **settings), base, None)
        assert not isinstance(starts, str)
        assert torch.allclose(starts[0].tensor, first.state.tensor)

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"method": "multitask"}, "its method, 'multitask'"),
            ({"training": {}}, "does not say how it was initialised"),
            ({"training": {**FAST, "init": "examples"}}, "give the data that it was learned on"),
            ({"training": {**FAST, "init": "prompt:s3://bucket/x#y@1"}}, "which is not looked for"),
            ({"training": {**FAST, "init": "prompt:/no/such/folder"}}, "cannot be made again"),
            ({"training": {**FAST, "length": 9}}, "another size"),
            ({"training": {**FAST, "length": "many"}}, "cannot be made again"),
        ],
    )
    def test_is_not_made_up(self, changes: dict[str, Any], reason: str) -> None:
        base = tiny_base("llama")
        prompt = Prompt((a_state("llama"),), SPEC, base.name, base.fingerprint, "prompt-tuning", training=FAST)
        found = rebuild_starts(replace(prompt, **changes), base, None)
        assert isinstance(found, str)
        assert reason in found


class TestSeen:
    def test_rows_of_the_steps_up_to_the_best_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        base, task = tiny_base("llama"), reviews_task(train=200)
        taken: list[list[int]] = []
        batch = BatchSampler.batch
        monkeypatch.setattr(BatchSampler, "batch", lambda order, step: taken.append(batch(order, step)) or taken[-1])
        prompt = fit(base, task, **FAST, evaluate_test=False)
        best = prompt.training["best_step"]
        rows = sorted({index for one in taken[:best] for index in one})
        assert len(rows) == best * FAST["batch_size"] < 200
        assert select_seen_rows(prompt, base, task) == [task.train[index] for index in rows]

    def test_a_manifest_that_does_not_tell(self) -> None:
        base, task = tiny_base("llama"), reviews_task()
        prompt = fit(base, task, **FAST, evaluate_test=False)
        assert select_seen_rows(replace(prompt, method="multitask"), base, task) is None
        assert select_seen_rows(replace(prompt, training={}), base, task) is None
        assert select_seen_rows(replace(prompt, data={"streamed": True}), base, task) is None


class TestRemoval:
    @pytest.mark.parametrize("family", ["llama", "gemma3", *NOT_SHARING])
    def test_is_the_loss_of_a_prompt_without_the_token(self, family: str) -> None:
        base, state = tiny_base(family), a_state(family)
        _, found = describe_tokens(base, [state], None)
        found = add_ablations(found, base, SPEC, [state], EXAMPLES)
        gold = [SPEC.label_index[str(one.label)] for one in EXAMPLES]

        def loss(tokens: torch.Tensor) -> float:
            scores = Predictor(base, SPEC, as_state(tokens)).label_log_probabilities(EXAMPLES)
            return float(-scores[range(len(gold)), gold].mean())

        for index, one in enumerate(found):
            shorter = torch.cat([state.tensor[:index], state.tensor[index + 1 :]])
            assert one.ablation is not None
            assert one.ablation.value == pytest.approx(loss(shorter) - loss(state.tensor), abs=1e-4)

    def test_the_only_token_leaves_the_bare_template(self) -> None:
        base, state = tiny_base("llama"), a_state("llama", 1)
        assert leave_out_token(state, 0) is None
        _, found = describe_tokens(base, [state], None)
        (one,) = add_ablations(found, base, SPEC, [state], EXAMPLES)
        assert one.ablation is not None

    def test_keys_and_values_lose_the_same_token(self) -> None:
        base, state = tiny_base("gpt2"), a_state("gpt2")
        pair = compute_keys_and_values(base, state.tensor)
        kept = keep_tokens(pair, [0, 2])
        assert kept is not None
        assert [t.shape[2] for t in kept.tensors] == [2, 2]
        assert torch.equal(kept.tensors[1][:, :, 1], pair.tensors[1][:, :, 2])


class TestAttention:
    @pytest.mark.parametrize(
        "family", ["llama", "gemma3", "gemma2", "gpt2", "gpt_neox", "phi", "bloom", "gpt_neo", "mpt"]
    )
    def test_shares_are_the_models_own(self, family: str) -> None:
        base, state = tiny_base(family), a_state(family)
        before = base.model.config._attn_implementation
        found, shares = measure_attention(base, SPEC, state, EXAMPLES[:1])
        assert base.model.config._attn_implementation == before
        ids = base.tokenizer(f"{EXAMPLES[0].text}:", add_special_tokens=False).input_ids
        parts = [base.embed(torch.tensor(base.bos_ids, dtype=torch.long)), state.tensor, base.embed(torch.tensor(ids))]
        base.model.set_attn_implementation("eager")
        try:
            whole = base.model(inputs_embeds=torch.cat(parts)[None], output_attentions=True, use_cache=False)
        finally:
            base.model.set_attn_implementation(before)
        expected = [layer[0, :, -1].mean(dim=0)[len(base.bos_ids) :][:4].tolist() for layer in whole.attentions]
        assert pytest.approx(torch.tensor(expected).numpy(), abs=1e-5) == shares.T
        for layer in range(len(expected)):
            assert found.bos[layer] + found.prompt[layer] + found.text[layer] == pytest.approx(1.0, abs=1e-5)

    @pytest.mark.parametrize("family", ["llama", "gemma3", "mistral"])
    def test_keys_and_values_get_what_their_tokens_get(self, family: str) -> None:
        base, state = tiny_base(family), a_state(family)
        _, plain = measure_attention(base, SPEC, state, EXAMPLES)
        _, folded = measure_attention(base, SPEC, compute_keys_and_values(base, state.tensor), EXAMPLES)
        assert folded == pytest.approx(plain, abs=1e-5)

    @pytest.mark.parametrize(
        ("family", "why"), [("mamba", "does not give its attention weights"), ("t5", "an encoder")]
    )
    def test_families_that_cannot_say_so(self, family: str, why: str) -> None:
        with pytest.raises(BaseModelError, match=why):
            measure_attention(tiny_base(family), SPEC, a_state(family), EXAMPLES)


class TestSays:
    @pytest.mark.parametrize("family", ["llama", "qwen3", "mamba"])
    def test_is_greedy_behind_the_prompt(self, family: str) -> None:
        base, state = tiny_base(family), a_state(family)
        found, remark = continue_prompt(base, state)
        assert remark is None
        ids: list[int] = []
        for step in range(3):
            parts = [base.embed(torch.tensor([*base.bos_ids], dtype=torch.long)), state.tensor]
            parts += [base.embed(torch.tensor(ids, dtype=torch.long))] if step else []
            logits = base.model(inputs_embeds=torch.cat(parts)[None], use_cache=False).logits[0, -1]
            ids.append(int(logits.argmax()))
            if not step:
                assert found.next[0].probability == pytest.approx(float(logits.softmax(-1).max()), abs=1e-4)
        assert found.text.startswith(base.tokenizer.decode(ids, skip_special_tokens=True)[:2])

    @pytest.mark.parametrize("family", ["t5", "bart"])
    def test_an_encoder_decoder_model_says_it_in_its_decoder(self, family: str) -> None:
        found, remark = continue_prompt(tiny_base(family), a_state(family))
        assert "decoder" in str(remark)
        assert found.next == ()

    def test_keys_and_values_need_something_behind_them(self) -> None:
        base = tiny_base("llama")
        _, remark = continue_prompt(base, compute_keys_and_values(base, a_state("llama").tensor))
        assert "a new line" in str(remark)


def test_the_base_is_left_as_it_was() -> None:
    base, state = tiny_base("llama"), a_state("llama")
    ids = [random.Random(0).randrange(300) for _ in range(9)]
    before = plain_logits(base, None, ids)
    describe_tokens(base, [state], None)
    measure_attention(base, SPEC, state, EXAMPLES)
    continue_prompt(base, state)
    assert torch.equal(before, plain_logits(base, None, ids))
