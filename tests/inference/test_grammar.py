"""What a completion may say: valid by its schema, whatever the model, and alone or in one batch with others."""

import json
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
import torch
from helpers.tiny_models import FAMILIES, NOT_SHARING, tiny_base
from helpers.tokenizer_bases import NAMES, base_of

from softprompt.errors import GrammarError, MissingExtraError
from softprompt.inference import generation as generation_module
from softprompt.inference.generation import Completion, GenerationConfig, complete, end_token_ids, start_grammar
from softprompt.inference.grammar import MAX_SOURCE, Grammar, Mark
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.prefix import make_prefix

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "}bb{", "é"]}, "maxItems": 3},
        "inner": {"$ref": "#/$defs/pair"},
    },
    "required": ["name", "count", "tags", "inner"],
    "additionalProperties": False,
    "$defs": {
        "pair": {
            "type": "object",
            "properties": {"yes": {"type": "boolean"}, "no": {"anyOf": [{"type": "null"}, {"const": "x/y"}]}},
            "required": ["yes", "no"],
            "additionalProperties": False,
        }
    },
}
SHORT = {
    "type": "object",
    "properties": {"yes": {"type": "boolean"}},
    "required": ["yes"],
    "additionalProperties": False,
}
ROOM = 130  # tokens; the tiny models' context holds 160


def completed(base: FrozenLM, generation: GenerationConfig, count: int) -> list[tuple[str, bool]]:
    words = base.tokenizer("a good film and a great story", add_special_tokens=False).input_ids
    texts = [[*words[index % 7 :], *words[: index % 5]] for index in range(count)]
    with torch.no_grad():
        found = complete(base, make_prefix(base, None), texts, generation, 4096)
        return [(text, cut) for _, text, cut in sorted(found)]


class TestSchemas:
    @pytest.mark.parametrize("family", [*(one for one in FAMILIES if one not in NOT_SHARING), "mpt"])
    @pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
    def test_every_completion_is_valid(self, family: str, temperature: float) -> None:
        generation = GenerationConfig(ROOM, temperature=temperature, grammar=Grammar.of_json_schema(SHORT))
        for text, cut in completed(tiny_base(family), generation, 3):
            assert not cut
            jsonschema.validate(json.loads(text), SHORT)

    def test_a_hundred_of_a_hundred(self) -> None:
        generation = GenerationConfig(ROOM, temperature=1.0, seed=3, grammar=Grammar.of_json_schema(SCHEMA))
        found = completed(tiny_base("llama"), generation, 100)
        for text, cut in found:
            if not cut:
                jsonschema.validate(json.loads(text), SCHEMA)
        assert len({text for text, cut in found if not cut}) > 90

    @pytest.mark.parametrize("name", NAMES)
    def test_tokenizers_of_all_styles(self, name: str) -> None:
        generation = GenerationConfig(400, temperature=1.0, grammar=Grammar.of_json_schema(SCHEMA))
        base = base_of(name)
        # in some of these vocabularies the end that the tiny model is made with is a sign
        base.model.generation_config.eos_token_id = base.tokenizer.eos_token_id
        for text, cut in completed(base, generation, 6):
            assert not cut
            jsonschema.validate(json.loads(text), SCHEMA)

    def test_any_object(self) -> None:
        generation = GenerationConfig(ROOM, temperature=1.0, grammar=Grammar.of_json_object())
        whole = [text for text, cut in completed(tiny_base("llama"), generation, 12) if not cut]
        assert whole
        assert all(isinstance(json.loads(text), dict) for text in whole)

    def test_learned_answers_may_stand_apart_from_their_text(self) -> None:
        base = tiny_base("llama")
        state = start_grammar(base, GenerationConfig(grammar=Grammar.of_json_object()))
        (blank,) = base.tokenizer(" ", add_special_tokens=False).input_ids
        state.accept(blank)
        (brace,) = base.tokenizer("{", add_special_tokens=False).input_ids
        allowed = state.find_allowed()
        assert allowed[brace]
        assert not allowed[blank]

    def test_text_ends_only_where_it_may(self) -> None:
        base = tiny_base("llama")
        ends = sorted(end_token_ids(base))
        state = start_grammar(base, GenerationConfig(grammar=Grammar.of_regex("(good )+")))
        for token in base.tokenizer("good", add_special_tokens=False).input_ids:
            assert not state.find_allowed()[ends].any()
            state.accept(token)
        for token in base.tokenizer(" ", add_special_tokens=False).input_ids:
            assert not state.find_allowed()[ends].any()
            state.accept(token)
        assert state.find_allowed()[ends].all()
        assert not state.ended

    def test_the_end_of_a_turn_ends_it_too(self) -> None:
        base = base_of("qwen")
        turn = next(one for one in base.tokenizer.all_special_ids if one not in end_token_ids(base))
        generation = GenerationConfig(grammar=Grammar.of_regex("(a)*"), ends=(turn,))
        assert start_grammar(base, generation).find_allowed()[turn]
        (letter,) = base.tokenizer("(", add_special_tokens=False).input_ids
        strict = replace(generation, grammar=Grammar.of_regex("(a)+"))
        assert not start_grammar(base, strict).find_allowed()[[turn, letter]].any()

    def test_the_limit_of_tokens_cuts(self) -> None:
        completion = completed(tiny_base("llama"), GenerationConfig(3, grammar=Grammar.of_json_schema(SCHEMA)), 1)
        assert completion[0][1]


class TestMixedRows:
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_plain_rows_say_what_they_say_alone(self, temperature: float) -> None:
        base = tiny_base("llama")
        plain = GenerationConfig(12, temperature=temperature, seed=5)
        strict = GenerationConfig(12, temperature=temperature, seed=5, grammar=Grammar.of_json_schema(SCHEMA))
        torch.manual_seed(0)
        logits = torch.randn(3, base.vocabulary_size)

        def chosen(rows: Sequence[tuple[int, GenerationConfig]]) -> list[int]:
            completions = [Completion(base, config, index) for index, config in rows]
            return generation_module.next_tokens(logits[[index for index, _ in rows]], completions)

        before = logits.clone()
        mixed = chosen([(0, plain), (1, strict), (2, plain)])
        assert mixed == [*chosen([(0, plain)]), *chosen([(1, strict)]), *chosen([(2, plain)])]
        assert torch.equal(logits, before)


class TestMarks:
    def test_a_text_has_none_of_them(self) -> None:
        base = base_of("qwen")
        state = start_grammar(base, GenerationConfig(grammar=Grammar.of_regex("(.|\n)*")))
        allowed = state.find_allowed()
        marks = base.tokenizer.all_special_ids
        assert allowed[base.tokenizer.eos_token_id]
        assert not any(allowed[mark] for mark in marks if mark not in end_token_ids(base))

    def test_those_of_a_grammar_stay_in_the_text(self) -> None:
        base = base_of("qwen")
        names = [name for name, one in base.tokenizer.get_added_vocab().items() if one not in end_token_ids(base)]
        begin, end = names[:2]
        call = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9}}}
        call |= {"required": ["n"], "additionalProperties": False}
        grammar = Grammar.of_sequence(Mark(begin), '\n"', call, "\n", Mark(end))
        generation = GenerationConfig(60, temperature=1.0, grammar=grammar, shown_marks=(begin, end))
        for text, cut in completed(base, generation, 4):
            assert not cut
            inner = text.removeprefix(f'{begin}\n"').removesuffix(f"\n{end}")
            assert f'{begin}\n"{inner}\n{end}' == text
            jsonschema.validate(json.loads(inner), call)

    def test_one_or_more_of_several(self) -> None:
        """Each schema refers to its own parts."""
        base = base_of("qwen")
        begin = next(name for name, one in base.tokenizer.get_added_vocab().items() if one not in end_token_ids(base))
        schemas = [{"$ref": "#/$defs/one", "$defs": {"one": {"const": word}}} for word in ("good", "bad")]
        calls = [(Mark(begin), schema, "\n") for schema in schemas]
        for repeated in (False, True):
            grammar = Grammar.of_alternatives(*calls, repeated=repeated)
            generation = GenerationConfig(80, temperature=2.0, seed=1, grammar=grammar, shown_marks=(begin,))
            found = ["".join(text.split()) for text, cut in completed(base, generation, 12) if not cut]
            said = [re.findall('"(good|bad)"', text) for text in found]
            assert found == ["".join(f'{begin}"{one}"' for one in ones) for ones in said]
            assert {one for ones in said for one in ones} == {"good", "bad"}
            assert (max(map(len, said)) > 1) is repeated

    def test_one_that_the_tokenizer_lacks(self) -> None:
        with pytest.raises(GrammarError, match="the tokenizer has no token '<nothing>'"):
            start_grammar(tiny_base("llama"), GenerationConfig(grammar=Grammar.of_sequence(Mark("<nothing>"))))


class TestRefusals:
    @pytest.mark.parametrize(
        ("grammar", "words"),
        [
            (Grammar.of_json_schema({"type": "nothing"}), "a JSON schema that can be followed: .*nothing"),
            (Grammar.of_json_schema({"not": {"type": "string"}}), "a JSON schema .* \\[.not.\\]"),
            (Grammar.of_json_schema({"type": "string", "pattern": "(?=a)b"}), "look-around"),
            (Grammar.of_json_schema({"$ref": "https://example.org/x.json"}), "does not fetch"),
            (Grammar.of_json_schema({"enum": []}), "a JSON schema"),
            (Grammar.of_regex("("), "a regular expression that can be followed"),
            (Grammar.of_lark("start: nothing"), "a grammar that can be followed"),
        ],
    )
    def test_what_cannot_be_followed(self, grammar: Grammar, words: str) -> None:
        with pytest.raises(GrammarError, match=words) as refused:
            start_grammar(tiny_base("llama"), GenerationConfig(grammar=grammar))
        assert "\n" not in str(refused.value)

    @pytest.mark.parametrize(
        "schema",
        [
            {"type": "string", "pattern": "(a?){1000}a{1000}"},
            {
                "type": "array",
                "items": {"anyOf": [{"type": "string", "pattern": f"^.*{one}.{{20}}$"} for one in "abc"]},
            },
            {"enum": [f"{'x' * 40}{index}" for index in range(4000)]},
            {"anyOf": [{"type": "object", "properties": {f"k{one}": {"type": "string"}}} for one in range(2000)]},
        ],
    )
    def test_work_is_bounded(self, schema: dict[str, Any]) -> None:
        """Refused, or followed, in a moment."""
        base = tiny_base("llama")
        start = time.perf_counter()
        with suppress(GrammarError):
            state = start_grammar(base, GenerationConfig(grammar=Grammar.of_json_schema(schema)))
            for _ in range(20):
                allowed = state.find_allowed().nonzero()[:, 0].tolist()
                if state.ended:
                    break
                state.accept(allowed[len(allowed) // 2])
        assert time.perf_counter() - start < 10

    def test_size_is_bounded(self) -> None:
        with pytest.raises(GrammarError, match="expected at most 262,144"):
            Grammar.of_json_schema({"enum": ["x" * MAX_SOURCE]})

    def test_the_last_ones_are_kept(self) -> None:
        base = tiny_base("gpt2")
        for index in range(200):
            start_grammar(base, GenerationConfig(grammar=Grammar.of_regex(f"a{index}")))
        compiler = generation_module._make_compiler(base)
        assert len(compiler._compiled) == 64
        assert Grammar.of_regex("a199") in compiler._compiled

    def test_without_the_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "llguidance", None)
        with pytest.raises(MissingExtraError, match=r"softprompt\[serve\]"):
            start_grammar(base_of("qwen"), GenerationConfig(grammar=Grammar.of_json_object()))
