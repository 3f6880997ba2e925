"""FrozenLM: what loads and what is refused in which words, the fingerprint, logits at some rows."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_models import (
    CONTEXT,
    FAMILIES,
    SLIDING,
    VOCABULARY,
    WINDOW,
    WITHOUT_BOS,
    save_tiny,
    tiny_base,
    tiny_model,
    tiny_tokenizer,
)
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

from softprompt.errors import BaseModelError
from softprompt.models.devices import default_dtype
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model

Change = Callable[[Path], object]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's model, written once; not to be changed."""
    root = tmp_path_factory.mktemp("models")

    def folder(family: str) -> Path:
        path = root / family
        return path if path.exists() else save_tiny(path, family)

    return folder


@pytest.fixture
def folder(folders: Callable[[str], Path], tmp_path: Path) -> Path:
    """A Llama to change."""
    return Path(shutil.copytree(folders("llama"), tmp_path / "llama"))


def change_weight(folder: Path, name: str, row: int = 3) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[name][row] += 0.1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def rename_token(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["!"], vocabulary["?"] = vocabulary["?"], vocabulary["!"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize("family", FAMILIES)
def test_loads_a_folder_as_it_was_saved(folders: Callable[[str], Path], family: str) -> None:
    base = load_model(folders(family), device="cpu", dtype="float32")
    assert (base.name, base.dtype, base.device.type) == (str(folders(family)), torch.float32, "cpu")
    ids = torch.arange(5, 25)[None]
    assert torch.equal(base.model(input_ids=ids).logits, tiny_base(family).model(input_ids=ids).logits)
    assert base.tokenizer("A good film.").input_ids == tiny_base(family).tokenizer("A good film.").input_ids


@pytest.mark.parametrize("family", FAMILIES)
def test_knows_the_model(family: str) -> None:
    base = tiny_base(family)
    assert base.bos_ids == (() if family in WITHOUT_BOS else (base.tokenizer.bos_token_id,))
    assert base.vocabulary_size == VOCABULARY
    assert base.embedding_size == base.embedding_weight.shape[1] == (16 if family == "opt" else 32)
    assert base.context_length == (None if family in ("bloom", "mamba") else CONTEXT)
    assert base.sliding_window == (WINDOW if family in SLIDING else None)
    tied = base.model.get_output_embeddings().weight is base.embedding_weight
    assert base.parameter_count == sum(value.numel() for value in base.model.state_dict().values()) - (
        base.embedding_weight.numel() if tied else 0
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_is_frozen_and_in_evaluation_mode(family: str) -> None:
    base = FrozenLM(tiny_model(family).train(), tiny_tokenizer(family), "x")
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not any(module.training for module in base.model.modules())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_models_own(folders: Callable[[str], Path], family: str, dtype: str) -> None:
    base = tiny_base(family) if dtype == "float32" else load_model(folders(family), dtype=dtype)
    ids = torch.arange(5, 30)[None]
    with torch.no_grad():
        expected = base.model(input_ids=ids).logits[0].float()
        hidden = base.run_backbone(inputs_embeds=base.embed(ids)).last_hidden_state[0]
    tolerance = 1e-5 if dtype == "float32" else 2e-2 * float(expected.abs().max())
    torch.testing.assert_close(base.logits(hidden), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_some_rows_are_those_of_all(family: str) -> None:
    base, rows = tiny_base(family), torch.tensor([7, 300, 2, 7])
    hidden = torch.randn(6, base.model.get_output_embeddings().weight.shape[1])
    logits = base.logits(hidden)
    assert logits.shape == (6, VOCABULARY)
    torch.testing.assert_close(base.logits(hidden, rows), logits[:, rows], atol=1e-5, rtol=0)


def test_the_families_put_bias_cap_and_scale_behind_their_output_layer() -> None:
    """Without this, the tests above would not show that these are kept to."""
    hidden = 100 * torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    raw = {
        family: tiny_base(family).model.get_output_embeddings()(hidden) for family in ("gemma2", "cohere", "granite")
    }
    assert raw["gemma2"].abs().max() > 3 >= tiny_base("gemma2").logits(hidden).abs().max()
    torch.testing.assert_close(tiny_base("cohere").logits(hidden), raw["cohere"] / 4)
    torch.testing.assert_close(tiny_base("granite").logits(hidden), raw["granite"] / 2)
    assert tiny_base("phi").model.get_output_embeddings().bias.abs().max() > 0.1


def test_a_cap_that_hardly_shows_is_found() -> None:
    model = tiny_model("gemma2")
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1e-2)  # tied to the output layer, so its logits are tiny
    base = FrozenLM(model, tiny_tokenizer("gemma2"), "x")
    assert base.logits(1e4 * torch.randn(10, 32)).abs().max() <= 3


def test_a_model_with_something_unknown_behind_its_output_layer_is_refused() -> None:
    model = tiny_model("cohere")
    del model.config.logit_scale
    with pytest.raises(BaseModelError, match=r"^'x' \(CohereForCausalLM\): its logits are not a known function of"):
        FrozenLM(model, tiny_tokenizer("cohere"), "x")


def test_a_precision_that_overflows_is_named() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1e6)
    FrozenLM(model, tiny_tokenizer("llama"), "large")
    with pytest.raises(
        BaseModelError, match=r"'large' gives numbers that are not finite in float16: .*--dtype float32"
    ):
        FrozenLM(model.to(torch.float16), tiny_tokenizer("llama"), "large")


@pytest.mark.parametrize(("family", "scale"), [("llama", 1.0), ("gemma3", 32**0.5)])
def test_embedding_std_is_that_of_the_scaled_embeddings(family: str, scale: float) -> None:
    base = tiny_base(family)
    assert base.embedding_std == pytest.approx(float(base.embedding_weight.std()) * scale, rel=1e-5)


class TestFingerprint:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_is_the_same_in_both_dtypes_and_after_saving_again(
        self, folders: Callable[[str], Path], tmp_path: Path, family: str
    ) -> None:
        base = load_model(folders(family), dtype="float32")
        base.model.save_pretrained(tmp_path)
        base.tokenizer.save_pretrained(tmp_path)
        assert load_model(folders(family), dtype="bfloat16").fingerprint == base.fingerprint
        assert load_model(tmp_path, dtype="float32").fingerprint == base.fingerprint

    @pytest.mark.parametrize(
        ("part", "change"),
        [
            ("weights", lambda folder: change_weight(folder, "model.embed_tokens.weight")),
            ("weights", lambda folder: change_weight(folder, "model.layers.1.mlp.up_proj.weight")),
            ("weights", lambda folder: change_weight(folder, "model.norm.weight")),
            ("config", lambda folder: change_json(folder / "config.json", rms_norm_eps=1e-2)),
            (
                "config",
                lambda folder: change_json(
                    folder / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 500.0}
                ),
            ),
            ("tokenizer", rename_token),
            ("tokenizer", lambda folder: change_json(folder / "tokenizer_config.json", eos_token="<pad>")),
        ],
        ids=["embedding", "other matrix", "norm", "epsilon", "rope", "vocabulary", "end of sequence"],
    )
    def test_tells_a_change_and_where_it_is(self, folder: Path, part: str, change: Change) -> None:
        before = load_model(folder, dtype="float32").fingerprint
        change(folder)
        after = load_model(folder, dtype="float32").fingerprint
        assert {name for name in before if before[name] != after[name]} == {part}

    def test_does_not_depend_on_where_the_model_lies_or_what_wrote_it(self, folder: Path) -> None:
        before = load_model(folder, dtype="float32").fingerprint
        change_json(folder / "config.json", transformers_version="5.0.0", use_cache=False, dtype="bfloat16")
        moved = folder.rename(folder.with_name("elsewhere"))
        assert load_model(moved, dtype="float32").fingerprint == before


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("/no/such/folder", "base model folder '/no/such/folder' does not exist"),
            ("./models/x", "base model folder './models/x' does not exist"),
            ("a/b/c", "base model folder 'a/b/c' does not exist"),
            ("x.gguf", "base model file 'x.gguf' does not exist"),
            ("embedded:gemma", "unknown embedded model 'embedded:gemma': expected 'embedded:gemma-3-270m'"),
            ("nobody/no-such-model", "cannot load the base model 'nobody/no-such-model': "),
            ("no-such-model", "cannot load the base model 'no-such-model': "),
        ],
    )
    def test_a_name_that_is_not_there(self, name: str, words: str) -> None:
        with pytest.raises(BaseModelError) as caught:
            load_model(name)
        assert str(caught.value).startswith(words)
        assert "\n" not in str(caught.value)

    def test_a_folder_without_config(self, tmp_path: Path) -> None:
        with pytest.raises(BaseModelError, match=r"is no model folder: expected config.json in it, which is missing"):
            load_model(tmp_path)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"device": "tpuu"}, "device 'tpuu' cannot be used here: .*; 'cpu' works everywhere"),
            ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here: .*; 'cpu' works everywhere"),
            ({"dtype": "int8"}, "unknown dtype 'int8': expected one of float32, bfloat16, float16"),
        ],
    )
    def test_an_unknown_device_or_dtype(self, folder: Path, options: dict[str, str], words: str) -> None:
        with pytest.raises(BaseModelError, match=words):
            load_model(folder, **options)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda folder: (folder / "config.json").write_text("{"), "cannot load .*not a valid JSON"),
            (lambda folder: (folder / "config.json").write_text("[]"), "cannot load "),
            (
                lambda folder: change_json(folder / "config.json", model_type="no_such_type"),
                "cannot load .*no_such_type",
            ),
            (lambda folder: (folder / "model.safetensors").unlink(), "cannot load .*model.safetensors"),
            (lambda folder: (folder / "model.safetensors").write_bytes(b"{}" * 99), "cannot load .*header"),
            (lambda folder: (folder / "tokenizer.json").unlink(), "cannot load .*tokenizer"),
            (
                lambda folder: (folder / "tokenizer.json").write_text("{}"),
                r"cannot load .* \(expected a hub name, a folder",
            ),
            (lambda folder: change_json(folder / "config.json", hidden_size=64), "cannot load "),
        ],
        ids=[
            "cut config",
            "odd config",
            "unknown type",
            "no weights",
            "junk",
            "no tokenizer",
            "odd tokenizer",
            "shapes",
        ],
    )
    def test_a_damaged_folder(self, folder: Path, change: Change, words: str) -> None:
        change(folder)
        with pytest.raises(BaseModelError, match=words) as caught:
            load_model(folder)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_weights_that_are_not_in_the_file_are_not_made_up(self, folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        del weights["model.layers.0.mlp.up_proj.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(
            BaseModelError, match=r"lacks weights: .* 1 are missing, such as 'model.layers.0.mlp.up_proj"
        ):
            load_model(folder)

    def test_an_encoder_decoder_model_that_does_not_say_what_answers_start_with(self) -> None:
        model = tiny_model("t5")
        model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
        with pytest.raises(BaseModelError) as caught:
            FrozenLM(model, tiny_tokenizer("t5"), "tiny t5")
        assert str(caught.value) == (
            "'tiny t5' is an encoder-decoder model whose config.json has no decoder_start_token_id: expected the token "
            "that answers start with, add it"
        )

    def test_a_model_that_reads_both_ways(self, tmp_path: Path) -> None:
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        BertForMaskedLM(BertConfig(vocab_size=VOCABULARY, **sizes)).save_pretrained(tmp_path)
        tiny_tokenizer("llama").save_pretrained(tmp_path)
        with pytest.raises(BaseModelError, match="softprompt cannot use this family yet"):
            load_model(tmp_path)

    def test_a_backbone_alone(self) -> None:
        with pytest.raises(
            BaseModelError, match=r"'x' \(LlamaModel\) has no separate backbone: expected a causal model"
        ):
            FrozenLM(tiny_model("llama").model, tiny_tokenizer("llama"), "x")


def test_loading_leaves_the_progress_bars_as_they_were(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    load_model(folder)
    assert logging.is_progress_bar_enabled() == before
    assert capfd.readouterr() == ("", "")


def test_the_default_dtype_is_one_that_the_processor_is_fast_at(folder: Path) -> None:
    assert default_dtype(torch.device("cpu")) in (torch.float32, torch.bfloat16)
    assert default_dtype(torch.device("mps")) == torch.float32
    assert load_model(folder, device="cpu").dtype == default_dtype(torch.device("cpu"))
    assert load_model(folder, device="cpu", dtype=torch.float16).dtype == torch.float16
