"""A model with a prompt attached, against plain ``transformers`` on inputs concatenated by hand, and our loop."""

from typing import Any

import pytest
import torch
from helpers.small_tasks import answers
from helpers.tiny_models import tiny_model, tiny_tokenizer
from torch import Tensor

from softprompt.data.encoding.batching import collate
from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.task import Task
from softprompt.errors import BaseModelError, ConfigError, DataError
from softprompt.inference.scoring import AnswerScorer
from softprompt.models.last_layer import find_layers
from softprompt.prompts.inline_prefix import make_learning_prefix
from softprompt.training.attached_prompts.soft_prompt import SoftPrompt

# rotary positions; an embedding scale and windows shorter than the rows; absolute positions; no BOS; a nested decoder
FAMILIES = ("llama", "gemma3", "gpt2", "qwen2", "opt")
TEXTS = ["a good film and a great story", "the film", "what is the film? the story is great! the cat sat"]
GREEDY: dict[str, Any] = {"max_new_tokens": 7, "do_sample": False, "pad_token_id": 0}
LENGTH = 5


def make_soft_prompt(family: str, method: str = "prompt-tuning") -> SoftPrompt:
    """One that has learned something, on a model of its own."""
    soft = SoftPrompt(tiny_model(family), tokenizer=tiny_tokenizer(family), length=LENGTH, init="vocab", method=method)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in soft.method.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return soft


def read_rows(family: str, side: str, texts: list[str] = TEXTS) -> dict[str, Tensor]:
    tokenizer = tiny_tokenizer(family)
    rows = tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
    return {name: rows[name] for name in ("input_ids", "attention_mask")}


def concatenate_by_hand(soft: SoftPrompt, plain: Any, ids: Tensor) -> Tensor:
    """``[1, P + T, H]``: BOS if the row has it, virtual tokens, text."""
    embed, front = plain.get_input_embeddings(), len(soft.base.bos_ids)
    return torch.cat([embed(ids[:front]), soft.state().tensor, embed(ids[front:])])[None]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
class TestPlainTransformers:
    def test_logits_and_gradient_are_those_of_concatenated_inputs(self, family: str, side: str) -> None:
        soft, plain = make_soft_prompt(family), tiny_model(family)
        rows = read_rows(family, side)
        logits = soft.attach()(**rows).logits
        assert logits.shape[:2] == rows["input_ids"].shape
        expected, got = [], []
        for ids, mask, own in zip(rows["input_ids"], rows["attention_mask"], logits, strict=True):
            whole = plain(inputs_embeds=concatenate_by_hand(soft, plain, ids[mask == 1])).logits[0]
            expected.append(whole[LENGTH:])
            got.append(own[mask == 1])
        torch.testing.assert_close(torch.cat(got), torch.cat(expected), atol=1e-5, rtol=1e-5)
        weights = torch.randn(torch.cat(got).shape, generator=torch.Generator().manual_seed(0))
        (gradient,) = torch.autograd.grad((torch.cat(got) * weights).sum(), soft.method.theta)
        (by_hand,) = torch.autograd.grad((torch.cat(expected) * weights).sum(), soft.method.theta)
        torch.testing.assert_close(gradient, by_hand, atol=1e-4, rtol=1e-4)

    def test_loss_counts_what_follows_the_prompt_and_nothing_in_it(self, family: str, side: str) -> None:
        soft, plain = make_soft_prompt(family), tiny_model(family)
        rows = read_rows(family, side)
        labels = rows["input_ids"].clone()
        first = rows["attention_mask"].argmax(1)
        for row in range(len(labels)):
            labels[row, : int(first[row]) + 1] = -100
        labels[rows["attention_mask"] == 0] = -100
        loss = soft.attach()(**rows, labels=labels).loss
        total, count = torch.zeros(()), 0
        for ids, mask, wanted in zip(rows["input_ids"], rows["attention_mask"], labels, strict=True):
            embedded = concatenate_by_hand(soft, plain, ids[mask == 1])
            own, front = wanted[mask == 1], len(soft.base.bos_ids)
            whole = torch.cat([own[:front], torch.full((LENGTH,), -100), own[front:]])[None]
            number = int((own != -100).sum())
            total, count = total + plain(inputs_embeds=embedded, labels=whole).loss * number, count + number
        torch.testing.assert_close(loss, total / count, atol=1e-5, rtol=1e-5)
        # and one's own loop, without attaching
        inputs = soft.detach() and soft(**rows, labels=labels)
        torch.testing.assert_close(plain(**inputs).loss, loss, atol=1e-5, rtol=1e-5)

    def test_of_padding_nothing_is_learned(self, family: str, side: str) -> None:
        soft = make_soft_prompt(family)
        rows = read_rows(family, side)
        logits = soft.attach()(**rows).logits[rows["attention_mask"] == 0]
        (gradient,) = torch.autograd.grad(logits.sum(), soft.method.theta, allow_unused=True, materialize_grads=True)
        assert not gradient.any()


@pytest.mark.parametrize("family", FAMILIES)
class TestGenerate:
    def expected(self, soft: SoftPrompt, family: str, text: str, **options: Any) -> list[int]:
        plain = tiny_model(family)
        ids = torch.tensor(tiny_tokenizer(family)(text).input_ids)
        with torch.no_grad():
            embedded = concatenate_by_hand(soft, plain, ids)
        mask = torch.ones(embedded.shape[:2], dtype=torch.long)
        answer: list[int] = plain.generate(inputs_embeds=embedded, attention_mask=mask, **{**GREEDY, **options})[
            0
        ].tolist()
        return answer

    def test_batch_padded_on_the_left(self, family: str) -> None:
        soft, rows = make_soft_prompt(family), read_rows(family, "left")
        model, width = soft.attach(), rows["input_ids"].shape[1]
        for options in ({}, {"use_cache": False}):
            answers = model.generate(**rows, **GREEDY, **options)[:, width:].tolist()
            for text, answer in zip(TEXTS, answers, strict=True):
                wanted = self.expected(soft, family, text)
                assert answer[: len(wanted)] == wanted

    def test_beams_and_several_answers(self, family: str) -> None:
        soft, rows = make_soft_prompt(family), read_rows(family, "left", TEXTS[:2])
        beams = {"num_beams": 3, "num_return_sequences": 2}
        answers = soft.attach().generate(**rows, **GREEDY, **beams)[:, rows["input_ids"].shape[1] :].tolist()
        assert len(answers) == 4
        for index, text in enumerate(TEXTS[:2]):
            wanted = self.expected(soft, family, text, num_beams=3)
            assert answers[2 * index][: len(wanted)] == wanted

    def test_goes_on_from_a_cache_and_with_looked_up_candidates(self, family: str) -> None:
        soft, rows = make_soft_prompt(family), read_rows(family, "left", TEXTS[2:])
        model = soft.attach()
        wanted = model.generate(**rows, **GREEDY)
        looked_up = model.generate(**rows, **GREEDY, prompt_lookup_num_tokens=2)
        assert looked_up.tolist() == wanted.tolist()
        begun = model.generate(**rows, **{**GREEDY, "max_new_tokens": 3}, return_dict_in_generate=True)
        gone_on = model.generate(begun.sequences, past_key_values=begun.past_key_values, **GREEDY)
        assert gone_on[:, : wanted.shape[1]].tolist() == wanted.tolist()


class TestOurLoop:
    @pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_same_loss_and_gradient(self, family: str, method: str) -> None:
        task = Task.generation(answers(train=6), template="{{ text }}:")
        soft = make_soft_prompt(family, method)
        encoder = ExampleEncoder(soft.base, task.spec, LENGTH)
        batch = collate(encoder.training_items(task.train), soft.base.device)
        loss = AnswerScorer(soft.base, None).losses(make_learning_prefix(soft.base, soft.state()), batch).mean()
        parameters = list(soft.method.parameters())
        expected = torch.autograd.grad(loss, parameters)
        # as a data collator makes rows of them
        rows = [{name: torch.tensor(one) for name, one in row.items()} for row in soft.encode_split(task)]
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad([row["input_ids"] for row in rows], batch_first=True)
        labels = pad([row["labels"] for row in rows], batch_first=True, padding_value=-100)
        mask = pad([torch.ones_like(row["labels"]) for row in rows], batch_first=True)
        model = soft.attach().train()
        own = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        torch.testing.assert_close(own, loss, atol=1e-5, rtol=1e-5)
        for one, other in zip(torch.autograd.grad(own, parameters), expected, strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
        model.activation_checkpointing_enable()
        again = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        runs: list[int] = []
        next(find_layers(model)[0].children()).register_forward_hook(lambda *_: runs.append(1))
        for one, other in zip(torch.autograd.grad(again, parameters), expected, strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
        assert runs == [1], "the layer is run again for the gradient"


class TestKeysAndValues:
    @pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
    def test_padding_on_either_side_is_not_seen(self, family: str) -> None:
        soft = make_soft_prompt(family, "prefix-tuning")
        model = soft.attach()
        alone = [model(**read_rows(family, "right", [text])).logits[0, 1:] for text in TEXTS]
        for side in ("left", "right"):
            rows = read_rows(family, side)
            for own, mask, wanted in zip(model(**rows).logits, rows["attention_mask"], alone, strict=True):
                torch.testing.assert_close(own[mask == 1][1:], wanted, atol=1e-5, rtol=1e-5)
        rows = read_rows(family, "left")
        answers = model.generate(**rows, **GREEDY)[:, rows["input_ids"].shape[1] :]
        for text, answer in zip(TEXTS, answers, strict=True):
            one = read_rows(family, "right", [text])
            ids = one["input_ids"]
            for _ in range(GREEDY["max_new_tokens"]):
                ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
            wanted = ids[0, one["input_ids"].shape[1] :].tolist()
            end = wanted.index(2) + 1 if 2 in wanted else len(wanted)
            assert answer[:end].tolist() == wanted[:end]

    def test_windows_that_count_padding_are_refused(self) -> None:
        soft = make_soft_prompt("gemma3", "prefix-tuning")
        model = soft.attach()
        model(**read_rows("gemma3", "right"))
        with pytest.raises(BaseModelError, match=r"counts padding in its windows of 8 tokens.*pad on the right"):
            model(**read_rows("gemma3", "left"))


class TestRows:
    def test_bos_stands_before_the_prompt_whether_a_row_has_it_or_not(self) -> None:
        soft = make_soft_prompt("llama")
        rows = read_rows("llama", "right", TEXTS[:1])
        mixed = torch.cat([rows["input_ids"], torch.nn.functional.pad(rows["input_ids"][:, 1:], (0, 1))])
        mask = torch.ones_like(mixed)
        mask[1, -1] = 0
        model = soft.attach()
        whole, bare = model(input_ids=mixed, attention_mask=mask).logits
        torch.testing.assert_close(bare[:-1], whole[1:], atol=1e-5, rtol=1e-5)
        with pytest.raises(ConfigError, match=r"some texts begin with BOS and some do not"):
            model.generate(mixed, attention_mask=mask, **GREEDY)

    def test_packed_rows_are_refused(self) -> None:
        model = make_soft_prompt("llama").attach()
        ids = torch.arange(5, 13)[None]
        with pytest.raises(ConfigError, match=r"several .packed or padding-free.*set packing=False"):
            model(input_ids=ids, position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]]))

    def test_rows_beyond_the_context_are_refused(self) -> None:
        model = make_soft_prompt("gpt2").attach()
        with pytest.raises(DataError, match=r"rows of 158 tokens behind a prompt of 5 are longer .* of 160: cut"):
            model(input_ids=torch.ones(1, 158, dtype=torch.long))

    def test_static_caches_are_refused(self) -> None:
        model = make_soft_prompt("llama").attach()
        with pytest.raises(BaseModelError, match=r"leave out cache_implementation"):
            model.generate(**read_rows("llama", "left"), **GREEDY, cache_implementation="static")

    def test_embeddings_are_read_as_they_are(self) -> None:
        soft, plain = make_soft_prompt("llama"), tiny_model("llama")
        embedded = plain.get_input_embeddings()(torch.arange(3, 9))[None]
        torch.testing.assert_close(soft.attach()(inputs_embeds=embedded).logits, plain(inputs_embeds=embedded).logits)


class TestAttaching:
    def test_only_the_prompt_requires_gradient_and_dropout_is_off(self) -> None:
        soft = make_soft_prompt("gpt2")
        model = soft.attach().train()
        assert [name for name, one in model.named_parameters() if one.requires_grad] == ["soft_prompt.method.theta"]
        assert [name for name, module in model.named_modules() if module.training][:2] == ["", "soft_prompt"]
        assert model.training
        assert not model.transformer.training
        assert type(model).__name__ == "GPT2LMHeadModel"
        assert soft.attach() is model

    def test_detached_it_is_the_model_it_was(self) -> None:
        soft, plain = make_soft_prompt("llama"), tiny_model("llama")
        kind, ids = type(plain), torch.arange(3, 9)[None]
        model = soft.attach()
        assert not torch.equal(model(ids).logits, plain(ids).logits)
        assert soft.detach() is model
        assert type(model) is kind
        assert set(model.state_dict()) == set(plain.state_dict())
        torch.testing.assert_close(model(ids).logits, plain(ids).logits, atol=1e-6, rtol=1e-6)
        soft.detach()

    def test_one_prompt_at_a_time(self) -> None:
        soft = make_soft_prompt("llama")
        model = soft.attach()
        with pytest.raises(ConfigError, match=r"attached to this model already.*detach"):
            SoftPrompt(model, tokenizer=tiny_tokenizer("llama"))
        other = SoftPrompt.of(tiny_model("llama"), soft.state().detached(), tokenizer=tiny_tokenizer("llama"))
        other.base = soft.base
        with pytest.raises(ConfigError, match=r"attached to this model already"):
            other.attach()
