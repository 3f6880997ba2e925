"""Baked GGUF files: read back by ``transformers`` and by ``gguf`` itself."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.gguf_models import write_gguf
from helpers.learned_prompts import learned, our_logits, text_ids
from helpers.small_tasks import command
from helpers.tiny_models import save_tiny, tiny_base

from softprompt.errors import BaseModelError, OutputError, PromptFileError
from softprompt.export.engine_client import Tasks
from softprompt.export.gguf import bake_gguf, choose_type, gguf_usage
from softprompt.models.loading import load_model
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState

gguf = pytest.importorskip("gguf")


def two() -> dict[str, Prompt]:
    return {"one": learned("llama"), "two": learned("llama", length=3, seed=2)}


def fields(path: Path) -> dict[str, Any]:
    return {field.name: field.contents() for field in gguf.GGUFReader(path).fields.values()}


def tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


class TestBaking:
    def test_logits_are_those_of_the_prompts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
        source = write_gguf(tmp_path / "tiny.gguf")
        base, prompts = tiny_base("llama"), two()
        done = bake_gguf(base, prompts, source, tmp_path / "out.gguf")
        assert (done.baked.first, done.stored_as, done.rounding) == ({"one": 320, "two": 325}, "F32", 0.0)
        baked, ids = load_model(tmp_path / "out.gguf", device="cpu", dtype="float32"), text_ids(base)
        for name, prompt in prompts.items():
            given = [*base.bos_ids, *done.baked.ids(name), *ids]
            with torch.no_grad():
                logits = baked.model(input_ids=torch.tensor([given])).logits[0, -len(ids) :]
            torch.testing.assert_close(logits[:, :320], our_logits(base, prompt.state, ids), atol=1e-4, rtol=1e-4)
            # an output layer of its own gives each the logit of one token of old, the same for all
            same = (logits - logits[:, 320:321]).abs().max(dim=0).values < 1e-5
            assert (int(same[:320].sum()), int(same[320:].sum())) == (1, 8)

    @pytest.mark.parametrize(("kind", "rounding"), [("F16", 1e-3), ("BF16", 1e-2), ("Q8_0", 1e-2), ("Q4_0", 0.2)])
    def test_the_embedding_keeps_its_type_and_its_rows(self, tmp_path: Path, kind: str, rounding: float) -> None:
        source = write_gguf(tmp_path / "tiny.gguf", kind)
        done = bake_gguf(tiny_base("llama"), two(), source, tmp_path / "out.gguf")
        before, after = (tensors(path)["token_embd.weight"] for path in (source, tmp_path / "out.gguf"))
        assert (done.stored_as, after.tensor_type.name) == (kind, kind)
        assert np.array_equal(after.data[:320], before.data)
        assert after.shape.tolist() == [32, 328]
        rows = gguf.quants.dequantize(after.data, after.tensor_type)[320:]
        expected = torch.cat([prompt.state.tensor for prompt in two().values()]).numpy()
        assert np.linalg.norm(rows - expected) / np.linalg.norm(expected) == pytest.approx(done.rounding, rel=1e-3)
        assert 0 < done.rounding < rounding

    def test_all_else_is_copied(self, tmp_path: Path) -> None:
        source = write_gguf(tmp_path / "tiny.gguf", "Q8_0", tied=True)
        bake_gguf(tiny_base("llama"), two(), source, tmp_path / "out.gguf")
        before, after = fields(source), fields(tmp_path / "out.gguf")
        own = {"tokenizer.chat_template", "softprompt.tasks"}
        grown = {"tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "llama.vocab_size"}
        grown |= {"GGUF.kv_count", "GGUF.tensor_count"}
        assert set(after) - set(before) == own
        assert {key: after[key] for key in before if key not in grown} == {
            key: value for key, value in before.items() if key not in grown
        }
        assert after["tokenizer.ggml.tokens"][320:323] == ["<|sp:one:0|>", "<|sp:one:1|>", "<|sp:one:2|>"]
        assert after["tokenizer.ggml.tokens"][:320] == before["tokenizer.ggml.tokens"]
        assert after["tokenizer.ggml.token_type"][320:] == [3] * 8
        assert after["llama.vocab_size"] == 328
        old, new = tensors(source), tensors(tmp_path / "out.gguf")
        assert set(new) - set(old) == {"output.weight"}
        assert all(np.array_equal(old[name].data, new[name].data) for name in old if name != "token_embd.weight")

    def test_an_output_layer_that_is_the_embedding_gets_weights_of_its_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
        source = write_gguf(tmp_path / "tiny.gguf", tied=True)
        base, prompts = load_model(source, device="cpu", dtype="float32"), two()
        prompts = {name: replace(one, base_fingerprint=base.fingerprint) for name, one in prompts.items()}
        assert base.model.get_output_embeddings().weight is base.embedding_weight
        logits = {}
        for tied in (False, True):
            place = tmp_path / f"{tied}.gguf"
            done = bake_gguf(base, prompts, source, place, tied=tied)
            assert done.tied == tied
            assert ("output.weight" in tensors(place)) != tied
            baked = load_model(place, device="cpu", dtype="float32")
            given = [*base.bos_ids, *done.baked.ids("one"), *text_ids(base)]
            with torch.no_grad():
                logits[tied] = baked.model(input_ids=torch.tensor([given])).logits[0, -1]
        torch.testing.assert_close(logits[False][:320], logits[True][:320], atol=1e-4, rtol=1e-4)
        # each that of one token of old
        assert (logits[False][320:, None] - logits[False][None, :320]).abs().min(dim=1).values.max() < 1e-5
        assert logits[True][320:].std() > 0.01

    def test_models_of_which_llama_cpp_reads_no_output_layer(self, tmp_path: Path) -> None:
        source = write_gguf(tmp_path / "tiny.gguf", tied=True)
        reader = gguf.GGUFReader(source)
        field = reader.get_field("general.architecture")
        assert bytes(field.parts[-1]) == b"llama"
        content = source.read_bytes().replace(b"llama", b"gemma")
        (tmp_path / "gemma.gguf").write_bytes(content)
        done = bake_gguf(tiny_base("llama"), two(), tmp_path / "gemma.gguf", tmp_path / "out.gguf")
        assert done.tied
        assert "output.weight" not in tensors(tmp_path / "out.gguf")

    def test_rows_that_cannot_be_quantized_so_become_larger_ones(self) -> None:
        kinds = gguf.GGMLQuantizationType
        rows = np.ones((2, 256), dtype=np.float32)
        assert choose_type(kinds.Q6_K, rows) == kinds.Q8_0
        assert choose_type(kinds.Q4_1, rows) == kinds.Q4_1
        assert choose_type(kinds.Q6_K, rows[:, :80]) == kinds.F16

    def test_a_client_needs_only_the_file_and_a_tokenizer(self, tmp_path: Path) -> None:
        bake_gguf(tiny_base("llama"), two(), write_gguf(tmp_path / "tiny.gguf"), tmp_path / "out.gguf")
        tasks = Tasks(tiny_base("llama").tokenizer, gguf_usage(tmp_path / "out.gguf"))
        assert tasks.ids("two", "a <|sp:one:0|>")[:4] == [1, 325, 326, 327]
        assert max(tasks.ids("two", "a <|sp:one:0|>")[4:]) < 320


class TestRefused:
    @pytest.fixture
    def source(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write_gguf(tmp_path_factory.mktemp("refused") / "tiny.gguf")

    def bake(self, source: Path, out: Path, prompt: Prompt, family: str = "llama") -> None:
        bake_gguf(tiny_base(family), {"one": prompt}, source, out)

    def test_prompts_that_are_no_words(self, source: Path, tmp_path: Path) -> None:
        keys = PromptState("key_values", (torch.zeros(2, 2, 5, 8),) * 2)
        with pytest.raises(PromptFileError, match="is keys and values of every layer"):
            self.bake(source, tmp_path / "out", replace(learned("llama"), states=(keys,)))
        with pytest.raises(PromptFileError, match="is an ensemble of 2"):
            self.bake(source, tmp_path / "out", replace(learned("llama"), states=learned("llama").states * 2))

    def test_files_of_other_models(self, source: Path, tmp_path: Path) -> None:
        for family in ("mistral", "opt"):
            with pytest.raises(BaseModelError, match=rf"is no GGUF file of 'tiny {family}': its embeddings"):
                self.bake(source, tmp_path / "out", learned(family), family)

    @pytest.mark.parametrize("content", [b"", b"GGUF", b"text" * 100])
    def test_what_is_no_gguf_file(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "x.gguf").write_bytes(content)
        with pytest.raises(BaseModelError, match="is no GGUF file, or damaged"):
            self.bake(tmp_path / "x.gguf", tmp_path / "out", learned("llama"))

    def test_a_file_cut_short(self, source: Path, tmp_path: Path) -> None:
        content = source.read_bytes()
        for size in (200, len(content) // 2, len(content) - 1):
            (tmp_path / "cut.gguf").write_bytes(content[:size])
            with pytest.raises(BaseModelError, match="is no GGUF file, or damaged"):
                self.bake(tmp_path / "cut.gguf", tmp_path / "out", learned("llama"))
        assert [path.name for path in tmp_path.iterdir()] == ["cut.gguf"]

    def test_missing_and_taken_places(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(BaseModelError, match=r"none\.gguf' does not exist"):
            self.bake(tmp_path / "none.gguf", tmp_path / "out", learned("llama"))
        (tmp_path / "out").write_text("mine")
        with pytest.raises(OutputError, match="exists already"):
            self.bake(source, tmp_path / "out", learned("llama"))
        assert (tmp_path / "out").read_text() == "mine"
        with pytest.raises(BaseModelError, match="has no prompts in its vocabulary"):
            gguf_usage(source)


def test_from_the_command_line(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", "llama")
    replace(learned("llama"), base_name=str(tmp_path / "model")).save(tmp_path / "p")
    source = write_gguf(tmp_path / "tiny.gguf", "Q8_0")
    arguments = [f"task={tmp_path / 'p'}", "--format", "gguf", "--gguf", source, "--out", tmp_path / "out.gguf"]
    done = command("export", *arguments, "--device", "cpu", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert (result["stored_as"], result["first_ids"]) == ("Q8_0", {"task": 320})
    assert 0 < result["rounding"] < 0.01
    place = tmp_path / "out.task.Modelfile"
    assert result["modelfiles"] == {"task": str(place)}
    assert "FROM ./out.gguf\n" in place.read_text()
    # what is there already is never overwritten, and nothing is written beside it
    (tmp_path / "out.gguf").unlink()
    again = command("export", *arguments, "--device", "cpu")
    assert (again.code, f"'{place}' exists already" in again.err) == (2, True)
    assert not (tmp_path / "out.gguf").exists()
