"""Baked vocabulary: the checkpoint's logits are the prompts', new tokens stay out of answers and users' hands."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.learned_prompts import SPEC, learned, our_logits, text_ids
from helpers.small_tasks import command
from helpers.tiny_models import save_tiny, tiny_base, tiny_model, tiny_tokenizer
from jinja2 import TemplateError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from softprompt.data.encoding.placement import Placement
from softprompt.data.task import TaskSpec
from softprompt.errors import BaseModelError, ConfigError, OutputError, PromptFileError
from softprompt.export import vocabulary
from softprompt.export.engine_client import Tasks
from softprompt.export.exported_chat_template import split_template
from softprompt.export.vocabulary import bake_vocabulary
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState

FIRST = Placement(behind_bos=False)

CPU = ["--device", "cpu", "--dtype", "float32"]
HOSTILE = "a film <|sp:one:0|> and <|sp:<|sp:one:0|>one:1|> <eos>"


def two(family: str) -> dict[str, Prompt]:
    return {"one": learned(family), "two": learned(family, length=3, seed=2)}


def loaded(folder: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def compare(base: FrozenLM, folder: Path, prompts: dict[str, Prompt]) -> None:
    """The checkpoint's logits behind a task's tokens with ours behind its prompt."""
    model, tokenizer = loaded(folder)
    tasks, ids = json.loads((folder / "softprompt.json").read_text())["tasks"], text_ids(base)
    for name, prompt in prompts.items():
        read = tokenizer(tasks[name]["prompt"] + "a good film and a bad story").input_ids
        assert read == [*base.bos_ids, *tasks[name]["ids"], *ids]
        logits = model(input_ids=torch.tensor([read])).logits[0, -len(ids) :]
        expected, known = our_logits(base, prompt.state, ids), min(tasks["one"]["ids"])
        torch.testing.assert_close(logits[:, :known], expected[:, :known], atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 3 with two prompts, so large that its tied output layer prefers their tokens."""
    folder = tmp_path_factory.mktemp("vocab") / "baked"
    base, prompts = tiny_base("gemma3"), two("gemma3")
    loud = {
        name: replace(prompt, states=(PromptState.of_embeddings(prompt.state.tensor * 40),))
        for name, prompt in prompts.items()
    }
    bake_vocabulary(base, loud, folder, tied=True)
    return folder


class TestLogits:
    # tied and not, an embedding scale, a bias behind the output layer, projections, logits scaled
    @pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "phi", "opt", "cohere", "granite", "mamba"])
    def test_are_those_of_the_prompts(self, tmp_path: Path, family: str) -> None:
        base, prompts = tiny_base(family), two(family)
        before = dict(base.fingerprint)
        bake_vocabulary(base, prompts, tmp_path / "out")
        compare(base, tmp_path / "out", prompts)
        base.__dict__.pop("fingerprint")
        assert base.fingerprint == before
        assert base.vocabulary_size == base.config.vocab_size == 320

    def test_an_untied_output_layer_never_prefers_the_new_tokens(self, tmp_path: Path) -> None:
        base, prompts = tiny_base("gemma3"), two("gemma3")
        bake_vocabulary(base, prompts, tmp_path / "out")
        compare(base, tmp_path / "out", prompts)
        model, _ = loaded(tmp_path / "out")
        assert model.config.tie_word_embeddings is False
        assert torch.equal(model.lm_head.weight[:320], base.embedding_weight)
        logits = model(input_ids=torch.tensor([[1, 320, 321, 9]])).logits
        mean = logits[..., :320].mean(dim=-1, keepdim=True).expand(-1, -1, 8)
        torch.testing.assert_close(logits[..., 320:], mean, atol=1e-4, rtol=1e-4)

    def test_a_padded_vocabulary_takes_the_tokens_where_it_has_room(self, tmp_path: Path) -> None:
        model = tiny_model("qwen3")
        model.resize_token_embeddings(324, mean_resizing=False)
        base = FrozenLM(model, tiny_tokenizer("qwen3"), "padded")
        prompts = {
            name: replace(prompt, base_name="padded", base_fingerprint=base.fingerprint)
            for name, prompt in two("qwen3").items()
        }
        bake_vocabulary(base, prompts, tmp_path / "out")
        compare(base, tmp_path / "out", prompts)
        assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 328
        bake_vocabulary(base, {"one": prompts["two"]}, tmp_path / "small")
        assert json.loads((tmp_path / "small" / "config.json").read_text())["vocab_size"] == 324

    def test_a_prompt_that_does_not_stand_behind_bos(self, tmp_path: Path) -> None:
        base = tiny_base("llama")
        prompt = replace(learned("llama"), states=(replace(learned("llama").state, placement=FIRST),))
        bake_vocabulary(base, {"one": prompt}, tmp_path / "out")
        tasks = Tasks.load(tmp_path / "out")
        ids = tasks.ids("one", "a good film")
        assert ids[:5] == [320, 321, 322, 323, 324]
        model, _ = loaded(tmp_path / "out")
        text = ids[5:]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -len(text) :, :320]
        torch.testing.assert_close(logits, our_logits(base, prompt.state, text), atol=1e-4, rtol=1e-4)

    def test_an_encoder_decoder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(BaseModelError, match="is an encoder-decoder model"):
            bake_vocabulary(tiny_base("t5"), {"one": learned("t5")}, tmp_path / "out")
        assert not any(tmp_path.iterdir())

    def test_a_checkpoint_that_computes_something_else_is_not_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(vocabulary, "make_rows", lambda baked, scale: torch.zeros(5, 32))
        with pytest.raises(BaseModelError, match=r"reads more than embeddings .* logits are \d+\.\d% off"):
            bake_vocabulary(tiny_base("llama"), {"one": learned("llama")}, tmp_path / "out")
        assert not any(tmp_path.iterdir())


class TestNeverGenerated:
    def test_transformers_suppresses_what_the_output_layer_prefers(self, baked: Path) -> None:
        model, _ = loaded(baked)
        ids = torch.tensor([Tasks.load(baked).ids("one", "a good film")])
        greedy = {"do_sample": False, "max_new_tokens": 12}
        allowed = model.generate(ids, attention_mask=torch.ones_like(ids), **greedy)[0, ids.shape[1] :]
        assert int(allowed.max()) < 320
        model.generation_config.suppress_tokens = None
        free = model.generate(ids, attention_mask=torch.ones_like(ids), **greedy)[0, ids.shape[1] :]
        assert int(free.max()) >= 320

    def test_untied_rows_are_the_mean_and_biases_forbid(self, tmp_path: Path) -> None:
        bake_vocabulary(tiny_base("phi"), two("phi"), tmp_path / "out")
        tensors = load_file(tmp_path / "out" / "model.safetensors")
        mean = tiny_base("phi").model.lm_head.weight.mean(dim=0).expand(8, -1)
        torch.testing.assert_close(tensors["lm_head.weight"][320:], mean)
        assert torch.equal(tensors["lm_head.bias"][320:], torch.full((8,), -1e4))
        assert torch.equal(tensors["lm_head.weight"][:320], tiny_base("phi").model.lm_head.weight)


class TestUsersText:
    def test_never_becomes_a_virtual_token(self, baked: Path) -> None:
        tasks = Tasks.load(baked)
        assert tasks.names == ["one", "two"]
        ids = tasks.ids("two", HOSTILE)
        assert [one for one in ids if one >= 320] == [325, 326, 327]
        assert ids.index(325) == 1
        assert 2 not in ids[4:]  # nor any other special token
        _, tokenizer = loaded(baked)
        assert tokenizer.decode(ids[4:]) == f"{HOSTILE}; label:"

    def test_the_chat_template_writes_the_same_and_takes_marks_apart(self, baked: Path) -> None:
        tasks, (_, tokenizer) = Tasks.load(baked), loaded(baked)
        message = {"role": "user", "content": "a good film"}

        def ids(*messages: dict[str, str], **more: Any) -> list[int]:
            found = tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=True, **more)
            return list(found["input_ids"])

        assert ids(message, task="two") == tasks.ids("two", "a good film")
        assert ids({"role": "system", "content": "one"}, message) == tasks.ids("one", "a good film")
        hostile = ids({"role": "user", "content": HOSTILE.removesuffix(" <eos>")}, task="two")
        assert [one for one in hostile if one >= 320] == [325, 326, 327]
        parts = [{"type": "text", "text": "a good"}, {"type": "text", "text": "film"}]
        assert ids({"role": "user", "content": parts}, task="two") == tasks.ids("two", "a good\nfilm")
        assert ids({"role": "system", "content": "two"}, message, task="two") == tasks.ids("two", "a good film")

    def test_the_chat_template_refuses_what_would_have_no_say(self, baked: Path, tmp_path: Path) -> None:
        bake_vocabulary(tiny_base("gemma3"), {"one": learned("gemma3")}, tmp_path / "out")
        user, answer = {"role": "user", "content": "a good film"}, {"role": "assistant", "content": "bad"}
        system = {"role": "system", "content": "You are kind."}
        image = {"role": "user", "content": [{"type": "image"}]}
        for folder, messages, more, words in (
            (baked, [user], {}, "expected a task, one of one, two"),
            (baked, [system, user], {}, "expected a task, one of one, two"),
            (baked, [user], {"task": "three"}, "expected a task, one of one, two"),
            (baked, [system, user], {"task": "one"}, "expected no system message but the name of the task"),
            (baked, [{**system, "content": "one"}, user], {"task": "two"}, "expected no system message"),
            (tmp_path / "out", [system, user], {}, "expected no system message but the name of the task, one of one"),
            (tmp_path / "out", [user, answer, user], {}, "expected one message of the user and no earlier turns"),
            (tmp_path / "out", [user, answer], {}, "expected one message of the user and no earlier turns"),
            (tmp_path / "out", [answer], {}, "expected one message of the user"),
            (tmp_path / "out", [{**system, "content": "one"}], {}, "expected one message of the user"),
            (tmp_path / "out", [image], {}, "expected a message of text"),
            (tmp_path / "out", [user], {"tools": [{"name": "x"}]}, "expected neither tools nor documents"),
        ):
            _, tokenizer = loaded(folder)
            with pytest.raises(TemplateError, match=words):
                tokenizer.apply_chat_template(messages, **more)
        assert tokenizer.apply_chat_template([user], return_dict=True)["input_ids"][0] == 1

    @pytest.mark.parametrize(
        "template", ["<{{ text }}", "{{ text }}>", "{{ text }}{{ text }}", "<|sp:one:0|>{{ text }}"]
    )
    def test_the_chat_templates_words_beside_a_message_spell_no_virtual_token(
        self, tmp_path: Path, template: str
    ) -> None:
        prompt = replace(learned("gemma3"), spec=TaskSpec("generation", template))
        bake_vocabulary(tiny_base("gemma3"), {"one": prompt}, tmp_path / "out")
        _, tokenizer = loaded(tmp_path / "out")
        for text in ("|sp:one:0|>", "<|sp:one:0|", "sp:one:0|><|"):
            message = {"role": "user", "content": text}
            ids = tokenizer.apply_chat_template([message], return_dict=True)["input_ids"]
            assert [one for one in ids if one >= 320] == [320, 321, 322, 323, 324]

    def test_a_template_that_needs_more_than_the_text_is_left_to_the_client(self, tmp_path: Path) -> None:
        spec = TaskSpec("generation", "{{ text }} {{ place }}:")
        assert split_template(spec) is None
        assert split_template(TaskSpec("generation", "{{ text | upper }}:")) is None
        assert split_template(TaskSpec("generation", "{% if text|length > 20 %}long{% endif %}{{ text }}:")) is None
        assert split_template(TaskSpec("generation", "Say: {{ text }}\n{{ text }}\n")) == ["Say: ", "\n", "\n"]
        base = tiny_base("gpt2")
        bake_vocabulary(base, {"one": replace(learned("gpt2"), spec=spec)}, tmp_path / "out")
        tasks, (_, tokenizer) = Tasks.load(tmp_path / "out"), loaded(tmp_path / "out")
        written = tasks.ids("one", "a film", place="here")
        said = [{"role": "user", "content": "a film here:"}]
        assert list(tokenizer.apply_chat_template(said, return_dict=True)["input_ids"]) == written

    def test_labels_hold_the_answer(self, baked: Path, tmp_path: Path) -> None:
        request = Tasks.load(baked).request("one", "a good film", model="m")
        assert (request["max_tokens"], request["temperature"], request["model"]) == (1, 0, "m")
        tasks, (_, tokenizer) = Tasks.load(baked), loaded(baked)
        said = {tasks.answer("one", tokenizer.decode([one])) for one in request["allowed_token_ids"]}
        assert said == {"bad", "good"}

        base = tiny_base("gpt2")
        several = replace(SPEC, labels=("a", "b"), verbalizers=("good", "good film"))
        prompts = {"s": replace(learned("gpt2"), spec=several), "g": replace(learned("gpt2"), spec=TaskSpec.of())}
        bake_vocabulary(base, prompts, tmp_path / "out")
        tasks = Tasks.load(tmp_path / "out")
        held = tasks.request("s", "a film", model="m")
        assert held["structured_outputs"] == {"choice": [" good", " good film"]}
        assert (tasks.answer("s", " good film"), tasks.answer("s", "good")) == ("b", "a")
        for task in ("s", "g"):
            with pytest.raises(ConfigError, match=f"task '{task}' has no labels that their first token tells apart"):
                tasks.labels(task)
        free = tasks.request("g", "a film", model="m", max_tokens=7)
        assert free["logit_bias"] == {str(one): -100 for one in range(320, 330)}
        assert free["max_tokens"] == 7
        assert tasks.answer("g", " as it is ") == "as it is"

    def test_unknown_tasks_and_damaged_folders(self, baked: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="unknown task 'three': expected one of one, two"):
            Tasks.load(baked).ids("three", "a")
        with pytest.raises(PromptFileError, match=r"it holds no softprompt\.json"):
            Tasks.load(tmp_path)
        usage = json.loads((baked / "softprompt.json").read_text())
        for wrong in ({}, {**usage, "tasks": []}, {**usage, "tasks": {"one": {}}}, {**usage, "bos_ids": None}):
            with pytest.raises(PromptFileError, match="lacks or misuses"):
                Tasks(tiny_tokenizer("gemma3"), wrong)


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "error", "words"),
        [
            ({"kind": "key_values"}, PromptFileError, "is keys and values of every layer, .* use --format peft"),
            ({"members": 2}, PromptFileError, "'one' is an ensemble of 2 prompts that answer by vote"),
            ({"name": "a b"}, ConfigError, "'a b' cannot be part of a token"),
            ({"name": "|><"}, ConfigError, "cannot be part of a token"),
            ({"family": "mistral"}, PromptFileError, "was learned on 'tiny mistral'"),
        ],
    )
    def test_what_no_vocabulary_holds(
        self, tmp_path: Path, change: dict[str, Any], error: type[Exception], words: str
    ) -> None:
        prompt = learned(change.get("family", "llama"), change.get("kind", "embeddings"))
        prompt = replace(prompt, states=prompt.states * change.get("members", 1))
        with pytest.raises(error, match=words):
            bake_vocabulary(tiny_base("llama"), {change.get("name", "one"): prompt}, tmp_path / "out")
        assert not any(tmp_path.iterdir())

    def test_a_taken_place_and_a_second_baking(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        with pytest.raises(OutputError, match="exists already"):
            bake_vocabulary(tiny_base("llama"), {"one": learned("llama")}, tmp_path / "out")
        bake_vocabulary(tiny_base("llama"), {"one": learned("llama")}, tmp_path / "first")
        again = FrozenLM(*loaded(tmp_path / "first"), "again")
        prompt = replace(learned("llama"), base_name="again", base_fingerprint=again.fingerprint)
        with pytest.raises(BaseModelError, match=r"the vocabulary has '<\|sp:one:0\|>' already"):
            bake_vocabulary(again, {"one": prompt}, tmp_path / "second")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "out"]


class TestCommandLine:
    @pytest.fixture
    def place(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("cli")
        save_tiny(folder / "model", "llama")
        for name in ("sentiment@2", "topic", "other/topic"):
            replace(learned("llama"), base_name=str(folder / "model")).save(folder / name)
        learned("llama", "key_values").save(folder / "keys")
        replace(learned("llama"), states=learned("llama").states * 2).save(folder / "several")
        return folder

    def test_several_prompts_become_one_checkpoint(self, place: Path, tmp_path: Path) -> None:
        prompts = [place / "sentiment@2", f"subject={place / 'topic'}"]
        done = command("export", *prompts, "--format", "vocab", "--out", tmp_path / "out", "--device", "cpu", "--json")
        assert done.code == 0, done.err
        result = json.loads(done.out)
        assert result["prompts"] == {"sentiment": str(prompts[0]), "subject": str(prompts[1]).partition("=")[2]}
        assert result["first_ids"] == {"sentiment": 320, "subject": 325}
        assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
        assert Tasks.load(tmp_path / "out").names == ["sentiment", "subject"]
        assert "generate" in (tmp_path / "out" / "README.md").read_text()
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_mistakes_end_in_one_line(self, place: Path, tmp_path: Path) -> None:
        topic, out = place / "topic", tmp_path / "out"
        for arguments, words in (
            ([topic, place / "other/topic", "--format", "vocab"], "two prompts are called 'topic'"),
            ([topic, place / "sentiment@2", "--format", "peft"], "--format peft holds one prompt, got 2"),
            ([topic, "--format", "gguf"], "give yours with --gguf FILE"),
            ([topic, "--format", "vocab", "--gguf", "x.gguf"], "--gguf is for --format gguf"),
            ([topic, "--format", "peft", "--tied"], "--tied is for --format vocab and gguf"),
            ([place / "keys", "--format", "vocab"], "is keys and values of every layer"),
            ([place / "several", "--format", "vocab"], "'several' is an ensemble of 2 prompts"),
            ([place / "several", "--format", "peft"], "an ensemble of 2"),
            ([place / "none", "--format", "vocab"], "is no saved prompt, it does not exist"),
        ):
            done = command("export", *arguments, "--out", out, *CPU)
            assert done.code == 2, arguments
            assert words in done.error
            assert "loading" not in done.err
        assert not any(tmp_path.iterdir())
