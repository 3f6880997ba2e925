"""``softprompt similar``: figures worked out by hand, what is compared with what, and where it looks."""

import json
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small_tasks import FAST, Ended, command, reviews, reviews_task, write_data
from helpers.tiny_models import save_tiny

from softprompt.data.task import TaskSpec
from softprompt.errors import ConfigError
from softprompt.models.loading import load_model
from softprompt.prompts.saved_prompt import MANIFEST_FILE, TENSOR_FILE, Prompt
from softprompt.prompts.state import PromptState
from softprompt.store.prompt_loading import load_prompt
from softprompt.store.similarity import SimilarPrompt, measure_nearness, rank_similar
from softprompt.training.fit import fit

Rows = Sequence[Sequence[float]]

BASE = {"config": "c", "tokenizer": "t", "weights": "w"}
SPEC = TaskSpec("classification", "{{ text }}\nMood:", ("a", "b"), ("good", "bad"), 64)
ACCURACY = {"metric": "accuracy", "value": 0.91, "low": 0.89, "high": 0.93, "n": 1500, "others": {}}


def embeddings(*members: Rows, **fields: Any) -> Prompt:
    """A prompt with these virtual tokens, or an ensemble."""
    states = tuple(PromptState.of_embeddings(torch.tensor(rows)) for rows in members)
    facts = {"spec": SPEC, "base_name": "m", "base_fingerprint": BASE, "method": "prompt-tuning"}
    return Prompt(**{"states": states} | facts | fields)


def key_values(*layers: Rows, **fields: Any) -> Prompt:
    """A prompt whose tokens have one key and one value in each layer, ``[P, 2]``; one head of size 1."""
    tensors = tuple(torch.tensor(rows).T[:, None, :, None] for rows in layers)
    return replace(embeddings([[0.0]], **fields), states=(PromptState("key_values", tensors),))


def other_task(prompt: Prompt) -> Prompt:
    return replace(prompt, spec=replace(SPEC, template="{{ text }}?"))


QUERY = embeddings([[3.0, 0.0], [0.0, 1.0]])


def only(prompt: Prompt, folder: Path) -> SimilarPrompt:
    (found,) = rank_similar(prompt, folder)
    return found


def names(found: Sequence[SimilarPrompt]) -> list[str]:
    return [one.folder.name for one in found]


class TestFigures:
    @pytest.mark.parametrize(
        ("other", "average", "per_token"),
        [
            # (1.5, 0.5) and (1, 1): 2 / sqrt(2.5 * 2); 45 degrees to both tokens
            (embeddings([[1.0, 1.0]]), 2 / 5**0.5, 0.5**0.5),
            # (1.5, 0.5) and (-1/3, 2/3); of six pairs one is 1, one is -1
            (embeddings([[-1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), -(0.02**0.5), 0.0),
            (other_task(QUERY), 1.0, 0.5),
            (embeddings([[-6.0, 0.0], [0.0, -2.0]]), -1.0, -0.5),
            (embeddings([[0.0, 0.0]]), 0.0, 0.0),
            # no average to speak of, but tokens
            (embeddings([[1.0, 0.0], [-1.0, 0.0]]), 0.0, 0.0),
            # members alone: (2 / sqrt 5, sqrt 1/2) and (3 / sqrt 10, 1/2)
            (
                embeddings([[1.0, 1.0]], [[2.0, 0.0]]),
                (2 / 5**0.5 + 3 / 10**0.5) / 2,
                (0.5**0.5 + 0.5) / 2,
            ),
        ],
        ids=["one token", "three tokens", "same tokens", "opposite", "zero", "no average", "ensemble"],
    )
    def test_embeddings(self, tmp_path: Path, other: Prompt, average: float, per_token: float) -> None:
        other.save(tmp_path / "store" / "other")
        found = only(QUERY, tmp_path / "store")
        assert found.reason is None
        assert found.average_tokens == pytest.approx(average, abs=1e-12)
        assert found.per_token == pytest.approx(per_token, abs=1e-12)

    def test_keys_and_values(self, tmp_path: Path) -> None:
        # the first layer: (1.5, 1) and (1, 0), tokens at 3 / sqrt 10 and 0; the second: opposite throughout
        query = key_values([[3.0, 1.0], [0.0, 1.0]], [[0.0, 2.0], [0.0, 2.0]])
        key_values([[1.0, 0.0]], [[0.0, -1.0]]).save(tmp_path / "store" / "other")
        found = only(query, tmp_path / "store")
        assert found.average_tokens == pytest.approx((1.5 / 3.25**0.5 - 1) / 2, abs=1e-12)
        assert found.per_token == pytest.approx((3 / 10**0.5 / 2 - 1) / 2, abs=1e-12)

    def test_two_ensembles_are_compared_member_by_member(self, tmp_path: Path) -> None:
        # cosines 1, 0, 0, -1 would cancel; 1, 0, 0.6, 0.8 do not
        embeddings([[1.0, 0.0]], [[0.6, 0.8]]).save(tmp_path / "store" / "other")
        found = only(embeddings([[2.0, 0.0]], [[0.0, 5.0]]), tmp_path / "store")
        assert found.average_tokens == pytest.approx((1 + 0 + 0.6 + 0.8) / 4)
        assert found.per_token == found.average_tokens

    def test_huge_values_do_not_overflow(self, tmp_path: Path) -> None:
        embeddings([[1e38, 1e38]]).save(tmp_path / "store" / "other")
        assert only(embeddings([[3e38, 0.0]]), tmp_path / "store").average_tokens == pytest.approx(0.5**0.5)


class TestRanking:
    def test_most_similar_first_then_what_cannot_be_compared(self, tmp_path: Path) -> None:
        embeddings([[0.0, 1.0]]).save(tmp_path / "c far")
        embeddings([[1.0, 0.0]]).save(tmp_path / "d near")
        embeddings([[3.0, 1.0]]).save(tmp_path / "e nearest")
        key_values([[1.0, 0.0]]).save(tmp_path / "b kind")
        embeddings([[1.0, 0.0]], base_fingerprint={}).save(tmp_path / "a base")
        found = rank_similar(QUERY, tmp_path)
        assert names(found) == ["e nearest", "d near", "c far", "a base", "b kind"]
        assert [one.average_tokens for one in found] == [
            pytest.approx(1.0),
            pytest.approx(3 / 10**0.5),
            pytest.approx(1 / 10**0.5),
            None,
            None,
        ]

    def test_ties_go_by_tokens_then_by_folder(self, tmp_path: Path) -> None:
        embeddings([[1.5, 0.5]], seed=1).save(tmp_path / "b")
        embeddings([[1.5, 0.5]], seed=2).save(tmp_path / "a")
        embeddings([[1.5, 3.5], [1.5, -2.5]]).save(tmp_path / "0")
        assert names(rank_similar(QUERY, tmp_path)) == ["a", "b", "0"]

    def test_the_prompt_itself_and_its_copies_are_left_out(self, tmp_path: Path) -> None:
        QUERY.save(tmp_path / "itself")
        QUERY.save(tmp_path / "copies" / "one")
        other_task(QUERY).save(tmp_path / "other task")
        replace(QUERY, base_fingerprint={"weights": "v"}).save(tmp_path / "other base")
        embeddings([[3.0, 0.0], [0.0, 1.0]], [[1.0, 1.0]]).save(tmp_path / "ensemble")
        assert sorted(names(rank_similar(load_prompt(tmp_path / "itself"), tmp_path))) == [
            "ensemble",
            "other base",
            "other task",
        ]

    def test_what_a_person_needs_to_judge_is_there(self, tmp_path: Path) -> None:
        folder = embeddings(
            [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], metrics={"validation": ACCURACY}, training={"init": "labels"}
        ).save(tmp_path / "p")
        found = only(QUERY, tmp_path)
        assert (found.folder, found.spec, found.validation) == (folder, SPEC, ACCURACY)
        assert (found.init, found.length, found.members) == ("labels", 3, 1)
        assert found.start == ("--init", f"prompt:{folder}", "--length", "3")

    def test_keys_and_values_start_a_method_that_learns_them(self, tmp_path: Path) -> None:
        folder = key_values([[1.0, 0.0]]).save(tmp_path / "p")
        start = only(key_values([[1.0, 2.0]]), tmp_path).start
        assert start == ("--init", f"prompt:{folder}", "--length", "1", "--method", "prefix-tuning")

    def test_an_ensemble_is_ranked_but_is_no_start(self, tmp_path: Path) -> None:
        embeddings([[1.0, 0.0]], [[0.0, 1.0]]).save(tmp_path / "p")
        found = only(QUERY, tmp_path)
        assert (found.members, found.start) == (2, ())
        assert found.average_tokens is not None

    @pytest.mark.parametrize("metrics", [{}, {"validation": 0.9}, {"test": ACCURACY}])
    def test_without_a_validation_metric(self, tmp_path: Path, metrics: dict[str, Any]) -> None:
        embeddings([[1.0, 0.0]], metrics=metrics, training={"init": 7}).save(tmp_path / "p")
        found = only(QUERY, tmp_path)
        assert (found.validation, found.init, found.same_start) == (None, None, None)


OTHER_LABELS = replace(SPEC, labels=("c", "d"), verbalizers=("spam", "ham"))


class TestSameStart:
    @pytest.mark.parametrize(
        ("ours", "theirs", "fields", "same"),
        [
            ("text", "text", {"seed": 5}, True),
            ("text", "text", {"spec": OTHER_LABELS}, False),
            ("text", "text:Classify the text as good or bad.", {}, True),
            ("text:Be brief.", "text:Be brief.", {"spec": OTHER_LABELS}, True),
            ("text:Be brief.", "text:Be long.", {}, False),
            ("labels", "labels", {}, True),
            ("labels", "labels", {"spec": OTHER_LABELS}, False),
            ("labels", "text", {}, False),
            ("vocab", "vocab", {"spec": OTHER_LABELS}, True),
            ("vocab", "vocab", {"seed": 5}, False),
            ("random", "random", {}, True),
            ("random", "vocab", {}, False),
            ("prompt:p", "prompt:p", {}, None),
            ("text", "prompt:p", {}, None),
            ("text", "unheard of", {}, None),
            (None, "text", {}, None),
            ("text", "text", {"method": "p-tuning"}, True),
            ("text", "text", {"method": "several tasks at once"}, None),
        ],
    )
    def test_is_told_where_the_manifests_tell_it(
        self, tmp_path: Path, ours: str | None, theirs: str, fields: dict[str, Any], same: bool | None
    ) -> None:
        embeddings([[1.0, 1.0]], training={"init": theirs}, **fields).save(tmp_path / "p")
        query = replace(QUERY, training={} if ours is None else {"init": ours})
        assert only(query, tmp_path).same_start is same

    def test_is_not_told_of_ensembles(self, tmp_path: Path) -> None:
        embeddings([[1.0, 1.0]], [[0.0, 1.0]], training={"init": "text"}).save(tmp_path / "p")
        assert only(replace(QUERY, training={"init": "text"}), tmp_path).same_start is None


class TestNotComparable:
    @pytest.mark.parametrize(
        ("other", "words"),
        [
            (
                embeddings([[1.0, 0.0]], base_name="n", base_fingerprint={**BASE, "weights": "v"}),
                "it was learned on 'n', expected 'm' (differing: weights)",
            ),
            (embeddings([[1.0, 0.0]], base_fingerprint={**BASE, "extra": "e"}), "(differing: extra)"),
            (embeddings([[1.0, 0.0]], base_fingerprint={}), "(differing: config, tokenizer, weights)"),
            (key_values([[1.0, 0.0]]), "it is of the kind key_values, expected embeddings"),
            (embeddings([[1.0, 0.0, 0.0]]), "its virtual tokens have other sizes or layers"),
        ],
        ids=["base", "more base", "no base", "kind", "size"],
    )
    def test_the_reason(self, tmp_path: Path, other: Prompt, words: str) -> None:
        other.save(tmp_path / "p")
        found = only(QUERY, tmp_path)
        assert words in str(found.reason)
        assert (found.average_tokens, found.per_token, found.same_start, found.start) == (None, None, None, ())
        assert found.spec == SPEC

    def test_other_layers(self, tmp_path: Path) -> None:
        key_values([[1.0, 0.0]], [[1.0, 0.0]]).save(tmp_path / "p")
        assert "other sizes or layers" in str(only(key_values([[1.0, 0.0]]), tmp_path).reason)

    def test_without_fingerprints_nothing_is_known_to_be_the_same_base(self, tmp_path: Path) -> None:
        embeddings([[1.0, 0.0]], base_fingerprint={}).save(tmp_path / "p")
        query = replace(QUERY, base_fingerprint={})
        assert "(differing: no fingerprint saved)" in str(only(query, tmp_path).reason)

    def test_damage_does_not_end_the_search(self, tmp_path: Path) -> None:
        for name in ("good", "tensor", "manifest", "nothing"):
            embeddings([[1.0, 0.0]]).save(tmp_path / name)
        with (tmp_path / "tensor" / TENSOR_FILE).open("ab") as stream:
            stream.write(b"x")
        (tmp_path / "manifest" / MANIFEST_FILE).write_text("{")
        (tmp_path / "nothing" / TENSOR_FILE).unlink()
        found = rank_similar(QUERY, tmp_path)
        assert names(found) == ["good", "manifest", "nothing", "tensor"]
        reasons = [one.reason for one in found]
        assert reasons[0] is None
        for reason, words in zip(reasons[1:], ("is damaged", "holds no prompt.safe", "its SHA-256 is"), strict=True):
            assert words in str(reason)
        assert [one.spec for one in found[1:]] == [None] * 3


class TestSearch:
    def test_prompts_are_found_at_any_depth_and_within_each_other(self, tmp_path: Path) -> None:
        for name in ("a", "x/y/z/b", "a/versions/2"):
            embeddings([[1.0, 0.0]]).save(tmp_path / name)
        shown = [one.folder.relative_to(tmp_path).as_posix() for one in rank_similar(QUERY, tmp_path)]
        assert shown == ["a", "a/versions/2", "x/y/z/b"]

    def test_other_files_and_hidden_folders_are_ignored(self, tmp_path: Path) -> None:
        embeddings([[1.0, 0.0]]).save(tmp_path / "p")
        embeddings([[1.0, 0.0]]).save(tmp_path / ".p.half written")
        (tmp_path / "folder.run" / MANIFEST_FILE).mkdir(parents=True)
        (tmp_path / "notes.txt").write_text("hello")
        (tmp_path / "folder.run" / "other.json").write_text("{}")
        assert names(rank_similar(QUERY, tmp_path)) == ["p"]

    def test_links(self, tmp_path: Path) -> None:
        store = tmp_path / "store"
        embeddings([[1.0, 0.0]]).save(store / "v" / "1")
        embeddings([[1.0, 0.0]]).save(tmp_path / "elsewhere" / "p")
        (store / "a current").symlink_to(store / "v" / "1")
        (store / "q").symlink_to(tmp_path / "elsewhere" / "p")
        (store / "b not followed").symlink_to(tmp_path / "elsewhere")
        (store / "dangling").symlink_to(tmp_path / "nowhere")
        # loops: to itself, to above the store, and into each other
        (store / "loop").symlink_to(store / "loop")
        (store / "v" / "up").symlink_to(tmp_path)
        (store / "v" / "1" / "again").symlink_to(store / "v" / "1")
        shown = [one.folder.relative_to(store).as_posix() for one in rank_similar(QUERY, store)]
        assert shown == ["q", "v/1"]

    def test_the_store_may_be_a_link(self, tmp_path: Path) -> None:
        embeddings([[1.0, 0.0]]).save(tmp_path / "store" / "p")
        (tmp_path / "link").symlink_to(tmp_path / "store")
        assert only(QUERY, tmp_path / "link").folder == tmp_path / "link" / "p"

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everywhere")
    def test_a_folder_that_may_not_be_read_is_named(self, tmp_path: Path) -> None:
        embeddings([[1.0, 0.0]]).save(tmp_path / "p")
        (tmp_path / "closed").mkdir(mode=0)
        ranked, closed = rank_similar(QUERY, tmp_path)
        assert ranked.reason is None
        assert closed == SimilarPrompt(folder=tmp_path / "closed", reason="it cannot be read: Permission denied")


class TestMistakes:
    def test_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        for name, words in (
            ("none", "No such file or directory"),
            ("file", "Not a directory"),
            ("n" * 300, "File name too long"),
        ):
            with pytest.raises(ConfigError) as caught:
                rank_similar(QUERY, tmp_path / name)
            assert str(caught.value) == (
                f"expected a folder of saved prompts, got '{tmp_path / name}' ({words}): "
                "give --among the folder that holds them"
            )

    def test_nothing_to_compare_with(self, tmp_path: Path) -> None:
        (tmp_path / "store" / "empty").mkdir(parents=True)
        with pytest.raises(ConfigError, match=r"to compare with below '.*store', got none: give --among the folder"):
            rank_similar(QUERY, tmp_path / "store")
        QUERY.save(tmp_path / "store" / "p")
        with pytest.raises(ConfigError, match=r"below '.*store', got only the prompt itself: give --among"):
            rank_similar(QUERY, tmp_path / "store")
        with pytest.raises(ConfigError, match=r"below '.*p', which is a saved prompt itself, got none: give --among"):
            rank_similar(QUERY, tmp_path / "store" / "p")


class TestCommand:
    @pytest.fixture
    def store(self, tmp_path: Path) -> Path:
        store = tmp_path / "my store"
        replace(QUERY, training={"init": "text"}).save(store / "query")
        fields: dict[str, Any] = {"metrics": {"validation": ACCURACY}, "training": {"init": "text"}}
        embeddings([[1.0, 1.0]], **fields).save(store / "near")
        embeddings([[-1.0, 1.0]]).save(store / "far")
        embeddings([[3.0, 1.0]], [[3.0, 1.0]]).save(store / "ensemble")
        embeddings([[1.0, 1.0]], base_fingerprint={}).save(store / "other")
        return store

    def answered(self, done: Ended) -> str:
        assert (done.code, done.err) == (0, "")
        return done.out

    def test_lines(self, store: Path) -> None:
        out = self.answered(command("similar", store / "query", "--among", store))
        lines = [line.split(f"{store}/")[1].split() for line in out.splitlines() if line.startswith(f"{store}/")]
        query, *ranked = lines
        assert query[:3] == ["query:", "labels", "a,"]
        assert ranked[0][:7] == ["ensemble", "(ensemble", "of", "2)", "1.000", "0.632", "?"]
        near = ["near", "0.894", "0.707", "yes", "accuracy", "0.910", "[0.890,", "0.930]", "n=1,500"]
        assert ranked[1] == near
        assert ranked[2] == ["far", "-0.447", "0.000", "?", "-"]
        assert ranked[4] == ["near", "a,", "b", r"'{{", r"text", r"}}\nMood:'", "text"]
        assert f"\nnot comparable:\n\n- {store}/other: it was learned on 'm', expected 'm' (differing: " in out
        start = f"--init 'prompt:{store}/near' --length 1"
        assert [line for line in out.splitlines() if line][-3:] == [
            "an ensemble cannot be a start: training starts from a single prompt",
            f"to start from {store}/near, with your DATA, OUT, --template and --labels:",
            f"  softprompt train --model m --data DATA --out OUT {start}",
        ]

    def test_json(self, store: Path) -> None:
        done = self.answered(command("similar", store / "query", "--among", store, "--json"))
        result = json.loads(done)
        assert [Path(one["folder"]).name for one in result["ranked"]] == ["ensemble", "near", "far"]
        assert result["ranked"][1] == {
            "folder": str(store / "near"),
            "average_tokens": pytest.approx(2 / 5**0.5),
            "per_token": pytest.approx(0.5**0.5),
            "same_start": True,
            "task": "classification",
            "labels": ["a", "b"],
            "template": "{{ text }}\nMood:",
            "validation": ACCURACY,
            "init": "text",
            "length": 1,
            "members": 1,
            "start": ["--init", f"prompt:{store / 'near'}", "--length", "1"],
        }
        (other,) = result["not_comparable"]
        assert other["reason"].startswith("it was learned on 'm'")
        assert "average_tokens" not in other
        assert shlex.split(result["command"])[-4:] == result["ranked"][1]["start"]
        assert (result["prompt"], result["base"], result["kind"]) == (str(store / "query"), "m", "embeddings")

    def test_nothing_to_start_from(self, tmp_path: Path) -> None:
        query = QUERY.save(tmp_path / "query")
        store = tmp_path / "store"
        embeddings([[1.0, 1.0]], base_fingerprint={}).save(store / "other")
        out = self.answered(command("similar", query, "--among", store))
        assert "none can be compared with it" in out
        assert "softprompt train" not in out
        embeddings([[3.0, 1.0]], [[3.0, 1.0]]).save(store / "ensemble")
        out = self.answered(command("similar", query, "--among", store))
        assert out.endswith("an ensemble cannot be a start: training starts from a single prompt\n")
        assert "softprompt train" not in out
        done = self.answered(command("similar", query, "--among", store, "--json"))
        assert json.loads(done)["command"] is None

    def test_odd_manifests_stay_on_their_line(self, tmp_path: Path) -> None:
        query = QUERY.save(tmp_path / "query")
        spec = replace(SPEC, labels=("a\x1b[31m\nb", "c" * 200))
        metrics = {"validation": {"metric": "accuracy", "value": "high"}}
        embeddings([[1.0, 1.0]], spec=spec, metrics=metrics).save(tmp_path / "store" / "p")
        out = self.answered(command("similar", query, "--among", tmp_path / "store"))
        assert "\x1b" not in out
        (line,) = [line for line in out.splitlines() if "ccc" in line]
        assert r"a\x1b[31m b, ccc" in line
        assert len(line.split("Mood")[0]) < 200

    def test_mistakes_are_one_line_and_exit_code_2(self, store: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        (store / "far" / TENSOR_FILE).write_bytes(b"")
        for prompt, folder, words in (
            (store / "near", tmp_path / "none", "(No such file or directory): give --among the folder"),
            (store / "near", tmp_path / "empty", "got none: give --among the folder"),
            (store / "far", store, "far/prompt.safetensors' is damaged: its SHA-256 is not"),
            (tmp_path / "none", store, "is no saved prompt, it does not exist: give the folder that train wrote"),
        ):
            for more in ([], ["--json"]):
                done = command("similar", prompt, "--among", folder, *more)
                assert done.code == 2
                assert words in done.error
        done = command("similar", store / "near")
        assert done.code == 2
        assert "Missing option '--among'" in done.error


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    from huggingface_hub import constants

    place = tmp_path_factory.mktemp("similar")
    base = load_model(save_tiny(place / "model", "llama"), device="cpu", dtype="float32")
    for method in ("prompt-tuning", "prefix-tuning"):
        for seed in (0, 1):
            settings = {**FAST, "steps": 3, "method": method, "seed": seed}
            fit(base, reviews_task(), out=place / method / str(seed), **settings)
    write_data(place / "data", reviews())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        yield place


class TestTheCommandItNames:
    @pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
    def test_starts_there(self, place: Path, tmp_path: Path, method: str) -> None:
        done = command("similar", place / method / "0", "--among", place, "--json")
        result = json.loads(done.out)
        # seeds are the order of the data here: the start is the labels for both
        assert [(one["folder"], one["same_start"]) for one in result["ranked"]] == [(str(place / method / "1"), True)]
        assert result["ranked"][0]["average_tokens"] > 0.5
        assert len(result["not_comparable"]) == 2
        words = {"DATA": place / "data", "OUT": tmp_path / "out"}
        arguments = [words.get(word, word) for word in shlex.split(result["command"])[1:]]
        ended = command(*arguments, "--steps", 1, "--template", "{{ text }}:", "--device", "cpu", "--dtype", "float32")
        assert ended.code == 0, ended.err
        learned = load_prompt(tmp_path / "out")
        assert learned.parent == str(place / method / "1")
        assert learned.state.kind == result["kind"]


class TestNearness:
    def test_equal_prompts_are_1_and_order_does_not_matter(self) -> None:
        one = embeddings([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]])
        other = embeddings([[-1.0, 0.5], [1.0, 0.0], [0.0, 1.0]])
        assert measure_nearness(one, one) == measure_nearness(one, other) == (pytest.approx(1.0), pytest.approx(1.0))

    def test_against_numpy(self) -> None:
        a, b = np.array([[1.0, 2.0], [3.0, -1.0]]), np.array([[0.5, 0.5], [1.0, -3.0], [2.0, 0.1]])
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
        cosines = unit[0] @ unit[1].T
        found = measure_nearness(embeddings(a.tolist()), embeddings(b.tolist()))
        assert found[1] == pytest.approx((cosines.max(1).mean() + cosines.max(0).mean()) / 2, abs=1e-6)
