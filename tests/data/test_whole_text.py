"""Templates, solved examples, instructions and answers: the tokens of the whole text, in every style of tokenizer."""

from typing import Any

import pytest
from helpers.tokenizer_bases import NAMES, base_of
from helpers.tokenizer_styles import STYLES, style

from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.examples import Example
from softprompt.data.few_shot import BEHIND_WORDS, GAP
from softprompt.data.splits import Splits
from softprompt.data.task import Task, TaskSpec
from softprompt.experiments.baselines.nearest_examples import NearestShots
from softprompt.inference.predictor import Predictor
from softprompt.prompts.written_prompt import written_ids, written_prompt

SHOTS = (Example("a great story", "pos"), Example("  a dull film", "neg"))
TEXTS = ("the film is good", "  great", "<eos> </s> <|end|> bad", "\n")


def spec_of(template: str) -> TaskSpec:
    return TaskSpec("classification", template, ("neg", "pos"), ("bad", "good"))


def whole(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def said(spec: TaskSpec, text: str, answer: str = "") -> str:
    return spec.template.replace("{{ text }}", text) + answer


@pytest.mark.parametrize("turns", [True, False])
@pytest.mark.parametrize("name", NAMES)
class TestWholeText:
    def spec(self, name: str, turns: bool) -> TaskSpec:
        return spec_of(STYLES[name][1] if turns else "Film: {{ text }}\nLabel:")

    def test_of_a_template(self, name: str, turns: bool) -> None:
        spec, tokenizer = self.spec(name, turns), style(name)
        found = ExampleEncoder(base_of(name), spec, 4).encode_texts(
            [Example(text) for text in TEXTS if "<" not in text]
        )
        assert [list(ids) for ids in found] == [whole(tokenizer, said(spec, text)) for text in TEXTS if "<" not in text]

    def test_of_a_text_and_its_answer(self, name: str, turns: bool) -> None:
        spec, tokenizer = self.spec(name, turns), style(name)
        encoder = ExampleEncoder(base_of(name), spec, 4)
        assert encoder.verbalizer is not None
        (ids,) = encoder.encode_texts([Example("a film")])
        for words, sequence in zip(("bad", "good"), encoder.verbalizer.sequences, strict=True):
            text = said(spec, "a film", spec.answer_separator + words)
            # where the tokenizer reads the end of the template alike with and without an answer behind it
            if whole(tokenizer, text)[: len(ids)] == list(ids):
                assert [*ids, *sequence] == whole(tokenizer, text)
            else:
                assert tokenizer.decode(sequence).strip() == words

    @pytest.mark.parametrize("instruction", ["Is the film good?", ""])
    @pytest.mark.parametrize("count", [0, 1, 2])
    def test_of_a_written_prompt(self, name: str, turns: bool, instruction: str, count: int) -> None:
        spec, tokenizer, base = self.spec(name, turns), style(name), base_of(name)
        shots = SHOTS[:count]
        answers = {"pos": f"{spec.answer_separator}good", "neg": f"{spec.answer_separator}bad"}
        parts = [instruction] * bool(instruction)
        parts += [said(spec, one.text, answers[str(one.label)]) for one in shots]
        front = written_ids(base, spec, instruction, shots)
        state = written_prompt(base, spec, instruction, shots)
        encoder = Predictor(base, spec, state).encoder
        assert encoder._behind == ("" if state is None else BEHIND_WORDS)
        for text in ("the film is good", "  great"):
            (behind,) = encoder.encode_texts([Example(text)])
            expected = whole(tokenizer, GAP.join([*parts, said(spec, text)]))
            assert [*front, *behind] == expected

    def test_of_the_nearest_examples(self, name: str, turns: bool) -> None:
        pytest.importorskip("sklearn")
        spec, tokenizer, base = self.spec(name, turns), style(name), base_of(name)
        task = Task(spec, Splits(SHOTS, (), (), "x", ()))
        near = NearestShots(base, task, 2)
        example = Example("a great film")
        (front,) = near.in_front([example], [0])
        (ids,) = near.encoder.encode_texts([example])
        answers = {"pos": f"{spec.answer_separator}good", "neg": f"{spec.answer_separator}bad"}
        (order,) = near.nearest([example])
        parts = [said(spec, SHOTS[index].text, answers[str(SHOTS[index].label)]) for index in reversed(order)]
        assert [*front, *ids] == whole(tokenizer, GAP.join([*parts, said(spec, example.text)]))
