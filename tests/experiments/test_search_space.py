"""What a sweep may choose from, as it is typed and as it stands in a file."""

from pathlib import Path

import pytest

from softprompt.config import TrainConfig
from softprompt.errors import ConfigError
from softprompt.experiments.sweep.search_space import Choice, Range, SearchSpace, build_trial_config

TYPED = "learning-rate=0.03..0.3:log;length=20,50,100;method=prompt-tuning,prefix-tuning;steps=100..300"
AXES = {
    "learning_rate": Range(0.03, 0.3, log=True),
    "length": Choice((20, 50, 100)),
    "method": Choice(("prompt-tuning", "prefix-tuning")),
    "steps": Range(100, 300),
}
TOML = """
learning-rate = { low = 0.03, high = 0.3, log = true }
length = [20, 50, 100]
method = ["prompt-tuning", "prefix-tuning"]
steps = "100..300"
"""
YAML = """
lr: 0.03..0.3:log
length: [20, 50, 100]
method: [prompt-tuning, prefix-tuning]
steps: {low: 100, high: 300}
"""


def test_is_read_as_it_is_typed() -> None:
    space = SearchSpace.parse(TYPED)
    assert space.axes == AXES
    assert ";".join(f"{name}={values}" for name, values in space.to_dict().items()) == TYPED.replace("g-r", "g_r")
    assert isinstance(space.axes["steps"], Range)
    assert space.axes["steps"].whole


@pytest.mark.parametrize(("name", "text"), [("s.toml", TOML), ("s.yaml", YAML)])
def test_is_read_from_a_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert SearchSpace.parse(str(tmp_path / name)).axes == AXES


def test_numbers_with_an_exponent_are_numbers() -> None:
    assert SearchSpace.parse("lr=1e-3..1e-1:log").axes["learning_rate"] == Range(0.001, 0.1, log=True)
    assert SearchSpace.parse("lr=1e-3,1e-2").axes["learning_rate"] == Choice((0.001, 0.01))


def test_whole_numbers_make_a_range_of_real_ones_where_the_setting_is_real() -> None:
    axis = SearchSpace.parse("lr=1..2").axes["learning_rate"]
    assert isinstance(axis, Range)
    assert not axis.whole


def test_counts_its_combinations() -> None:
    assert SearchSpace.parse("length=2,4;steps=1..3").size == 6
    assert len(list(SearchSpace.parse("length=2,4;steps=1..3").combinations())) == 6
    assert SearchSpace.parse("length=2,4;lr=0.1..0.2").size == float("inf")


def test_knows_whether_the_usual_settings_lie_in_it() -> None:
    assert SearchSpace.parse("lr=0.03..0.3:log;length=50,100").defaults(TrainConfig()) == {
        "learning_rate": 0.1,
        "length": 100,
    }
    assert SearchSpace.parse("lr=0.03..0.3;length=20,50").defaults(TrainConfig()) is None
    assert SearchSpace.parse("gradient_checkpointing=true").defaults(TrainConfig()) is None


def test_settings_of_a_trial_stand_over_those_that_are_fixed() -> None:
    config = build_trial_config(TrainConfig.build(steps=7), {"length": 5})
    assert (config.steps, config.length, config.batch_size) == (7, 5, 16)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("lr", "space 'lr': expected NAME=VALUE,VALUE or NAME=LOW..HIGH"),
        (";", "space ';': expected NAME=VALUE,VALUE"),
        ("length=", "space 'length=': expected NAME=VALUE"),
        ("length=1,,2", "space 'length=1,,2': expected NAME=VALUE"),
        ("lenght=1,2", "space 'lenght=1,2': unknown setting 'lenght': did you mean 'length'?"),
        ("learning-rat=1,2", "unknown setting 'learning_rat': did you mean 'learning_rate'?"),
        ("lr=0.1,0.2;learning-rate=0.3", "expected each setting once, got 'learning-rate' twice"),
        ("length=4,4", "expected values, each of them once"),
        ("length=4,4.0", "expected values, each of them once"),
        ("length=[1", "expected plain values with commas between them"),
        ("length={a: 1}", "expected plain values (numbers, words, true, false)"),
        ("lr=0.3..0.1", "expected a range from a smaller to a larger number, got 0.3 to 0.1"),
        ("lr=0..0.1:log", "expected a range from a smaller to a larger number above 0"),
        ("lr=0.1..0.3:linear", "expected nothing or ':log' behind a range, got ':linear'"),
        ("lr=a..b", "expected two numbers as ends of the range, got 'a' and 'b'"),
        ("lr=.inf...inf", "expected two numbers as ends of the range"),
        ("length=1.5..3", "'length' is a whole number, got the range 1.5 to 3"),
        ("method=1..3", "'method' is no number: expected its values with commas between them"),
        ("validation-limit=10,20", "'validation-limit' is the same for all trials of a sweep"),
        ("nowhere.toml", "configuration file 'nowhere.toml' does not exist"),
    ],
)
def test_what_cannot_be_read_is_one_line(typed: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SearchSpace.parse(typed)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lenght: [1]", "space 'lenght' in '{place}': unknown setting 'lenght': did you mean 'length'?"),
        ("length: {low: 1}", "expected low, high and perhaps log (true or false), got {'low': 1}"),
        ("length: {low: 1, high: 2, log: maybe}", "expected low, high and perhaps log (true or false)"),
        ("{}", "expected settings by name, got none"),
        ("lr: [0.1]\nlearning_rate: [0.2]", "expected each setting once, got it twice"),
    ],
)
def test_what_cannot_be_read_from_a_file_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    place = tmp_path / "space.yaml"
    place.write_text(text)
    with pytest.raises(ConfigError) as caught:
        SearchSpace.parse(str(place))
    assert words.replace("{place}", str(place)) in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("length=0,5", "setting 'length' (virtual tokens): input should be greater than or equal to 1, got 0"),
        ("lr=-1..1", "setting 'learning_rate'"),
        ("steps=5,10;length=5", "'steps' is given and in the space too: leave it out of one of them"),
    ],
)
def test_values_that_no_run_takes_are_refused_at_once(typed: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SearchSpace.parse(typed).check(TrainConfig.build(steps=3))
    assert words in str(caught.value)
