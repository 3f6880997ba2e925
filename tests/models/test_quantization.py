"""Base models with quantized weights: loaded, told apart, and learned on like any other."""

import hashlib
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small_tasks import FAST, TEMPLATE, Recorder, command, reviews, reviews_task, write_data
from helpers.tiny_models import as_state, random_prompt, save_tiny, tiny_base, tiny_model, tiny_tokenizer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from softprompt.analysis.diagnostics.doctor import diagnose
from softprompt.errors import BaseModelError, MissingExtraError, PromptFileError
from softprompt.models import quantization
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.prompts.methods.method_registry import METHODS
from softprompt.prompts.prefix import (
    compute_keys_and_values,
    make_cached_prefix,
    make_concatenated_prefix,
    make_prefix,
    shares_prefix,
)
from softprompt.prompts.saved_prompt import Prompt
from softprompt.store.prompt_loading import load_prompt
from softprompt.training.fit import fit

pytest.importorskip("torchao", reason="needs the extra softprompt[quantized]")

FAMILIES = ("llama", "gemma3")  # Gemma 3: grouped queries, sliding windows, an embedding scale
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's plain model, not to be changed."""
    root = tmp_path_factory.mktemp("models")

    @cache
    def saved(family: str) -> Path:
        return save_tiny(root / family, family)

    return saved


@pytest.fixture(scope="module")
def int8(folder: Callable[[str], Path]) -> Callable[[str], FrozenLM]:
    return cache(lambda family: load_model(folder(family), device="cpu", dtype="float32", quantize="int8"))


@pytest.fixture(scope="module")
def prompts(int8: Callable[[str], FrozenLM]) -> dict[str, Prompt]:
    settings = {**FAST, "steps": 2, "eval_every": 2}
    bases = {"plain": tiny_base("llama"), "int8": int8("llama")}
    return {name: fit(base, reviews_task(), **settings) for name, base in bases.items()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    save_tiny(root / "llama", "llama")
    write_data(root / "reviews", reviews())
    return root


def save_base(base: FrozenLM, folder: Path) -> Path:
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return folder


def digest(base: FrozenLM) -> str:
    whole = hashlib.sha256()
    for _, parameter in sorted(base.model.named_parameters(), key=lambda one: one[0]):
        for part in quantization.iterate_plain_tensors(parameter):
            whole.update(part.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def unpacked(base: FrozenLM, family: str) -> FrozenLM:
    """The reference: a plain model whose weights are the numbers that the quantized ones stand for."""
    model, weights = tiny_model(family), dict(base.model.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            weight: Any = weights[name]
            parameter.copy_(weight if quantization.is_plain(weight) else weight.dequantize())
    return FrozenLM(model, tiny_tokenizer(family), "unpacked")


def hidden_and_gradient(base: FrozenLM, make: Callable[..., Any]) -> tuple[Tensor, Tensor]:
    """Of two texts, one of them padded and longer with the prompt than a sliding window."""
    prompt, generator = random_prompt(base, 6), torch.Generator().manual_seed(2)
    ids = torch.randint(5, 300, (2, 9), generator=generator)
    mask = torch.tensor([[1] * 9, [1] * 4 + [0] * 5])
    ids, mask = ids.to(base.device), mask.to(base.device)
    hidden = make(base, as_state(prompt.to(base.device))).hidden(ids, mask)[mask.bool()]
    weights = torch.randn(hidden.shape, generator=generator).to(base.device)
    (gradient,) = torch.autograd.grad((hidden * weights).sum(), prompt)
    return hidden.detach(), gradient


class TestLoading:
    @every_family
    def test_linear_layers_are_in_eight_bits_and_the_rest_is_as_it_was(
        self, folder: Callable[[str], Path], int8: Callable[[str], FrozenLM], family: str
    ) -> None:
        base, plain = int8(family), tiny_base(family)
        assert (base.quantization, plain.quantization) == ("int8", None)
        assert (base.dtype, base.device.type) == (torch.float32, "cpu")
        assert base.parameter_count == plain.parameter_count
        assert torch.equal(base.embedding_weight, plain.embedding_weight)
        assert base.embedding_std == plain.embedding_std
        linear = [layer for layer in base.backbone.modules() if isinstance(layer, nn.Linear)]
        assert len(linear) >= 14
        for layer in linear:
            assert max(quantization.iterate_plain_tensors(layer.weight), key=Tensor.numel).dtype == torch.int8
        assert not any(parameter.requires_grad for parameter in base.model.parameters())

    @every_family
    def test_logits_are_near_those_of_the_plain_model(self, int8: Callable[[str], FrozenLM], family: str) -> None:
        ids = torch.arange(5, 30)[None]
        with torch.no_grad():
            mine, theirs = (one.model(input_ids=ids).logits for one in (int8(family), tiny_base(family)))
        assert 1e-4 < float((mine - theirs).norm() / theirs.norm()) < 5e-2

    def test_logits_of_some_rows_are_those_of_all_where_the_output_layer_is_quantized_too(self) -> None:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        model = tiny_model("gpt_neox")
        assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
        quantize_(model, Int8WeightOnlyConfig())
        base, rows = FrozenLM(model, tiny_tokenizer("gpt_neox"), "x"), torch.tensor([7, 300, 2, 7])
        assert not quantization.is_plain(base.model.get_output_embeddings().weight)
        hidden = torch.randn(6, 32)
        assert torch.equal(base.logits(hidden, rows), base.logits(hidden)[:, rows])
        ids = torch.arange(5, 30)[None]
        with torch.no_grad():
            expected = base.model(input_ids=ids).logits[0]
            mine = base.logits(base.run_backbone(inputs_embeds=base.embed(ids)).last_hidden_state[0])
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=0)

    @every_family
    def test_a_folder_that_is_saved_quantized_is_the_same_base(
        self, int8: Callable[[str], FrozenLM], tmp_path: Path, family: str
    ) -> None:
        saved = save_base(int8(family), tmp_path / "saved")
        assert [path.name for path in saved.glob("model*")] == ["model.safetensors"]
        for base in (load_model(saved, dtype="float32"), load_model(saved, dtype="float32", quantize="int8")):
            assert base.quantization == "int8"
            assert base.fingerprint == int8(family).fingerprint
            assert digest(base) == digest(int8(family))

    def test_what_the_package_logs_while_it_loads_stays_off_the_terminal(
        self, folder: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
    ) -> None:
        load_model(folder("llama"), dtype="float32", quantize="int8")
        assert capfd.readouterr() == ("", "")


class TestFingerprint:
    def test_tells_quantized_from_plain_by_name_and_weights(
        self, folder: Callable[[str], Path], int8: Callable[[str], FrozenLM]
    ) -> None:
        plain, mine = load_model(folder("llama"), dtype="float32").fingerprint, int8("llama").fingerprint
        assert mine["quantization"] == "int8"
        assert {part for part in plain if plain[part] != mine[part]} == {"weights"}
        assert set(mine) - set(plain) == {"quantization"}

    @pytest.mark.parametrize("part", ["qdata", "scale"])
    def test_tells_a_change_of_what_is_stored(self, int8: Callable[[str], FrozenLM], tmp_path: Path, part: str) -> None:
        saved = save_base(int8("llama"), tmp_path / "saved")
        with safe_open(saved / "model.safetensors", "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = file.metadata()
        (name, *_) = [name for name in sorted(tensors) if name.endswith(f"_{part}")]
        tensors[name][1] = tensors[name][1] * 2 if part == "scale" else 5
        save_file(tensors, saved / "model.safetensors", metadata=facts)
        changed = load_model(saved, dtype="float32").fingerprint
        assert {part for part in changed if changed[part] != int8("llama").fingerprint[part]} == {"weights"}


@every_family
class TestComputation:
    def test_is_that_of_the_numbers_that_the_weights_stand_for(
        self, int8: Callable[[str], FrozenLM], family: str
    ) -> None:
        base = int8(family)
        mine, theirs = hidden_and_gradient(base, make_prefix), hidden_and_gradient(unpacked(base, family), make_prefix)
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4 * float(other.abs().max()), rtol=1e-4)
            assert one.abs().max() > 0

    def test_no_weight_is_kept_unpacked_for_the_gradient(self, int8: Callable[[str], FrozenLM], family: str) -> None:
        base = int8(family)
        shapes = {tuple(layer.weight.shape) for layer in base.model.modules() if isinstance(layer, nn.Linear)}
        shapes -= {tuple(base.model.get_output_embeddings().weight.shape)}
        kept: list[tuple[int, ...]] = []

        def keep(tensor: Tensor) -> Tensor:
            kept.append(tuple(tensor.shape))
            return tensor

        prompt = random_prompt(base, 4).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hidden = base.run_backbone(inputs_embeds=prompt[None], use_cache=False).last_hidden_state
        assert kept
        assert not shapes & ({*kept} | {shape[::-1] for shape in kept})
        hidden.sum().backward()

    def test_shared_prefix_equals_concatenation(self, int8: Callable[[str], FrozenLM], family: str) -> None:
        base = int8(family)
        assert shares_prefix(base)
        shared, plain = (hidden_and_gradient(base, make) for make in (make_cached_prefix, make_concatenated_prefix))
        for one, other in zip(shared, plain, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4 * float(other.abs().max()), rtol=1e-4)

    def test_norms_and_attention_are_the_fast_ones(self, int8: Callable[[str], FrozenLM], family: str) -> None:
        base = int8(family)
        norms = [layer for layer in base.backbone.modules() if "RMSNorm" in type(layer).__name__]
        assert norms
        assert all("forward" in vars(norm) for norm in norms)
        assert base.model.config._attn_implementation == tiny_base(family).model.config._attn_implementation

    def test_the_doctor_finds_every_way_exact(self, int8: Callable[[str], FrozenLM], family: str) -> None:
        diagnosis = diagnose(int8(family))
        assert {check.name: check.reason for check in diagnosis.checks if check.verdict != "exact"} == {}
        assert diagnosis.way == "shared prefix"


@every_family
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_learns_and_leaves_the_base_as_it_was(
    int8: Callable[[str], FrozenLM], family: str, method: str
) -> None:
    base, task = int8(family), reviews_task()
    before, found = digest(base), []
    for checkpointing in (False, True):
        seen = Recorder()
        settings = {**FAST, "steps": 40, "eval_every": 40, "method": method, "gradient_checkpointing": checkpointing}
        found.append(fit(base, task, callback=seen, **settings))
        assert sum(seen.losses[-5:]) < 0.75 * sum(seen.losses[:5])
    assert digest(base) == before
    assert all(parameter.grad is None for parameter in base.model.parameters())
    for one, other in zip(*(prompt.state.tensors for prompt in found), strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


class TestPromptsBelongToTheirBase:
    def test_a_prompt_of_the_plain_model_is_refused(
        self, int8: Callable[[str], FrozenLM], folder: Callable[[str], Path], prompts: dict[str, Prompt]
    ) -> None:
        prompts["plain"].check_base(tiny_base("llama"))
        with pytest.raises(PromptFileError) as caught:
            prompts["plain"].check_base(int8("llama"))
        assert str(caught.value) == (
            f"this prompt was learned on 'tiny llama', not quantized, but the base model given is '{folder('llama')}', "
            "quantized as int8, which has other weights: load it as it was (--quantize), or learn the prompt again"
        )

    def test_a_prompt_of_the_quantized_model_is_refused_elsewhere(
        self, int8: Callable[[str], FrozenLM], prompts: dict[str, Prompt], tmp_path: Path
    ) -> None:
        prompt = load_prompt(prompts["int8"].save(tmp_path / "p"))
        assert prompt.quantization == "int8"
        prompt.check_base(int8("llama"))
        with pytest.raises(PromptFileError, match=r"quantized as int8, but the base model given is 'tiny llama', not "):
            prompt.check_base(tiny_base("llama"))
        with pytest.raises(PromptFileError, match=r"\(differing: config, weights\)"):
            prompt.check_base(int8("gemma3"))


class TestRefusals:
    @pytest.mark.parametrize(
        ("family", "quantize", "words"),
        [
            ("llama", "int3", "unknown quantization 'int3': expected one of int8, bnb-int8, bnb-nf4"),
            # its layers are no linear ones but convolutions of width one
            ("gpt2", "int8", "(GPT2LMHeadModel) has no layers that the quantization int8 works on"),
            ("llama", "bnb-nf4", "cannot be used on a CPU in the four bits of bitsandbytes, which give no gradient"),
        ],
    )
    def test_a_scheme_that_cannot_be_used(
        self, folder: Callable[[str], Path], family: str, quantize: str, words: str
    ) -> None:
        with pytest.raises(BaseModelError) as caught:
            load_model(folder(family), device="cpu", dtype="float32", quantize=quantize)
        assert words in str(caught.value)

    def change_config(self, source: Path, folder: Path, quantization_config: dict[str, Any]) -> Path:
        shutil.copytree(source, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization_config}))
        return folder

    def test_a_method_that_is_not_known(self, folder: Callable[[str], Path], tmp_path: Path) -> None:
        changed = self.change_config(folder("llama"), tmp_path / "m", {"quant_method": "gptq", "bits": 4})
        with pytest.raises(BaseModelError, match=r"are quantized by gptq: expected torchao or bitsandbytes"):
            load_model(changed)

    def test_weights_that_are_quantized_otherwise_already(self, folder: Callable[[str], Path], tmp_path: Path) -> None:
        facts = {"quant_method": "bitsandbytes", "load_in_8bit": True}
        changed = self.change_config(folder("llama"), tmp_path / "m", facts)
        with pytest.raises(BaseModelError, match=r"are saved as bnb-int8 and cannot be quantized again, as int8"):
            load_model(changed, quantize="int8")

    def test_a_damaged_configuration(self, folder: Callable[[str], Path], tmp_path: Path) -> None:
        for index, kind in enumerate(("int8", {"default": 3}, {"default": {"_type": "os", "_data": {}}}, None)):
            changed = self.change_config(
                folder("llama"), tmp_path / str(index), {"quant_method": "torchao", "quant_type": kind}
            )
            with pytest.raises(BaseModelError, match=r"cannot load the base model|are quantized by"):
                load_model(changed)

    def test_weights_that_would_be_unpickled(self, int8: Callable[[str], FrozenLM], tmp_path: Path) -> None:
        saved = save_base(int8("llama"), tmp_path / "saved")
        (saved / "model.safetensors").unlink()
        torch.save(int8("llama").model.state_dict(), saved / "pytorch_model.bin")
        with pytest.raises(BaseModelError, match="cannot load the base model"):
            load_model(saved)

    @pytest.mark.parametrize(("quantize", "extra"), [("int8", "quantized"), ("bnb-int8", "bitsandbytes")])
    def test_a_package_that_is_not_installed(
        self, folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, quantize: str, extra: str
    ) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(MissingExtraError, match=rf"pip install 'softprompt\[{extra}\]'"):
            load_model(folder("llama"), device="cpu", quantize=quantize)


class TestCommandLine:
    def train(self, place: Path, out: Path, *more: str) -> None:
        options = ["--template", TEMPLATE, "--steps", "2", "--length", "4", "--dtype", "float32", *more]
        places = ["--model", place / "llama", "--data", place / "reviews", "--out", out]
        assert command("train", *places, *options).code == 0

    def test_a_prompt_finds_its_base_as_it_was(self, place: Path, tmp_path: Path) -> None:
        self.train(place, tmp_path / "p", "--quantize", "int8")
        shown = command("show", tmp_path / "p")
        assert "int8" in shown.out
        assert command("predict", tmp_path / "p", "a dull film", "--dtype", "float32").code == 0
        data = ["--data", place / "reviews", "--json", "--dtype", "float32"]
        evaluated = command("eval", tmp_path / "p", *data)
        assert evaluated.code == 0
        saved = load_prompt(tmp_path / "p").metrics["test"]["value"]
        assert json.loads(evaluated.out)["value"] == pytest.approx(saved)
        named = command("eval", tmp_path / "p", "--model", place / "llama", *data)
        assert json.loads(named.out)["value"] == pytest.approx(saved)

    def test_a_prompt_of_the_plain_model_is_refused_in_one_line(self, place: Path, tmp_path: Path) -> None:
        self.train(place, tmp_path / "p")
        done = command("predict", tmp_path / "p", "a dull film", "--quantize", "int8", "--dtype", "float32")
        assert done.code == 2
        assert "not quantized, but the base model given is" in done.error

    def test_an_unknown_scheme_is_refused_in_one_line(self, place: Path, tmp_path: Path) -> None:
        done = command("doctor", "--model", place / "llama", "--quantize", "int3")
        assert (done.code, "unknown quantization 'int3'" in done.error) == (2, True)


class TestBitsandbytes:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("bitsandbytes", reason="needs the extra softprompt[bitsandbytes]")

    def check(self, base: FrozenLM, tmp_path: Path) -> None:
        _, gradient = hidden_and_gradient(base, make_prefix)
        assert gradient.abs().min() > 0
        before = base.fingerprint["weights"]
        seen = Recorder()
        fit(base, reviews_task(), callback=seen, **{**FAST, "steps": 40, "eval_every": 40})
        assert sum(seen.losses[-5:]) < 0.75 * sum(seen.losses[:5])
        again = load_model(save_base(base, tmp_path / "saved"), device=str(base.device), dtype=base.dtype)
        assert again.fingerprint["weights"] == before == quantization.sampled_sha256(base.model.named_parameters())
        assert again.quantization == base.quantization

    def test_eight_bits(self, folder: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        base = load_model(folder("llama"), device="cpu", dtype="bfloat16", quantize="bnb-int8")
        assert base.parameter_count == tiny_base("llama").parameter_count
        self.check(base, tmp_path)
        assert "float16" not in caplog.text

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="four bits give no gradient on a CPU: needs CUDA")
    @pytest.mark.parametrize("quantize", ["bnb-nf4", "bnb-int8", "int8"])
    def test_on_cuda(self, folder: Callable[[str], Path], tmp_path: Path, quantize: str) -> None:
        base = load_model(folder("llama"), device="cuda", quantize=quantize)
        assert (base.quantization, base.device.type) == (quantize, "cuda")
        assert base.parameter_count == tiny_base("llama").parameter_count
        assert compute_keys_and_values(base, random_prompt(tiny_base("llama"), 3)).length == 3
        fit(base, reviews_task(), **{**FAST, "method": "prefix-tuning", "gradient_checkpointing": True})
        self.check(base, tmp_path)
