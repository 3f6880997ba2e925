"""What is told of data: intervals and tests by hand, slices, near duplicates, suspects, memorisation, templates."""

import random
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from helpers.planted_faults import rows
from helpers.small_tasks import answers, reviews
from helpers.tiny_models import as_state, plain_logits, random_prompt, tiny_base

from softprompt.analysis.inspection.answers import analyze_answers, judge_slices
from softprompt.analysis.inspection.duplicates import find_duplicates, hash_shingles
from softprompt.analysis.inspection.label_errors import find_label_errors
from softprompt.analysis.inspection.memorization import measure_memorization
from softprompt.analysis.inspection.score_records import PromptScores, score_ensemble, score_states
from softprompt.analysis.inspection.template_mismatch import template_differences
from softprompt.data.examples import Example
from softprompt.data.task import Task, TaskSpec
from softprompt.data.templates.template import Template
from softprompt.errors import DataError
from softprompt.inference.predictor import Predictor
from softprompt.metrics import hypothesis_tests
from softprompt.prompts.prefix import compute_keys_and_values
from softprompt.prompts.state import PromptState
from softprompt.training.fit import fit

SPEC = TaskSpec("classification", "{{ text }}:", ("bad", "good"), ("bad", "good"), 64)
GENERATION = TaskSpec("generation", "{{ text }}:", max_length=64)


def states(count: int, length: int = 3) -> list[PromptState]:
    base = tiny_base("llama")
    return [state for seed in range(count) if (state := as_state(random_prompt(base, length, seed))) is not None]


class TestStatistics:
    def test_fishers_test_by_enumeration(self) -> None:
        # 3 of 8 drawn, 5 of the 8 are right: all draws counted
        draws = [sum(one) for one in combinations((1, 1, 1, 1, 1, 0, 0, 0), 3)]
        at_most_one = sum(right <= 1 for right in draws) / len(draws)
        assert hypothesis_tests.hypergeometric_p_value(1, 3, 5, 8) == pytest.approx(at_most_one)
        assert hypothesis_tests.hypergeometric_p_value(3, 3, 5, 8) == pytest.approx(1.0)

    def test_the_normal_approximation_agrees_with_permutations(self) -> None:
        generator = np.random.default_rng(0)
        values = generator.normal(size=200)
        inside = np.zeros(200, dtype=bool)
        inside[:40] = True
        values[:40] -= 0.25
        low = values[inside].mean()
        drawn = [generator.permutation(values)[:40].mean() <= low for _ in range(4000)]
        assert hypothesis_tests.subset_mean_p_value(values, inside) == pytest.approx(np.mean(drawn), abs=0.02)

    def test_holm(self) -> None:
        assert hypothesis_tests.holm_adjust([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
        assert hypothesis_tests.holm_adjust([]) == []

    def test_sign_test(self) -> None:
        assert hypothesis_tests.sign_test(0, 4) == pytest.approx(0.125)
        assert hypothesis_tests.sign_test(10, 2) == pytest.approx(2 * (1 + 12 + 66) / 2**12)
        assert hypothesis_tests.sign_test(3, 3) == 1.0
        assert hypothesis_tests.sign_test(0, 0) == 1.0

    def test_wilson(self) -> None:
        # Wilson's interval of 9 out of 10, as published tables have it
        assert hypothesis_tests.wilson_interval(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-3)
        assert hypothesis_tests.wilson_interval(0, 10)[0] == 0.0
        assert hypothesis_tests.wilson_interval(10, 10)[1] == pytest.approx(1.0)

    def test_area_under_curve(self) -> None:
        a, b = np.array([3.0, 1.0, 2.0]), np.array([0.0, 2.0])
        # pairs: 3>0, 3>2, 1>0, 1<2, 2>0, 2=2
        assert hypothesis_tests.area_under_roc_curve(a, b) == pytest.approx(4.5 / 6)

    def test_the_interval_of_two_groups_covers_their_difference(self) -> None:
        generator = np.random.default_rng(1)
        inside = 0
        for _ in range(100):
            found = hypothesis_tests.mean_difference(generator.normal(1, 1, 60), generator.normal(0, 2, 60))
            inside += found.low <= 1 <= found.high
        assert inside >= 88


class TestScores:
    def test_losses_are_those_of_the_predictor(self) -> None:
        base, examples, several = tiny_base("llama"), list(reviews(4, 4, 12).test), states(18)
        scored = score_states(base, SPEC, [None, *several], examples)
        assert scored.log_probabilities is not None
        for member, state in enumerate([None, *several]):
            expected = Predictor(base, SPEC, state).label_log_probabilities(examples).numpy()
            assert scored.log_probabilities[member] == pytest.approx(expected, abs=1e-4)
        gold = [SPEC.label_index[str(one.label)] for one in examples]
        assert scored.losses[3] == pytest.approx(-scored.log_probabilities[3][range(12), gold])

    def test_generation_scores_outputs_a_token(self) -> None:
        base, examples = tiny_base("llama"), list(answers().test)
        both = score_states(base, GENERATION, [None, *states(1)], examples)
        alone = score_states(base, GENERATION, states(1), examples[:1])
        assert both.losses.shape == (2, 8)
        assert both.losses[1, 0] == pytest.approx(alone.losses[0, 0], abs=1e-4)
        assert both.log_probabilities is None

    def test_an_ensemble_answers_as_one(self) -> None:
        base, examples = tiny_base("llama"), list(reviews(4, 4, 12).test)
        scored = score_ensemble(base, SPEC, states(3), examples)
        expected = Predictor(base, SPEC, states(3)).label_log_probabilities(examples).numpy()
        assert scored.log_probabilities is not None
        assert scored.log_probabilities[0] == pytest.approx(expected, abs=1e-5)


class TestSlices:
    def test_a_bad_part_stands_first_and_is_significant(self) -> None:
        generator = random.Random(0)
        examples = [
            Example("a b " * generator.randrange(1, 9), "x", columns={"source": generator.choice("pqr"), "id": str(i)})
            for i in range(400)
        ]
        right = np.array(
            [float(generator.random() < (0.6 if one.columns["source"] == "q" else 0.9)) for one in examples]
        )
        found, small, unsliced = judge_slices(examples, right, [len(one.text.split()) for one in examples], exact=True)
        assert (found[0].by, found[0].name) == ("source", "q")
        assert found[0].adjusted < 0.01
        assert found[0].rest > 0.8
        assert found[0].low < found[0].value < found[0].high
        assert all(one.adjusted > 0.05 for one in found[1:])
        # 400 different numbers are cut into quarters, not into 400 slices
        assert sum(one.by == "id" for one in found) == 4
        assert (small, unsliced) == (0, [])

    def test_chance_alone_seldom_raises_an_alarm(self) -> None:
        alarms = 0
        for seed in range(60):
            generator = random.Random(seed)
            examples = [
                Example(
                    "a " * generator.randrange(1, 30), generator.choice("xy"), columns={"c": generator.choice("pqrst")}
                )
                for _ in range(200)
            ]
            right = np.array([float(generator.random() < 0.8) for _ in examples])
            found, *_ = judge_slices(examples, right, [len(one.text.split()) for one in examples], exact=True)
            alarms += found[0].adjusted < 0.05
        assert alarms <= 7

    def test_small_parts_are_counted_not_judged(self) -> None:
        examples = [Example("a", "x" if i < 5 else "y") for i in range(100)]
        found, small, _ = judge_slices(examples, np.ones(100), [1] * 100, exact=True)
        assert [one.name for one in found] == ["y"]
        assert small == 1

    def test_of_many_values_the_frequent_are_looked_at(self) -> None:
        """A column of 50 countries, three of which have rows enough; and one where no value comes twice."""
        cells = ["fr"] * 60 + ["de"] * 40 + ["it"] * 20 + [f"country {i}" for i in range(47)]
        examples = [Example("a", columns={"country": cell, "id": f"row {i}"}) for i, cell in enumerate(cells)]
        found, _, unsliced = judge_slices(examples, np.arange(167) % 2, [1] * 167, exact=True)
        assert sorted(one.name for one in found if one.by == "country") == ["de", "fr", "it"]
        assert unsliced == ["id"]


class TestAnswers:
    def test_confusion_and_calibration_by_hand(self) -> None:
        base = tiny_base("llama")
        examples = [Example("a", label) for label in ("bad", "bad", "good", "good")]
        probabilities = np.array([[0.95, 0.05], [0.3, 0.7], [0.05, 0.95], [0.65, 0.35]])
        scored = PromptScores(np.zeros((1, 4)), np.log(probabilities)[None], 0, SPEC.labels)
        found = analyze_answers(base, SPEC, scored, examples, "test")
        assert found.confusion == (("bad", "bad", 1), ("bad", "good", 1), ("good", "bad", 1), ("good", "good", 1))
        assert found.metric.value == 0.5
        assert found.calibration is not None
        assert [(one.n, one.right) for one in found.calibration.bins] == [(2, 0.0), (2, 1.0)]
        # (2 * |0 - 0.675| + 2 * |1 - 0.95|) / 4
        assert found.calibration.error.value == pytest.approx(0.3625)
        assert found.calibration.excess.value == pytest.approx(0.8125 - 0.5)


class TestDuplicates:
    def test_near_ones_are_found_across_splits(self) -> None:
        train = [Example("A quiet film that stays with you for days.", "good"), Example("Two hours lost.", "bad")]
        test = [
            Example("a quiet film, that stays with you for days!", "bad"),
            Example("Nothing like it at all.", "bad"),
        ]
        found, twins, leaked = find_duplicates({"train": train, "test": test})
        assert leaked == {("test", 0)}
        assert (found.groups, found.leaked, found.redundant, found.conflicting, found.held_out) == (1, 1, 0, 1, 2)
        assert [(row.split, row.index) for row in found.listed[0].rows] == [("train", 0), ("test", 0)]
        assert twins == {0: []}

    def test_is_jaccards_similarity(self) -> None:
        generator = random.Random(3)
        words = ["".join(generator.choices("abcdefgh", k=6)) for _ in range(60)]
        texts = [" ".join(generator.sample(words, 12)) for _ in range(150)]
        # half of them again, with some words changed
        texts += [
            " ".join(generator.choice(words) if generator.random() < 0.06 else w for w in t.split()) for t in texts[:75]
        ]
        sets = [set(hash_shingles(text).tolist()) for text in texts]
        pairs = {(i, j) for i in range(75) for j in [i + 150] if len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= 0.8}
        found, twins, _ = find_duplicates({"train": [Example(text, "a") for text in texts]})
        assert len(pairs) >= 30
        assert sum(len(twins.get(i, ())) == 1 for i, _ in pairs) >= 0.98 * len(pairs)
        assert found.redundant == pytest.approx(len(pairs), abs=2)

    def test_many_equal_texts_are_one_group(self) -> None:
        found, twins, _ = find_duplicates({"train": [Example("the same text every time", "a") for _ in range(3000)]})
        assert (found.groups, found.redundant) == (1, 2999)
        assert len(twins) == 3000
        assert len(found.listed[0].rows) == 6

    def test_texts_shorter_than_a_shingle(self) -> None:
        found, *_ = find_duplicates({"train": [Example(text, "a") for text in ("a", "b", "a!", "…", "…")]})
        assert found.groups == 2

    def test_a_shingle_is_five_characters_of_any_script(self) -> None:
        assert len(hash_shingles("абвгдежз")) == len(hash_shingles("abcdefgh")) == 4
        # words that differ in a vowel sign only
        assert hash_shingles("किताबें पढ़ना").tolist() != hash_shingles("कताब पढन").tolist()

    def test_rows_that_differ_in_a_column_of_the_template_are_no_duplicates(self) -> None:
        long = "a premise that is long and stands in every row of the data, word for word, again and again"
        rows = [
            Example(long, "ab"[n % 2], columns={"other": f"{word} {n}", "id": str(n)})
            for n, word in enumerate(random.Random(0).choices(["cat", "tree", "river", "stone"], k=300))
        ]
        more = [replace(rows[n], columns={**rows[n].columns, "id": "x"}) for n in (3, 150, 299)]
        found, twins, leaked = find_duplicates({"train": rows, "test": more}, {"text", "other"})
        assert {index for split, index in leaked if split == "test"} == {0, 1, 2}
        exact = {str(one.columns["other"]) for one in more}
        assert (found.leaked, found.held_out) == (3, 3)
        assert exact <= {str(rows[index].columns["other"]) for index in twins}
        # by the text alone all are alike
        alone, *_ = find_duplicates({"train": rows, "test": more}, {"text"})
        assert (alone.groups, alone.leaked) == (1, 3)

    def test_outputs_that_disagree(self) -> None:
        rows = [Example("the same text every time", references=(output,)) for output in ("a", "b")]
        found, *_ = find_duplicates({"train": rows})
        assert (found.groups, found.conflicting) == (1, 1)


class TestSuspects:
    def test_by_hand(self) -> None:
        probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.05, 0.95], [0.1, 0.9], [0.4, 0.6], [0.05, 0.95]])
        labels = ["bad", "good", "good", "bad", "bad", "good"]
        examples = [Example(f"text {i}", label) for i, label in enumerate(labels)]
        found = find_label_errors(
            SPEC, PromptScores(np.zeros((1, 6)), np.log(probabilities)[None], 0), examples, range(10, 16)
        )
        # row 4 is wrong too, but less sure than the mean of 'good', 0.67; rows 1 and 3 are as sure of the other label
        assert [one.index for one in found.listed] == [11, 13]
        assert found.found == 2
        assert found.listed[0].reason == "0.90 for 'bad', 0.10 for its label 'good'"

    def test_a_near_duplicate_is_named_and_the_list_is_cut(self) -> None:
        probabilities = np.array([[0.9, 0.1], [0.95, 0.05]])
        examples = [Example("a", "good"), Example("b", "good")]
        scored = PromptScores(np.zeros((1, 2)), np.log(probabilities)[None], 0)
        found = find_label_errors(SPEC, scored, examples, [0, 1], {1: ["bad"]}, most=1)
        assert found.found == 2
        (one,) = found.listed
        assert one.reason.endswith("a near duplicate of it is labelled 'bad'")

    def test_generation_by_the_loss(self) -> None:
        losses = np.append(np.random.default_rng(0).normal(1, 0.1, 50), 4.0)[None]
        examples = [Example("a", references=("b",)) for _ in range(51)]
        found = find_label_errors(GENERATION, PromptScores(losses, None, 0), examples, range(51))
        assert [one.index for one in found.listed] == [50]
        assert "loss 4.00 nats a token" in found.listed[0].reason


class TestMemorisation:
    @pytest.mark.parametrize("kind", ["embeddings", "key_values"])
    def test_a_prompt_that_holds_the_texts_is_told_from_one_that_does_not(self, kind: str) -> None:
        """Learned on twelve outputs that nothing but their rows tells."""
        base = tiny_base("gemma3")
        generator = random.Random(2)

        def one() -> Example:
            return Example("a film", references=("".join(generator.choices("abcdefgh", k=6)),))

        train, held = [one() for _ in range(12)], [one() for _ in range(60)]
        task = Task.generation(
            replace(reviews(), train=tuple(train), validation=tuple(train), test=()), template="{{ text }}:"
        )
        method = "prompt-tuning" if kind == "embeddings" else "prefix-tuning"
        prompt = fit(
            base, task, method=method, length=10, steps=150, learning_rate=0.3, eval_every=50, evaluate_test=False
        )
        found = measure_memorization(base, task.spec, prompt.state, train, held, same_data=True)
        assert found.what == "outputs"
        assert found.difference.low > 0
        assert found.auc > 0.6
        fair = measure_memorization(base, task.spec, prompt.state, held[:30], held[30:], same_data=True)
        assert fair.difference.low < 0 < fair.difference.high

    def test_texts_of_a_classification_task_by_the_definition(self) -> None:
        base, state = tiny_base("llama"), states(1)[0]
        examples = rows(24, 1)
        found = measure_memorization(base, SPEC, state, examples[:12], examples[12:], same_data=True)
        gains = []
        for example in examples[:12]:
            ids = base.tokenizer(f"{example.text}:", add_special_tokens=False).input_ids
            logits = [plain_logits(base, prompt, ids)[:-1] for prompt in (None, state.tensor)]
            picked = [one.log_softmax(-1)[range(len(ids) - 1), ids[1:]].mean().item() for one in logits]
            gains.append(picked[1] - picked[0])
        assert found.trained.value == pytest.approx(np.mean(gains), abs=1e-4)

    def test_too_few(self) -> None:
        with pytest.raises(DataError, match="expected at least 10 training and 10 held-out texts, got 3 and 12"):
            measure_memorization(tiny_base("llama"), SPEC, states(1)[0], rows(3, 1), rows(12, 2), same_data=True)

    def test_an_encoder_decoder_model_completes_no_texts(self) -> None:
        with pytest.raises(DataError, match="does not complete the texts"):
            measure_memorization(tiny_base("t5"), SPEC, states(1)[0], rows(12, 1), rows(12, 2), same_data=True)


@pytest.mark.parametrize(
    ("served", "words"),
    [
        ("{{ text }}\nLabel:", []),
        ("{{ text }}\nLabel: ", ["the same words with other white space: learned ends with"]),
        ("{{text}}\nLabel:", ["a blank more or less"]),
        ("{{ text }}\nAnswer:", ["other words"]),
        ("{{ title }}: {{ text }}\nLabel:", ["further column 'title'", "other words"]),
    ],
)
def test_template_differences(served: str, words: list[str]) -> None:
    found = list(template_differences(Template("{{ text }}\nLabel:"), Template(served)))
    assert len(found) == len(words)
    assert all(word in line for word, line in zip(words, found, strict=True))


def test_keys_and_values_score_as_what_they_are_made_of() -> None:
    base, state = tiny_base("llama"), states(1)[0]
    examples = list(rows(6, 1))
    pair = score_states(base, SPEC, [state, compute_keys_and_values(base, state.tensor)], examples)
    assert pair.losses[0] == pytest.approx(pair.losses[1], abs=1e-4)
