"""Settings: defaults, recipes, files in and out, and what a wrong one is told."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from softprompt.config import RECIPES, TrainConfig
from softprompt.errors import ConfigError, OutputError


class TestBuild:
    def test_nothing_given_is_the_default_recipe(self) -> None:
        assert TrainConfig.build() == TrainConfig() == TrainConfig.build("default")

    def test_none_counts_as_not_given(self) -> None:
        assert TrainConfig.build("lester", batch_size=None, steps=None) == TrainConfig.build("lester")

    def test_lester_is_the_paper(self) -> None:
        config = TrainConfig.build("lester")
        assert (config.optimizer, config.learning_rate, config.schedule) == ("adafactor", 0.3, "constant")
        assert (config.batch_size, config.weight_decay, config.warmup, config.rate_unit) == (32, 1e-5, 0.0, "raw")

    def test_settings_win_over_the_recipe(self) -> None:
        assert TrainConfig.build("lester", batch_size=4).batch_size == 4

    @pytest.mark.parametrize("recipe", sorted(RECIPES))
    def test_recipes_hold_only_known_settings(self, recipe: str) -> None:
        assert set(RECIPES[recipe]) <= set(TrainConfig.model_fields)

    def test_every_setting_says_what_it_is(self) -> None:
        assert all(field.description for field in TrainConfig.model_fields.values())

    def test_is_immutable(self) -> None:
        with pytest.raises(ValidationError):
            TrainConfig().length = 3  # type: ignore[misc]


class TestMistakes:
    def test_unknown_recipe(self) -> None:
        with pytest.raises(ConfigError, match=r"unknown recipe 'best': expected one of default, lester"):
            TrainConfig.build("best")

    def test_unknown_setting_suggests_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match=r"unknown setting 'learning_rat': did you mean 'learning_rate'\?"):
            TrainConfig.build(learning_rat=0.1)

    def test_unknown_setting_like_no_other_lists_all(self) -> None:
        with pytest.raises(
            ConfigError, match=r"unknown setting 'zzz': known settings: method, method_options, length, .*seed"
        ):
            TrainConfig.build(zzz=1)

    @pytest.mark.parametrize(
        ("name", "value", "unit", "bound"),
        [
            ("length", 0, "virtual tokens", "greater than or equal to 1"),
            ("steps", -5, "optimiser steps", "greater than or equal to 1"),
            ("batch_size", 0, "examples per optimiser step", "greater than or equal to 1"),
            ("learning_rate", 0, "in the units that rate_unit names", "greater than 0"),
            ("learning_rate", 1e38, "in the units that rate_unit names", "less than or equal to 1000"),
            ("learning_rate", float("nan"), "in the units that rate_unit names", "finite number"),
            ("learning_rate", float("inf"), "in the units that rate_unit names", "finite number"),
            ("warmup", 1.0, "fraction of steps", "less than 1"),
            ("averaging", 1.0, "decay per step", "less than 1"),
            ("max_length", 3, "tokens of template and text", "greater than or equal to 8"),
            ("seed", -1, "initialisation and data order", "greater than or equal to 0"),
            ("optimizer", "sgd", "adam, or adafactor", "'adam' or 'adafactor'"),
            ("steps", "many", "optimiser steps", "valid integer"),
            ("steps", 2.5, "optimiser steps", "valid integer"),
        ],
    )
    def test_value_out_of_range_names_unit_bound_and_value(
        self, name: str, value: object, unit: str, bound: str
    ) -> None:
        with pytest.raises(ConfigError) as caught:
            TrainConfig.build(**{name: value})
        message = str(caught.value)
        assert message.startswith(f"setting '{name}' (")
        assert unit in message
        assert bound in message
        assert message.endswith(f"got {value!r}")

    def test_micro_batch_above_batch(self) -> None:
        with pytest.raises(ConfigError, match=r"^micro_batch_size \(32\) must be at most batch_size \(16\)$"):
            TrainConfig.build(micro_batch_size=32)
        assert TrainConfig.build(micro_batch_size=16).micro_batch_size == 16


class TestFiles:
    def test_toml(self, tmp_path: Path) -> None:
        (tmp_path / "run.toml").write_text('recipe = "lester"\nsteps = 40\ninit = "text:Read, then judge."\n')
        config = TrainConfig.load(tmp_path / "run.toml")
        assert config == TrainConfig.build("lester", steps=40, init="text:Read, then judge.")

    @pytest.mark.parametrize("name", ["run.yaml", "run.yml", "run.YAML"])
    def test_yaml(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text("steps: 40\nlearning_rate: 1e-1\nmicro_batch_size: null\n")
        assert TrainConfig.load(tmp_path / name) == TrainConfig(steps=40, learning_rate=0.1)

    def test_json(self, tmp_path: Path) -> None:
        (tmp_path / "run.json").write_text('{"steps": 40, "schedule": "constant"}')
        assert TrainConfig.load(tmp_path / "run.json") == TrainConfig(steps=40, schedule="constant")

    def test_what_is_given_beside_the_file_wins(self, tmp_path: Path) -> None:
        (tmp_path / "run.toml").write_text('recipe = "lester"\nsteps = 40\nseed = 3\n')
        config = TrainConfig.load(tmp_path / "run.toml", recipe="default", steps=7, seed=None)
        assert config == TrainConfig(steps=7, seed=3)

    @pytest.mark.parametrize(
        "config",
        [
            TrainConfig(),
            TrainConfig.build("lester"),
            TrainConfig(epochs=2.5),
            TrainConfig(micro_batch_size=4, learning_rate=1 / 3, init="text:a: b # c\n'd'", averaging=0.99),
        ],
        ids=["default", "lester", "epochs", "odd"],
    )
    def test_round_trip(self, tmp_path: Path, config: TrainConfig) -> None:
        config.save(tmp_path / "saved.yaml")
        assert TrainConfig.load(tmp_path / "saved.yaml") == config
        # epochs stand in the place of steps
        left_out = "steps" if config.epochs else "epochs"
        assert set(yaml.safe_load((tmp_path / "saved.yaml").read_text())) == set(TrainConfig.model_fields) - {left_out}

    def test_saving_where_one_cannot(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match=r"cannot write '.*none/run\.yaml'.*give another path"):
            TrainConfig().save(tmp_path / "none" / "run.yaml")


class TestEpochs:
    @pytest.mark.parametrize(
        ("epochs", "rows", "batch_size", "steps"),
        [(1, 160, 16, 10), (2, 160, 16, 20), (0.5, 160, 16, 5), (3, 100, 16, 18), (1, 3, 16, 1), (0.01, 160, 16, 1)],
    )
    def test_become_steps(self, epochs: float, rows: int, batch_size: int, steps: int) -> None:
        """A last batch that is not full is left out of an epoch, as the sampler does it."""
        config = TrainConfig(epochs=epochs, batch_size=batch_size, length=7).with_steps_for(rows)
        assert (config.steps, config.epochs, config.length) == (steps, None, 7)

    def test_steps_stay(self) -> None:
        assert TrainConfig(steps=7).with_steps_for(1000) == TrainConfig(steps=7)

    def test_are_told_only_where_they_are_set(self) -> None:
        assert "epochs" not in TrainConfig().model_dump()
        assert TrainConfig(epochs=2).model_dump()["epochs"] == 2

    @pytest.mark.parametrize("given", [{"steps": 3, "epochs": 2}, {"lr": 0.1, "learning_rate": 0.2}])
    def test_one_of_two(self, given: dict[str, float]) -> None:
        with pytest.raises(ConfigError, match="give one of them"):
            TrainConfig.build(**given)

    def test_rate_by_its_short_name(self) -> None:
        assert TrainConfig.build(lr=0.2) == TrainConfig(learning_rate=0.2)
        assert TrainConfig.build("lester", lr=0.2).learning_rate == 0.2

    def test_stand_in_place_of_what_a_file_has(self, tmp_path: Path) -> None:
        (tmp_path / "run.toml").write_text("steps = 40\nlearning_rate = 0.3\n")
        assert TrainConfig.load(tmp_path / "run.toml", epochs=2, lr=0.1) == TrainConfig(epochs=2, learning_rate=0.1)
        (tmp_path / "run.toml").write_text("epochs = 4\nlr = 0.3\n")
        assert TrainConfig.load(tmp_path / "run.toml", steps=2) == TrainConfig(steps=2, learning_rate=0.3)


class TestWrongFiles:
    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("run.toml", "steps = = 4", "does not parse"),
            ("run.yaml", "steps: [4", "does not parse"),
            ("run.yaml", "", "expected settings by name, got an empty file"),
            ("run.yaml", "- steps\n- 4", "expected settings by name, got list"),
            ("run.yaml", "4: steps", "expected names of settings, got 4"),
            ("run.yaml", "recipe: [lester]", r"unknown recipe \['lester'\]"),
            ("run.ini", "steps=4", r"expected .toml, .yaml or .json, got '.ini'"),
            ("run.toml", "stepz = 4", "unknown setting 'stepz': did you mean 'steps'"),
            ("run.toml", "steps = 0", r"setting 'steps' \(optimiser steps\)"),
        ],
    )
    def test_is_one_line(self, tmp_path: Path, name: str, content: str, words: str) -> None:
        (tmp_path / name).write_text(content)
        with pytest.raises(ConfigError, match=words) as caught:
            TrainConfig.load(tmp_path / name)
        assert "\n" not in str(caught.value)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"configuration file '.*run\.toml' does not exist"):
            TrainConfig.load(tmp_path / "run.toml")

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot be read"):
            TrainConfig.load(tmp_path)

    def test_not_text(self, tmp_path: Path) -> None:
        (tmp_path / "run.toml").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ConfigError, match="cannot be read"):
            TrainConfig.load(tmp_path / "run.toml")
