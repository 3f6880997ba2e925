"""Tasks on encoder-decoder models: what is scored and learned, and every verb of the command line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small_tasks import FAST, TEMPLATE, Recorder, answers, command, reviews, reviews_task, write_data
from helpers.tiny_models import CONTEXT, as_state, random_prompt, save_tiny, tiny_base
from torch import Tensor

import softprompt.training.loop as training
from softprompt.config import TrainConfig
from softprompt.data.encoding.batching import collate
from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.examples import Example
from softprompt.data.task import Task, TaskSpec
from softprompt.errors import DataError, TemplateError
from softprompt.inference.predictor import Predictor
from softprompt.inference.scoring import AnswerScorer
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.prompts.prefix import make_prefix
from softprompt.prompts.written_prompt import written_prompt
from softprompt.store.prompt_loading import load_prompt
from softprompt.training.fit import fit
from softprompt.training.multitask import train_multitask

FAMILIES = ("t5", "mt5", "bart", "pegasus")
TEXTS = ("a dull story", "what is the film about? the cat", "so", "the mat sat on the great cat " * 3)
LABELS = {
    "one word each": ("good", "bad", "film"),
    "common beginnings": ("good film", "good story", "bad"),
    "one begins another": ("good", "good film", "negative"),
}
PROMPT = 3

every_family = pytest.mark.parametrize("family", FAMILIES)


def spec_of(labels: Sequence[str]) -> TaskSpec:
    return TaskSpec("classification", "{{ text }}\nLabel:", tuple(labels), tuple(labels))


def tokens(base: FrozenLM, text: str) -> list[int]:
    return list(base.tokenizer(text, add_special_tokens=False).input_ids)


def plain_logits(base: FrozenLM, prompt: Tensor, text: str, answer: Sequence[int]) -> Tensor:
    """``[U, V]`` behind start and answer, through the transformers model: BOS, prompt, text, EOS in the encoder."""
    whole = base.tokenizer(text).input_ids
    bos = int(whole[0] == base.tokenizer.bos_token_id)
    embed = base.model.get_input_embeddings()
    scale = getattr(base.model.get_encoder(), "embed_scale", 1.0)
    ids = torch.tensor(whole)
    embeddings = torch.cat([embed(ids[:bos]) * scale, prompt, embed(ids[bos:]) * scale])[None]
    start = [base.model.config.decoder_start_token_id, *whole[:bos]]
    logits: Tensor = base.model(inputs_embeds=embeddings, decoder_input_ids=torch.tensor([[*start, *answer]])).logits[0]
    return logits[len(start) - 1 :]


def brute_force(base: FrozenLM, prompt: Tensor, text: str, labels: Sequence[str]) -> Tensor:
    """Probabilities ``[C]`` of decoding held to the label set."""
    words, end = [tuple(tokens(base, label)) for label in labels], base.tokenizer.eos_token_id
    closed = [(*word, end) if any(o != word and o[: len(word)] == word for o in words) else word for word in words]
    probabilities = []
    for word in closed:
        probability = torch.ones(())
        for step, token in enumerate(word):
            allowed = sorted({other[step] for other in closed if other[:step] == word[:step]})
            logits = plain_logits(base, prompt, f"{text}\nLabel:", word[:step])[-1]
            probability = probability * logits[allowed].softmax(0)[allowed.index(token)]
        probabilities.append(probability)
    return torch.stack(probabilities)


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())
@every_family
def test_labels_are_scored_and_learned_as_decoding_held_to_them(family: str, labels: Sequence[str]) -> None:
    base, prompt = tiny_base(family), random_prompt(tiny_base(family), PROMPT)
    encoder = ExampleEncoder(base, spec_of(labels), PROMPT)
    objective = AnswerScorer(base, encoder.verbalizer)
    with torch.no_grad():
        items = encoder.scoring_items([Example(text) for text in TEXTS])
        found = objective.label_log_probabilities(make_prefix(base, as_state(prompt)), items).exp()
    expected = torch.stack([brute_force(base, prompt, text, labels) for text in TEXTS])
    torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.sum(1), torch.ones(len(TEXTS)))
    chosen = [(row, row % len(labels)) for row in range(len(TEXTS))]
    examples = [Example(TEXTS[row], labels[label]) for row, label in chosen]
    batch = collate(encoder.training_items(examples), base.device)
    loss = objective.losses(make_prefix(base, as_state(prompt)), batch).sum()
    right = torch.stack([-expected[place].log() for place in chosen]).sum()
    torch.testing.assert_close(loss, right, atol=1e-4, rtol=1e-5)
    of_found, of_right = (torch.autograd.grad(value, prompt)[0] for value in (loss, right))
    assert (of_found - of_right).norm() < 1e-4 * of_right.norm()


@every_family
def test_outputs_are_learned_to_their_end(family: str) -> None:
    base, prompt = tiny_base(family), random_prompt(tiny_base(family), PROMPT)
    encoder = ExampleEncoder(base, TaskSpec("generation", "{{ text }}\nOutput:"), PROMPT)
    outputs = ("the mat", "so", "a", "a great story")
    examples = [Example(text, None, (output,)) for text, output in zip(TEXTS, outputs, strict=True)]
    batch = collate(encoder.training_items(examples), base.device)
    loss = AnswerScorer(base, None).losses(make_prefix(base, as_state(prompt)), batch).sum()
    expected = torch.zeros(())
    for one, output in zip(examples, outputs, strict=True):
        answer = [*tokens(base, output), base.tokenizer.eos_token_id]
        logits = plain_logits(base, prompt, f"{one.text}\nOutput:", answer[:-1])
        expected = expected + torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum")
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)
    found, right = (torch.autograd.grad(value, prompt)[0] for value in (loss, expected))
    assert (found - right).norm() < 1e-4 * right.norm()


@every_family
def test_a_written_prompt_is_the_words_in_front(family: str) -> None:
    base, instruction = tiny_base(family), "What is the film?"
    shots = [Example("the cat sat", "bad"), Example("a great mat", "good")]
    spec = spec_of(("good", "bad"))
    state = written_prompt(base, spec, instruction, shots)
    parts = [instruction, *(f"{shot.text}\nLabel: {shot.label}" for shot in shots), spec.template]
    whole = TaskSpec("classification", "\n\n".join(parts), spec.labels, spec.verbalizers)
    examples = [Example(text) for text in TEXTS]
    found, expected = (
        Predictor(base, task, prompt).label_log_probabilities(examples)
        for task, prompt in ((spec, state), (whole, None))
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (found - Predictor(base, spec).label_log_probabilities(examples)).abs().max() > 1e-2


class TestRoom:
    def test_answers_take_none_from_the_text(self) -> None:
        base = tiny_base("bart")
        # BOS and EOS
        assert ExampleEncoder(base, TaskSpec("generation", "{{ text }}"), 4, answer_room=100).limit == CONTEXT - 4 - 2

    def test_answers_longer_than_the_decoders_context(self) -> None:
        spec = TaskSpec("generation", "{{ text }}")
        with pytest.raises(TemplateError, match="a prompt of 4 virtual tokens and an answer of 159 leave 0 tokens"):
            ExampleEncoder(tiny_base("bart"), spec, 4, answer_room=CONTEXT - 1)
        with pytest.raises(DataError, match=r"an output of .* leaves 0 tokens for its text"):
            ExampleEncoder(tiny_base("bart"), spec, 4).training_items([Example("a", None, ("x y " * CONTEXT,))])

    def test_texts_are_cut_within_what_stands_around_them(self) -> None:
        base = tiny_base("bart")
        encoder = ExampleEncoder(base, TaskSpec("generation", "{{ text }}:"), 4)
        (ids,) = encoder.encode_inputs([Example("the film is great " * CONTEXT)])
        assert len(ids) + len(base.bos_ids) + 4 == CONTEXT
        assert ids[-2:] == (*tokens(base, ":"), base.tokenizer.eos_token_id)
        assert encoder.truncated == 1

    def test_distances_know_no_limit(self) -> None:
        assert tiny_base("t5").context_length is None
        assert ExampleEncoder(tiny_base("t5"), TaskSpec("generation", "{{ text }}"), 1000, 1000).limit == 512


@pytest.mark.parametrize("family", ["mt5", "bart"])
def test_generation_learns(family: str) -> None:
    task, seen = Task.generation(answers(), template=TEMPLATE), Recorder()
    settings = {"length": 8, "steps": 80, "batch_size": 8, "eval_every": 40, "method": "prefix-tuning"}
    settings["learning_rate"] = 0.5
    prompt = fit(tiny_base(family), task, callback=seen, **settings)
    assert sum(seen.losses[-5:]) < 0.5 * sum(seen.losses[:5])
    assert prompt.metrics["test"]["value"] > 0.3
    assert prompt.metrics["test"]["metric"] == "exact_match"


def test_tasks_learn_together_and_a_teacher_is_followed() -> None:
    base = tiny_base("mt5")
    tasks = {"reviews": reviews_task(), "answers": Task.generation(answers(), template=TEMPLATE)}
    teacher = fit(base, tasks["reviews"], **{**FAST, "steps": 30}).state
    seen = Recorder()
    config = TrainConfig.build(**{**FAST, "steps": 30})
    found = train_multitask(base, tasks, config, seen, teachers={"reviews": teacher})
    assert set(found) == set(tasks)
    assert sum(seen.losses[-5:]) < 0.9 * sum(seen.losses[:5])


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_run_that_was_interrupted_goes_on_to_the_same_bytes(
    family: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, settings = tiny_base(family), {**FAST, "method": method, "checkpoint_every": 2}
    calls: list[int] = []
    whole = training._accumulate_gradients

    def interrupted(*arguments: Any) -> list[float]:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return whole(*arguments)

    fit(base, reviews_task(), out=tmp_path / "unbroken", **settings)
    with monkeypatch.context() as patch:
        patch.setattr(training, "_accumulate_gradients", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(base, reviews_task(), out=tmp_path / "p", **settings)
    fit(base, reviews_task(), out=tmp_path / "p", resume=True, **settings)
    for name in ("prompt.safetensors", "prompt.json", "history.jsonl"):
        assert (tmp_path / "p" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()


@pytest.fixture(scope="module", params=["t5", "bart"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    save_tiny(folder / "model", request.param)
    write_data(folder / "reviews", reviews())
    write_data(folder / "answers", answers())
    return folder


CPU = ["--device", "cpu", "--dtype", "float32"]
SHORT = ["--length", "4", "--steps", "6", "--batch-size", "8", "--eval-every", "6", "--template", TEMPLATE, *CPU]


class TestCommandLine:
    """One model folder, the same verbs and files as for decoder-only models."""

    def train(self, place: Path, out: str, *more: object, data: str = "reviews") -> None:
        where = ["--model", place / "model", "--data", place / data, "--out", place / out]
        done = command("train", *where, *SHORT, *more)
        assert (done.code, (place / out / "prompt.safetensors").exists()) == (0, True), done.err

    @pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
    def test_classification(self, place: Path, method: str) -> None:
        self.train(place, method, "--method", method, "--gradient-checkpointing")
        done = command("eval", place / method, "--data", place / "reviews", "--json", *CPU)
        assert (done.code, json.loads(done.out)["n"]) == (0, 24)
        tested = load_prompt(place / method).metrics["test"]["value"]
        assert json.loads(done.out)["value"] == tested
        done = command("predict", place / method, "the film is great 3", "--json", *CPU)
        (answer,) = json.loads(done.out)["predictions"]
        assert answer["label"] in ("good", "bad")
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
        assert command("show", place / method).code == 0

    def test_generation(self, place: Path) -> None:
        self.train(place, "writer", data="answers")
        done = command("predict", place / "writer", "fine film 3", "--max-new-tokens", 5, "--json", *CPU)
        assert done.code == 0
        (answer,) = json.loads(done.out)["predictions"]
        assert isinstance(answer["completion"], str)
        done = command("eval", place / "writer", "--data", place / "answers", "--max-new-tokens", 5, "--json", *CPU)
        assert (done.code, json.loads(done.out)["metric"]) == (0, "exact_match")

    def test_an_ensemble_of_a_population(self, place: Path) -> None:
        self.train(place, "ensemble", "--grid", "length=2,3;method=prefix-tuning", "--ensemble")
        assert [state.kind for state in load_prompt(place / "ensemble").states] == ["key_values"] * 2
        done = command("eval", place / "ensemble", "--data", place / "reviews", "--vote", "majority", "--json", *CPU)
        assert (done.code, json.loads(done.out)["n"]) == (0, 24)

    def test_the_written_prompt(self, place: Path) -> None:
        where = ["--model", place / "model", "--data", place / "reviews", "--template", TEMPLATE]
        done = command("eval", *where, "--instruction", "Is it good?", "--shots", 2, "--json", *CPU)
        assert (done.code, json.loads(done.out)["n"]) == (0, 24)

    def test_similar_prompts(self, place: Path, tmp_path: Path) -> None:
        for seed, name in enumerate(("one", "two")):
            where = ["--model", place / "model", "--data", place / "reviews", "--out", tmp_path / name]
            assert (
                command("train", *where, *SHORT, "--method", "prefix-tuning", "--seed", seed, "--init", "vocab").code
                == 0
            )
        done = command("similar", tmp_path / "one", "--among", tmp_path, "--json")
        assert done.code == 0
        assert "average_tokens" in done.out

    def test_the_doctor(self, place: Path) -> None:
        done = command("doctor", "--model", place / "model", "--json", *CPU)
        assert (done.code, json.loads(done.out)["way"]) == (0, "encoder input")

    def test_a_loaded_model_is_the_one_that_was_saved(self, place: Path) -> None:
        base = load_model(place / "model", device="cpu", dtype="float32")
        assert base.fingerprint == tiny_base(place.name.removesuffix("0")).fingerprint
        assert base.architecture == "encoder-decoder"

    def test_a_prompt_too_long_is_one_line_and_exit_code_2(self, place: Path, tmp_path: Path) -> None:
        if place.name.startswith("t5"):
            pytest.skip("knows no limit")
        where = ["--model", place / "model", "--data", place / "reviews", "--out", tmp_path / "p"]
        done = command("train", *where, "--length", CONTEXT, "--template", TEMPLATE, *CPU)
        assert done.code == 2
        assert f"a prompt of {CONTEXT} virtual tokens and an answer of 0 leave 0 tokens" in done.error
