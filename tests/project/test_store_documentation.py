"""Every command of docs/how-to/store.md, run as written: on a tiny model, a local S3 server and a made-up Hub."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from helpers.fake_hub import FakeHub
from helpers.saved_prompts import a_prompt
from helpers.small_tasks import WORDS, command, reviews, write_data
from helpers.tiny_models import random_prompt, save_tiny

from softprompt.data.task import TaskSpec
from softprompt.models.loading import load_model
from softprompt.prompts.state import PromptState

DOCS = Path(__file__).parents[2] / "docs" / "how-to" / "store.md"


def commands() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


def test_every_command_runs_as_written(
    fake_hub: FakeHub,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    fsspec.filesystem("s3").mkdir("my-bucket")
    write_data(tmp_path / "reviews", reviews(train=8, validation=4, test=6))
    base = load_model(str(save_tiny(tmp_path / "model", "llama")), device="cpu", dtype="float32")
    labels = tuple(sorted(WORDS))
    for number, name in enumerate(("first", "second")):
        replace(
            a_prompt(number),
            states=(PromptState.of_embeddings(random_prompt(base, 3, number).detach()),),
            spec=TaskSpec("classification", "{{ text }}:", labels, labels, 64),
            base_name=str(tmp_path / "model"),
            base_fingerprint=base.fingerprint,
        ).save(Path("prompts") / name)
    ran = []
    for line in commands():
        words = shlex.split(line)
        if words[0] == "export":
            monkeypatch.setenv(*words[1].split("="))
        elif words[0] == "softprompt" and words[1] != "train":
            # tiny models run in float32 on any machine
            exact = ["--dtype", "float32"] if words[1] in ("eval", "predict", "promote") else []
            done = command(*words[1:], *exact)
            assert done.code == 0, (line, done.err)
            ran.append(words[1])
    assert set(ran) == {"push", "promote", "list", "predict", "show", "eval", "export", "rollback", "diff", "pull"}
