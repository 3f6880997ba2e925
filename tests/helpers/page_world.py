"""What the examples of the pages find: a folder with small data, tiny models under the names of real ones, prompts.

The model that is called ``embedded:gemma-3-270m`` is a tiny random Llama in a cache folder of its own, ``MODEL`` and
``google/gemma-3-270m`` are folders with the same, ``DATA`` is ``reviews/``. Runs have at most ``STEPS`` steps.
"""

import csv
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

STEPS = 4
MODEL = "embedded:gemma-3-270m"
CACHE_NAME = "gemma-3-270m-bf16"  # as softprompt names it in its cache
GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"

OPINIONS = {
    "positive": ("a quiet film that stays with you", "warm , funny and wise", "a small gem of a story"),
    "negative": ("two hours that i will not get back", "dull , loud and far too long", "a story without a point"),
}
QUESTIONS = {"person": ("who wrote", "who was"), "place": ("where is", "in which town is")}


def shorten_runs(patch: pytest.MonkeyPatch) -> None:
    """Make each run of learning a few steps, and each measurement of speed a few requests, whatever they are told."""
    from softprompt.config import TrainConfig
    from softprompt.experiments.baselines.finetuning import FinetuningConfig
    from softprompt.inference import benchmark

    for settings in (TrainConfig, FinetuningConfig):
        _shorten_settings(settings, patch)
    for name, number in {"REQUESTS": 2, "FEWEST_REQUESTS": 2, "BATCHES": 1, "PASSAGE_TOKENS": 32}.items():
        patch.setattr(benchmark, name, number)


def _shorten_settings(settings: Any, patch: pytest.MonkeyPatch) -> None:
    make, copy = settings.__init__, settings.model_copy

    def shorten(values: dict[str, Any]) -> dict[str, Any]:
        fits = isinstance(steps := values.get("steps", STEPS), int) and values.get("epochs") is None
        return {**values, "steps": min(steps, STEPS), "eval_every": STEPS // 2} if fits else values

    def make_short(self: Any, **values: Any) -> None:
        make(self, **shorten(values))

    def copy_short(self: Any, *, update: Any = None, deep: bool = False) -> Any:
        return copy(self, update=shorten(dict(update or {})), deep=deep)

    patch.setattr(settings, "__init__", make_short)
    patch.setattr(settings, "model_copy", copy_short)


def ask_fake_hub() -> None:
    """Ask the hub at ``HF_ENDPOINT``, which huggingface_hub has read when it was imported."""
    import huggingface_hub.constants as constants

    if address := os.environ.get("HF_ENDPOINT"):
        constants.ENDPOINT = address
        constants.HUGGINGFACE_CO_URL_TEMPLATE = address + "/{repo_id}/resolve/{revision}/{filename}"
        constants.HF_HUB_CACHE = os.environ["HF_HUB_CACHE"]
        constants.HF_HUB_OFFLINE = False


def write_cache(cache: Path, model: Path) -> Path:
    """A cache in which the embedded model is the tiny one."""
    from softprompt.models.gguf_conversion import prepare_folder

    def copy(folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
        shutil.copytree(model, folder, dirs_exist_ok=True)
        return {"model": MODEL}

    prepare_folder(cache, CACHE_NAME, GGUF_SHA256, copy, lambda _: None)
    return cache


def write_model(folder: Path) -> Path:
    """A tiny Llama with room for long prompts."""
    from helpers.tiny_models import save_tiny

    save_tiny(folder, "llama")
    config = folder / "config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**values, "max_position_embeddings": 8192}), encoding="utf-8")
    return folder


def write_data(folder: Path) -> None:
    """Data sets: ``reviews``, ``questions``, and ``restaurants`` for generation."""
    draw = random.Random(0)

    def labelled(words: dict[str, tuple[str, ...]]) -> dict[str, Any]:
        label = draw.choice(sorted(words))
        return {"text": f"{draw.choice(words[label])} {draw.randrange(10**6)}", "label": label}

    def described() -> dict[str, Any]:
        name, food = f"house {draw.randrange(10**6)}", draw.choice(("italian", "french"))
        return {"text": f"name[{name}], food[{food}]", "target": f"{name} is {food}."}

    kinds = {"reviews": lambda: labelled(OPINIONS), "questions": lambda: labelled(QUESTIONS), "restaurants": described}
    for name, make in kinds.items():
        (folder / name).mkdir(parents=True)
        for split, size in (("train", 80), ("validation", 24), ("test", 24)):
            write_rows(folder / name / f"{split}.jsonl", [make() for _ in range(size)])


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


class SharedParts:
    """What every page's folder is made of, made once: the model, the data, a learned prompt for each data set."""

    def __init__(self, folder: Path) -> None:
        import softprompt as sp

        self.folder = folder
        self.model = write_model(folder / "model")
        self.cache = write_cache(folder / "cache", self.model)
        write_data(folder / "data")
        with pytest.MonkeyPatch.context() as patch:
            shorten_runs(patch)
            patch.setenv("SOFTPROMPT_CACHE", str(self.cache))
            base = sp.load_model(MODEL)
            for name, data in (("sentiment", "reviews"), ("topic", "questions"), ("restaurant", "restaurants")):
                make = sp.Task.generation if name == "restaurant" else sp.Task.classification
                prompt = sp.fit(base, make(folder / "data" / data), length=100, out=folder / name)
                assert prompt.state.length == 100


class PageWorld:
    """The folder in which the blocks of one page run, and what they find in it.

    Attributes:
        names: of Python.
        variables: of the environment, which what was given has set.
    """

    def __init__(self, folder: Path, parts: SharedParts, fixture: Callable[[str], Any]) -> None:
        self.folder, self.parts, self.fixture = folder, parts, fixture
        self.names: dict[str, Any] = {"__name__": "__main__", "MODEL": "MODEL"}
        self.variables: dict[str, str] = {}
        folder.mkdir(parents=True)
        self.fill()

    def fill(self) -> None:
        """The folder as every page finds it."""
        for one in self.folder.iterdir():
            one.unlink() if one.is_symlink() or one.is_file() else shutil.rmtree(one)
        for name in ("reviews", "questions", "restaurants"):
            shutil.copytree(self.parts.folder / "data" / name, self.folder / name)
        write_rows(self.folder / "rows.jsonl", [{"text": text} for text in OPINIONS["positive"]])
        (self.folder / "DATA").symlink_to("reviews")
        for name in ("MODEL", "google/gemma-3-270m", "small", "medium", "large"):
            (self.folder / name).parent.mkdir(exist_ok=True)
            (self.folder / name).symlink_to(self.parts.model)

    def give(self, name: str) -> None:
        """Put there what a page says is given: ``prompts/NAME``, ``STORE#NAME``, a file, or a name of Python."""
        store, hash_sign, version = name.partition("#")
        if hash_sign:
            self._give_version(store, version)
        elif name in GIVEN:
            GIVEN[name](self)
        else:
            kind = next((one for one in ("topic", "restaurant") if one in name), "sentiment")
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(self.parts.folder / kind, self.folder / name)

    def _give_version(self, store: str, name: str) -> None:
        import softprompt as sp

        kind = name if name in ("topic", "restaurant") else "sentiment"
        sp.Store(self.folder / store).put(self.parts.folder / kind, name)

    def load_base(self) -> Any:
        import softprompt as sp

        return sp.load_model(MODEL, dtype="float32")

    def load_task(self) -> Any:
        import softprompt as sp

        return sp.Task.classification(self.folder / "reviews")

    def load_prompt(self) -> Any:
        import softprompt as sp

        return sp.load_prompt(self.parts.folder / "sentiment")


def _give_long_text(world: PageWorld) -> None:
    (world.folder / "long.txt").write_text("Decide whether each review is negative or positive.\n" * 4)


def _give_inputs(world: PageWorld) -> None:
    write_rows(world.folder / "inputs.jsonl", [{"text": f"a film {number}"} for number in range(60)])


def _give_logs(world: PageWorld) -> None:
    """``logs.jsonl``, conversations that begin with the words of ``prompt.md``."""
    page = (
        "You work for a shop that sells lamps. Answer in one short sentence.\n"
        "Never promise a date. If something is broken, ask for the number of the order."
    )
    (world.folder / "prompt.md").write_text(f"{page}\n")
    rows = [
        [("system", page), ("user", f"Is lamp {number} there?"), ("assistant", "Yes."), ("user", "Since when?")]
        for number in range(40)
    ]
    turns = [[*row, ("assistant", f"Since day {number}.")] for number, row in enumerate(rows)]
    chats = [{"messages": [{"role": role, "content": said} for role, said in row]} for row in turns]
    write_rows(world.folder / "logs.jsonl", chats)


def _give_three_tasks(world: PageWorld) -> None:
    for name in ("sst2", "trec", "subj"):
        shutil.copytree(world.folder / "reviews", world.folder / "data" / name)
    (world.folder / "trec.txt").write_text("Tell what each question asks for.\n")
    (world.folder / "distilled").mkdir()


def _give_adapter(world: PageWorld) -> None:
    import softprompt as sp

    (world.folder / "adapters").mkdir(exist_ok=True)
    sp.export_prompt(world.load_base(), world.load_prompt(), world.folder / "adapters" / "theirs", format="peft")


def _give_array(world: PageWorld) -> None:
    import softprompt as sp

    sp.export_prompt(None, world.load_prompt(), world.folder / "sst2.npy", format="npy")


def _give_large_model(world: PageWorld) -> None:
    place = world.folder / "models" / "llama-70b"
    place.mkdir(parents=True)
    sizes = {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "torch_dtype": "bfloat16",
    }
    (place / "config.json").write_text(
        json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"], **sizes})
    )


def _give_gguf(world: PageWorld) -> None:
    from helpers.gguf_models import write_gguf

    write_gguf(world.folder / "model-q4_k_m.gguf")


def _give_tasks(world: PageWorld) -> None:
    """Folders of training rows, and a model that can learn them in place of the large one."""
    for name in ("sentiment", "topic"):
        shutil.copytree(world.folder / ("questions" if name == "topic" else "reviews"), world.folder / "tasks" / name)
    (world.folder / "models").mkdir()
    (world.folder / "models" / "llama-70b").symlink_to(world.parts.model)


def _give_samples(world: PageWorld) -> None:
    """Requests of the last minutes."""
    from helpers.planted_traffic import write

    from softprompt.serving.request_log.request_records import RequestRecord

    draw = random.Random(0)
    rows = [
        RequestRecord(
            time=time.time() - number,
            request=f"r{number}",
            prompt="sentiment@1",
            characters=30,
            tokens=draw.randrange(20, 40),
            rare=draw.randrange(5),
            text=draw.choice(OPINIONS["positive"]),
            answer="positive",
            probabilities={"positive": 0.8, "negative": 0.2},
            milliseconds=9.0,
        )
        for number in range(150)
    ]
    write(world.folder / "samples.db", rows)


def _give_bucket(world: PageWorld) -> None:
    """``s3://my-bucket`` on a local server."""
    import fsspec

    for name, value in world.fixture("s3_environment").items():
        world.variables[name] = os.environ[name] = value
    fsspec.filesystem("s3").makedirs("my-bucket", exist_ok=True)


def _give_hub(world: PageWorld) -> None:
    """The Hugging Face Hub, in memory."""
    address = f"http://127.0.0.1:{world.fixture('fake_hub').server_port}"
    world.variables |= {
        "HF_ENDPOINT": address,
        "HF_HUB_CACHE": str(world.folder.parent / "hub"),
        "NO_PROXY": "127.0.0.1",
    }


def _give_reviews_file(world: PageWorld) -> None:
    rows = [json.loads(line) for line in (world.folder / "reviews" / "train.jsonl").read_text().splitlines()]
    write_table(world.folder / "reviews.csv", rows)


def _give_tickets(world: PageWorld) -> None:
    """``tickets.csv``, and the same rows as JSON lines."""
    draw = random.Random(0)
    bodies = {
        "account": ("i can not log in", "my password is lost"),
        "billing": ("my invoice is wrong", "send the bill"),
    }
    kinds = [draw.choice(sorted(bodies)) for _ in range(80)]
    rows = [
        {"subject": f"ticket {number}", "body": f"{draw.choice(bodies[kind])} {number}", "category": kind}
        for number, kind in enumerate(kinds)
    ]
    write_table(world.folder / "tickets.csv", rows)
    write_rows(world.folder / "tickets.jsonl", rows)


def _give_aliases(world: PageWorld) -> None:
    import softprompt as sp

    store = sp.Store(world.folder / "prompts" / "store")
    for name in ("sentiment", "topic"):
        store.promote(f"{name}@1", "prod")


def _give_instruct_model(world: PageWorld) -> None:
    from helpers.chat_models import save_chat_model

    if not (world.folder / "INSTRUCT").exists():
        save_chat_model("qwen2_5", world.folder / "INSTRUCT")


def _give_support_prompt(world: PageWorld) -> None:
    """A prompt that answers about a shop, learned with a system prompt beside it."""
    import softprompt as sp

    _give_chats(world)
    chats, place = world.folder / "chats.jsonl", world.folder / "prompts" / "support"
    sp.fit(world.folder / "INSTRUCT", chats, system="Be brief.", length=4, out=place, baseline=False, progress=False)


def _give_system_prompt(world: PageWorld) -> None:
    (world.folder / "system.md").write_text("Answer about the shop, in one sentence.\n")


def _give_chats(world: PageWorld) -> None:
    """``chats.jsonl``: conversations of two questions each."""

    def turns(number: int) -> list[dict[str, str]]:
        said = (f"Is the shop {number} open?", "It is.", f"Until {number % 12}?", f"Until {number % 12}, yes.")
        return [{"role": ("user", "assistant")[at % 2], "content": words} for at, words in enumerate(said)]

    write_rows(world.folder / "chats.jsonl", [{"messages": turns(number)} for number in range(80)])


GIVEN: dict[str, Callable[[PageWorld], None]] = {
    "new folder": PageWorld.fill,
    "base": lambda world: world.names.update(base=world.load_base()),
    "task": lambda world: world.names.update(task=world.load_task()),
    "prompt": lambda world: world.names.update(prompt=world.load_prompt()),
    "DATA1": lambda world: (world.folder / "DATA1").symlink_to("reviews"),
    "DATA2": lambda world: (world.folder / "DATA2").symlink_to("questions"),
    "NAME": lambda world: (world.folder / "NAME").symlink_to("reviews"),
    "reviews.csv": _give_reviews_file,
    "tickets.csv": _give_tickets,
    "INSTRUCT": _give_instruct_model,
    "chats.jsonl": _give_chats,
    "system.md": _give_system_prompt,
    "prompts/support": _give_support_prompt,
    "long.txt": _give_long_text,
    "inputs.jsonl": _give_inputs,
    "logs.jsonl": _give_logs,
    "data/sst2": _give_three_tasks,
    "adapters/theirs": _give_adapter,
    "sst2.npy": _give_array,
    "model-q4_k_m.gguf": _give_gguf,
    "models/llama-70b": _give_large_model,
    "tasks": _give_tasks,
    "samples.db": _give_samples,
    "s3://my-bucket": _give_bucket,
    "hub": _give_hub,
    "aliases": _give_aliases,
}
