"""Prompts in conversations, learned and asked by the tools of others, on rows as ``apply_chat_template`` makes them."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.chat_models import chat_base, chat_model, chat_template, chat_tokenizer
from helpers.chat_prompts import LONG, SHORT, SYSTEM, chat_prompt, example_of
from helpers.learned_prompts import CLOSE
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

import softprompt as sp
from softprompt.data.task import Task
from softprompt.errors import DataError
from softprompt.inference.predictor import Predictor
from softprompt.inference.scoring import AnswerScorer
from softprompt.prompts.prefix import make_prefix
from softprompt.training.attached_prompts.soft_prompt import SoftPrompt
from softprompt.training.validation import mean_loss

FAMILIES = ["qwen2_5", "llama3_1", "gemma3", "phi3_5", "gptoss"]
PLAIN: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "learning_rate": 0.3,
    "max_steps": 6,
    "save_strategy": "no",
    "logging_steps": 1,
    "report_to": [],
    "use_cpu": True,
    "disable_tqdm": True,
}


def chats(system: str = SYSTEM) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": f"Number {index}?"},
                {"role": "assistant", "content": f"It is {index}."},
                {"role": "user", "content": "Sure?"},
                {"role": "assistant", "content": f"Yes, {index}."},
            ]
        }
        for index in range(40)
    ]


def with_system(messages: Any) -> list[dict[str, Any]]:
    return [{"role": "system", "content": SYSTEM}, *messages]


@pytest.mark.parametrize("kind", ["embeddings", "key_values"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_rows_of_apply_chat_template_are_read_behind_the_prompt(family: str, kind: str) -> None:
    base, prompt = chat_base(family), chat_prompt(family, kind, system=SYSTEM)
    soft = SoftPrompt.of(chat_model(family), prompt.state, tokenizer=chat_tokenizer(family))
    tokenizer, rows = chat_tokenizer(family), []
    assert prompt.spec.chat is not None
    for messages in (SHORT, LONG):
        found: Any = tokenizer.apply_chat_template(
            with_system(messages), chat_template=prompt.spec.chat.template, add_generation_prompt=True
        )
        rows.append(found["input_ids"])
    widest = max(map(len, rows))
    ids = torch.tensor([row + [row[-1]] * (widest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (widest - len(row)) for row in rows])
    try:
        logits = soft.attach()(input_ids=ids, attention_mask=mask).logits
    finally:
        soft.detach()
    predictor = Predictor.of_prompt(base, prompt)
    for row, messages, given in zip(logits, (SHORT, LONG), rows, strict=True):
        (text,) = predictor.encoder.encode_texts([example_of(messages)])
        read = torch.tensor([text])
        expected = base.logits(make_prefix(base, prompt.state).hidden(read, torch.ones_like(read))[0])
        torch.testing.assert_close(row[len(given) - len(text) : len(given)].float(), expected, **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_it_generates_is_our_answer(family: str) -> None:
    base, prompt = chat_base(family), chat_prompt(family, system=SYSTEM)
    soft = SoftPrompt.of(chat_model(family), prompt.state, tokenizer=chat_tokenizer(family))
    assert prompt.spec.chat is not None
    given: Any = chat_tokenizer(family).apply_chat_template(
        with_system(LONG), chat_template=prompt.spec.chat.template, add_generation_prompt=True, return_tensors="pt"
    )
    try:
        written = soft.attach().generate(**given, do_sample=False, max_new_tokens=6, pad_token_id=0)
    finally:
        soft.detach()
    new = written[0, given["input_ids"].shape[1] :].tolist()
    predictor = Predictor.of_prompt(base, prompt, generation=sp.GenerationConfig(max_new_tokens=6))
    answer = predictor.predict({"messages": LONG}).completion
    said = chat_tokenizer(family).decode(new, skip_special_tokens=True)
    assert answer is not None
    assert said.startswith(answer) or answer.startswith(said)


@pytest.mark.parametrize("kind", ["embeddings", "key_values"])
def test_rows_that_begin_otherwise_are_refused(kind: str) -> None:
    prompt = chat_prompt("llama3_1", kind, system=SYSTEM)
    soft = SoftPrompt.of(chat_model("llama3_1"), prompt.state, tokenizer=chat_tokenizer("llama3_1"))
    wrong: Any = chat_tokenizer("llama3_1").apply_chat_template(SHORT, add_generation_prompt=True, return_tensors="pt")
    match = r"row 0 of the batch does not begin as the conversations .* expected the ids of apply_chat_template"
    try:
        with pytest.raises(DataError, match=match):
            soft.attach()(**wrong)
        if kind == "embeddings":
            with pytest.raises(DataError, match=match):
                soft(wrong["input_ids"])
    finally:
        soft.detach()


def test_the_trainer_learns_what_fit_learns_from(tmp_path: Path) -> None:
    family = "qwen2_5"
    task = Task.of(chats())
    soft = SoftPrompt(chat_model(family), task, tokenizer=chat_tokenizer(family), length=4, init="text:Say it.")
    rows = soft.encode_split(task)
    trainer = Trainer(
        soft.attach(),
        TrainingArguments(str(tmp_path), **PLAIN),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(chat_tokenizer(family)),
        processing_class=chat_tokenizer(family),
    )
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert losses[-1] < losses[0]
    prompt = soft.to_prompt(task)
    assert prompt.spec.chat is not None
    assert prompt.spec.chat.system == SYSTEM
    soft.detach()
    again = sp.load_prompt(prompt.save(tmp_path / "prompt"))
    assert Predictor.of_prompt(soft.base, again).predict({"messages": SHORT}).completion is not None


@pytest.mark.parametrize("family", ["qwen2_5", "llama3", "gptoss"])
def test_trl_has_our_loss_where_it_learns_assistants_alone(tmp_path: Path, family: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TRL's own imports
        datasets = pytest.importorskip("datasets")
        from trl import SFTConfig, SFTTrainer
    source = chat_template(family, marked=True)
    task = Task.of(chats(), chat_template=source)
    model, tokenizer = chat_model(family), chat_tokenizer(family)
    soft = SoftPrompt(model, task, tokenizer=tokenizer, length=4, init="text:Say it.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of versions that TRL works with
        trainer = SFTTrainer(
            soft.attach(),
            SFTConfig(str(tmp_path), assistant_only_loss=True, chat_template_path=None, **PLAIN),
            train_dataset=datasets.Dataset.from_list(chats()),
            processing_class=tokenizer,
        )
        batch = next(iter(trainer.get_train_dataloader()))
        if family == "qwen2_5":  # there the line's end behind a turn is the assistant's, which we do not learn
            ends = batch["labels"].roll(1, dims=1) == tokenizer.convert_tokens_to_ids("<|im_end|>")
            assert set(tokenizer.batch_decode(batch["labels"][ends][:, None])) <= {"\n"}
            batch["labels"][ends] = -100
        theirs = float(trainer.compute_loss(soft.attach(), dict(batch)))
    soft.detach()
    prompt = soft.to_prompt(task, evaluate=False)
    predictor = Predictor(soft.base, prompt.spec, prompt.states)
    asked = [tokenizer.decode(one).split("Number")[1].split("?")[0] for one in batch["input_ids"]]
    by_number = {one.conversation.messages[1].content[6:-1]: one for one in task.splits["all"] if one.conversation}
    items = predictor.encoder.training_items([by_number[number] for number in asked])
    ours = mean_loss(AnswerScorer(soft.base, None), predictor.prefix, items)
    if family == "gptoss":  # TRL adds the loss of experts' balance
        given = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        theirs = float(soft.attach()(**given, output_router_logits=False).loss)
        soft.detach()
    assert theirs == pytest.approx(ours, rel=1e-4)
