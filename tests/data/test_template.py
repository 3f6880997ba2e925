"""The template language: as Jinja2, with typed values, and with the ranges of what data brought."""

import json
import random
from pathlib import Path
from typing import Any

import jinja2
import pytest

from softprompt.data.examples import Example, unlabelled_example
from softprompt.data.splits import read_splits
from softprompt.data.templates.template import Rendered, Template
from softprompt.errors import TemplateError

ROW: dict[str, Any] = {
    "title": "the don's first-night (a tale)",
    "blank": "",
    "yes": True,
    "no": False,
    "zero": 0,
    "count": 3,
    "share": 0.5,
    "nothing": None,
    "words": ["one", "two", "three"],
    "empty": [],
    "meta": {"by": "Ada", "year": 1843},
    "messages": [
        {"role": "user", "content": "Hi <b>"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ],
}
TEXT = "  It rains,\nand rains.  "


def render(source: str, **columns: Any) -> str:
    return Template(source).render(Example(TEXT, columns=columns or ROW))


def _words(chance: random.Random, depth: int) -> str:
    """An expression that is a text or a whole number."""
    if depth > 2 or chance.random() < 0.3:
        return chance.choice(
            ["text", "title", "blank", "count", "zero", "'a b'", "7", "words[1]", "meta.by", "words[-1]"]
        )
    inner = [_words(chance, depth + 1) for _ in range(2)]
    filters = ["upper", "lower", "title", "capitalize", "trim", "string", "truncate(9)", "replace('a', 'bc')", "d('x')"]
    return chance.choice(
        [
            f"({inner[0]}|string|{chance.choice(filters)})",
            f"({inner[0]} ~ {inner[1]})",
            f"({inner[0]} if {_truth(chance, depth + 1)} else {inner[1]})",
            f"({inner[0]} or {inner[1]})",
            f"({inner[0]} and {inner[1]})",
            f"({inner[0]}|string)[{chance.randint(-9, 3)}:{chance.randint(2, 9)}]",
            f"({inner[0]}|string|length)",
            f"(words|join({inner[0]}))",
            f"(absent|default({inner[0]}))",
        ]
    )


def _truth(chance: random.Random, depth: int) -> str:
    """An expression that is asked whether it holds."""
    if depth > 2 or chance.random() < 0.3:
        return chance.choice(
            ["yes", "no", "nothing", "empty", "words", "share", "absent is defined", "count is number"]
        )
    inner = [_words(chance, depth + 1) for _ in range(2)]
    return chance.choice(
        [
            f"{inner[0]} {chance.choice(['==', '!='])} {inner[1]}",
            f"({inner[0]}|string) {chance.choice(['<', '<=', '>', '>='])} ({inner[1]}|string)",
            f"({inner[0]}|string) {chance.choice(['in', 'not in'])} ({inner[1]}|string)",
            f"{inner[0]} {chance.choice(['in', 'not in'])} [{inner[1]}, 'one', 3]",
            f"({inner[0]}|string) in words",
            f"not ({_truth(chance, depth + 1)})",
            f"({_truth(chance, depth + 1)} {chance.choice(['and', 'or'])} {_truth(chance, depth + 1)})",
        ]
    )


def _part(chance: random.Random, depth: int) -> str:
    """A piece of a template."""
    if depth > 2 or chance.random() < 0.4:
        return chance.choice([" so\n", "{{ " + _words(chance, 0) + " }}", "{{- " + _words(chance, 0) + " -}} "])
    body = "".join(_part(chance, depth + 1) for _ in range(2))
    test = _truth(chance, 0)
    return chance.choice(
        [
            f"{{% if {test} %}}{body}{{% elif {_truth(chance, 0)} %}}x{{% else %}}{body}{{% endif %}}",
            f"{{% for one in words %}}{{{{ one }}}}{{{{ loop.index }}}}{body}{{% endfor %}}",
            f"{{% for m in messages if m.role == 'user' and {test} %}}{{{{ m.content }}}}"
            f"{{% else %}}{body}{{% endfor %}}",
            f"{{% for k, v in meta|items %}}{{{{ v }}}}{body}{{% if loop.last %}}.{{% endif %}}{{% endfor %}}",
        ]
    )


class TestAsJinja:
    """Real Jinja2 writes the same of these, with a ``finalize`` for the few values that are printed otherwise."""

    @pytest.mark.parametrize(
        "source",
        [
            "{{ text }}",
            "{{ title }} {{ count }}: {{ text }}\n",
            "{% if blank %}A{% elif zero %}B{% elif nothing %}C{% else %}D{% endif %}{{ text|trim }}",
            "{% if no %}A{% else %}B{% endif %}{% if yes %}C{% endif %}{% if empty %}D{% endif %}",
            "{% if zero == 0 and count > 2 and not no %}yes{% endif %}{{ 1 < count <= 3 }}{{ share }}",
            "{% for w in words %}{{ loop.index }}/{{ loop.length }}{{ w }}{% if not loop.last %},{% endif %}{%endfor%}",
            "{% for m in messages if m.role == 'user' %}{{ loop.index0 }}<{{ m.content }}>{% else %}none{% endfor %}",
            "{% for m in empty %}x{% else %}none{% endfor %}{{ loop is defined }}",
            "{% for a in words %}{% for b in words %}{{ a ~ b ~ loop.index }}{% endfor %}{{ loop.revindex }}{%endfor%}",
            "{% for k, v in meta|items %}{{ k }}={{ v }};{% endfor %}{% for k in meta %}{{ k }}{% endfor %}",
            "{{ title|upper }}{{ title|lower }}{{ title|title }}{{ title|capitalize }}{{ text|trim }}",
            "{{ words|join(', ') }}{{ words|first }}{{ words|last }}{{ words|length }}{{ meta|count }}",
            "{{ absent|default('none') }}{{ blank|default('x', true) }}{{ nothing|default('y') }}{{ absent|d }}",
            "{{ title|replace('first', 'last') }}{{ title|truncate(9) }}{{ title|truncate(9, true, '..', 0) }}",
            "{{ absent is defined }}{{ text is defined }}{{ nothing is none }}{{ words is sequence }}{{ yes is true }}",
            "{{ count is number }}{{ title is string }}{{ meta is mapping }}{{ absent is undefined }}",
            "{{ 'one' in words }}{{ 'rain' in text }}{{ 'by' in meta }}{{ 5 not in words }}{{ count in [1, 2, 3] }}",
            "{{ messages[0].content }}{{ messages[-1]['role'] }}{{ meta.year }}{{ words[1:]|join }}{{ title[:3] }}",
            "{{ title if yes else text }}{{ 'x' if no }}{{ blank or 'or' }}{{ yes and 'and' }}{{ count > -1 }}",
            "{{ title ~ ' ' ~ count }}{{ 'a' \"b\" }}{{ count == '3' }}{{ title < text }}",
            "{#- no {{ text }} -#} {%- if yes -%}  x  {%- endif %} {% raw %}{{ raw }}{% endraw %}{{ text }}\r\n",
        ],
    )
    def test_the_same_words(self, source: str) -> None:
        def printed(value: Any) -> Any:
            return "" if value is None else str(value).lower() if isinstance(value, bool) else value

        environment = jinja2.Environment(
            keep_trailing_newline=True, undefined=jinja2.StrictUndefined, finalize=printed, autoescape=False
        )
        assert render(source + "{{ text }}") == environment.from_string(source + "{{ text }}").render(ROW, text=TEXT)

    def test_what_is_printed_otherwise(self) -> None:
        source = "{{ words }} {{ meta }} {{ yes }} {{ no }} {{ nothing }} {{ share }} {{ messages[0]|tojson }}"
        assert render(source) == (
            '["one", "two", "three"] {"by": "Ada", "year": 1843} true false  0.5 {"role": "user", "content": "Hi <b>"}'
        )

    def test_the_same_of_a_hundred_and_fifty_made_at_random(self) -> None:
        chance = random.Random(0)
        for _ in range(150):
            source = "{{ text }}" + "".join(_part(chance, 0) for _ in range(3))
            jinja = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
            assert render(source) == jinja.from_string(source).render(ROW, text=TEXT), source

    def test_the_same_of_rows_as_they_are_read(self, tmp_path: Path) -> None:
        """What JSON says of a row is what its template sees, in training (a file) and in the server (a request)."""
        source = (
            "{% if flag %}on{% else %}off{% endif %} {% if n == 0 %}none{% elif n %}{{ n }}{% endif %} "
            "{% for one in tags %}{{ loop.index }}={{ one }};{% endfor %}{{ note is none }} {{ text }}"
        )
        values = [(True, 0, ["a", "b"], None), (False, 2, [], "x"), (False, 0.5, ["c"], ""), (True, -1, ["ab"], "None")]
        rows: list[dict[str, Any]] = [
            {"text": f"t{i}", "label": "ab"[i % 2], "flag": flag, "n": n, "tags": tags, "note": note}
            for i, (flag, n, tags, note) in enumerate(values * 6)
        ]
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        jinja = jinja2.Environment(finalize=lambda one: str(one).lower() if isinstance(one, bool) else one)
        expected = {row["text"]: jinja.from_string(source).render(row) for row in rows}
        template = Template(source)
        assert {one.text: template.render(one) for one in read_splits(file)["all"]} == expected
        assert {row["text"]: template.render(unlabelled_example(row, "request")) for row in rows} == expected


class TestFields:
    def test_are_what_the_row_brought(self) -> None:
        rendered = Template("say {{ text }}!{{ blank }}{{ n }}").fill(Example("hi", columns={"blank": "", "n": 5}))
        assert rendered == Rendered("say hi!5", ((4, 6), (7, 8)))

    def test_constants_are_the_templates_own(self) -> None:
        source = "{{ '<s>' }}{{ text }}{{ '</s>' if end else '' }}{{ role|default('<r>') }}{{ '<' ~ text }}"
        rendered = Template(source).fill(Example("</s>", columns={"end": True}))
        assert rendered == Rendered("<s></s></s><r><</s>", ((3, 7), (14, 19)))

    def test_another_text_may_stand_in(self) -> None:
        assert Template("{{ text }}.").fill(Example("long"), "lo") == Rendered("lo.", ((0, 2),))

    def test_no_character_of_the_text_is_lost(self) -> None:
        text = "a\ue001<bos>\ue000b {{ 7 * 7 }} {% raw %}"
        assert Template("{{ text }}").fill(Example(text)) == Rendered(text, ((0, len(text)),))

    def test_as_words(self) -> None:
        template = Template("Title: {{ title|upper }}\nText: {{ text }}\nLabel:")
        assert template.fields(Example("two\nlines", columns={"title": "x", "other": "unused"})) == ["X", "two\nlines"]

    def test_names_are_the_columns_that_it_uses(self) -> None:
        source = (
            "{% for i in items if i.ok %}{{ title }}{{ i }}{{ loop.index }}{% endfor %}{% if n %}!{% endif %}{{ i }}"
        )
        assert Template(source).names == {"items", "title", "n", "i"}


class TestMistakes:
    @pytest.mark.parametrize("source", ["", "no place", "{{ 'text' }}", "{# {{ text }} #}", "{ text }", "{{ 1 }}"])
    def test_no_column_at_all(self, source: str) -> None:
        with pytest.raises(TemplateError, match=r"must contain \{\{ text \}\}, the place of the") as caught:
            Template(source)
        assert str(caught.value).endswith(f"got {source!r}")

    def test_other_columns_will_do(self) -> None:
        assert render("{{ title }} by {{ meta.by }}") == "the don's first-night (a tale) by Ada"

    @pytest.mark.parametrize("source", ["{{ text", "{% if text %}{{ text }}", "{% bad %}", "{{ text | }}"])
    def test_that_does_not_parse(self, source: str) -> None:
        with pytest.raises(TemplateError, match="the template does not parse: ") as caught:
            Template(source)
        assert repr(source) in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("source", "words"),
        [
            (
                "{{ titel }}",
                "a name that the data lacks: 'titel' is undefined; columns: blank, count, empty, messages,",
            ),
            ("{{ meta.yaer }}", "'yaer' is undefined"),
            ("{{ words[7] }}", "item 7 of 3 is undefined"),
            ("{{ text.__class__ }}", "'__class__' of text is undefined"),
            ("{{ empty|first }}", "the first of nothing is undefined"),
            ("{% for c in text %}{{ c }}{% endfor %}", r"fails on an example: \{% for %\} expects a list, got text"),
            ("{% for a, b in words %}{% endfor %}", "for a, b %} expects lists of 2 in the list, got text"),
            ("{{ title < count }}", "comparing expects two texts or two numbers, got text and a number"),
            ("{{ words == words }}", "comparing expects text or numbers, got a list: compare its length or its items"),
            ("{{ title|join }}", "join expects a list, got text"),
            ("{{ words|upper }}", "upper expects text, got a list"),
            ("{{ count|length }}", "length expects text, a list or an object, got a number"),
            ("{{ title|truncate(1) }}", "truncate expects a length of at least 3, that of '...', got 1"),
            ("{{ words in text }}", "'in' expects text in a text, a list or an object, got a list in text"),
        ],
    )
    def test_rows_that_do_not_fit(self, source: str, words: str) -> None:
        with pytest.raises(TemplateError) as caught:
            render(source + "{{ text }}")
        assert words.replace("\\", "") in str(caught.value)
