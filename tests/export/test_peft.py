"""PEFT adapters: PEFT's own forward pass on what is exported, what PEFT saved read back, and hostile folders."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.learned_prompts import CLOSE, SPEC, learned, our_logits, peft_logits, text_ids
from helpers.small_tasks import command, reviews_task
from helpers.tiny_models import save_tiny, tiny_base, tiny_model
from safetensors.torch import load_file, save_file

from softprompt.config import TrainConfig
from softprompt.data.encoding.placement import Placement
from softprompt.data.examples import Example
from softprompt.errors import BaseModelError, ConfigError, OutputError, PromptFileError
from softprompt.export.export_formats import FORMATS
from softprompt.export.peft import read_peft, write_peft
from softprompt.export.prompt_exchange import export_prompt, import_prompt
from softprompt.inference.predictor import Predictor
from softprompt.prompts.methods.method_registry import METHODS
from softprompt.prompts.prefix import compute_keys_and_values, make_prefix
from softprompt.prompts.saved_prompt import SEAL, Prompt
from softprompt.prompts.state import PromptState
from softprompt.store.prompt_loading import load_prompt
from softprompt.training.fit import fit
from softprompt.training.learner import PromptLearner
from softprompt.utils.seals import unseal

peft = pytest.importorskip("peft")
# what PEFT asks of transformers, which will call it otherwise
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

FIRST = Placement(behind_bos=False)

CPU = ["--device", "cpu", "--dtype", "float32"]
WITH_BOS, WITHOUT = ["llama", "gemma3", "mistral", "cohere"], ["gpt2", "qwen3", "bloom"]


class TestExport:
    @pytest.mark.parametrize("family", [*WITH_BOS, *WITHOUT, "gpt_neox", "opt", "mamba"])
    def test_peft_computes_our_logits(self, tmp_path: Path, family: str) -> None:
        base, prompt = tiny_base(family), learned(family)
        write_peft(base, prompt, tmp_path / "p")
        model = peft.PeftModel.from_pretrained(tiny_model(family), tmp_path / "p")
        ids = text_ids(base)
        torch.testing.assert_close(peft_logits(model, ids), our_logits(base, prompt.state, ids), **CLOSE)

    @pytest.mark.parametrize("family", ["llama", "gemma3", "mistral", "gpt2", "qwen3"])
    def test_peft_computes_our_logits_of_prefix_tuning(self, tmp_path: Path, family: str) -> None:
        base, prompt = tiny_base(family), learned(family, "key_values")
        write_peft(base, prompt, tmp_path / "p")
        model = peft.PeftModel.from_pretrained(tiny_model(family), tmp_path / "p")
        ids = text_ids(base)
        torch.testing.assert_close(peft_logits(model, ids), our_logits(base, prompt.state, ids), **CLOSE)

    @pytest.mark.parametrize("kind", ["embeddings", "key_values"])
    @pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "qwen3"])
    def test_peft_computes_our_logits_of_a_cartridge(self, tmp_path: Path, family: str, kind: str) -> None:
        base, prompt = tiny_base(family), learned(family, kind)
        export_prompt(base, prompt, tmp_path / "p", format="cartridge")
        model = peft.PeftModel.from_pretrained(tiny_model(family), tmp_path / "p")
        assert isinstance(model.active_peft_config, peft.CartridgeConfig)
        ids = text_ids(base)
        torch.testing.assert_close(peft_logits(model, ids), our_logits(base, prompt.state, ids), **CLOSE)
        encoder = model.prompt_encoder["default"]
        assert (encoder.num_frozen_tokens, encoder.num_trainable_tokens) == (len(base.bos_ids), prompt.length)
        back = import_prompt(base, tmp_path / "p").state
        expected = prompt.state
        if kind == "embeddings":
            expected = compute_keys_and_values(base, prompt.state.tensor)
        assert all(torch.equal(one, two) for one, two in zip(back.tensors, expected.tensors, strict=True))

    @pytest.mark.parametrize("family", ["t5", "bart"])
    @torch.no_grad()
    def test_peft_computes_our_logits_of_an_encoder_decoder(self, tmp_path: Path, family: str) -> None:
        base, prompt = tiny_base(family), learned(family)
        write_peft(base, prompt, tmp_path / "p")
        model = peft.PeftModel.from_pretrained(tiny_model(family), tmp_path / "p").eval()
        predictor = Predictor(base, SPEC, prompt.state)
        batch = predictor.encoder.scoring_items([Example("a good film")])[0]
        answer = torch.tensor([batch.decoder_ids])
        whole = base.tokenizer("a good film; label:").input_ids
        # as the README says: without BOS, which is the first virtual token
        given = torch.tensor([whole[len(base.bos_ids) :]])
        logits = model(input_ids=given, decoder_input_ids=answer).logits[0, batch.positions[0]]
        (decision,) = predictor.encoder.verbalizer.decisions  # type: ignore[union-attr]
        found = logits[[decision.choices[at] for at in decision.choice_of_label.values()]].log_softmax(dim=0)
        torch.testing.assert_close(found, predictor.label_log_probabilities([Example("a good film")])[0], **CLOSE)

    def test_bos_is_the_first_virtual_token_and_the_folder_says_so(self, tmp_path: Path) -> None:
        base, prompt = tiny_base("llama"), learned("llama")
        write_peft(base, prompt, tmp_path / "p")
        rows = load_file(tmp_path / "p" / "adapter_model.safetensors")["prompt_embeddings"]
        assert torch.equal(rows[:1], base.embed(torch.tensor(base.bos_ids)))
        assert torch.equal(rows[1:], prompt.state.tensor)
        usage = json.loads((tmp_path / "p" / "softprompt.json").read_text())
        assert (usage["bos_rows"], usage["add_special_tokens"]) == (1, False)
        readme = (tmp_path / "p" / "README.md").read_text()
        assert "BOS is its first virtual token" in readme
        assert "input_ids[:, 1:]  # without BOS" in readme
        config = json.loads((tmp_path / "p" / "adapter_config.json").read_text())
        assert (config["num_virtual_tokens"], config["peft_type"]) == (6, "PROMPT_TUNING")

    def test_without_bos_nothing_is_added(self, tmp_path: Path) -> None:
        write_peft(tiny_base("gpt2"), learned("gpt2"), tmp_path / "p")
        assert json.loads((tmp_path / "p" / "softprompt.json").read_text())["add_special_tokens"] is True
        assert "no BOS" in (tmp_path / "p" / "README.md").read_text()

    @pytest.mark.parametrize(
        ("family", "kind", "error", "words"),
        [
            ("t5", "key_values", BaseModelError, "prefix tuning to the decoder only"),
            ("pegasus", "embeddings", BaseModelError, "scales its token embeddings where PEFT does not see it"),
        ],
    )
    def test_what_peft_would_compute_otherwise_is_refused(
        self, tmp_path: Path, family: str, kind: str, error: type[Exception], words: str
    ) -> None:
        with pytest.raises(error, match=words):
            write_peft(tiny_base(family), learned(family, kind), tmp_path / "p")
        assert not any(tmp_path.iterdir())

    def test_ensembles_other_bases_and_taken_places_are_refused(self, tmp_path: Path) -> None:
        prompt = learned("llama")
        with pytest.raises(PromptFileError, match="an ensemble of 2"):
            write_peft(tiny_base("llama"), replace(prompt, states=prompt.states * 2), tmp_path / "p")
        with pytest.raises(PromptFileError, match="was learned on 'tiny llama'"):
            write_peft(tiny_base("mistral"), prompt, tmp_path / "p")
        (tmp_path / "p").mkdir()
        with pytest.raises(OutputError, match="exists already"):
            write_peft(tiny_base("llama"), prompt, tmp_path / "p")
        assert [path.name for path in tmp_path.iterdir()] == ["p"]


class TestRoundTrip:
    @pytest.mark.parametrize("kind", ["embeddings", "key_values"])
    @pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
    def test_ours_to_peft_to_ours_is_bit_exact(self, tmp_path: Path, family: str, kind: str) -> None:
        base, prompt = tiny_base(family), learned(family, kind)
        write_peft(base, prompt, tmp_path / "p")
        back = read_peft(tmp_path / "p").on(base)
        assert (back.kind, back.behind_bos) == (kind, True)
        assert len(back.tensors) == len(prompt.state.tensors)
        assert all(torch.equal(one, two) for one, two in zip(back.tensors, prompt.state.tensors, strict=True))

    def test_peft_itself_saves_what_we_wrote(self, tmp_path: Path) -> None:
        write_peft(tiny_base("llama"), learned("llama"), tmp_path / "p")
        model = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "p")
        assert torch.equal(
            model.prompt_encoder["default"].embedding.weight,
            load_file(tmp_path / "p" / "adapter_model.safetensors")["prompt_embeddings"],
        )


def adapter(family: str, folder: Path, config: Any) -> Any:
    """A PEFT model with a random adapter, which PEFT saves in ``folder``."""
    torch.manual_seed(3)
    model = peft.get_peft_model(tiny_model(family), config)
    model.save_pretrained(folder)
    return model


def prompt_tuning(**more: Any) -> Any:
    return peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, **more)


def prefix_tuning(**more: Any) -> Any:
    return peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, **more)


class TestImport:
    @pytest.mark.parametrize("family", [*WITH_BOS, *WITHOUT])
    @pytest.mark.parametrize(
        "config",
        [
            prompt_tuning,
            lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=8),
        ],
        ids=["prompt-tuning", "p-tuning"],
    )
    def test_logits_are_those_of_peft(self, tmp_path: Path, family: str, config: Any) -> None:
        self.compare(tmp_path, family, config())

    @pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "qwen3"])
    @pytest.mark.parametrize("projection", [False, True])
    def test_logits_are_those_of_peft_for_prefix_tuning(self, tmp_path: Path, family: str, projection: bool) -> None:
        more = {"prefix_projection": True, "encoder_hidden_size": 8} if projection else {}
        self.compare(tmp_path, family, prefix_tuning(**more))

    @pytest.mark.parametrize("frozen", [0, 1])
    @pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
    def test_logits_are_those_of_peft_for_cartridges(self, tmp_path: Path, family: str, frozen: int) -> None:
        config = peft.CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, num_frozen_tokens=frozen)
        self.compare(tmp_path, family, config)

    def compare(self, folder: Path, family: str, config: Any) -> None:
        base, model = tiny_base(family), adapter(family, folder, config)
        ids = text_ids(base)
        state = read_peft(folder).on(base)
        # as PEFT is used: with whatever the tokenizer puts in front, behind the prompt
        expected = peft_logits(model, [*base.bos_ids, *ids])[len(base.bos_ids) :]
        torch.testing.assert_close(our_logits(base, state, ids), expected, **CLOSE)

    def test_it_is_saved_answers_and_goes_out_again_in_its_place(self, tmp_path: Path) -> None:
        base = tiny_base("llama")
        adapter("llama", tmp_path / "theirs", prompt_tuning())
        state = read_peft(tmp_path / "theirs").on(base)
        assert (state.behind_bos, state.length) == (False, 5)
        mine = replace(learned("llama"), states=(state,))
        mine.save(tmp_path / "mine")
        loaded = load_prompt(tmp_path / "mine")
        assert loaded.state.behind_bos is False
        assert torch.equal(loaded.state.tensor, state.tensor)
        write_peft(base, loaded, tmp_path / "again")
        assert torch.equal(read_peft(tmp_path / "again").on(base).tensor, state.tensor)
        assert read_peft(tmp_path / "again").on(base).behind_bos is False
        with pytest.raises(PromptFileError, match=r"does not stand behind BOS, which a \.npy file cannot tell"):
            FORMATS["npy"].write(_export(loaded, tmp_path / "p.npy"))

    def test_prompts_before_and_behind_bos_answer_in_one_batch(self) -> None:
        base = tiny_base("llama")
        behind, before = (
            learned("llama").state,
            replace(learned("llama", seed=2).state, placement=FIRST),
        )
        examples = [Example("a good film"), Example("bad")]
        both = Predictor(base, SPEC, (behind, before)).member_log_probabilities(examples)
        for state, found in zip((behind, before), both, strict=True):
            torch.testing.assert_close(Predictor(base, SPEC, state).label_log_probabilities(examples), found, **CLOSE)
        assert make_prefix(base, before).lengths == (5,)  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        ("method", "kind"), [*((method, "embeddings") for method in METHODS), ("prefix-tuning", "key_values")]
    )
    def test_learning_goes_on_where_it_stood(self, tmp_path: Path, method: str, kind: str) -> None:
        base, task = tiny_base("llama"), reviews_task()
        before = replace(
            learned("llama", kind),
            states=(replace(learned("llama", kind).state, placement=FIRST),),
        )
        before.save(tmp_path / "before")
        config = TrainConfig.build(method=method, length=5, init=f"prompt:{tmp_path / 'before'}", steps=2)
        learner = PromptLearner(base, task, config)
        ids = text_ids(base)
        torch.testing.assert_close(our_logits(base, learner.best, ids), our_logits(base, before.state, ids), **CLOSE)
        learner.restore(learner.tensors(), learner.optimizer.state_dict(), asdict(learner.progress))
        assert learner.best.behind_bos is False
        assert fit(base, task, config=config, evaluate_test=False).state.behind_bos is False

    def test_several_tasks_do_not_start_in_front_of_bos(self, tmp_path: Path) -> None:
        before = replace(learned("llama"), states=(replace(learned("llama").state, placement=FIRST),))
        before.save(tmp_path / "before")
        tasks = {"a": reviews_task(), "b": reviews_task(seed=1)}
        config = TrainConfig.build(length=5, init=f"prompt:{tmp_path / 'before'}", steps=2)
        with pytest.raises(ConfigError, match=r"stands in front of BOS.*learn on from it by train"):
            fit(tiny_base("llama"), tasks, config=config)

    def test_from_the_command_line(self, tmp_path: Path) -> None:
        save_tiny(tmp_path / "model", "llama")
        adapter("llama", tmp_path / "theirs", prompt_tuning())
        words = ["--labels", "bad,good", "--template", "{{ text }}; label:"]
        there = ["--model", tmp_path / "model", "--format", "peft", *CPU]
        done = command("import", tmp_path / "theirs", "--out", tmp_path / "p", *there, *words, "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out)["training"]["imported_from"] == "theirs"
        assert load_prompt(tmp_path / "p").spec.labels == ("bad", "good")
        exported = command("export", tmp_path / "p", "--format", "peft", "--out", tmp_path / "out", *CPU)
        assert exported.code == 0, exported.err
        # what we exported tells its task
        back = command("import", tmp_path / "out", "--out", tmp_path / "back", *there)
        assert back.code == 0, back.err
        assert load_prompt(tmp_path / "back").spec == load_prompt(tmp_path / "p").spec
        assert torch.equal(load_prompt(tmp_path / "back").state.tensor, load_prompt(tmp_path / "p").state.tensor)


def _export(prompt: Prompt, out: Path) -> Any:
    from softprompt.export.export_formats import ExportRequest

    return ExportRequest({"p": prompt}, out)


class TestHostile:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        write_peft(tiny_base("llama"), learned("llama"), tmp_path / "p")
        (tmp_path / "p" / "softprompt.json").unlink()
        return tmp_path / "p"

    def edit(self, folder: Path, **changes: Any) -> Path:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return folder

    def refused(self, folder: Path, words: str) -> None:
        with pytest.raises(PromptFileError, match=words):
            read_peft(folder)

    def test_pickles_are_never_loaded(self, folder: Path) -> None:
        (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
        self.refused(
            folder, r"as a pickle \(adapter_model\.bin\), which can run code and is never loaded: save it again"
        )

    def test_other_adapters(self, folder: Path) -> None:
        self.refused(self.edit(folder, peft_type="LORA"), "of the type 'LORA': expected one that is a prompt")
        self.refused(self.edit(folder, peft_type=["x"]), "expected one that is a prompt")

    def test_no_adapter(self, tmp_path: Path) -> None:
        self.refused(tmp_path, r"it holds no adapter_config\.json")
        self.refused(tmp_path / "none", "it is no folder")

    @pytest.mark.parametrize(
        ("file", "content", "words"),
        [
            ("adapter_config.json", b"{", "is damaged"),
            ("adapter_config.json", b"[]", "expected a JSON object"),
            ("adapter_config.json", b"[" * 100_000, "is damaged"),
            ("adapter_model.safetensors", b"", "is damaged"),
            ("adapter_model.safetensors", b"\xff" * 64, "is damaged"),
            ("softprompt.json", b'{"format": "peft", "bos_rows": 9}', "9 of 6 rows cannot be BOS"),
            ("softprompt.json", b'{"format": "peft", "bos_rows": true}', "cannot be BOS"),
        ],
    )
    def test_damaged_files(self, folder: Path, file: str, content: bytes, words: str) -> None:
        (folder / file).write_bytes(content)
        self.refused(folder, words)

    @pytest.mark.parametrize(
        ("tensors", "words"),
        [
            ({"other": torch.zeros(6, 32)}, "expected a matrix 'prompt_embeddings'"),
            ({"prompt_embeddings": torch.zeros(6)}, "expected a matrix"),
            ({"prompt_embeddings": torch.zeros(6, 32, dtype=torch.int32)}, "expected a matrix"),
            ({"prompt_embeddings": torch.zeros(5, 32)}, "5 virtual tokens, its configuration says 6"),
            ({"prompt_embeddings": torch.full((6, 32), torch.nan)}, "values that are not numbers"),
        ],
    )
    def test_other_tensors(self, folder: Path, tensors: dict[str, torch.Tensor], words: str) -> None:
        save_file(tensors, folder / "adapter_model.safetensors")
        self.refused(folder, words)

    @pytest.mark.parametrize(
        "changes", [{"num_layers": 3}, {"num_attention_heads": 0}, {"token_dim": None}, {"num_layers": "2"}]
    )
    def test_sizes_of_keys_and_values(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        write_peft(tiny_base("llama"), learned("llama", "key_values"), tmp_path / "p")
        self.refused(self.edit(tmp_path / "p", **changes), "keys and values of 64 numbers a token")

    def test_another_model(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(PromptFileError, match="virtual tokens of 32 values, expected 16 values as 'tiny opt' has"):
            read_peft(folder).on(tiny_base("opt"))
        write_peft(tiny_base("llama"), learned("llama", "key_values"), tmp_path / "kv")
        words = "2 layers with 2 heads of 8, expected 2 layers with 4 heads of 8 as 'tiny gpt2' has"
        with pytest.raises(PromptFileError, match=words):
            read_peft(tmp_path / "kv").on(tiny_base("gpt2"))

    def test_prefix_tuning_of_encoder_decoders(self, tmp_path: Path) -> None:
        write_peft(tiny_base("llama"), learned("llama", "key_values"), tmp_path / "p")
        self.refused(self.edit(tmp_path / "p", task_type="SEQ_2_SEQ_LM"), "of an encoder-decoder model")


def test_a_damaged_place_is_refused_in_a_saved_prompt(tmp_path: Path) -> None:
    prompt = replace(learned("llama"), states=(PromptState.of_embeddings(torch.zeros(2, 32)),))
    prompt.save(tmp_path / "p")
    path = tmp_path / "p" / "prompt.json"
    path.write_text(json.dumps({**unseal(json.loads(path.read_text()), SEAL), "behind_bos": "no"}))
    with pytest.raises(PromptFileError, match="behind_bos is 'no'"):
        load_prompt(tmp_path / "p")
