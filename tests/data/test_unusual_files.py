"""Files of others, well formed but odd: each verb ends well or with one clear line, in bounded time and memory."""

import contextlib
import copy
import json
import os
import random
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.saved_prompts import a_prompt, metric
from helpers.small_tasks import command, reviews, write_data
from helpers.tiny_models import save_tiny
from safetensors.torch import save

from softprompt.config import DistillConfig, GateConfig, Settings, TrainConfig
from softprompt.errors import ConfigError, SoftpromptError
from softprompt.export.peft import read_peft
from softprompt.prompts.saved_prompt import SEAL, Prompt
from softprompt.serving.http.server_settings import ServerSettings
from softprompt.store.prompt_loading import load_prompt
from softprompt.store.prompt_sources import FolderSource
from softprompt.store.version_store import Store
from softprompt.utils.files import LEFTOVER_AGE, write_folder
from softprompt.utils.seals import seal

ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 10**19, 1e308, 0.5, "", "x" * 5000, "\x1b[2J\n\u202e", "1"),
    *([], [None], ["a", "a"], {}, {"a": {"b": [1]}}, [[[[]]]], {"x" * 5000: 1}, list(range(300))),
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    if at:
        yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*at, key))


def mutated(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    value = copy.deepcopy(value)
    inner = value
    for key in at[:-1]:
        inner = inner[key]
    if new is ...:
        del inner[at[-1]]
    else:
        inner[at[-1]] = new
    return value


def odd_ones(value: Any, most: int, seed: int = 0) -> list[tuple[tuple[Any, ...], Any]]:
    """So many of all changes of one value to another."""
    every = [(at, new) for at in places(value) for new in (*ODD, ...)]
    return random.Random(seed).sample(every, min(most, len(every)))


def ends_well(*arguments: object) -> int:
    began = time.process_time()
    done = command(*arguments)
    assert done.code in (0, 2), (arguments, done.err)
    assert "Traceback" not in done.err
    assert time.process_time() - began < 5
    return done.code


def full_prompt(kind: str) -> Prompt:
    prompt = a_prompt(parent="p@1", init="text:a", population=[{"name": "a", "accuracy": 0.5, "loss": 1.0}])
    metrics = {"validation": metric(0.5) | {"others": {"macro_f1": metric(0.4, "macro_f1")}}, "test": metric(0.4)}
    spec = prompt.spec
    if kind == "generation":
        spec = type(spec)("generation", "{{ text }}:")
    return Prompt(**{**vars(prompt), "metrics": metrics, "spec": spec})


@pytest.mark.parametrize("kind", ["classification", "generation"])
@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_prompts(tmp_path: Path, kind: str, count: int) -> None:
    """Every value of prompt.json changed to other types and sizes, with a right digest and without any."""
    files = full_prompt(kind).files()
    manifest = json.loads(files["prompt.json"])
    del manifest[SEAL]
    full_prompt(kind).save(tmp_path / "whole")
    codes = []
    for number, (at, new) in enumerate(odd_ones(manifest, count)):
        odd = mutated(manifest, at, new)
        odd = seal(odd, SEAL) if number % 2 else odd
        folder = tmp_path / f"p{number}"
        write_folder(folder, {**files, "prompt.json": json.dumps(odd).encode()})
        codes.append(ends_well("show", folder))
        store = tmp_path / f"s{number}"
        pushed = ends_well("push", folder, f"{store}#a")
        # all of it or nothing
        assert store.exists() == (pushed == 0), (at, new)
        assert codes[-1] == ends_well("diff", folder, tmp_path / "whole"), (at, new)
        # the history is looked at when it is kept
        assert pushed == codes[-1] or at == ("history_sha256",), (at, new)
        if pushed == 0:
            for more in (("list", store), ("list", store, "--name", "a"), ("show", f"{store}#a@1"), ("pull",)):
                ends_well(*more) if more != ("pull",) else ends_well("pull", f"{store}#a@1", "--out", store / "out")
        ends_well("similar", tmp_path / "whole", "--among", folder)
        try:
            found = FolderSource([str(folder)]).read_catalog({})
            assert found is not None
        except SoftpromptError:
            assert codes[-1] == 2
    assert {0, 2} == set(codes)


def adapter(folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(save({"prompt_embeddings": torch.randn(4, 32)}))
    config = {
        **{"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 4, "token_dim": 32},
        **{"num_layers": 1, "num_attention_heads": 1, "num_transformer_submodules": 1, "inference_mode": True},
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return config


class TestAdapters:
    @pytest.mark.parametrize("name", ["adapter_config.json", "softprompt.json"])
    def test_odd_values(self, tmp_path: Path, name: str) -> None:
        config = adapter(tmp_path)
        if name == "softprompt.json":
            task = {
                "kind": "classification",
                "template": "{{ text }}:",
                "labels": ["a", "b"],
                "verbalizers": ["a", "b"],
            }
            base = {"name": "m", "fingerprint": {"config": "c"}}
            config = {
                "schema_version": 1,
                "format": "peft",
                "bos_rows": 1,
                "task": {**task, "max_length": 8},
                "base": base,
            }
        for at, new in odd_ones(config, 200):
            (tmp_path / name).write_text(json.dumps(mutated(config, at, new)))
            with contextlib.suppress(SoftpromptError):
                read_peft(tmp_path)

    @pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2", "bfloat16", "float16", "float64", "int8", "bool"])
    def test_tensors_of_every_type(self, tmp_path: Path, kind: str) -> None:
        adapter(tmp_path)
        rows = torch.randn(4, 32).to(getattr(torch, kind))
        (tmp_path / "adapter_model.safetensors").write_bytes(save({"prompt_embeddings": rows}))
        if kind in ("int8", "bool"):
            with pytest.raises(SoftpromptError, match="holds no prompt"):
                read_peft(tmp_path)
        else:
            assert torch.equal(read_peft(tmp_path).state.tensor, rows.float())

    @pytest.mark.parametrize("name", ["adapter_config.json", "softprompt.json", "adapter_model.safetensors"])
    def test_a_sparse_file_of_three_gigabytes_is_not_read(self, tmp_path: Path, name: str) -> None:
        adapter(tmp_path)
        with (tmp_path / name).open("ab") as stream:
            stream.truncate(3 * 2**30)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(SoftpromptError, match="expected at most"):
            read_peft(tmp_path)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


class TestSettings:
    @pytest.mark.parametrize("kind", [TrainConfig, DistillConfig, GateConfig, ServerSettings])
    @pytest.mark.parametrize("value", [10**40, 10**4000, 1e300, -(10**26)])
    def test_every_number_has_a_bound(self, kind: type[Settings], value: float) -> None:
        for name, field in kind.model_fields.items():
            if isinstance(field.default, int | float) and not isinstance(field.default, bool):
                if value == 1e300 and isinstance(field.default, int):
                    continue
                with pytest.raises(ConfigError, match=name):
                    kind.build(**{name: value})

    def test_odd_files(self, tmp_path: Path) -> None:
        settings = TrainConfig().model_dump()
        for number, (at, new) in enumerate(odd_ones(settings, 200)):
            path = tmp_path / f"{number}.json"
            path.write_text(json.dumps(mutated(settings, at, new)))
            with contextlib.suppress(ConfigError):
                TrainConfig.load(path)
        path = tmp_path / "large.yaml"
        with path.open("ab") as stream:
            stream.truncate(3 * 2**30)
        with pytest.raises(ConfigError, match="expected at most"):
            TrainConfig.load(path)

    def test_numbers_on_the_command_line(self, tmp_path: Path) -> None:
        save_tiny(tmp_path / "m", "llama")
        write_data(tmp_path / "d", reviews())
        places = ["--model", tmp_path / "m", "--data", tmp_path / "d", "--out", tmp_path / "p"]
        for option in ("steps", "batch-size", "length", "eval-every", "patience", "seeds", "max-length", "seed"):
            assert ends_well("train", *places, f"--{option}", 10**26) == 2
        assert "not in the range 1<=x<=1000" in command("compare", *places, "--seeds", 10**9).error
        assert "at most 1,000 prompts" in command("train", *places, "--seeds", 10**8).error
        a_prompt().save(tmp_path / "q")
        for option in ("seed", "top-k", "max-new-tokens"):
            assert (
                f"--{option}: expected a number of at most"
                in command("predict", tmp_path / "q", "a", f"--{option}", 10**26).error
            )


class TestOddPrompts:
    def test_generation_with_labels(self, tmp_path: Path) -> None:
        files = full_prompt("generation").files()
        manifest = json.loads(files["prompt.json"])
        manifest["task"]["labels"] = ["a", "b"]
        del manifest[SEAL]
        write_folder(tmp_path / "p", {**files, "prompt.json": json.dumps(manifest).encode()})
        assert "generation has no labels" in command("show", tmp_path / "p").error

    def test_a_parent_of_5000_characters(self, tmp_path: Path) -> None:
        prompt = a_prompt(parent="x" * 5000)
        with pytest.raises(SoftpromptError, match="parent"):
            Store(tmp_path / "store").put(prompt, "p")
        prompt.save(tmp_path / "p")
        assert "parent" in command("push", tmp_path / "p", f"{tmp_path}/store#p").error
        assert not (tmp_path / "store").exists()


class TestLeftovers:
    def test_a_writer_removes_what_killed_ones_left_when_it_is_old(self, tmp_path: Path) -> None:
        store = Store(tmp_path / "store")
        store.put(a_prompt(), "p")
        folder = tmp_path / "store" / "p"
        old, new = [folder / ".2.abcdefgh", folder / ".2.0123456789abcdef"], folder / ".2.hgfedcba"
        for place in (*old, new):
            place.mkdir()
            (place / "prompt.json").write_text("{")
        stranger = folder / ".keep"
        stranger.write_text("mine")
        past = time.time() - LEFTOVER_AGE - 60
        for place in (*old, stranger):
            os.utime(place, (past, past))
        store.put(a_prompt(1), "p")
        assert not any(place.exists() for place in old)
        assert new.exists()
        assert stranger.exists()
        assert load_prompt(f"{store.url}#p@2").digest == a_prompt(1).digest

    def test_a_prompts_place(self, tmp_path: Path) -> None:
        for name in (".p.abcdefgh", ".other.abcdefgh"):
            (tmp_path / name).mkdir()
            os.utime(tmp_path / name, (0, 0))
        a_prompt().save(tmp_path / "p")
        assert sorted(path.name for path in tmp_path.iterdir()) == [".other.abcdefgh", "p"]
