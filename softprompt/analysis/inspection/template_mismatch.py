"""Is what is served what was learned? The template beside the one that is in use, and the texts beside the training's.

A prompt is learned in front of texts of one form, to the blank. Another template, or texts that bring the template's
words along, ask it something that it never saw, and nothing fails: the answers only get worse.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import median

from softprompt.analysis.inspection.inspection_records import ServedTexts
from softprompt.analysis.inspection.score_records import PromptScores, score_ensemble
from softprompt.data.chats.chat_template import find_chat_template
from softprompt.data.column_values import format_value
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.data.templates.template import Template
from softprompt.errors import SoftpromptError
from softprompt.metrics import hypothesis_tests
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.state import PromptState

SHARE = 0.05  # of the texts that must be odd to be told


def check_served_template(
    base: FrozenLM,
    spec: TaskSpec,
    states: Sequence[PromptState],
    examples: Sequence[Example],
    scored: PromptScores,
    train: Sequence[Example] = (),
    template: str | None = None,
) -> ServedTexts:
    """What differs between learning and serving.

    Args:
        examples: as they are served; ``scored`` has their losses under the prompt's own template.
        train: texts that it was learned on, if there are any to compare with.
        template: the one that is in use.

    Raises:
        TemplateError: ``template`` does not parse.
    """
    texts = (*_spelled_marks(base, spec, examples), *_odd_texts(spec, examples, train))
    if template is None or template == spec.template:
        return ServedTexts(template=template, texts=texts)
    served = replace(spec, template=template)
    differences = list(template_differences(spec.compiled, served.compiled))
    cost = None
    try:
        other = score_ensemble(base, served, states, examples)
        cost, _ = hypothesis_tests.paired_mean_difference(other.losses[0], scored.losses[0])
    except SoftpromptError as error:
        differences.append(f"it cannot be filled in from these data: {error}")
    return ServedTexts(template=template, differences=tuple(differences), cost=cost, texts=texts)


def template_differences(learned: Template, served: Template) -> Iterator[str]:
    """What tells two templates apart, in words."""
    for names, what in (
        (learned.names - served.names, "leaves out the column"),
        (served.names - learned.names, "has the further column"),
    ):
        yield from (f"it {what} '{name}'" for name in sorted(names))
    a, b = learned.source, served.source
    if a == b:
        return
    if a.split() == b.split():
        yield f"the same words with other white space: learned {_around(a)}, served {_around(b)}"
    elif a.split() != b.split() and "".join(a.split()) == "".join(b.split()):
        yield f"the same letters with a blank more or less: learned {a!r}, served {b!r}"
    else:
        yield f"other words: learned {a!r}, served {b!r}"


def _around(template: str) -> str:
    """The white space of a template, where it stands."""
    ends = f"ends with {template[-12:]!r}"
    return f"begins with {template[:12]!r} and {ends}" if template[:1].isspace() else ends


def _odd_texts(spec: TaskSpec, examples: Sequence[Example], train: Sequence[Example]) -> Iterator[str]:
    if not examples:
        return
    yield from _template_words(spec, examples)
    yield from _blank_columns(spec, examples)
    checks: tuple[tuple[str, Callable[[str], bool], float], ...] = (
        ("begin or end with white space", lambda text: text != text.strip(), SHARE),
        ("have several lines", lambda text: "\n" in text.strip(), 0.2),
        ("have doubled blanks", lambda text: "  " in text.strip(), 0.2),
        ("have capital letters", lambda text: text != text.lower(), 0.5),
    )
    for what, check, least in checks:
        here = _share(check, examples)
        before = _share(check, train) if train else None
        # without training texts only the first is odd by itself
        if (before is None and least == SHARE and here >= SHARE) or (
            before is not None and abs(here - before) >= least
        ):
            than = "" if before is None else f", {before:.0%} of the training texts do"
            yield f"{here:.0%} of the texts {what}{than}"
    if train:
        now, then = (median(len(one.text.split()) for one in some) for some in (examples, train))
        if max(now, then) > 3 * max(1, min(now, then)):
            yield f"the texts have {now:g} words (median), the training texts {then:g}"


def _spelled_marks(base: FrozenLM, spec: TaskSpec, examples: Sequence[Example]) -> Iterator[str]:
    """In chats, texts that a chat template has been over already."""
    if spec.chat is None or not examples:
        return
    template = find_chat_template(base.tokenizer, spec.chat)
    if template.end and (share := _share(lambda text: template.end in text, examples)) >= SHARE:
        yield f"{share:.0%} of the texts spell the chat template's own marks, {template.end!r}: give them without"


def _template_words(spec: TaskSpec, examples: Sequence[Example]) -> Iterator[str]:
    """Texts that begin or end with the template's own words already."""
    filled = spec.compiled.fill(examples[0])
    first, last = (filled.fields[0][0], filled.fields[-1][1]) if filled.fields else (len(filled.text), 0)
    ends = (("begin", filled.text[:first].strip(), str.startswith), ("end", filled.text[last:].strip(), str.endswith))
    for what, words, found in ends:
        if sum(letter.isalpha() for letter in words) < 3:
            continue
        share = _share(lambda text, words=words, found=found: found(text.strip(), words), examples)  # type: ignore[misc]
        if share >= SHARE:
            yield f"{share:.0%} of the texts {what} with the template's own words, {words!r}"


def _blank_columns(spec: TaskSpec, examples: Sequence[Example]) -> Iterator[str]:
    for name in sorted(spec.compiled.names - {"text"}):
        share = sum(not format_value(example.columns.get(name)).strip() for example in examples) / len(examples)
        if share >= SHARE:
            yield f"the column '{name}', which the template uses, is empty or absent in {share:.0%} of the rows"


def _share(check: Callable[[str], bool], examples: Sequence[Example]) -> float:
    return sum(check(example.text) for example in examples) / len(examples)
