"""The doctor: exact where softprompt is, fallback where it goes another way, refused where neither is true."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from helpers.tiny_models import CONTEXT, WINDOW, save_tiny, tiny_base
from helpers.told import told_lines
from torch import Tensor
from transformers import AttentionInterface, GPT2Config, GPT2LMHeadModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from softprompt.analysis.diagnostics import doctor as doctor_module
from softprompt.analysis.diagnostics import parity
from softprompt.analysis.diagnostics.doctor import (
    Diagnosis,
    FamilyDiagnosis,
    diagnose,
    diagnose_families,
    diagnose_family,
)
from softprompt.analysis.diagnostics.parity_cases import original_modules
from softprompt.analysis.diagnostics.tiny_models import FAMILIES, VOCABULARY, make_family_model, make_family_tokenizer
from softprompt.cli.verbs.judging_verbs import doctor
from softprompt.errors import BaseModelError, ConfigError
from softprompt.models import fast_attention
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts import prefix
from softprompt.prompts.methods.method_registry import METHODS
from softprompt.report.pages.diagnosis_page import make_diagnosis_document, make_families_document
from softprompt.report.render.markdown import render_markdown

DOCUMENT = Path(__file__).parents[2] / "docs" / "results" / "families.md"
CHECKS = [
    "right-padded batch",
    "left-padded batch",
    "shared prefix",
    "mixed prompts",
    "keys and values",
    "generation step",
]
OF_AN_ENCODER = [name for name in CHECKS if name != "shared prefix"]
SHARING = ("llama", "gemma3", "gpt2", "gpt_oss", "mixtral", "phi3", "falcon_alibi")
OF_KEYS_AND_VALUES = {name for name, method in METHODS.items() if method.kind == "key_values"}


def family_base(family: str) -> FrozenLM:
    return FrozenLM(*make_family_model(family), f"tiny {family}")


def verdicts(diagnosis: Diagnosis) -> dict[str, str]:
    return {check.name: check.verdict for check in diagnosis.checks}


def reason_of(diagnosis: Diagnosis, name: str) -> str:
    return next(check.reason for check in diagnosis.checks if check.name == name)


def blocked(diagnosis: Diagnosis) -> set[str]:
    assert set(diagnosis.methods) == set(METHODS)
    return {name for name, reason in diagnosis.methods.items() if reason}


def with_attention(name: str, attention: Callable[..., Any], family: str = "llama") -> FrozenLM:
    """A model whose own attention is ``attention``."""
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sdpa_mask)
    model, tokenizer = make_family_model(family)
    model.set_attn_implementation(name)
    return FrozenLM(model, tokenizer, name)


def attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> tuple[Tensor, None]:
    key, value = (tensor.repeat_interleave(query.shape[1] // tensor.shape[1], dim=1) for tensor in (key, value))
    mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    return mixed.transpose(1, 2).contiguous(), None


def sees_padding(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    """Causal, but does not care what the mask says."""
    return attend(query, key, value, torch.ones(query.shape[2], key.shape[2]).tril(key.shape[2] - query.shape[2]) > 0)


def sees_all(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    """Looks ahead, and at the padding there."""
    return attend(query, key, value, torch.ones(query.shape[2], key.shape[2]) > 0)


def failing_base() -> FrozenLM:
    """A model that reads its own tokens, but fails on anything longer than a few."""
    model, tokenizer = make_family_model("llama")
    base = FrozenLM(model, tokenizer, "failing")
    whole = base.backbone.forward

    def fail(*inputs: Any, **options: Any) -> Any:
        if options["inputs_embeds"].shape[1] > 6:
            raise RuntimeError("no\nmore")
        return whole(*inputs, **options)

    base.backbone.forward = fail
    return base


class TestVerdicts:
    @pytest.mark.parametrize("family", SHARING)
    def test_a_family_that_shares(self, family: str) -> None:
        diagnosis = diagnose(family_base(family))
        assert verdicts(diagnosis) == dict.fromkeys(CHECKS, "exact")
        assert (diagnosis.way, diagnosis.reason, blocked(diagnosis)) == ("shared prefix", "", set())
        assert diagnosis.longest_text > WINDOW
        for check in diagnosis.checks:
            assert check.error is not None
            assert 0 < check.error < 1e-5
            if check.name == "generation step":
                assert check.gradient_error is None
            else:
                assert check.gradient_error is not None
                assert 0 < check.gradient_error < 1e-5

    def test_a_recurrent_family_falls_back(self) -> None:
        diagnosis = diagnose(family_base("mamba"))
        fallen = {"shared prefix": "fallback", "generation step": "fallback", "keys and values": "refused"}
        assert verdicts(diagnosis) == {**dict.fromkeys(CHECKS, "exact"), **fallen}
        assert diagnosis.way == "concatenation (fallback)"
        assert diagnosis.reason == (
            "shared prefix: its cache holds LinearAttentionLayer, which is more than keys and values"
        )
        assert blocked(diagnosis) == OF_KEYS_AND_VALUES
        assert "use a method that learns virtual tokens" in diagnosis.methods["prefix-tuning"]

    def test_a_family_that_counts_padding_as_distance_falls_back(self) -> None:
        diagnosis = diagnose(family_base("mpt"))
        fallen = {"generation step": "fallback", "keys and values": "refused"}
        assert verdicts(diagnosis) == {**dict.fromkeys(CHECKS, "exact"), **fallen}
        assert diagnosis.way == "concatenation (fallback)"
        assert diagnosis.reason.startswith("generation step: differs from plain concatenation, logits by 0.")

    def test_keys_and_values_of_two_sizes_leave_the_other_methods(self) -> None:
        diagnosis = diagnose(family_base("deepseek_v3"))
        assert verdicts(diagnosis) == {**dict.fromkeys(CHECKS, "exact"), "keys and values": "refused"}
        assert (diagnosis.way, blocked(diagnosis)) == ("shared prefix", OF_KEYS_AND_VALUES)
        assert "keeps keys and values of different sizes" in diagnosis.methods["prefix-tuning"]

    def test_a_model_that_fails_on_virtual_tokens_is_refused(self) -> None:
        diagnosis = diagnose(failing_base())
        assert (diagnosis.way, diagnosis.checks, blocked(diagnosis)) == ("refused", (), set(METHODS))
        assert diagnosis.reason.startswith("its forward pass takes no virtual tokens: RuntimeError: ")
        assert "\n" not in diagnosis.reason

    @pytest.mark.parametrize(
        ("family", "words"),
        [
            ("gemma3n", "not a known function of its embeddings"),
            ("gemma4_per_layer", "takes only its own tokens' embeddings"),
            ("llama4", "no separate backbone"),
        ],
    )
    def test_a_family_that_does_not_load(self, family: str, words: str) -> None:
        row = diagnose_family(family, *make_family_model(family))
        assert (row.way, row.diagnosis) == ("refused", None)
        assert words in row.reason

    @pytest.mark.parametrize("family", ["t5", "bart", "pegasus"])
    def test_an_encoder_decoder_model(self, family: str) -> None:
        diagnosis = diagnose(family_base(family))
        assert verdicts(diagnosis) == dict.fromkeys(OF_AN_ENCODER, "exact")
        assert (diagnosis.way, diagnosis.reason, blocked(diagnosis)) == ("encoder input", "", set())
        assert diagnosis.largest_error is not None
        assert 0 < diagnosis.largest_error < 1e-4
        assert [check.gradient_error is None for check in diagnosis.checks] == [False] * 4 + [True]

    def test_an_encoder_decoder_model_whose_layers_take_nothing(self) -> None:
        diagnosis = diagnose(family_base("mvp"))
        assert verdicts(diagnosis) == {**dict.fromkeys(OF_AN_ENCODER, "exact"), "keys and values": "refused"}
        assert (diagnosis.way, blocked(diagnosis)) == ("encoder input", OF_KEYS_AND_VALUES)
        assert "has layers that take no keys and values" in diagnosis.methods["prefix-tuning"]

    def test_an_encoder_that_counts_padding(self) -> None:
        base = family_base("t5")
        encoder = base.model.get_encoder()
        whole = encoder.forward

        def blind(*inputs: Any, attention_mask: Tensor | None = None, **options: Any) -> Any:
            return whole(*inputs, **options)

        encoder.forward = blind
        diagnosis = diagnose(base)
        assert diagnosis.way == "refused"
        assert diagnosis.reason.startswith("right-padded batch: differs from plain concatenation, logits by ")
        assert blocked(diagnosis) == set(METHODS)


class TestFaults:
    """What is wrong with a model, or with softprompt, is found."""

    def test_attention_that_sees_padding(self) -> None:
        diagnosis = diagnose(with_attention("sees_padding", sees_padding))
        found = verdicts(diagnosis)
        # concatenation moves all padding behind the texts
        assert (found["right-padded batch"], found["left-padded batch"]) == ("exact", "exact")
        assert (found["mixed prompts"], found["generation step"]) == ("exact", "fallback")
        assert diagnosis.way == "concatenation (fallback)"
        assert blocked(diagnosis) == OF_KEYS_AND_VALUES

    def test_attention_that_looks_ahead(self) -> None:
        diagnosis = diagnose(with_attention("sees_all", sees_all))
        assert set(verdicts(diagnosis).values()) <= {"fallback", "refused"}
        assert diagnosis.way == "refused"
        assert diagnosis.reason.startswith("right-padded batch: differs from plain concatenation, logits by ")
        assert blocked(diagnosis) == set(METHODS)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_model_that_shares_but_should_not(self, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
        model, tokenizer = make_family_model("mpt")
        base = FrozenLM(model.to(dtype), tokenizer, "mpt")
        monkeypatch.setitem(prefix.shares_prefix.known, base, True)
        diagnosis = diagnose(base)
        assert verdicts(diagnosis) == {**dict.fromkeys(CHECKS, "exact"), "generation step": "refused"}
        assert diagnosis.way == "refused"
        assert diagnosis.reason.startswith("generation step: differs")
        assert blocked(diagnosis) == set(METHODS)

    def test_a_prefix_without_gradient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(prefix, "compute_cache", torch.no_grad()(prefix.compute_cache))
        diagnosis = diagnose(family_base("llama"))
        assert reason_of(diagnosis, "shared prefix") == "differs from plain concatenation, gradient by 1"
        assert verdicts(diagnosis)["right-padded batch"] == "exact"
        assert diagnosis.way == "refused"

    def test_keys_and_values_that_are_not_those_of_the_embeddings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        honest = prefix.compute_keys_and_values

        def swapped(base: FrozenLM, virtual_tokens: Tensor) -> prefix.PromptState:
            return honest(base, virtual_tokens.flip(0))

        monkeypatch.setattr(parity, "compute_keys_and_values", swapped)
        diagnosis = diagnose(family_base("llama"))
        assert verdicts(diagnosis) == {**dict.fromkeys(CHECKS, "exact"), "keys and values": "refused"}
        assert (diagnosis.way, blocked(diagnosis)) == ("shared prefix", OF_KEYS_AND_VALUES)

    def test_a_wrong_attention_of_our_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The reference is the model as transformers made it."""
        base = family_base("llama")
        assert base.model.config._attn_implementation == "softprompt"
        monkeypatch.setitem(AttentionInterface._global_mapping, "softprompt", sees_all)
        monkeypatch.setitem(prefix.shares_prefix.known, base, True)
        diagnosis = diagnose(base)
        assert diagnosis.way == "refused"
        assert verdicts(diagnosis)["right-padded batch"] == "fallback"
        assert verdicts(diagnosis)["shared prefix"] == "refused"

    def test_numbers_that_are_not_finite(self) -> None:
        base = family_base("llama")
        base.model.lm_head.weight.data[7] = float("inf")
        diagnosis = diagnose(base)
        assert {check.reason for check in diagnosis.checks} >= {"gives numbers that are not finite"}
        assert not any(check.error for check in diagnosis.checks)
        assert diagnosis.way == "refused"
        json.dumps(diagnosis.to_dict(), allow_nan=False)


class TestMeasuring:
    def test_leaves_the_model_as_it_was(self) -> None:
        base = family_base("qwen3")
        weights = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
        forwards = {name: vars(module).get("forward") for name, module in base.model.named_modules()}
        assert any(getattr(forward, "__module__", None) == fast_attention.__name__ for forward in forwards.values())
        diagnose(base)
        assert all(torch.equal(tensor, weights[name]) for name, tensor in base.model.state_dict().items())
        assert {name: vars(module).get("forward") for name, module in base.model.named_modules()} == forwards
        assert base.model.config._attn_implementation == "softprompt"

    def test_the_reference_goes_through_the_models_own_parts(self) -> None:
        model = family_base("qwen3").model
        with original_modules(model):
            assert model.config._attn_implementation == "sdpa"
            assert not any("forward" in vars(module) for module in model.modules())

    def test_is_a_function_of_the_seed(self) -> None:
        first, again, other = (diagnose(tiny_base("llama"), seed) for seed in (0, 0, 1))
        assert first == again
        assert first != other

    @pytest.mark.parametrize(("window", "longest"), [(WINDOW, 48), (100, 116), (2000, 48), (150, CONTEXT - 6)])
    def test_texts_outgrow_the_window_within_the_context(self, window: int, longest: int) -> None:
        model, tokenizer = make_family_model("mistral")
        model.config.sliding_window = window
        diagnosis = diagnose(FrozenLM(model, tokenizer, "x"))
        assert (diagnosis.longest_text, diagnosis.sliding_window) == (longest, window)
        assert verdicts(diagnosis) == dict.fromkeys(CHECKS, "exact")
        told = f"- no text was longer than the sliding window of {window} tokens" in told_of(diagnosis)
        assert told == (window == 2000)

    def test_a_context_of_a_few_tokens_is_kept_to(self) -> None:
        # absolute positions: a longer text would be an index out of range
        model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=16, vocab_size=VOCABULARY))
        diagnosis = diagnose(FrozenLM(model, make_family_tokenizer("gpt2"), "x"))
        assert verdicts(diagnosis) == dict.fromkeys(CHECKS, "exact")
        assert diagnosis.longest_text == 14

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_low_precision_is_held_to_its_own_rounding(self, dtype: torch.dtype) -> None:
        model, tokenizer = make_family_model("gemma3")
        diagnosis = diagnose(FrozenLM(model.to(dtype), tokenizer, "x"))
        assert (diagnosis.way, verdicts(diagnosis)) == ("shared prefix", dict.fromkeys(CHECKS, "exact"))
        unit = torch.finfo(dtype).eps
        assert unit < diagnosis.tolerance < 50 * unit
        assert diagnosis.largest_error is not None
        assert unit / 10 < diagnosis.largest_error <= diagnosis.gradient_tolerance
        assert any(line.startswith(f"- {diagnosis.dtype}") and "--dtype float32" in line for line in told_of(diagnosis))


def told_of(diagnosis: Diagnosis) -> list[str]:
    return told_lines(make_diagnosis_document(diagnosis))


class TestLines:
    def test_of_a_model_that_shares(self) -> None:
        lines = told_of(diagnose(tiny_base("llama")))
        facts = (("model", "tiny llama (llama, float32, cpu)"), ("runs with", "shared prefix"))
        for name, told in (*facts, ("methods", ", ".join(METHODS))):
            assert f"{name:<9}  {told}" in lines
        top = next(at for at, line in enumerate(lines) if line.startswith("Check"))
        assert lines[top].split() == ["Check", "Verdict", "Error", "Gradient", "What", "it", "asks"]
        assert [line[:18].strip() for line in lines[top + 2 : top + 8]] == CHECKS
        assert all(" exact " in line for line in lines[top + 2 : top + 8])
        assert lines[-1].endswith("exact is up to 0.0001 (gradient 0.0001); texts of up to 48 tokens")

    def test_of_a_model_that_falls_back(self) -> None:
        lines = told_of(diagnose(tiny_base("mamba")))
        assert any(
            line.startswith("runs with  concatenation (fallback): shared prefix: its cache holds ") for line in lines
        )
        (methods,) = [line for line in lines if line.startswith("methods  ")]
        assert not any(name in methods for name in OF_KEYS_AND_VALUES)
        assert any(
            line.startswith("- keys and values: a prompt of keys and values needs a shared prefix") for line in lines
        )

    def test_of_a_model_that_is_refused(self) -> None:
        lines = told_of(diagnose(failing_base()))
        assert lines[-2].startswith("runs with  refused: its forward pass takes no virtual tokens")
        assert lines[-1] == "methods    none"


class TestFamilies:
    def rows(self) -> dict[str, list[str]]:
        """The document's table: family to its other cells."""
        lines = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        assert cells[0] == ["family", "runs with", *CHECKS, "largest error"]
        return {row[0]: row[1:] for row in cells[2:]}

    def check(self, row: FamilyDiagnosis) -> None:
        (line,) = [
            line
            for line in render_markdown(make_families_document([row])).splitlines()
            if line.startswith(f"| {row.family} ")
        ]
        assert [cell.strip().replace("\\", "") for cell in line.strip("|").split("|")][1:-1] == self.rows()[row.family][
            :-1
        ]

    def test_the_document_has_a_row_for_each(self) -> None:
        assert tuple(self.rows()) == FAMILIES
        assert len(FAMILIES) >= 16
        assert "`softprompt doctor --families`" in DOCUMENT.read_text(encoding="utf-8")

    @pytest.mark.parametrize("family", ["olmo2", "falcon_h1", "rwkv", "llama4", "t5", "led"])
    def test_the_document_says_what_is_measured(self, family: str) -> None:
        self.check(diagnose_family(family, *make_family_model(family)))

    @pytest.mark.slow
    def test_the_document_says_what_is_measured_of_every_family(self) -> None:
        said: list[str] = []
        for row in diagnose_families(said.append):
            self.check(row)
        assert said == [f"measuring {family}" for family in FAMILIES]

    def test_the_models_are_tiny_and_always_the_same(self) -> None:
        for family in ("gpt_oss", "qwen3_next"):
            (one, _), (other, _) = make_family_model(family), make_family_model(family)
            assert sum(parameter.numel() for parameter in one.parameters()) < 100_000
            for name, tensor in one.state_dict().items():
                assert torch.equal(tensor, other.state_dict()[name])


class TestCommand:
    @pytest.fixture(autouse=True)
    def _verbosity(self) -> Iterator[None]:
        from transformers.utils import logging

        before = logging.get_verbosity()
        yield
        logging.set_verbosity(before)

    def run(self, *arguments: object) -> Result:
        return CliRunner().invoke(doctor, [str(argument) for argument in arguments])

    def test_a_model(self, tmp_path: Path) -> None:
        folder = save_tiny(tmp_path / "llama", "llama")
        result = self.run("--model", folder, "--device", "cpu", "--dtype", "float32")
        assert (result.exit_code, result.exception) == (0, None)
        assert f"\nmodel      {folder} (llama, float32, cpu)\nruns with  shared prefix\n" in result.stdout
        assert result.stderr == f"loading {folder}\nmeasuring\n"

    def test_a_model_as_json(self, tmp_path: Path) -> None:
        folder = save_tiny(tmp_path / "mamba", "mamba")
        answer = json.loads(self.run("--model", folder, "--dtype", "float32", "--json").stdout)
        assert (answer["model"], answer["way"]) == (str(folder), "concatenation (fallback)")
        assert [check["name"] for check in answer["checks"]] == CHECKS
        assert set(answer["methods"]) == set(METHODS)

    def test_families(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor_module, "FAMILIES", ("llama", "llama4"))
        result = self.run("--families")
        assert result.stderr == "measuring llama\nmeasuring llama4\n"
        lines = result.stdout.splitlines()
        assert [line.split()[1] for line in lines if line.startswith("|")][2:] == ["llama", "llama4"]
        assert lines[-1].startswith("- llama4: 'tiny llama4' (Llama4ForCausalLM) has no separate backbone")
        answer = json.loads(self.run("--families", "--json").stdout)
        assert [(row["family"], row["way"]) for row in answer["families"]] == [
            ("llama", "shared prefix"),
            ("llama4", "refused"),
        ]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], "expected --model NAME or --families; got neither: give one of them"),
            (["--model", "x", "--families"], "expected --model NAME or --families; got both: give one of them"),
            (
                ["--families", "--dtype", "float32"],
                "--dtype, --quantize and --trust-remote-code are for --model",
            ),
            (["--families", "--device", "cuda:99"], "device 'cuda:99' cannot be used here"),
        ],
    )
    def test_mistakes(self, arguments: list[str], words: str) -> None:
        result = self.run(*arguments)
        assert isinstance(result.exception, (BaseModelError, ConfigError))
        assert str(result.exception).startswith(words)

    def test_a_model_that_is_not_there(self) -> None:
        result = self.run("--model", "/no/such/folder")
        assert isinstance(result.exception, BaseModelError)
        assert str(result.exception) == "base model folder '/no/such/folder' does not exist"
