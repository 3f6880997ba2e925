"""No answer from numbers that are not finite, and none that was cut without a word: on every way to an answer."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.saved_prompts import a_prompt
from helpers.small_tasks import TEMPLATE, answers, command, reviews, write_data
from helpers.tiny_models import random_prompt, tiny_base, tiny_model, tiny_tokenizer
from helpers.told import told_lines
from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from transformers import AddedToken, PreTrainedTokenizerFast

from softprompt.analysis.inspection.score_records import score_states
from softprompt.data.encoding.tokenization import safe_tokenizer
from softprompt.data.examples import Example
from softprompt.data.splits import Splits
from softprompt.data.task import Task, TaskSpec
from softprompt.errors import NotFiniteError
from softprompt.experiments.baselines.linear_probe import fit_linear_probe
from softprompt.experiments.baselines.nearest_examples import NearestShots
from softprompt.inference.evaluation import evaluate, score
from softprompt.inference.generation import GenerationConfig, choose_max_new_tokens
from softprompt.inference.predictor import Predictor
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.state import PromptState
from softprompt.report.pages.training_page import make_training_document
from softprompt.training.distillation.fidelity import UncachedTeacher

CPU = ("--device", "cpu", "--dtype", "float32")
BROKEN = "%"  # the model has no number for a text with it


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that gives NaN for texts with one character."""
    place = tmp_path_factory.mktemp("broken") / "llama"
    model, tokenizer = tiny_model("llama"), tiny_tokenizer("llama")
    (token,) = tokenizer(BROKEN, add_special_tokens=False).input_ids
    # the output layer keeps its numbers: other texts are answered
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = torch.nan
        model.lm_head.weight[token] = 0  # nor does it write that character itself
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def base(folder: Path) -> FrozenLM:
    from softprompt.models.loading import load_model

    return load_model(folder, dtype="float32", device="cpu")


def texts(kind: str) -> list[Example]:
    label, references = ("good", ()) if kind == "classification" else (None, ("good",))
    return [
        Example("a fine film", label, references, place="'rows' row 1"),
        Example(f"a film of 90 {BROKEN}", label, references, place="'rows' row 2"),
        Example("a dull film", label, references, place="'rows' row 3"),
    ]


def spec_of(kind: str) -> TaskSpec:
    return TaskSpec.of(labels=["bad", "good"] if kind == "classification" else None, template=TEMPLATE)


@pytest.mark.parametrize("kind", ["classification", "generation"])
class TestEveryWayToAnAnswer:
    def refused(self, made: Any, examples: list[Example]) -> None:
        sound = [examples[0], examples[2]]
        assert len(list(made.iterate_predictions(sound))) == 2
        with pytest.raises(NotFiniteError, match=r"'rows' row 2: the model gives numbers that are not finite here"):
            list(made.iterate_predictions(examples))
        if not isinstance(made, UncachedTeacher):  # which is only timed
            with pytest.raises(NotFiniteError, match="'rows' row 2"):
                score(made, examples)
        # alone too, and in another place
        with pytest.raises(NotFiniteError, match="'rows' row 2"):
            list(made.iterate_predictions([examples[1]]))

    def test_a_prompt(self, base: FrozenLM, kind: str) -> None:
        states = [PromptState.of_embeddings(random_prompt(tiny_base("llama"), 3, seed).detach()) for seed in (1, 2)]
        self.refused(Predictor(base, spec_of(kind), states[0]), texts(kind))
        if kind == "classification":
            for vote in ("mean", "majority"):
                self.refused(Predictor(base, spec_of(kind), states, vote=vote), texts(kind))  # type: ignore[arg-type]

    def test_a_sampled_completion(self, base: FrozenLM, kind: str) -> None:
        self.refused(Predictor(base, spec_of(kind), None, GenerationConfig(temperature=1.0, top_k=5)), texts(kind))

    def test_solved_examples_near_to_each_text(self, base: FrozenLM, kind: str) -> None:
        splits = reviews(8, 2, 2) if kind == "classification" else answers(8, 2, 2)
        self.refused(NearestShots(base, Task.of(splits, template=TEMPLATE), 2), texts(kind))

    def test_a_text_that_is_read_anew(self, base: FrozenLM, kind: str) -> None:
        self.refused(UncachedTeacher(base, spec_of(kind), [5, 6], GenerationConfig(max_new_tokens=4)), texts(kind))

    def test_features_of_a_linear_probe(self, base: FrozenLM, kind: str) -> None:
        if kind == "classification":
            self.refused(fit_linear_probe(base, Task.of(reviews(), template=TEMPLATE)).answers, texts(kind))

    def test_what_inspect_looks_at(self, base: FrozenLM, kind: str) -> None:
        with pytest.raises(NotFiniteError, match="'rows' row 2"):
            score_states(base, spec_of(kind), [None, None], texts(kind))


def test_a_bare_text_is_named_by_its_beginning(base: FrozenLM) -> None:
    with pytest.raises(NotFiniteError, match=f"text '100{BROKEN} of it': the model gives numbers"):
        list(Predictor(base, spec_of("classification")).predict([Example(f"100{BROKEN} of it")]))


def test_the_command_line_says_which_row_and_prints_no_json(base: FrozenLM, folder: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", reviews())
    rows = [{"text": "fine", "label": "good"}, {"text": f"dull 5{BROKEN}", "label": "bad"}]
    (data / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("--model", folder, "--data", data, "--template", TEMPLATE, *CPU, "--json")
    done = command("eval", *arguments)
    assert done.code == 2
    assert "test.jsonl' line 2: the model gives numbers that are not finite here" in done.error
    learned = PromptState.of_embeddings(random_prompt(tiny_base("llama"), 3).detach())
    facts = {"base_name": str(folder), "base_fingerprint": base.fingerprint, "states": (learned,)}
    replace(a_prompt(0), **facts, spec=spec_of("classification")).save(tmp_path / "p")
    for more in ((), ("--json",)):
        done = command("predict", tmp_path / "p", "fine", f"dull 5{BROKEN}", *CPU, *more)
        assert (done.code, done.out) == (2, "")
        assert f"text 'dull 5{BROKEN}': the model gives numbers that are not finite here" in done.err


class TestCut:
    def test_what_was_cut_is_what_transformers_does_not_end(self) -> None:
        base, spec = tiny_base("llama"), spec_of("generation")
        examples = [Example(f"{one.text} {i}", references=("good",)) for i, one in enumerate(answers(30).train)]
        found = evaluate(base, examples, spec=spec, generation=GenerationConfig(max_new_tokens=6))
        end, expected = base.tokenizer.eos_token_id, []
        for example in examples:
            ids = base.tokenizer(f"{example.text}:", return_tensors="pt").input_ids
            made = base.model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
            expected.append(end not in made.tolist())
        assert [one.at_limit for one in found.predictions] == expected
        assert found.to_dict()["cut"] == found.cut == sum(expected) > 0
        assert found.truncation_notes == [
            f"{sum(expected)} of 30 completions were cut at the limit of tokens: --max-new-tokens gives more"
        ]
        assert [one.to_dict().get("cut", False) for one in found.predictions] == expected
        # train tells it at its end
        trained = replace(a_prompt(0), metrics={"test": found.to_dict()}, training={"best_step": 1, "steps_made": 1})
        assert f"- test: {found.truncation_notes[0]}" in told_lines(make_training_document({"": trained}, Path("p")))

    def test_there_is_room_for_the_longest_reference(self) -> None:
        base, spec = tiny_base("llama"), spec_of("generation")
        long = " ".join(f"w{n}" for n in range(60))
        tokens = len(base.tokenizer(f"a {long}", add_special_tokens=False).input_ids)
        assert tokens > 128
        assert choose_max_new_tokens(base, spec, [Example("t", references=("no",))]) == 128
        # half of this model's context is less than that; a roomier one holds the answer and its end
        assert choose_max_new_tokens(base, spec, [Example("t", references=("no", long))]) == max(
            128, base.context_length // 2
        )
        roomy = FrozenLM(tiny_model("llama"), tiny_tokenizer("llama"), "roomy")
        roomy.model.config.max_position_embeddings = 4096
        roomy = FrozenLM(roomy.model, roomy.tokenizer, "roomy")
        assert tokens <= choose_max_new_tokens(roomy, spec, [Example("t", references=("no", long))]) <= tokens + 1
        assert (
            choose_max_new_tokens(
                roomy, Task.generation(Splits((Example("t", references=("no",)),), (), (), "", ())).with_room(5).spec
            )
            == 5
        )


class TestDecoding:
    def test_an_exact_answer_stays_exact(self) -> None:
        """A tokenizer that cleans up, as BERT's, would make "do n't ." of it "don't."."""
        words = ["[UNK]", "[SEP]", "do", "n't", ".", ",", "ok", "?", "i", "'m"]
        backend = Tokenizer(WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
        backend.pre_tokenizer, backend.decoder = Whitespace(), WordPieceDecoder(cleanup=False)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, unk_token="[UNK]", eos_token="[SEP]", clean_up_tokenization_spaces=True
        )
        ids = [words.index(one) for one in ("ok", ",", "do", "n't", ".")]
        assert tokenizer.decode(ids) == "ok, don't."
        assert safe_tokenizer(tokenizer).decode(ids) == "ok , do n't ."

    def test_marks_are_never_spelled_though_the_file_does_not_call_them_special(self) -> None:
        from softprompt.analysis.diagnostics.tiny_models import make_family_tokenizer

        tokenizer = make_family_tokenizer("llama")
        names = ["<start_of_image>", "<|assistant|>", "<table>"]
        tokenizer.add_tokens([AddedToken(name, special=False) for name in names])
        image, turn, table = tokenizer.convert_tokens_to_ids(names)
        ids = tokenizer("a film", add_special_tokens=False).input_ids
        assert safe_tokenizer(tokenizer).decode([image, *ids, turn, table, tokenizer.eos_token_id]) == "a film<table>"
