"""What the methods answered: by majority over seeds, by class, and where they part."""

from collections import Counter
from collections.abc import Mapping, Sequence

from softprompt.experiments.comparison.study_records import Study
from softprompt.metrics.registry import METRICS
from softprompt.report.render.document import Answer, Example

Answers = Mapping[str, tuple[str, ...]]


def vote_by_method(study: Study) -> dict[str, tuple[str, ...]]:
    """Each method's answer to each test example: of most of its seeds, the first seed's where they are level."""
    runs: dict[str, list[tuple[str, ...]]] = {row.method: [] for row in study.rows}
    for result in study.results:
        if result.status == "ok" and result.predictions and len(result.predictions) == len(study.gold):
            runs.setdefault(result.method, []).append(result.predictions)
    return {
        method: tuple(Counter(answers).most_common(1)[0][0] for answers in zip(*seeds, strict=True))
        for method, seeds in runs.items()
        if seeds
    }


def count_confusion(study: Study, method: str) -> tuple[tuple[str, ...], dict[tuple[str, str], int]]:
    """The answers that occur, and how often each was given for each gold label, over all seeds of ``method``."""
    counts: Counter[tuple[str, str]] = Counter()
    for result in study.results:
        if result.method == method and result.status == "ok" and len(result.predictions) == len(study.gold):
            counts.update(zip(study.gold, result.predictions, strict=True))
    strangers = sorted({answer for _, answer in counts} - set(study.labels))
    return (*study.labels, *strangers), dict(counts)


def is_judged(study: Study) -> bool:
    """Whether an answer is either right or wrong."""
    return study.kind == "classification" or ((known := METRICS.get(study.metric)) is not None and known.is_binary)


def _right(gold: str, answer: str) -> bool:
    return gold.strip() == answer.strip()


def find_disagreements(study: Study, answers: Answers, most: int) -> tuple[list[Example], int]:
    """Examples that the methods answer differently, and how many there are.

    The most telling come first: those that split the methods into equal halves of right and wrong; among these, those
    on which the method to deploy and the one in use differ, then those with more different answers.
    """
    names = [name for name in (study.recommendation.deploy, study.current) if name is not None and name in answers]
    keyed = []
    for index, gold in enumerate(study.gold):
        given = [row[index] for row in answers.values()]
        if len(set(given)) < 2:
            continue
        share = sum(_right(gold, answer) for answer in given) / len(given)
        parted = len({_right(gold, row[index]) for row in map(answers.__getitem__, names)}) > 1
        keyed.append((abs(share - 0.5), not parted, -len(set(given)), index))
    return [_example(study, answers, index) for *_, index in sorted(keyed)[:most]], len(keyed)


def find_shared_errors(study: Study, answers: Answers, most: int) -> tuple[list[Example], int]:
    """Examples to which every method gives one and the same answer, which is not the gold one; and how many."""
    found = [
        index
        for index, gold in enumerate(study.gold)
        if len({row[index] for row in answers.values()}) == 1 and not _right(gold, next(iter(answers.values()))[index])
    ]
    return [_example(study, answers, index) for index in found[:most]], len(found)


def count_changes(study: Study, answers: Answers, new: str, old: str) -> tuple[int, int]:
    """How many examples ``new`` answers rightly and ``old`` does not, and the other way round."""
    pairs = [
        (_right(gold, a), _right(gold, b)) for gold, a, b in zip(study.gold, answers[new], answers[old], strict=True)
    ]
    return pairs.count((True, False)), pairs.count((False, True))


def _example(study: Study, answers: Answers, index: int) -> Example:
    given: dict[str, list[str]] = {}
    for method, row in answers.items():
        given.setdefault(row[index], []).append(method)
    gold = study.gold[index]
    known = is_judged(study)
    grouped = [Answer(text, _right(gold, text) if known else None, tuple(names)) for text, names in given.items()]
    grouped.sort(key=lambda answer: (not answer.right, -len(answer.methods)))
    return Example(index, _at(study.texts, index), gold, tuple(grouped))


def _at(texts: Sequence[str], index: int) -> str:
    return texts[index] if index < len(texts) else ""
