"""softprompt plan: sizes from a configuration alone, formulas against what real passes keep, the command."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from helpers.small_tasks import command
from helpers.tiny_models import save_tiny, tiny_model, tiny_tokenizer
from torch import Tensor
from transformers import AutoConfig

from softprompt.analysis.diagnostics.activation_memory import activations, count_weight_bytes
from softprompt.analysis.diagnostics.memory_estimate import ROOM, MemoryEstimate, Workload
from softprompt.analysis.diagnostics.memory_plan import count_learned, plan_memory
from softprompt.analysis.diagnostics.meta_model import MetaModel, count, count_cache_bytes, make_cache, make_meta_model
from softprompt.cli.diagnose_command import parse_bytes
from softprompt.cli.verbs.lazy_verbs import cli
from softprompt.data.encoding.batching import collate
from softprompt.data.encoding.encoder import EncodedSequence
from softprompt.errors import BaseModelError, ConfigError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.kernels.fused_decoder import find_fused_decoder
from softprompt.prompts.inline_prefix import make_learning_prefix
from softprompt.prompts.state import PromptState
from softprompt.training.gradient_checkpointing import checkpoint_gradients

GB = 10**9
LLAMA_70B: dict[str, Any] = {
    "vocab_size": 128_256,
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
}


def config_folder(folder: Path, kind: str, **settings: Any) -> str:
    AutoConfig.for_model(kind, **settings).save_pretrained(folder)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    return str(folder)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> MetaModel:
    return make_meta_model(config_folder(tmp_path_factory.mktemp("large"), "llama", **LLAMA_70B), torch.bfloat16)


def part(estimate: MemoryEstimate, name: str) -> int:
    (found,) = [one.bytes for one in estimate.parts if one.name == name]
    return found


class TestMetaModel:
    def test_of_70_billion_parameters(self, large: MetaModel) -> None:
        assert large.parameters == 70_553_706_496
        assert (len(large.layers), large.embedding_size, large.vocabulary_size) == (80, 8192, 128_256)
        assert not large.is_tied
        assert all(parameter.is_meta for parameter in large.model.parameters())
        # 8 heads of 128, keys and values, in two bytes
        assert count_cache_bytes(make_cache(large, 101)) == 80 * 2 * 8 * 128 * 2 * 101

    @pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "opt", "gemma4_per_layer", "t5", "mamba"])
    def test_has_the_parameters_of_the_model(self, family: str, tmp_path: Path) -> None:
        save_tiny(tmp_path, family)
        made, model = make_meta_model(str(tmp_path), torch.float32), tiny_model(family)
        assert made.parameters == sum(parameter.numel() for parameter in model.parameters())
        assert made.is_tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
        assert made.layers
        assert all(parameter.is_meta for parameter in made.model.parameters())

    def test_windows_and_sizes_of_heads_show_in_the_cache(self, tmp_path: Path) -> None:
        layers = ["sliding_attention", "full_attention"] * 2
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
        folder = config_folder(
            tmp_path,
            "gemma4_text",
            **sizes,
            vocab_size=320,
            vocab_size_per_layer_input=320,
            hidden_size_per_layer_input=0,
            num_hidden_layers=4,
            head_dim=8,
            global_head_dim=16,
            sliding_window=8,
            layer_types=layers,
        )
        cache = make_cache(make_meta_model(folder, torch.float32), 20)
        assert [tuple(layer.keys.shape) for layer in cache.layers] == [(1, 2, 7, 8), (1, 2, 20, 16)] * 2
        assert count_cache_bytes(cache) == 4 * 2 * 2 * 2 * (7 * 8 + 20 * 16)

    def test_no_cache_to_share(self, tmp_path: Path) -> None:
        save_tiny(tmp_path, "mamba")
        assert make_cache(make_meta_model(str(tmp_path), torch.float32), 4) is None

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(BaseModelError, match=r"expected config\.json in it, which is missing"):
            make_meta_model(str(tmp_path), torch.float32)

    def test_damaged_configuration(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": "large"}')
        with pytest.raises(BaseModelError, match="cannot read the configuration of"):
            make_meta_model(str(tmp_path), torch.float32)


class Saved:
    """Counts what autograd really saves, weights apart; our own layers keep theirs in objects, counted too."""

    def __init__(self, base: FrozenLM) -> None:
        self._known = {each.untyped_storage().data_ptr() for each in base.model.parameters()}
        self.bytes = 0
        self._alive: list[Tensor] = []

    def __call__(self, tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in self._known:
            self._known.add(place)
            self._alive.append(tensor)
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor


def step(base: FrozenLM, prompt: Tensor, text: int, batch: int, checkpointing: bool) -> Tensor:
    items = [EncodedSequence(i, tuple(range(5, 5 + text)), (text - 1,), (1,)) for i in range(batch)]
    with checkpoint_gradients(base, checkpointing):
        hidden = make_learning_prefix(base, PromptState.of_embeddings(prompt)).scored(collate(items, base.device))
    return hidden.float().sum()


def runs_of(node: Any, seen: set[Any]) -> list[Any]:
    """What our layers keep, found from the last one on."""
    found, todo = [], [node]
    while todo:
        if (one := todo.pop()) is None or one in seen:
            continue
        seen.add(one)
        if (run := getattr(one, "run", None)) is not None:
            found.append(run)
        todo += [before for before, _ in one.next_functions]
    return found


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for each in value for tensor in tensors_of(each)]
    if type(value).__name__ in ("LayerRun", "AttentionCache"):
        return [
            t for name, each in vars(value).items() if name not in ("layer", "plan", "group") for t in tensors_of(each)
        ]
    return []


class TestActivations:
    """The formulas beside what a step of a small model keeps; its vocabulary does not count."""

    SIZES: dict[str, Any] = {  # noqa: RUF012
        "vocab_size": 320,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }

    def both(self, family: str, own: bool, folder: Path, **settings: Any) -> tuple[FrozenLM, MetaModel]:
        config = AutoConfig.for_model(family, **{**self.SIZES, **settings})
        config.save_pretrained(folder)
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        tokenizer = tiny_tokenizer("llama")
        base = FrozenLM(AutoModelForCausalLM.from_config(config), tokenizer, family, lasting=own)
        return base, make_meta_model(str(folder), torch.float32)

    @pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
    @pytest.mark.parametrize(("length", "text", "batch"), [(20, 24, 6), (60, 8, 2)])
    def test_of_our_own_layers(self, family: str, length: int, text: int, batch: int, tmp_path: Path) -> None:
        settings = {} if family == "llama" else {"head_dim": 16}
        base, made = self.both(family, True, tmp_path, **settings)
        assert find_fused_decoder(base) is not None
        prompt = torch.randn(length, 128, requires_grad=True)
        loss = step(base, prompt, text, batch, False)
        pieces = {
            t.untyped_storage().data_ptr(): t.untyped_storage()
            for run in runs_of(loss.grad_fn, set())
            for t in tensors_of(run)
        }
        real = sum(storage.nbytes() for storage in pieces.values())
        kept = activations(made, length + 1, text, own_layers=True)
        assert kept.own
        assert kept.kept(batch) + kept.passes.cache == pytest.approx(real, rel=0.05)

    @pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "gpt_neox"])
    @pytest.mark.parametrize(("length", "text", "batch"), [(20, 24, 6), (60, 8, 2)])
    def test_of_layers_under_autograd(self, family: str, length: int, text: int, batch: int, tmp_path: Path) -> None:
        base, made = self.both(family, False, tmp_path)
        prompt, saved = torch.randn(length, 128, requires_grad=True), Saved(base)
        step(base, prompt, text, batch, False)
        with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
            step(base, prompt, text, batch, False)
        kept = activations(made, length + 1, text, own_layers=False)
        assert not kept.own
        # the last layer sees one position of each text, which the count does not know
        assert kept.kept(batch) + kept.passes.cache == pytest.approx(saved.bytes, rel=0.15)

    def test_checkpointed_keeps_what_enters_and_one_layer(self, tmp_path: Path) -> None:
        _, made = self.both("llama", True, tmp_path)
        for own in (True, False):
            kept = activations(made, 21, 24, own_layers=own, checkpointing=True)
            entering = 5 * (6 * 24 + 21) * 128 * 4
            # our layers are run again over texts and prompt together, others over one after the other
            assert kept.passes.prefix is not None
            largest = 6 * kept.passes.text.largest
            assert kept.kept(6) - entering == largest + (kept.passes.prefix.largest if own else 0)
            assert kept.kept(6) < 0.5 * activations(made, 21, 24, own_layers=own).kept(6)

    def test_is_what_texts_add(self, tmp_path: Path) -> None:
        _, made = self.both("llama", True, tmp_path)
        kept = activations(made, 21, 24, own_layers=False)
        assert kept.kept(8) - kept.kept(4) == 4 * kept.passes.text.whole

    def test_keys_and_values_that_learn_need_no_pass_of_the_prefix(self, tmp_path: Path) -> None:
        _, made = self.both("llama", True, tmp_path)
        for own in (True, False):
            kept = activations(made, 21, 24, own_layers=own, learned_cache=True)
            assert kept.passes.prefix is not None
            assert kept.passes.prefix.whole == 0
            assert kept.passes.cache == 5 * 2 * 2 * 16 * 4 * 21

    @pytest.mark.parametrize("family", ["t5", "bart", "mamba"])
    def test_where_no_prefix_is_shared(self, family: str, tmp_path: Path) -> None:
        save_tiny(tmp_path, family)
        made = make_meta_model(str(tmp_path), torch.float32)
        short, long = (activations(made, length, 10, own_layers=True) for length in (4, 24))
        assert short.passes.prefix is None
        assert long.kept(3) > 1.5 * short.kept(3)


class TestPlan:
    def test_on_a_cpu_layers_of_our_own_are_counted_where_they_run_only(self, tmp_path: Path) -> None:
        folder = config_folder(tmp_path, "llama", **{**LLAMA_70B, "num_hidden_layers": 2})
        made = {
            (dtype, quantize): plan_memory(
                make_meta_model(folder, dtype), Workload(gpus=0, memory=80 * GB, quantize=quantize)
            )
            for dtype, quantize in ((torch.bfloat16, None), (torch.bfloat16, "int8"), (torch.float16, None))
        }
        foreign = {key: "layers of transformers under autograd" in str(one.training.notes) for key, one in made.items()}
        assert list(foreign.values()) == [False, True, True]

    def test_70_billion_on_eight_gpus(self, large: MetaModel) -> None:
        made = plan_memory(large, Workload(gpus=8, memory=80 * GB))
        assert made.workload.sharding == "fsdp"
        in_layers = sum(count(layer) for layer in large.layers)
        whole = 2 * (large.parameters - in_layers)
        assert part(made.training, "weights") == whole + 2 * in_layers // 8
        assert part(made.training, "two layers whole") == 2 * 2 * in_layers // 80
        assert made.training.fits
        assert made.training.at_once is not None
        ours, vllm = made.serving
        assert not ours.fits
        assert vllm.fits
        assert part(vllm, "prefixes") == 1000 * 7 * 16 * 80 * 2 * 128 * 2
        assert part(vllm, "prompts in the vocabulary") == 2 * 1000 * 100 * 8192 * 2 // 8
        assert "torchrun --nproc-per-node 8 -m softprompt train" in made.training.commands[0]
        assert "--sharding fsdp" in made.training.commands[0]
        assert "--tensor-parallel-size 8" in vllm.commands[1]

    def test_prefixes_that_do_not_fit_are_computed_again(self, large: MetaModel) -> None:
        made = plan_memory(large, Workload(gpus=1, memory=80 * GB, quantize="bnb-nf4"))
        ours, vllm = made.serving
        held = part(ours, "prefixes") // (101 * 327_680)
        assert 0 < held < 1000
        assert ours.fits
        assert ours.bytes + 101 * 327_680 > ours.room
        assert f"prefix_bytes={held * 101 * 327_680}" in ours.commands[0]
        # vLLM takes the weights as they are
        assert not vllm.fits
        assert vllm.commands == ()

    def test_a_micro_batch_that_fits(self, large: MetaModel) -> None:
        workload = Workload(gpus=1, memory=80 * GB, quantize="bnb-nf4")
        made = plan_memory(large, workload).training
        assert not made.fits
        assert made.at_once is not None
        assert f"--micro-batch-size {made.at_once}" in made.commands[0]
        assert plan_memory(
            large, Workload(gpus=1, memory=80 * GB, quantize="bnb-nf4", batch_size=made.at_once)
        ).training.fits

    def test_no_cache_no_vllm(self, tmp_path: Path) -> None:
        save_tiny(tmp_path, "mamba")
        made = plan_memory(
            make_meta_model(str(tmp_path), torch.float32), Workload(gpus=1, memory=GB, length=4, text_length=8)
        )
        assert len(made.serving) == 1
        assert made.training.fits

    def test_whole_in_each_of_two_gpus_does_not_fit(self, large: MetaModel) -> None:
        made = plan_memory(large, Workload(gpus=2, memory=80 * GB, sharding="none"))
        assert part(made.training, "weights") == 2 * large.parameters
        assert not made.training.fits
        assert made.training.at_once is None
        assert "--device-map auto --gradient-checkpointing" in made.training.commands[0]

    def test_four_bits_fit_one_gpu(self, large: MetaModel) -> None:
        made = plan_memory(
            large, Workload(gpus=1, memory=80 * GB, quantize="bnb-nf4", checkpointing=True, batch_size=8)
        )
        packed = large.in_linears
        assert count_weight_bytes(large, "bnb-nf4") == 2 * (large.parameters - packed) + packed * 9 // 16
        assert made.training.fits
        assert "--quantize bnb-nf4" in made.training.commands[0]
        assert "--gradient-checkpointing" in made.training.commands[0]
        assert "--sharding" not in made.training.commands[0]

    def test_at_once_is_the_most_that_fits(self, large: MetaModel) -> None:
        made = plan_memory(large, Workload(gpus=8, memory=80 * GB))
        most = made.training.at_once
        assert most is not None
        for batch, fits in ((8 * most, True), (8 * (most + 1), False)):
            if batch // 8 * 128 <= 8192:  # longer passes are cut by the budget of tokens
                assert plan_memory(large, Workload(gpus=8, memory=80 * GB, batch_size=batch)).training.fits is fits
        assert made.training.room == ROOM * 80 * GB

    @pytest.mark.parametrize(
        ("method", "learns", "gives"),
        [("prompt-tuning", 20 * 32, 20 * 32), ("prefix-tuning", 2 * 2 * 2 * 20 * 8, 2 * 2 * 2 * 20 * 8)],
    )
    def test_numbers_of_a_prompt(self, method: str, learns: int, gives: int, tmp_path: Path) -> None:
        save_tiny(tmp_path, "llama")
        made = make_meta_model(str(tmp_path), torch.float32)
        found = count_learned(made, Workload(gpus=0, memory=GB, length=20, method=method))
        assert (found[0], found[2]) == (learns, gives)

    def test_a_small_model_needs_no_sharding(self, tmp_path: Path) -> None:
        save_tiny(tmp_path, "gemma3")
        made = plan_memory(
            make_meta_model(str(tmp_path), torch.bfloat16), Workload(gpus=2, memory=24 * GB, length=4, text_length=8)
        )
        assert made.workload.sharding == "none"
        assert "--sharding" not in made.training.commands[0]
        assert [estimate.fits for estimate in made.serving] == [True, True]

    def test_encoder_decoder(self, tmp_path: Path) -> None:
        save_tiny(tmp_path, "t5")
        made = plan_memory(
            make_meta_model(str(tmp_path), torch.float32), Workload(gpus=1, memory=GB, length=4, text_length=8, tasks=3)
        )
        (serving,) = made.serving
        assert part(serving, "prefixes") == 3 * 5 * 32 * 4
        assert made.training.fits

    @pytest.mark.parametrize(
        ("workload", "words"),
        [
            ({"gpus": 1, "sharding": "fsdp"}, "sharding fsdp is for several GPUs, got 1"),
            ({"gpus": 2, "sharding": "zero3"}, "unknown sharding 'zero3'"),
            ({"gpus": 2, "sharding": "fsdp", "quantize": "int8"}, "leave the quantization int8 out"),
            ({"gpus": 1, "quantize": "int3"}, "unknown quantization 'int3'"),
            ({"gpus": 1, "method": "magic"}, "unknown method 'magic'"),
            ({"gpus": 1, "length": 0}, "length"),
        ],
    )
    def test_mistakes(self, workload: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            Workload(**{"memory": GB, **workload}).check()


class TestCommand:
    def run(self, folder: Path, *more: object) -> Any:
        return command("plan", "--model", folder, "--length", 4, "--text-length", 8, *more)

    def test_table(self, tmp_path: Path) -> None:
        save_tiny(tmp_path, "llama")
        done = self.run(tmp_path, "--gpus", 1, "--gpu-memory", "24GiB")
        assert done.code == 0, done.err
        assert "on 1 GPU of 26 GB" in done.out
        assert "\nweights " in done.out
        assert f"$ softprompt train --model {tmp_path} --data DATA --length 4 --batch-size 16" in done.out
        assert max(map(len, done.out.splitlines())) < 250

    def test_json(self, tmp_path: Path) -> None:
        save_tiny(tmp_path, "llama")
        done = self.run(tmp_path, "--gpus", 0, "--json", "--dtype", "float32")
        made = json.loads(done.out)
        assert made["workload"]["tasks"] == 1000
        assert made["training"]["bytes"] == sum(part["bytes"] for part in made["training"]["parts"])
        assert [estimate["fits"] for estimate in (made["training"], *made["serving"])] == [True, True]

    @pytest.mark.parametrize(("text", "size"), [("24", 24e9), ("24GB", 24e9), ("24 gib", 24 * 2**30), ("0.5TB", 5e11)])
    def test_a_number_alone_is_in_gigabytes(self, text: str, size: float) -> None:
        assert parse_bytes(text) == size

    def test_mistakes(self, tmp_path: Path) -> None:
        for more, words in (
            (("--gpus", 1, "--gpu-memory", "much"), "--gpu-memory 'much': expected a size, as in 80GB"),
            (("--gpus", 1, "--gpu-memory", "24MB"), "--gpu-memory '24MB' is 0.024 GB: expected 0.1 GB to a petabyte"),
            (("--gpus", 1, "--gpu-memory", "24000000000"), "with its unit, as in 80GB"),
            (("--gpus", 1, "--dtype", "int4"), "unknown dtype 'int4'"),
            (("--gpus", 1), "expected config.json in it"),
        ):
            done = self.run(tmp_path, *more)
            assert done.code == 2
            assert words in done.error

    def test_suggested_options_are_real(self, large: MetaModel) -> None:
        for workload in (
            Workload(gpus=8, memory=80 * GB, checkpointing=True),
            Workload(gpus=1, memory=80 * GB, quantize="bnb-nf4"),
            Workload(gpus=0, memory=400 * GB),
            Workload(gpus=2, memory=80 * GB, method="prefix-tuning", sharding="none"),
        ):
            made = plan_memory(large, workload)
            for line in (*made.training.commands, *(one for estimate in made.serving for one in estimate.commands)):
                words = line.split()
                if words[0] == "vllm":
                    continue
                verb = words[words.index("softprompt") + 1]
                known = {name for parameter in cli.commands[verb].params for name in parameter.opts}
                assert {word for word in words[words.index(verb) :] if word.startswith("--")} <= known, line
        assert CliRunner().invoke(cli, ["plan", "--help"]).exit_code == 0
