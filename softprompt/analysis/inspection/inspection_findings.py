"""Findings about a prompt: what is wrong with it, what that means, and what to try."""

from softprompt.analysis.finding_rules import Finding, Rule, judge_rules
from softprompt.analysis.inspection import finding_conditions as conditions
from softprompt.analysis.inspection.inspection_records import Inspection


def judge_inspection(found: Inspection) -> list[Finding]:
    """The most severe first."""
    return judge_rules(RULES, found)


RULES: tuple[Rule[Inspection], ...] = (
    Rule(
        "nothing-learned",
        "problem",
        "It knows no more than how frequent each label is",
        conditions.knows_frequencies_only,
        "There was nothing to learn from these rows, or it was not learned. Labels that do not belong to their texts "
        "(a shuffled column, a wrong join) look exactly like this.",
        (
            "read twenty training rows: is each label right?",
            "if they are, train longer, with --init text and a --learning-rate of 0.03 to 0.3",
        ),
    ),
    Rule(
        "at-initialisation",
        "problem",
        "The prompt is still at its initialisation",
        conditions.is_unmoved,
        "Training changed next to nothing: what you measure is the words it began with.",
        (
            "look at history.jsonl: was the best step the first evaluation?",
            "raise --learning-rate (it is in standard deviations of the embeddings, 0.1 is the default) or --steps",
        ),
    ),
    Rule(
        "label-collapse",
        "problem",
        "It answers almost everything with one label",
        conditions.answers_with_one,
        "It does not look at the text: what it learned is which label to say.",
        (
            "check that the labels belong to the texts, and that the template shows the text",
            "balance the training rows, or try another --init and a lower --learning-rate",
        ),
    ),
    Rule(
        "label-collapse",
        "warning",
        "It never gives some labels",
        conditions.never_answers,
        "These classes are lost on it, whatever its accuracy says.",
        ("look at the confusion matrix: what swallows them?", "more rows of these labels, or more steps"),
    ),
    Rule(
        "worse-than-reference",
        "problem",
        "The reference does better",
        conditions.is_worse,
        "On these data there is nothing to gain from this prompt.",
        ("use the reference", "see the other findings for why, and the examples that it broke"),
    ),
    Rule(
        "not-reproduced",
        "problem",
        "It does not do what its manifest says",
        conditions.is_not_reproduced,
        "Prompt, template, labels or precision are not those that it was saved with. A template changed after training "
        "looks like this, and so do virtual tokens that were written over.",
        ("compare with an earlier version (softprompt diff)", "learn it again with the template in use"),
    ),
    Rule(
        "template-mismatch",
        "problem",
        "It is served with another template than it learned",
        conditions.is_served_otherwise,
        "The prompt meets texts in a form that it has not seen; nothing fails, the answers get worse.",
        ("serve the template of prompt.json, to the blank", "or learn the prompt again on the served one"),
    ),
    Rule(
        "texts-unlike-training",
        "warning",
        "The texts are not as the template expects them",
        lambda found: "; ".join(found.serving.texts) or None,
        "The model reads other characters around the text than in training.",
        ("strip the texts, or take the template's words out of them", "give the missing columns"),
    ),
    Rule(
        "norms-far",
        "warning",
        "Virtual tokens lie far outside the embedding cloud",
        conditions.has_far_norms,
        "The model was never trained on inputs of this size. It may still work, but such prompts are brittle: "
        "quantized, in another precision, or in another engine they change more than others.",
        (
            "lower --learning-rate by three to ten times",
            "set weight_decay = 0.01 in a file for --config, or stop earlier",
        ),
    ),
    Rule(
        "empty-tokens",
        "problem",
        "Virtual tokens are empty",
        conditions.has_empty_tokens,
        "They hold nothing that was learned: zeroed, damaged or never updated. They still take place and shift the "
        "attention of the others.",
        ("learn the prompt again, or find what wrote over it", "softprompt prune takes them out"),
    ),
    Rule(
        "rate-too-high",
        "warning",
        "The learning rate looks too high",
        conditions.had_high_rate,
        "Steps went past what they aimed at. The best evaluation was kept, but it was met by luck, and a lower rate "
        "usually ends better.",
        ("a rate three to ten times lower", "a larger --batch-size"),
    ),
    Rule(
        "overfitting",
        "warning",
        "It knows its training rows better than others",
        conditions.is_overfitted,
        "Part of what it learned holds for these rows only. What counts is the validation figure.",
        (
            "more training rows",
            "fewer virtual tokens (--length) or steps",
            "weight_decay = 0.01 in a file for --config",
        ),
    ),
    Rule(
        "dead-tokens",
        "note",
        "Virtual tokens do nothing",
        conditions.has_dead_tokens,
        "Each one alone could go. Not all of them at once: several may do the same work for each other.",
        ("softprompt prune takes out what is not needed, measured step by step", "learn a shorter prompt"),
    ),
    Rule(
        "truncation",
        "note",
        "Texts are cut",
        conditions.cuts_texts,
        "What stands at the end of long texts is never seen. The slices by length show what that costs.",
        ("raise --max-length in training, as far as the model's context allows", "shorten the texts yourself"),
    ),
    Rule(
        "mislabelled-rows",
        "note",
        "Training rows look mislabelled",
        conditions.has_label_errors,
        "Some are hard, some are wrong. Wrong ones cost accuracy and blur every measurement.",
        ("read the list of suspects from the top and correct rows until they look right", "then learn again"),
    ),
    Rule(
        "leaking-duplicates",
        "warning",
        "Held-out rows stand in the training data too",
        conditions.leaks,
        "Figures on these rows flatter every method that learns.",
        ("take the near duplicates out of train, or out of validation and test",),
    ),
    Rule(
        "conflicting-duplicates",
        "note",
        "Near duplicates have different labels",
        conditions.conflicts,
        "At least one label of each such group is wrong, or a small difference decides.",
        ("look at these groups first: they are the cheapest labels to correct",),
    ),
    Rule(
        "memorised",
        "warning",
        "Training texts are completed better than others",
        conditions.has_memorized,
        "The prompt carries something of its training rows. Whoever has the prompt may learn about them.",
        (
            "do not share this prompt if the rows are private",
            "fewer virtual tokens, fewer steps, more rows; no --init examples",
        ),
    ),
    Rule(
        "overconfident",
        "note",
        "It is more sure than it is right",
        conditions.is_miscalibrated,
        "Its probabilities are no rates: do not set thresholds on them as they are.",
        ("choose thresholds on validation, not by their names", "an ensemble (--seeds 5 --ensemble) is calmer"),
    ),
)
