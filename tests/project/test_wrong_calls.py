"""Calls of the public functions that are wrong: each is told in one line, with what was expected and what to do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from helpers.saved_prompts import a_prompt
from helpers.small_tasks import reviews_task
from helpers.tiny_models import tiny_base, tiny_model, tiny_tokenizer

import softprompt as sp

ROWS = [{"text": f"{'good' if i % 2 else 'bad'} {i}", "label": "ab"[i % 2]} for i in range(40)]
FRAME = pandas.DataFrame(ROWS)
BODIES = FRAME.rename(columns={"text": "body", "label": "category"})


def base() -> sp.FrozenLM:
    return tiny_base("llama")


def task() -> sp.Task:
    return reviews_task()


def prompt() -> sp.Prompt:
    return a_prompt()


class PeftModel:
    """As PEFT calls its models."""


Call = Callable[[], Any]
CALLS: dict[str, tuple[Call, str]] = {
    # the base model
    "base and data swapped": (
        lambda: sp.fit(task(), base()),
        "base: expected a base model .* got a Task: the base model comes first",
    ),
    "data before the base": (
        lambda: sp.fit(FRAME, base()),
        "got a DataFrame: the base model comes first, the data behind",
    ),
    "file as base": (lambda: sp.fit("reviews.csv", base()), "base: .* got 'reviews.csv': the base model comes first"),
    "hub data as base": (lambda: sp.fit("hf:imdb", "gpt2"), "got 'hf:imdb': the base model comes first"),
    "transformers model": (
        lambda: sp.fit(tiny_model("llama"), ROWS),
        r"a transformers model \(LlamaForCausalLM\): .*sp.FrozenLM\(model",
    ),
    "tokenizer": (lambda: sp.fit(tiny_tokenizer("llama"), ROWS), r"got a tokenizer \(.*\): give the model's name"),
    "torch module": (
        lambda: sp.fit(torch.nn.Linear(2, 2), ROWS),
        r"got a torch module \(Linear\): only language models",
    ),
    "PEFT model": (lambda: sp.fit(PeftModel(), ROWS), "got a PEFT model: .*sp.import_prompt"),
    "no base": (lambda: sp.fit(None, ROWS), "base: .* got None: sp.load_model"),
    "empty name": (lambda: sp.fit("", ROWS), "base: expected a base model"),
    "class": (lambda: sp.fit(sp.FrozenLM, ROWS), "got the class FrozenLM: an object of it may be meant"),
    "model that is not there": (lambda: sp.load_model("no/such/model"), "no/such/model"),
    "device by number": (
        lambda: sp.load_model("gpt2", device=0),
        r"load_model\(device=...\): expected a string or None, got the number 0",
    ),
    "unknown argument of a model": (
        lambda: sp.load_model("gpt2", devise="cpu"),
        "load_model has no argument 'devise': did you mean 'device'",
    ),
    # the data
    "no data": (lambda: sp.fit(base(), None), "data: expected a path, .* got None: was a variable not set"),
    "number": (lambda: sp.fit(base(), 3), "data: .* got the number 3: build rows as"),
    "tensor": (lambda: sp.fit(base(), torch.zeros(3)), "got a torch tensor.*not tokens"),
    "array": (lambda: sp.fit(base(), np.zeros((3, 2))), "got a numpy array: give rows with names"),
    "column": (lambda: sp.fit(base(), FRAME["text"]), "got a Series: give the DataFrame"),
    "texts alone": (lambda: sp.fit(base(), ["a", "b"]), "row 1: expected a dict such as .* got 'a'"),
    "pairs": (lambda: sp.fit(base(), [("a", "b")]), "got a tuple of strings: give each row its columns by name"),
    "path that is not there": (
        lambda: sp.fit(base(), Path("no/such.csv")),
        "expected a file or folder at 'no/such.csv', found none",
    ),
    "frame without the columns": (
        lambda: sp.fit(base(), BODIES),
        "expected a column 'text', got 'body', 'category': name it with text_column=",
    ),
    "frame without the label": (
        lambda: sp.Task.of(BODIES, text_column="body"),
        "'DataFrame' row 1: expected a column 'label'",
    ),
    "one row": (lambda: sp.fit(base(), {"text": "a", "label": "b"}), "got a mapping with 'text', 'label': give train="),
    "one class": (
        lambda: sp.fit(base(), [{"text": f"t{i}", "label": "a"} for i in range(20)]),
        "at least two labels, got only 'a'",
    ),
    "prompt as data": (lambda: sp.fit(base(), prompt()), "got a Prompt: the prompt comes behind the data"),
    "base as data": (
        lambda: sp.fit(base(), base()),
        r"got a base model \(FrozenLM\): the base model comes before the data",
    ),
    "texts and labels apart": (
        lambda: sp.fit(base(), ["a"], ["b"]),
        r"fit\(base, data\): expected at most 2 arguments without a name.* got 3",
    ),
    # the task
    "labels as a string": (
        lambda: sp.Task.of(ROWS, labels="a,b"),
        r"labels: expected a list of names, as .* got 'a,b'",
    ),
    "labels as numbers": (
        lambda: sp.Task.of(ROWS, labels=[None, "a"]),
        "labels: expected names of labels, got None: give strings",
    ),
    "label that is not named": (
        lambda: sp.Task.of(ROWS, labels=["a", "c"]),
        "has label 'b' .* not among the labels a, c",
    ),
    "verbalizers as a list": (
        lambda: sp.Task.of(ROWS, verbalizers=["no", "yes"]),
        "verbalizers: expected words by label",
    ),
    "template that is no string": (
        lambda: sp.Task.of(ROWS, template=3),
        r"Task.of\(template=...\): expected a string or None, got the number 3",
    ),
    "template of another column": (
        lambda: sp.Task.of(ROWS, template="{{ body }}:"),
        "the template uses a name that the data lacks: 'body'",
    ),
    "misspelt column option": (
        lambda: sp.Task.of(ROWS, text_colum="a"),
        "unknown setting 'text_colum': did you mean 'text_column'",
    ),
    "misspelt option of fit": (
        lambda: sp.fit(base(), FRAME, label_colum="a"),
        "unknown setting 'label_colum': did you mean 'label_column'",
    ),
    "options of a task that is made": (
        lambda: sp.fit(base(), task(), template="{{ text }}"),
        "this data is a Task already: give template where",
    ),
    "unknown metric": (lambda: sp.Task.of(ROWS, metric="acuracy"), "acuracy"),
    "rows of another kind": (
        lambda: sp.Task.generation(ROWS),
        "expected rows with target or references, got classification rows",
    ),
    # the settings
    "negative steps": (lambda: sp.fit(base(), ROWS, steps=-1), "setting 'steps' .*greater than or equal to 1, got -1"),
    "steps as words": (lambda: sp.fit(base(), ROWS, steps="many"), "setting 'steps' .*valid integer.* got 'many'"),
    "steps and epochs": (
        lambda: sp.fit(base(), ROWS, steps=3, epochs=2),
        r"steps \(3\) and epochs \(2\) exclude each other",
    ),
    "no epochs": (lambda: sp.fit(base(), ROWS, epochs=0), "setting 'epochs' .*greater than 0, got 0"),
    "two rates": (lambda: sp.fit(base(), ROWS, lr=0.1, learning_rate=0.2), "lr and learning_rate are the same"),
    "misspelt setting": (lambda: sp.fit(base(), ROWS, lenght=3), "unknown setting 'lenght': did you mean 'length'"),
    "setting of transformers": (
        lambda: sp.fit(base(), ROWS, num_train_epochs=3),
        "'num_train_epochs': it is called 'epochs' here",
    ),
    "setting of PEFT": (
        lambda: sp.fit(base(), ROWS, num_virtual_tokens=3),
        "'num_virtual_tokens': it is called 'length' here",
    ),
    "folder of the Trainer": (lambda: sp.fit(base(), ROWS, output_dir="x"), "'output_dir': it is called 'out' here"),
    "unknown method": (lambda: sp.fit(base(), ROWS, method="lora"), "lora"),
    "unknown start": (lambda: sp.fit(base(), ROWS, init="zeros"), "unknown init 'zeros': expected"),
    "flag that is none": (
        lambda: sp.fit(base(), ROWS, resume="yes"),
        r"fit\(resume=...\): expected True or False, got 'yes'",
    ),
    "place that is none": (
        lambda: sp.fit(base(), ROWS, out=3),
        r"fit\(out=...\): expected a string or a path or None, got the number 3",
    ),
    "callback that is none": (
        lambda: sp.fit(base(), ROWS, callbacks="wandb"),
        "callback: expected an object with some of",
    ),
    # judging
    "no argument": (lambda: sp.evaluate(), r"evaluate\(base, data, prompt\): expected base and data too, got none"),
    "prompt as data of evaluate": (lambda: sp.evaluate(base(), prompt(), task()), "prompt"),
    "prompt that is not there": (
        lambda: sp.evaluate(base(), ROWS, "no/such/prompt"),
        "'no/such/prompt' is no saved prompt, it does not exist",
    ),
    "number as prompt": (
        lambda: sp.evaluate(base(), ROWS, 3),
        "prompt: expected a prompt, its folder .* got the number 3",
    ),
    "split that is not there": (
        lambda: sp.evaluate(base(), ROWS, split="dev"),
        "expected a split named train, validation, test or all, got 'dev'",
    ),
    "no test split": (
        lambda: sp.evaluate(base(), reviews_task(test=0), split="test"),
        "expected examples in split 'test' .* got none",
    ),
    "examples without a task": (lambda: sp.evaluate(base(), task().test), "give spec=task.spec"),
    "unknown argument of evaluate": (
        lambda: sp.evaluate(base(), ROWS, splits="test"),
        "evaluate has no argument 'splits'",
    ),
    "vote that is none": (
        lambda: sp.evaluate(base(), ROWS, vote="all"),
        r"evaluate\(vote=...\): expected 'mean' or 'majority', got 'all'",
    ),
    "no prompt to load": (
        lambda: sp.load_prompt(None),
        r"load_prompt\(place=...\): expected a string or a path, got None",
    ),
    "predictor of a model": (
        lambda: sp.Predictor.of_prompt(base(), base()),
        "prompt: .* got a base model .*: the base model comes first",
    ),
    "predictor of nothing": (lambda: sp.Predictor.load("no/such"), "'no/such' is no saved prompt"),
    "inspect without data": (lambda: sp.inspect(base(), prompt()), r"inspect\(base, prompt, data\): expected data too"),
    "prune of a task": (
        lambda: sp.prune(base(), task(), prompt()),
        "prompt: .* got a Task: the prompt comes behind the data",
    ),
    # studies
    "methods that are none": (lambda: sp.compare(base(), task(), "prompt-tuning,loras", "out"), "loras"),
    "setting of compare": (
        lambda: sp.compare(base(), task(), "zero-shot,lora", "out", seed=3),
        "unknown setting 'seed': did you mean 'seeds'",
    ),
    "seeds of compare": (
        lambda: sp.compare(base(), task(), "zero-shot,lora", "out", seeds=0),
        "setting 'seeds': expected a whole number of at least 1",
    ),
    "space that is none": (lambda: sp.sweep(base(), task(), "length", "out"), "length"),
    "epochs of a sweep": (
        lambda: sp.sweep(base(), task(), "batch-size=4,8", "out", epochs=2),
        "epochs are counted once for all trials",
    ),
    "teacher that is none": (
        lambda: sp.distill(base(), task(), 3),
        "teacher: expected a text, a saved prompt .* got the number 3",
    ),
    "export without a format": (lambda: sp.export_prompt(base(), prompt(), "out"), "expected format too"),
    "import of an unknown format": (lambda: sp.import_prompt(base(), "x", format="onnx"), "unknown format 'onnx'"),
    "serve a prompt without a name": (
        lambda: sp.serve(base(), prompt()),
        "got a prompt without one: give {'NAME': prompt}",
    ),
}


@pytest.mark.parametrize("what", CALLS)
def test_is_told_in_one_line(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call, words = CALLS[what]
    with pytest.raises(sp.SoftpromptError, match=words) as told:
        call()
    assert "\n" not in str(told.value)
    assert list(tmp_path.iterdir()) == []


def test_there_are_enough() -> None:
    assert len(CALLS) >= 40
