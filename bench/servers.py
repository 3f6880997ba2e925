"""The contestants of ``serve.py``, which answer the same requests over many tasks, each in a process of its own.

    peft     the documented way: every prompt is an adapter of one ``PeftModel``, ``set_adapter`` chooses the one of a
             batch. A batch has one task: that of the request that waits longest, and all that wait for the same task
             go with it, up to the size that softprompt has too.
    engine   softprompt's engine, asked from an event loop in its process
    http     ``softprompt serve`` in a process of its own, asked by httpx over local connections

PEFT is asked in two ways. As documented: ``generate`` for a label too, of two tokens (the label, the end of the text),
and the output layer as PEFT leaves it. And with what makes it fast: one forward pass with ``logits_to_keep=1`` for a
label, and an output layer that all rows are multiplied with at once. Its texts are padded on the left, as Transformers
documents for generation; PEFT leaves positions to the model, which counts the padding between prompt and text, so
answers may differ from those without padding.
"""

import asyncio
import json
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from contestants import BenchmarkFailure, Pipe, peak_memory_mb, telling
from served import served

from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec

Kind: TypeAlias = Literal["labels", "texts"]
KINDS: tuple[Kind, ...] = ("labels", "texts")

# what the label words of each task are; they part at their first token
WORDS = (
    *("negative positive", "bad good", "no yes", "sad happy", "weak strong", "dark bright", "false true", "slow fast"),
    *("wrong right", "cold warm", "hate love", "poor rich", "worst best", "dull fun", "ugly beautiful", "old new"),
)


class Request(NamedTuple):
    """One request: the number of its task, and a text."""

    task: int
    text: str


@dataclass(frozen=True)
class Setup:
    """What all contestants share.

    Attributes:
        model: what ``softprompt.models.loading.load_model`` takes.
        folder: where that model lies, for ``from_pretrained``.
        place: a folder for the prompts, which the engine's process makes.
        tasks: how many.
        length: virtual tokens of each prompt.
        long: virtual tokens of the prompts whose cost is measured.
        requests: each with its task.
        new_tokens: of a completion, at most.
        batch: requests that are answered together, at most.
        threads: of PyTorch; its own choice if ``None``.
    """

    model: str
    folder: str
    place: Path
    tasks: int
    length: int
    long: int
    requests: tuple[Request, ...]
    new_tokens: int
    batch: int
    threads: int | None

    def name(self, kind: Kind, task: int) -> str:
        return f"{kind}-{task:02}"


@dataclass(frozen=True)
class Turn:
    """What a contestant is to do.

    Attributes:
        count: of requests: the first ones of the setup, from the start again where there are not so many.
        outstanding: a new one comes when one is answered, so that so many are always there; 0: they come by
            themselves, at ``arrivals`` (seconds from the beginning).
        prompts: ``tasks``; or for the engine alone ``none``, ``one`` (long) and ``long`` (one for each task).
        batch: requests together, at most (PEFT); the setup's if ``None``.
        documented: PEFT as its documentation has it, not as fast as can be.
    """

    kind: Kind
    count: int
    outstanding: int = 0
    arrivals: tuple[float, ...] = ()
    prompts: str = "tasks"
    batch: int | None = None
    documented: bool = False


@dataclass
class Done:
    """What came of a turn.

    Attributes:
        answers: labels, or completions.
        latencies: from arrival to the whole answer (seconds).
        tokens: generated for each, where the contestant counts them.
        seconds: from the first arrival to the last answer.
    """

    answers: list[str]
    latencies: list[float]
    tokens: list[int]
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, count: int) -> "Done":
        return cls([""] * count, [0.0] * count, [0] * count)


def spec_of(kind: Kind, task: int) -> TaskSpec:
    """What is asked: two words to choose from, or a text that goes on."""
    if kind == "texts":
        return TaskSpec.of()
    words = WORDS[task % len(WORDS)].split()
    return TaskSpec.of(labels=words, template="{{ text }}\nIt is")


class Peft:
    """A ``PeftModel`` with all adapters."""

    def __init__(self, setup: Setup, bf16: bool) -> None:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._setup = setup
        dtype = torch.bfloat16 if bf16 else torch.float32
        self._tokenizer: Any = AutoTokenizer.from_pretrained(setup.folder, padding_side="left")
        model: Any = AutoModelForCausalLM.from_pretrained(setup.folder, dtype=dtype)
        names = [setup.name("labels", task) for task in range(setup.tasks)]
        folders = [str(setup.place / "adapters" / name) for name in names]
        model = PeftModel.from_pretrained(model, folders[0], adapter_name=names[0])
        for name, folder in zip(names[1:], folders[1:], strict=True):
            model.load_adapter(folder, adapter_name=name)
        self._model = model.eval()
        usage = json.loads((Path(folders[0]) / "softprompt.json").read_text(encoding="utf-8"))
        self._special = bool(usage["add_special_tokens"])
        self._words = [self._first_tokens(task) for task in range(setup.tasks)]
        self.facts = {
            "dtype": str(dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "adapters": len(model.peft_config),
        }

    def turn(self, turn: Turn) -> Done:
        """Answer the turn's requests, batch by batch."""
        done, asked = Done.of(turn.count), _requests(self._setup, turn.count)
        most = turn.batch or self._setup.batch
        arrivals = turn.arrivals or (0.0,) * turn.count
        waiting: deque[int] = deque()
        coming, answered = 0, 0
        start = time.perf_counter()
        arrived = [start + seconds for seconds in arrivals]
        while answered < turn.count:
            now = time.perf_counter()
            while coming < turn.count and (
                coming - answered < turn.outstanding if turn.outstanding else arrived[coming] <= now
            ):
                if turn.outstanding:
                    arrived[coming] = now
                waiting.append(coming)
                coming += 1
            if not waiting:
                time.sleep(max(0.0, arrived[coming] - now))
                continue
            task = asked[waiting[0]].task
            batch = [at for at in waiting if asked[at].task == task][:most]
            taken = set(batch)
            waiting = deque(at for at in waiting if at not in taken)
            texts = [asked[at].text for at in batch]
            answers, tokens = self._answered(turn.kind, task, texts, turn.documented)
            end = time.perf_counter()
            for at, answer, count in zip(batch, answers, tokens, strict=True):
                done.answers[at], done.tokens[at], done.latencies[at] = answer, count, end - arrived[at]
            answered += len(batch)
        done.seconds = time.perf_counter() - start
        return done

    def _answered(self, kind: Kind, task: int, texts: Sequence[str], documented: bool) -> tuple[list[str], list[int]]:
        import torch

        spec = spec_of(kind, task)
        rendered = [spec.compiled.render(Example(text)) for text in texts]
        self._model.set_adapter(self._setup.name("labels", task))
        # frozen, it is multiplied row by row, in bfloat16 with a copy for each: torch.matmul looks at this
        self._model.get_output_embeddings().weight.requires_grad_(not documented)
        fed = self._tokenizer(rendered, padding=True, add_special_tokens=self._special, return_tensors="pt")
        ids, mask = fed.input_ids, fed.attention_mask
        with torch.inference_mode():
            if kind == "labels" and not documented:
                logits = self._model(input_ids=ids, attention_mask=mask, logits_to_keep=1).logits[:, -1]
                chosen = logits[:, self._words[task]].argmax(dim=1).tolist()
                return [spec.labels[one] for one in chosen], [0] * len(texts)
            pad, most = self._tokenizer.pad_token_id, 2 if kind == "labels" else self._setup.new_tokens
            grown = self._model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=most, do_sample=False, pad_token_id=pad
            )
        rows = [[token for token in row if token != pad] for row in grown[:, ids.shape[1] :].tolist()]
        answers = [str(self._tokenizer.decode(row, skip_special_tokens=True)).strip() for row in rows]
        return answers, [len(row) for row in rows]

    def _first_tokens(self, task: int) -> list[int]:
        from softprompt.data.encoding.verbalizer import encode_answer

        spec = spec_of("labels", task)
        first = [encode_answer(self._tokenizer, spec, words)[0] for words in spec.verbalizers]
        if len(set(first)) < len(first):
            raise BenchmarkFailure(f"the labels {', '.join(spec.labels)} do not part at their first token")
        return first


Ask: TypeAlias = Callable[[Turn, Request], Coroutine[Any, Any, tuple[str, int]]]


async def asked_by(ask: Ask, setup: Setup, turn: Turn) -> Done:
    """Ask the turn's requests from this event loop, each as it comes."""
    done, asked = Done.of(turn.count), _requests(setup, turn.count)

    async def one(at: int, arrived: float) -> None:
        done.answers[at], done.tokens[at] = await ask(turn, asked[at])
        done.latencies[at] = time.perf_counter() - arrived

    start = time.perf_counter()
    places: Iterator[int] = iter(range(turn.count))

    async def in_turn() -> None:
        for at in places:
            await one(at, time.perf_counter())

    async def by_itself(at: int) -> None:
        arrived = start + turn.arrivals[at]
        await asyncio.sleep(max(0.0, arrived - time.perf_counter()))
        await one(at, arrived)

    if turn.outstanding:
        await asyncio.gather(*(in_turn() for _ in range(turn.outstanding)))
    else:
        await asyncio.gather(*(by_itself(at) for at in range(turn.count)))
    done.seconds = time.perf_counter() - start
    return done


class InEngine:
    """softprompt's engine; it makes the prompts that all contestants use."""

    def __init__(self, setup: Setup) -> None:
        import torch

        import softprompt as sp
        from softprompt.inference.generation import GenerationConfig
        from softprompt.serving.engine.engine_requests import ServedPrompt
        from softprompt.serving.engine.inference_engine import EngineLimits, InferenceEngine

        self._setup = setup
        base = sp.load_model(setup.model, device="cpu")
        self._generation = GenerationConfig(max_new_tokens=setup.new_tokens)
        self._served: dict[tuple[str, Kind], list[ServedPrompt]] = {}
        for prompts in ("tasks", "long"):
            length = setup.length if prompts == "tasks" else setup.long
            states = [_state(base, task, length) for task in range(setup.tasks)]
            for kind in KINDS:
                specs = [spec_of(kind, task) for task in range(setup.tasks)]
                self._served[prompts, kind] = [
                    ServedPrompt(f"{prompts}-{setup.name(kind, task)}@1", spec, (state,))
                    for task, (spec, state) in enumerate(zip(specs, states, strict=True))
                ]
                if prompts == "tasks":
                    for task, (spec, state) in enumerate(zip(specs, states, strict=True)):
                        _write(base, setup, kind, task, spec, state)
        for kind in KINDS:
            self._served["one", kind] = self._served["long", kind][:1]
            self._served["none", kind] = [ServedPrompt(f"none-{kind}@1", spec_of(kind, 0), ())]
        self._engine = InferenceEngine(base, EngineLimits(rows=setup.batch))
        self.facts = {"dtype": str(base.dtype).removeprefix("torch."), "threads": torch.get_num_threads()}

    async def ask(self, turn: Turn, request: Request) -> tuple[str, int]:
        among = self._served[turn.prompts, turn.kind]
        served, example = among[request.task % len(among)], Example(request.text)
        if turn.kind == "labels":
            (prediction,) = await self._engine.classify(served, [example])
            return str(prediction.label), 0
        pieces = [piece async for piece in self._engine.generate(served, example, self._generation)]
        return "".join(piece.text for piece in pieces).strip(), sum(piece.tokens for piece in pieces)

    async def turn(self, turn: Turn) -> Done:
        return await asked_by(self.ask, self._setup, turn)


class OverHttp:
    """``softprompt serve`` and a client."""

    def __init__(self, setup: Setup, address: str) -> None:
        self._setup, self._address = setup, address
        self.facts = {"dtype": "as engine"}

    async def turn(self, turn: Turn) -> Done:
        import httpx

        # the connections of a turn are its own: the server closes those that were idle meanwhile
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=self._address, limits=limits, timeout=600, trust_env=False) as client:

            async def ask(turn: Turn, request: Request) -> tuple[str, int]:
                name = self._setup.name(turn.kind, request.task)
                if turn.kind == "labels":
                    answer = await _json(client, "/v1/classify", {"model": name, "input": request.text})
                    return str(answer["results"][0]["label"]), 0
                body = {"model": name, "prompt": request.text, "max_tokens": self._setup.new_tokens}
                answer = await _json(client, "/v1/completions", body)
                return str(answer["choices"][0]["text"]).strip(), int(answer["usage"]["completion_tokens"])

            return await asked_by(ask, self._setup, turn)


async def _json(client: Any, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = await client.post(path, json=body)
    if response.status_code != 200:
        raise BenchmarkFailure(f"http: status {response.status_code} of {path}: {response.text}")
    answer: dict[str, Any] = response.json()
    return answer


def _serve_options(setup: Setup) -> tuple[list[str], dict[str, str]]:
    """Options and environment of a server with all prompts."""
    options = ["--model", setup.model, "--device", "cpu"]
    for kind in KINDS:
        for task in range(setup.tasks):
            options += ["--prompt", str(setup.place / "prompts" / setup.name(kind, task))]
    variables = {"SOFTPROMPT_ENGINE": f"rows={setup.batch}", "SOFTPROMPT_TIMEOUT": "600"}
    return options, variables | ({} if setup.threads is None else {"OMP_NUM_THREADS": str(setup.threads)})


def work(connection: Pipe, name: str, setup: Setup) -> None:
    """A process of a contestant, or of what writes adapters: turns come in, what came of them goes out, or why not."""
    # the parent's end must not leave a server behind
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with telling(connection, name, setup.threads):
        if name == "http":
            options, variables = _serve_options(setup)
            with served(options, setup.place / "server.log", variables) as (address, process):
                asyncio.run(_taking_turns(connection, OverHttp(setup, address), process.pid))
        elif name == "engine":
            asyncio.run(_engine(connection, setup))
        elif name == "adapters":
            _write_adapters(setup)
            connection.send({})
        else:
            peft = Peft(setup, name == "peft-bf16")
            connection.send(peft.facts)
            while turn := connection.recv():
                _send(connection, peft.turn(turn), peft.facts)


async def _engine(connection: Pipe, setup: Setup) -> None:
    await _taking_turns(connection, InEngine(setup), None)


async def _taking_turns(connection: Pipe, contestant: InEngine | OverHttp, number: int | None) -> None:
    connection.send(contestant.facts)
    # nothing else is to run meanwhile, so the event loop may stand still
    while turn := connection.recv():
        _send(connection, await contestant.turn(turn), contestant.facts, number)


def _send(connection: Pipe, done: Done, facts: dict[str, Any], number: int | None = None) -> None:
    done.facts, done.peak_memory_mb = facts, peak_memory_mb(number)
    connection.send(done)


def _requests(setup: Setup, count: int) -> list[Request]:
    return [setup.requests[at % len(setup.requests)] for at in range(count)]


def _state(base: Any, task: int, length: int) -> Any:
    """Virtual tokens that begin as words about the task; the numbers added make every prompt another one."""
    import torch

    from softprompt.prompts.methods.initializers import default_instruction
    from softprompt.prompts.state import PromptState
    from softprompt.training.initialization import initialize

    spec = spec_of("labels", task)
    words = initialize(f"text:{default_instruction(spec)}", base, spec, length, seed=task).tensor
    noise = torch.randn(words.shape, generator=torch.Generator().manual_seed(task)) * base.embedding_std
    return PromptState.of_embeddings(words + 0.1 * noise)


def _write(base: Any, setup: Setup, kind: Kind, task: int, spec: TaskSpec, state: Any) -> None:
    """The prompt as softprompt saves it."""
    from softprompt.prompts.saved_prompt import Prompt

    (setup.place / "prompts").mkdir(exist_ok=True)
    prompt = Prompt((state,), spec, base.name, base.fingerprint, "prompt-tuning")
    prompt.save(setup.place / "prompts" / setup.name(kind, task))


def _write_adapters(setup: Setup) -> None:
    """The prompts for PEFT, by a model in float32 as exports have it; completions are behind the same as labels."""
    import softprompt as sp
    from softprompt.export.peft import write_peft

    base = sp.load_model(setup.model, device="cpu", dtype="float32")
    (setup.place / "adapters").mkdir()
    for name in (setup.name("labels", task) for task in range(setup.tasks)):
        write_peft(base, sp.load_prompt(setup.place / "prompts" / name), setup.place / "adapters" / name)
