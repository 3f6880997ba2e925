"""What the functions of the package show of a run if nothing is said, and how to have them silent."""

from pathlib import Path
from typing import Any

import pytest
from helpers.small_tasks import FAST, Recorder, reviews_task
from helpers.tiny_models import tiny_base

import softprompt as sp
from softprompt.errors import ConfigError
from softprompt.training.callbacks.progress import ProgressPrinter


def learn(**options: Any) -> sp.Prompt:
    return sp.fit(tiny_base("llama"), reviews_task(), **FAST, **options)


def test_fit_tells_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    learn()
    out, err = capsys.readouterr()
    assert out == ""
    assert "step 12/12  training loss" in err
    assert "step 12  validation accuracy" in err


def test_fit_is_silent_where_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    learn(progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_callback_is_told_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    recorder = Recorder()
    learn(callbacks=recorder)
    assert len(recorder.losses) == 12
    assert "step 12/12" in capsys.readouterr().err


def test_nothing_is_shown_twice(capsys: pytest.CaptureFixture[str]) -> None:
    learn(callbacks=[Recorder(), ProgressPrinter()])
    assert capsys.readouterr().err.count("step 12/12") == 1


def test_another_choice_is_refused_before_anything_is_learned() -> None:
    with pytest.raises(
        ConfigError, match=r"progress.*: expected True or False or 'bar' or 'lines' or 'notebook'.*got 'loud'"
    ):
        learn(progress="loud")


def test_the_same_prompt_is_learned(capsys: pytest.CaptureFixture[str]) -> None:
    assert learn().digest == learn(progress=False).digest


def test_other_functions_tell_it_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    base, task = tiny_base("llama"), reviews_task()
    for name, run in {
        "distill": lambda **how: sp.distill(base, task, "Is it good?", steps=6, length=4, measure=False, **how),
        "compare": lambda **how: sp.compare(
            base, task, "zero-shot,prompt-tuning:length=4", tmp_path / f"compare-{len(how)}", steps=6, seeds=1, **how
        ),
        "sweep": lambda **how: sp.sweep(
            base, task, "length=2,4", tmp_path / f"sweep-{len(how)}", trials=2, steps=6, init="labels", **how
        ),
    }.items():
        run()
        assert "training loss" in capsys.readouterr().err, name
        run(progress=False)
        assert capsys.readouterr().err == "", name
