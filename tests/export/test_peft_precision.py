"""PEFT adapters to the last digits, and on other machines: BOS's row in float32, and READMEs that run as they stand."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.gguf_models import write_gguf
from helpers.learned_prompts import CLOSE, learned, our_logits, peft_logits, text_ids
from helpers.small_tasks import command
from helpers.tiny_models import plain_logits, save_tiny, tiny_base, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from softprompt.errors import BaseModelError
from softprompt.export.peft import read_peft, write_peft
from softprompt.models import builtin_models
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.prompts.state import PromptState
from softprompt.store.prompt_loading import load_prompt

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def in_bfloat16(tmp_path: Path) -> Path:
    """Gemma, which multiplies its embeddings by a root that bfloat16 rounds, as it is usually saved."""
    tiny_model("gemma3").to(torch.bfloat16).save_pretrained(tmp_path / "model")
    tiny_tokenizer("gemma3").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def in_float32(folder: Path) -> FrozenLM:
    """The reference: the folder's model as ``transformers`` loads it in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return FrozenLM(model, AutoTokenizer.from_pretrained(folder), str(folder))


class TestPrecision:
    @pytest.mark.parametrize("kind", ["embeddings", "key_values"])
    def test_exported_of_a_model_saved_in_bfloat16(self, tmp_path: Path, in_bfloat16: Path, kind: str) -> None:
        base = in_float32(in_bfloat16)
        prompt = replace(learned("gemma3", kind), base_name=str(in_bfloat16), base_fingerprint=base.fingerprint)
        prompt.save(tmp_path / "p")
        done = command("export", tmp_path / "p", "--format", "peft", "--out", tmp_path / "out", "--device", "cpu")
        assert done.code == 0, done.err
        plain = AutoModelForCausalLM.from_pretrained(in_bfloat16, dtype=torch.float32)
        found = peft_logits(peft.PeftModel.from_pretrained(plain, tmp_path / "out"), text_ids(base))
        if kind == "embeddings":
            expected = plain_logits(base, prompt.state.tensor, text_ids(base))
        else:
            expected = our_logits(base, prompt.state, text_ids(base))
        torch.testing.assert_close(found, expected, **CLOSE)

    def test_imported_on_a_model_saved_in_bfloat16(self, tmp_path: Path, in_bfloat16: Path) -> None:
        base = in_float32(in_bfloat16)
        torch.manual_seed(3)
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
        plain = AutoModelForCausalLM.from_pretrained(in_bfloat16, dtype=torch.float32)
        model = peft.get_peft_model(plain, config)
        model.save_pretrained(tmp_path / "theirs")
        there = ["--format", "peft", "--model", in_bfloat16, "--out", tmp_path / "p", "--labels", "bad,good"]
        done = command("import", tmp_path / "theirs", *there, "--device", "cpu")
        assert done.code == 0, done.err
        ids = text_ids(base)
        expected = peft_logits(model, [*base.bos_ids, *ids])[len(base.bos_ids) :]
        torch.testing.assert_close(our_logits(base, load_prompt(tmp_path / "p").state, ids), expected, **CLOSE)

    def test_a_rounded_row_is_refused(self, tmp_path: Path, in_bfloat16: Path) -> None:
        base = load_model(in_bfloat16, device="cpu", dtype="bfloat16")
        prompt = replace(learned("gemma3"), base_fingerprint=base.fingerprint)
        with pytest.raises(BaseModelError, match=r"is computed in float32, but the model is in bfloat16: load it in"):
            write_peft(base, prompt, tmp_path / "p")
        write_peft(tiny_base("gemma3"), learned("gemma3"), tmp_path / "q")
        (tmp_path / "q" / "softprompt.json").unlink()
        with pytest.raises(BaseModelError, match=r"is computed in float32, but the model is in bfloat16"):
            read_peft(tmp_path / "q").on(base)


class TestReadme:
    """The lines of README.md are run as they stand, beside the adapter's folder."""

    def logits(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
        monkeypatch.chdir(folder.parent)
        (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        names: dict[str, Any] = {}
        exec(code.replace("text = ...", "text = 'a good film; label:'"), names)
        logits: torch.Tensor = names["logits"][0].detach()
        return logits

    def expected(self, base: FrozenLM, prompt: Any) -> torch.Tensor:
        ids = base.tokenizer("a good film; label:", add_special_tokens=False).input_ids
        return plain_logits(base, prompt.state.tensor, ids)

    def test_of_a_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        base = load_model(save_tiny(tmp_path / "model", "llama"), device="cpu", dtype="float32")
        write_peft(base, learned("llama"), tmp_path / "p")
        logits = self.logits(tmp_path / "p", monkeypatch)
        expected = self.expected(tiny_base("llama"), learned("llama"))
        torch.testing.assert_close(logits[-len(expected) :], expected, **CLOSE)

    def test_of_a_gguf_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
        file = write_gguf(tmp_path / "tiny.gguf", "Q8_0")
        base = load_model(file, device="cpu", dtype="float32")
        prompt = replace(learned("llama"), base_fingerprint=base.fingerprint)
        write_peft(base, prompt, tmp_path / "p")
        model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
        expected = self.expected(FrozenLM(model, tokenizer, "plain"), prompt)
        torch.testing.assert_close(self.logits(tmp_path / "p", monkeypatch)[-len(expected) :], expected, **CLOSE)

    def test_of_the_embedded_model(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        base = FrozenLM(tiny_model("llama"), tiny_base("llama").tokenizer, "embedded:gemma-3-270m")
        base.model.config.name_or_path = "/cache/of/the/exporting/machine"
        prompt = replace(learned("llama"), base_fingerprint=base.fingerprint)
        write_peft(base, prompt, tmp_path / "p")
        written = [path.read_bytes() for path in (tmp_path / "p").iterdir()]
        assert not any(b"/cache/of" in content for content in written)
        config = json.loads((tmp_path / "p" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "embedded:gemma-3-270m"
        # on another machine its folder is another one
        elsewhere = save_tiny(tmp_path / "elsewhere", "llama")
        monkeypatch.setattr(builtin_models, "embedded_model_folder", lambda: elsewhere)
        expected = self.expected(tiny_base("llama"), prompt)
        torch.testing.assert_close(self.logits(tmp_path / "p", monkeypatch)[-len(expected) :], expected, **CLOSE)

    def test_a_name_of_the_hub_brings_its_own_tokenizer(self, tmp_path: Path) -> None:
        write_peft(tiny_base("llama"), learned("llama"), tmp_path / "p")
        names = {path.name for path in (tmp_path / "p").iterdir()}
        assert names == {"README.md", "adapter_config.json", "adapter_model.safetensors", "softprompt.json"}
        assert "AutoTokenizer.from_pretrained(base)" in (tmp_path / "p" / "README.md").read_text()


@pytest.mark.slow
def test_the_real_one(tmp_path: Path) -> None:
    """PEFT's own forward on Gemma 3 270M in float32 equals the soft prompt behind BOS."""
    folder = builtin_models.embedded_model_folder()
    base = in_float32(folder)
    torch.manual_seed(0)
    state = PromptState.of_embeddings(torch.randn(20, base.embedding_size) * base.embedding_std)
    prompt = replace(
        learned("gemma3"), states=(state,), base_name="embedded:gemma-3-270m", base_fingerprint=base.fingerprint
    )
    prompt.save(tmp_path / "p")
    done = command("export", tmp_path / "p", "--format", "peft", "--out", tmp_path / "out", "--device", "cpu")
    assert done.code == 0, done.err
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = text_ids(base)
    found = peft_logits(peft.PeftModel.from_pretrained(plain, tmp_path / "out"), ids)
    torch.testing.assert_close(found, plain_logits(base, state.tensor, ids), **CLOSE)
