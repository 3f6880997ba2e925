"""``softprompt predict``: answers for texts, or for rows as they arrive."""

import sys
from dataclasses import replace
from typing import Any

import click

from softprompt.cli.options import (
    GIVEN,
    WORDS,
    bad_rows_option,
    device_map_option,
    given,
    json_option,
    load_base_of,
    model_of,
    model_options,
    print_json,
    print_result,
    say,
    vote_option,
)
from softprompt.errors import ConfigError, DataError

AT_ONCE = 32  # rows of standard input that are answered together, at most


@click.command()
@click.argument("prompt_folder", type=GIVEN, metavar="PROMPT")
@click.argument("texts", nargs=-1)
@click.option("--model", "model_name", type=GIVEN, help="The base model.  [default: the one the prompt was learned on]")
@click.option("--max-new-tokens", type=int, help="Of a completion.  [default: 128, or as learned]")
@click.option("--temperature", default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-p", default=1.0, show_default=True, help="Sample among the likeliest with this probability.")
@click.option("--top-k", default=0, show_default=True, help="Sample among this many likeliest, 0: all.")
@click.option("--stop", type=WORDS, multiple=True, help="A string that ends a completion. Repeatable.")
@click.option("--seed", default=0, show_default=True, help="Of sampling.")
@bad_rows_option
@vote_option
@model_options
@device_map_option
@json_option
def predict(
    prompt_folder: str,
    texts: tuple[str, ...],
    model_name: str | None,
    vote: Any,
    bad_rows: Any,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Answer texts, or JSONL on standard input.

    PROMPT is its folder, or STORE#NAME@VERSION or STORE#NAME@ALIAS in a store.

    A row of JSONL has "text", or the column that the prompt learned from, and whatever other columns the template
    uses.

    From standard input, answers stream out as JSONL, in the same order, as soon as rows arrive. Otherwise a line for
    each text. With --json all answers come at the end, in one object.
    """
    from softprompt.inference.evaluation import cut_notes
    from softprompt.inference.generation import Sampling, room_for
    from softprompt.inference.predictor import Predictor, arriving_examples
    from softprompt.report.pages.training_text import prediction_line
    from softprompt.store.prompt_loading import load_prompt

    if not texts and (sys.stdin is None or sys.stdin.isatty()):
        raise ConfigError("expected texts as arguments, or JSONL on standard input; got neither")
    if blank := [number for number, text in enumerate(texts, start=1) if not text.strip()]:
        raise DataError(f"text {blank[0]} is blank: expected words to answer")
    model = model_of(sampling)
    room = sampling.pop("max_new_tokens")
    chosen = Sampling(**given(max_new_tokens=room), **sampling)
    prompt = load_prompt(prompt_folder)
    spec = prompt.spec
    base = load_base_of(prompt, model_name, model)
    if room is None:
        chosen = replace(chosen, max_new_tokens=room_for(base, spec))
    predictor = Predictor.of_prompt(base, prompt, chosen, vote)

    from softprompt.data.examples import Example

    collected: list[dict[str, Any]] = []
    count = at_limit = 0
    arriving: Any = [[Example(text) for text in texts]] if texts else None
    left_out = 0
    for chunk in arriving or arriving_examples(sys.stdin.buffer, AT_ONCE, spec.compiled, spec.row_columns, bad_rows):
        found = predictor.predict([one for one in chunk if isinstance(one, Example)])
        predictions = iter(sorted(found, key=lambda prediction: prediction.index))
        for one in chunk:
            prediction = next(predictions) if isinstance(one, Example) else None
            told = {"error": str(one)} if prediction is None else prediction.to_dict()
            answer = {**told, "index": count}
            count, left_out = count + 1, left_out + (prediction is None)
            at_limit += prediction is not None and prediction.at_limit
            if as_json:
                collected.append(answer)
            else:
                print_result(answer, [] if prediction is None else [prediction_line(prediction)], as_json=not texts)
    if as_json:
        precisions = prompt.precisions(base)
        print_json({"predictions": collected, **({"precision": precisions} if precisions else {})})
    if left_out:
        say(f"{left_out:,} of {count:,} rows could not be used: their answers say why")
    for note in [*predictor.encoder.cut_notes(), *cut_notes(at_limit, count)]:
        say(note)
