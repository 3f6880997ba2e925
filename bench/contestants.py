"""The contestants of ``train_vs_peft.py``: softprompt's training loop, and PEFT under ``transformers.Trainer``.

Each runs in a process of its own that halts behind every turn of steps until it is told to go on.

PEFT is used as its documentation shows for causal language models (``examples/causal_language_modeling`` and the quick
tour of PEFT 0.21): text initialisation, labels masked on the text, rate 3e-2. The example pads every text to 64 tokens;
here a batch is padded to its longest text only, which is to PEFT's advantage.
"""

import os
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

from softprompt.data.examples import Example
from softprompt.data.splits import Splits
from softprompt.errors import SoftpromptError

WARMUP = 1  # steps
PEFT_RATE = 3e-2

Batches: TypeAlias = list[list[int]]
Pipe: TypeAlias = "Connection[Any, Any]"


class BenchmarkFailure(Exception):
    """A contestant did not come to its end; ``str(error)`` is one line."""


class _Stop(Exception):
    """Leaves a training loop that has been measured."""


@dataclass(frozen=True)
class Setup:
    """What all contestants share.

    Attributes:
        model: what ``softprompt.models.loading.load_model`` takes.
        folder: where that model lies, for ``from_pretrained``.
        splits: the training sentences, and one for validation, which is never reached.
        batch_size: examples a step.
        length: virtual tokens.
        threads: of PyTorch; its own choice if ``None``.
        seed: of the data order.
        device: ``cpu`` or ``cuda``.
    """

    model: str
    folder: str
    splits: Splits
    batch_size: int
    length: int
    threads: int | None
    seed: int = 0
    device: str = "cpu"


@dataclass
class Measured:
    """What one contestant has shown; the warm-up is not in it.

    Attributes:
        seconds: of each step, end to end.
        tokens: that the model processed in each step: virtual tokens, text and padding.
        peak_memory_mb: largest resident memory of the process so far, loading included; on a GPU the largest memory
            allocated there (MiB).
        facts: what it says of itself, such as its dtype.
    """

    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    peak_memory_mb: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


class Gate:
    """Times the steps of a training loop and halts it behind each turn until the next one."""

    def __init__(self, connection: Pipe, facts: Mapping[str, Any], tokens: Callable[[int], int]) -> None:
        """``tokens`` tells how many tokens the model processed in a step, counted from 0."""
        self._connection, self._facts, self._tokens = connection, dict(facts), tokens
        self._step, self._turn = 0, WARMUP
        self._seconds: list[float] = []
        self._mark = time.perf_counter()

    def step_done(self) -> None:
        """To be called at the end of each step; raises ``_Stop`` when no turn follows."""
        finish_gpu_work()
        self._seconds.append(time.perf_counter() - self._mark)
        self._step += 1
        if len(self._seconds) == self._turn:
            steps = range(self._step - self._turn, self._step)
            tokens = [self._tokens(step) for step in steps]
            self._connection.send(Measured(self._seconds, tokens, peak_device_memory_mb(), self._facts))
            self._seconds, self._turn = [], self._connection.recv()
            if not self._turn:
                raise _Stop
        self._mark = time.perf_counter()


def batch_order(lengths: Sequence[int], batch_size: int, seed: int, steps: int) -> Batches:
    """The batches that softprompt's training loop takes in its first ``steps`` steps, as indices of examples."""
    from softprompt.data.encoding.batching import epoch_batches

    batches: Batches = []
    while len(batches) < steps:
        batches += epoch_batches(lengths, batch_size, seed, epoch=len(batches) // max(1, len(lengths) // batch_size))
    return batches[:steps]


def finish_gpu_work() -> None:
    """Wait for what this process has asked of a GPU, if anything: Python runs ahead of it."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peak_device_memory_mb() -> float:
    """Largest memory so far (MiB) that this process has taken on its GPU, or, if it uses none, of the machine's."""
    import torch

    return torch.cuda.max_memory_allocated() / 1024**2 if torch.cuda.is_initialized() else peak_memory_mb()


def peak_memory_mb(process: int | None = None) -> float:
    """Largest resident memory so far (MiB) of this process, or of another one by its number."""
    try:
        for line in Path(f"/proc/{process or 'self'}/status").read_text(encoding="utf-8").splitlines():
            # unlike ru_maxrss, this does not count what the parent held when it started this process
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    if process is not None:
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024**2 if sys.platform == "darwin" else peak / 1024


def run_softprompt(connection: Pipe, setup: Setup, steps: int) -> None:
    """softprompt's own loop with its default settings."""
    import torch

    from softprompt.config import TrainConfig
    from softprompt.data.encoding.batching import batch_by_token_budget
    from softprompt.data.encoding.encoder import ExampleEncoder
    from softprompt.data.task import Task
    from softprompt.models.builtin_models import MODEL_NAME
    from softprompt.models.loading import load_model
    from softprompt.training.callbacks.callback import Callback
    from softprompt.training.loop import train_together

    base = load_model(setup.model, device=setup.device)
    task = Task.classification(setup.splits)
    # the loop evaluates at its last step, which it is stopped behind: nothing but steps is measured
    config = TrainConfig.build(
        init="text",
        # as a run of the default 300 steps would be; a tiny model of a test is not worth a compiler's time
        compile="always" if setup.model == MODEL_NAME else "auto",
        length=setup.length,
        batch_size=setup.batch_size,
        steps=steps,
        eval_every=steps,
        seed=setup.seed,
    )
    items = ExampleEncoder(base, task.spec, setup.length).training_items(task.train)
    order = batch_order([len(item.ids) for item in items], setup.batch_size, setup.seed, steps)

    def tokens(step: int) -> int:
        chunks = batch_by_token_budget([items[i] for i in order[step]], config.token_budget, config.micro_batch_size)
        prefix = len(base.bos_ids) + setup.length
        return sum(prefix + len(chunk) * max(len(item.ids) for item in chunk) for chunk in chunks)

    facts = {"dtype": str(base.dtype).removeprefix("torch."), "threads": torch.get_num_threads(), "order": order}

    class Timer(Callback):
        def on_train_begin(self, first_step: int, steps: int, learned: int, frozen: int) -> None:
            self.gate = Gate(connection, facts, tokens)

        def on_step_end(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
            self.gate.step_done()

    train_together(base, task, {"": config}, Timer())


def with_virtual_tokens(model: Any, spec: Any, folder: str, length: int) -> Any:
    """PEFT's prompt tuning of a ``transformers`` model, started from the words that softprompt starts from."""
    from peft import PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model

    from softprompt.prompts.methods.initializers import default_instruction

    return get_peft_model(
        model,
        PromptTuningConfig(
            task_type=TaskType.CAUSAL_LM,
            prompt_tuning_init=PromptTuningInit.TEXT,
            prompt_tuning_init_text=default_instruction(spec),
            num_virtual_tokens=length,
            tokenizer_name_or_path=folder,
        ),
    )


def rows_for_trainer(tokenizer: Any, spec: Any, examples: Sequence[Example]) -> list[dict[str, list[int]]]:
    """Examples as PEFT documents them: text, label and end of text, with a loss on what follows the text."""
    words = dict(zip(spec.labels, spec.verbalizers, strict=True))
    rows = []
    for example in examples:
        text = tokenizer(spec.compiled.render(example)).input_ids
        answer = tokenizer(spec.answer_separator + words[str(example.label)], add_special_tokens=False).input_ids
        answer = [*answer, tokenizer.eos_token_id]
        ids = [*text, *answer]
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * len(text) + answer})
    return rows


def run_peft(connection: Pipe, setup: Setup, steps: int, bf16: bool, order: Batches | None) -> None:
    """PEFT's prompt tuning under ``Trainer``; ``order`` replaces the batches that ``Trainer`` draws."""
    import torch
    import transformers

    from softprompt.data.task import Task

    transformers.utils.logging.disable_progress_bar()
    task = Task.classification(setup.splits)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(setup.folder)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(setup.folder, dtype=torch.float32)
    model = with_virtual_tokens(model, task.spec, setup.folder, setup.length)
    rows: Any = rows_for_trainer(tokenizer, task.spec, task.train)
    if order is not None:
        rows = [rows[index] for batch in order for index in batch]

    pad = transformers.DataCollatorForSeq2Seq(tokenizer)
    sizes: list[int] = []

    def collate(features: Any) -> Any:
        batch = pad(features)
        examples, width = batch["input_ids"].shape
        sizes.append(examples * (setup.length + width))
        return batch

    facts = {"dtype": "float32 under bf16 autocast" if bf16 else "float32", "threads": torch.get_num_threads()}

    class Timer(transformers.TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.gate = Gate(connection, facts, sizes.__getitem__)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.gate.step_done()

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=setup.batch_size,
            learning_rate=PEFT_RATE,
            max_steps=steps,
            bf16=bf16,
            use_cpu=setup.device == "cpu",
            train_sampling_strategy="random" if order is None else "sequential",
            seed=setup.seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        transformers.Trainer(
            model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[Timer()]
        ).train()


def work(connection: Pipe, name: str, setup: Setup, steps: int, order: Batches | None) -> None:
    """A contestant's process."""
    with telling(connection, name, setup.threads):
        if name == "softprompt":
            run_softprompt(connection, setup, steps)
        else:
            run_peft(connection, setup, steps, name == "peft-bf16", order)


@contextmanager
def telling(connection: Pipe, name: str, threads: int | None) -> Iterator[None]:
    """What a contestant's process does: quiet, on ``threads`` threads; what ends it is told to the parent."""
    # what the libraries print must not stand between the lines of --json
    os.dup2(2, 1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    try:
        import torch
        import transformers

        transformers.utils.logging.set_verbosity_error()
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    except (_Stop, EOFError, BrokenPipeError):
        return
    except SoftpromptError as error:
        # subclasses need not survive pickling
        connection.send(SoftpromptError(str(error)))
    except Exception as error:
        traceback.print_exc()
        connection.send(BenchmarkFailure(f"{name}: {type(error).__name__}: {' '.join(str(error).split())}"))


class Child:
    """The parent's end of a contestant's process, which answers one message after the other."""

    def __init__(self, name: str, target: Callable[..., None], *arguments: Any) -> None:
        """``target`` is given its end of the pipe, ``name`` and ``arguments``."""
        self.name = name
        # a fresh interpreter each: nothing that another one has loaded counts as this one's memory
        context = get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=target, args=(other, name, *arguments), daemon=True)
        self._process.start()
        other.close()

    def ask(self, message: Any) -> Any:
        """What the process answers; raises as ``receive``."""
        self._connection.send(message)
        return self.receive()

    def receive(self) -> Any:
        """What the process sends.

        Raises:
            SoftpromptError: a mistake that the user can mend.
            BenchmarkFailure: anything else that ended the process.
        """
        try:
            received = self._connection.recv()
        except (EOFError, ConnectionResetError) as error:
            self._process.join()
            raise BenchmarkFailure(
                f"{self.name}: its process ended with code {self._process.exitcode} (-9: out of memory?)"
            ) from error
        if isinstance(received, Exception):
            raise received
        return received

    def stop(self) -> None:
        self._connection.send(0)
        self._process.join()


class Contestant(Child):
    """A training loop, loaded and warmed up."""

    def __init__(self, name: str, target: Callable[..., None], *arguments: Any) -> None:
        """``target`` as ``Child`` has it. Raises what `receive` raises."""
        super().__init__(name, target, *arguments)
        self.measured = Measured()
        self.facts = self.receive().facts

    def turn(self, steps: int) -> float:
        """Make ``steps`` more steps; returns their median (seconds). Raises what `receive` raises."""
        made = self.ask(steps)
        self.measured.seconds += made.seconds
        self.measured.tokens += made.tokens
        self.measured.peak_memory_mb, self.measured.facts = made.peak_memory_mb, made.facts
        return statistics.median(made.seconds)
