"""``eval`` and ``predict``: how good a prompt is, and what it answers."""

import sys
from dataclasses import replace
from typing import Any

from softprompt.cli.base_loading import load_base, load_base_of, make_callback
from softprompt.cli.console import say
from softprompt.cli.option_values import drop_unset, parse_task_settings, pop_column_options, pop_model_options
from softprompt.cli.printing import print_json, print_result
from softprompt.data.chats.chat_resolution import resolve_chat
from softprompt.data.examples import Example
from softprompt.data.split_assignment import Subsample, sample_examples
from softprompt.data.task import Task
from softprompt.errors import ConfigError, DataError
from softprompt.inference.evaluation import Evaluation, add_baseline, evaluate, truncation_notes
from softprompt.inference.generation import GenerationConfig, choose_max_new_tokens
from softprompt.inference.predictions import Prediction
from softprompt.inference.predictor import Predictor, arriving_examples
from softprompt.inference.reading_progress import report_progress
from softprompt.prompts.written_prompt import check_instruction, choose_shots, write_prompt
from softprompt.report.pages.training_page import make_evaluation_document
from softprompt.store.learned_rows import read_learned
from softprompt.store.prompt_loading import load_prompt

AT_ONCE = 32  # rows of standard input that are answered together, at most


def run_eval(
    prompt_folder: str | None,
    data: str,
    split: str,
    limit: int | None,
    model_name: str | None,
    template: str | None,
    labels: str | None,
    verbalizer: tuple[str, ...],
    instruction: str | None,
    shots: int,
    seed: int,
    max_new_tokens: int | None,
    vote: Any,
    metric: str | None,
    baseline: bool,
    as_json: bool,
    **options: Any,
) -> None:
    model, columns = pop_model_options(options), pop_column_options(options)
    if prompt_folder is None and model_name is None:
        raise ConfigError("expected a saved prompt, or --model for the written prompt; got neither")
    if prompt_folder is not None and (template or labels or verbalizer or instruction or shots):
        raise ConfigError(
            "--template, --labels, --verbalizer, --instruction and --shots are for the written prompt: "
            "leave them or PROMPT out"
        )
    if prompt_folder is None and baseline:
        raise ConfigError("--baseline tells what a saved prompt gains over the written one: give PROMPT too")
    if prompt_folder is not None:
        prompt = load_prompt(prompt_folder).judged_by(metric)
        task = Task.matching(prompt.spec, data, **columns)
    else:
        task = Task.of(data, **parse_task_settings(template, labels, verbalizer, metric), **columns)
    whole = task.splits[split]
    examples = sample_examples(whole, limit, seed)

    generation = None if max_new_tokens is None else GenerationConfig(max_new_tokens=max_new_tokens)
    examples_in_front = choose_shots(task.train, shots, seed)
    base = load_base(str(model_name), model) if prompt_folder is None else load_base_of(prompt, model_name, model)
    task = resolve_chat(base, task)
    for note in task.splits.notes:
        say(note)
    result: Evaluation
    with report_progress(make_callback(as_json).on_read):
        if prompt_folder is not None:
            result = evaluate(base, examples, prompt, generation=generation, vote=vote)
        else:
            check_instruction(instruction or "", examples)
            spec, state = write_prompt(base, task.spec, instruction or "", examples_in_front)
            result = evaluate(base, examples, state, spec=spec, generation=generation)
    result = replace(result, drawn=Subsample(len(examples), len(whole), seed))
    if baseline:
        result = add_baseline(base, prompt, task.train, examples, result, generation)
    notes: dict[str, Any] = {}
    if prompt_folder is not None:
        same = prompt.data.get("fingerprint") == task.splits.fingerprint
        learned = read_learned(prompt_folder)
        known = None if learned is None else learned.among(examples)
        if not same:
            say("these are not the data that this prompt was learned on (another fingerprint)")
        if known is not None and (words := known.describe(split)):
            say(words)
        notes = {"same_data": same, "known_rows": None if known is None else known.to_dict()}
        if precisions := prompt.precisions(base):
            notes["precision"] = precisions
    facts = {"prompt": prompt_folder, "model": base.name, "data": data, "split": split}
    print_result({**result.to_dict(), **facts, **notes}, make_evaluation_document(result, facts), as_json)


def run_predict(
    prompt_folder: str,
    texts: tuple[str, ...],
    model_name: str | None,
    vote: Any,
    bad_rows: Any,
    as_json: bool,
    **generation: Any,
) -> None:
    if not texts and (sys.stdin is None or sys.stdin.isatty()):
        raise ConfigError("expected texts as arguments, or JSONL on standard input; got neither")
    if blank := [number for number, text in enumerate(texts, start=1) if not text.strip()]:
        raise DataError(f"text {blank[0]} is blank: expected words to answer")
    model = pop_model_options(generation)
    room = generation.pop("max_new_tokens")
    chosen = GenerationConfig(**drop_unset(max_new_tokens=room), **generation)
    prompt = load_prompt(prompt_folder)
    spec = prompt.spec
    base = load_base_of(prompt, model_name, model)
    if room is None:
        chosen = replace(chosen, max_new_tokens=choose_max_new_tokens(base, spec))
    predictor = Predictor.of_prompt(base, prompt, chosen, vote)

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
                print_result(answer, [] if prediction is None else [answer_columns(prediction)], as_json=not texts)
    if as_json:
        precisions = prompt.precisions(base)
        print_json({"predictions": collected, **({"precision": precisions} if precisions else {})})
    if left_out:
        say(f"{left_out:,} of {count:,} rows could not be used: their answers say why")
    for note in [*predictor.truncation_notes(), *truncation_notes(at_limit, count)]:
        say(note)


def answer_columns(prediction: Prediction) -> tuple[str, ...]:
    """The completion, or the label with its probability."""
    if prediction.probabilities is None or prediction.label is None:
        return (prediction.completion or "",)
    return prediction.label, f"{prediction.probabilities[prediction.label]:.4f}"
