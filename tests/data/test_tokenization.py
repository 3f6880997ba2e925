"""Tokens are those that the tokenizer makes of the whole text, and no field spells a mark."""

import gc
import itertools
import random
import re
import weakref
from typing import Any

import pytest
from helpers.tokenizer_styles import STYLES, style
from tokenizers import AddedToken, Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from softprompt.data.encoding.tokenization import safe_tokenizer

PLAIN = (
    "a good film",
    "  a good film  ",
    "\n\na bad\nstory\n",
    "",
    " ",
    "caf\u00e9 e\u0301 \uff1cfilm\uff1e \u2581x \ue000 \ue001 \U0001f600",
    "good<",
    "> a [b] <c> |d|",
    "<table>good</table>",
    "[the] <film>",
)


def filled(template: str, text: str) -> tuple[str, list[tuple[int, int]]]:
    """A template with one text in its places, by plain means."""
    out, fields = "", []
    for piece in re.split(r"(\{\{ text \}\})", template):
        new = text if piece == "{{ text }}" else piece
        if piece == "{{ text }}" and text:
            fields.append((len(out), len(out) + len(text)))
        out += new
    return out, fields


def protected(tokenizer: Any, text: str, fields: list[tuple[int, int]]) -> list[int]:
    tokens = safe_tokenizer(tokenizer)
    ((_, seen),) = tokens._read([text])
    return tokens._encode_protected(text, fields, seen)


def whole(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


@pytest.mark.parametrize("name", STYLES)
class TestTokens:
    def test_texts_without_marks_are_what_the_tokenizer_makes_of_the_whole(self, name: str) -> None:
        tokenizer, template = style(name), STYLES[name][1]
        rows = [filled(template, text) for text in PLAIN]
        assert safe_tokenizer(tokenizer).encode_batch(rows) == [whole(tokenizer, text) for text, _ in rows]

    def test_the_protected_way_gives_the_same(self, name: str) -> None:
        tokenizer, template = style(name), STYLES[name][1]
        for text, fields in [filled(template, text) for text in PLAIN]:
            assert protected(tokenizer, text, fields) == whole(tokenizer, text), text

    def test_no_text_spells_a_mark_alone_or_with_what_stands_beside_it(self, name: str) -> None:
        tokenizer, template = style(name), STYLES[name][1]
        tokens, marks = safe_tokenizer(tokenizer), safe_tokenizer(tokenizer).marks
        unknown = tokenizer.unk_token_id
        own = [
            one for one in whole(tokenizer, filled(template, "- a -")[0]) if one in marks.values() and one != unknown
        ]
        texts = [form(f"-{mark}-") for mark in marks for form in (str, lambda mark: f"- {mark} film{mark}", str.upper)]
        texts += [mark.translate({ord("<"): "\uff1c", ord(">"): "\uff1e"}) for mark in marks]
        for row in tokens.encode_batch([filled(template, text) for text in texts]):
            assert [one for one in row if one in marks.values() and one != unknown] == own
        for mark in marks:
            for cut in range(1, len(mark)):
                for seam in (mark[:cut] + "{{ text }}", "{{ text }}" + mark[cut:]):
                    text = mark[cut:] if seam.endswith("{{ text }}") else mark[:cut]
                    ids = tokens.encode(*filled(seam, text))
                    assert not set(ids) & (set(marks.values()) - {unknown}), (seam, text)

    def test_what_a_field_spells_is_read_as_its_characters(self, name: str) -> None:
        tokenizer = style(name)
        for mark in safe_tokenizer(tokenizer).marks:
            ids = safe_tokenizer(tokenizer).encode_plain(f"x{mark}x")
            if tokenizer.unk_token_id not in ids:
                assert tokenizer.decode(ids).replace(" ", "").lower() == f"x{mark}x".replace(" ", "").lower()

    def test_other_added_words_come_from_any_text(self, name: str) -> None:
        tokenizer = style(name)
        marks = safe_tokenizer(tokenizer).marks
        for token_id, token in tokenizer.added_tokens_decoder.items():
            if str(token) not in marks:
                assert token_id in safe_tokenizer(tokenizer).encode_plain(f"a {token} b")
        assert ("<think>" in marks, "<tool>" in marks) == (name == "qwen", False)


def test_many_texts_at_once_are_each_what_it_is_alone() -> None:
    tokenizer, template = style("phi3"), STYLES["phi3"][1]
    rows = [filled(template, "".join(text)) for text in itertools.product(PLAIN, ("<|end|>", ""))]
    assert safe_tokenizer(tokenizer).encode_batch(rows) == [safe_tokenizer(tokenizer).encode(*row) for row in rows]


def test_a_tokenizer_is_let_go() -> None:
    tokenizer = STYLES["qwen"][0]()
    assert safe_tokenizer(tokenizer).encode_plain("a <|im_end|>")
    gone = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert gone() is None


def test_words_that_are_not_known_are_no_mark_of_the_template() -> None:
    """The mark touches a word, where it is none; the tokenizer sees one unknown word over all of it."""
    plain = Tokenizer(models.Unigram([("<unk>", -9.0), ("\u2581", -1.0), ("a", -2.0), ("b", -2.0)], unk_id=0))
    plain.normalizer = normalizers.NFKC()
    plain.add_special_tokens([AddedToken("[INST]", single_word=True, normalized=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>")
    for text, fields in (filled("[INST]{{ text }}", "\u00e9 a"), filled("{{ text }}[INST]b", "a\u00e9")):
        assert whole(tokenizer, text).count(tokenizer.unk_token_id) == 1
        assert (
            protected(tokenizer, text, fields)
            == safe_tokenizer(tokenizer).encode(text, fields)
            == whole(tokenizer, text)
        )


def test_a_tokenizer_that_got_more_tokens_is_read_anew() -> None:
    tokenizer = STYLES["qwen"][0]()
    assert "<new>" not in safe_tokenizer(tokenizer).marks
    tokenizer.add_tokens(["<new>"], special_tokens=True)
    assert "<new>" in safe_tokenizer(tokenizer).marks
    assert tokenizer.convert_tokens_to_ids("<new>") not in safe_tokenizer(tokenizer).encode_plain("a <new> b")


def test_a_tokenizer_written_in_python_is_protected_too() -> None:
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    tokens, end = safe_tokenizer(tokenizer), tokenizer.eos_token_id
    text, fields = filled("user: {{ text }}</s>model:", "a </s> b")
    ids = tokens.encode(text, fields)
    assert ids == [
        *tokenizer("user: a ", add_special_tokens=False).input_ids,
        *(ord(one) + 3 for one in "</s>"),
        *tokenizer(" b", add_special_tokens=False).input_ids,
        end,
        *tokenizer("model:", add_special_tokens=False).input_ids,
    ]
    plain, fields = filled("user: {{ text }}</s>model:", "a good film")
    assert tokens.encode(plain, fields) == whole(tokenizer, plain)


@pytest.mark.parametrize("name", [name for name in STYLES if name != "t5"])
def test_random_templates_and_texts(name: str) -> None:
    chance, tokenizer = random.Random(name), style(name)
    tokens, unknown = safe_tokenizer(tokenizer), tokenizer.unk_token_id
    marks = list(tokens.marks)
    parts = [mark[: chance.randrange(1, len(mark) + 1)] for mark in marks] + [mark[1:] for mark in marks] + marks
    signs = [" ", "\n", "a", "good", "<", ">", "|", "\u00e9", "e\u0301", "\u2581", "\u00b2", "_", "<table>", *parts]
    for _ in range(800):
        pieces = ["{{ text }}", *("".join(chance.choices(signs, k=chance.randrange(4))) for _ in range(3))]
        template = "".join(chance.sample(pieces, 4))
        given = "".join(chance.choices(signs, k=chance.randrange(5)))
        text, fields = filled(template, given)
        ids = tokens.encode(text, fields)
        places = [(at, at + len(mark)) for mark in marks for at in range(len(text)) if text.startswith(mark, at)]
        own = [place for place in places if all(end <= place[0] or place[1] <= start for start, end in fields)]
        if own == places:
            assert ids == whole(tokenizer, text), (template, given)
        # of marks that begin alike only one is read
        assert len([one for one in ids if one in tokens.marks.values() and one != unknown]) <= len(own)
