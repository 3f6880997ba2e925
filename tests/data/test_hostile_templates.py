"""Templates from somebody else: refused by name before anything is made of them, or done within bounds."""

import json
import tracemalloc
from typing import Any

import pytest

from softprompt.data.examples import Example
from softprompt.data.templates.template import CHARACTERS, CHARACTERS_EACH, Template
from softprompt.data.templates.template_syntax import CHARACTERS as LONGEST
from softprompt.data.templates.template_syntax import DEPTH, NODES
from softprompt.errors import TemplateError

TWICE = "{% set a=['x'] %}{% set b=['x'] %}" + "{% set a=[a,a] %}{% set b=[b,b] %}" * 40


def refused(source: str) -> str:
    """What is said of a template that may not even be asked for."""
    with pytest.raises(TemplateError) as caught:
        Template("{{ text }}" + source)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (TWICE + "{{ a==b }}", "{% set %}"),
        (TWICE + "{{ a in [b] }}", "{% set %}"),
        (TWICE + "{{ a is eq b }}", "{% set %}"),
        ("{% set a=('x',) %}" + "{% set a=(a,a) %}" * 40 + "{{ {a: 1}[a] }}", "{% set %}"),
        ("{% set a %}" + "x" * 30_000 + "{% endset %}" + "{{ a }}" * 4_000, "{% set %}"),
        ("{% set n = namespace(a=1) %}", "{% set %}"),
        ("{% filter upper %}" + "x" * 30_000 + "{% endfilter %}", "{% filter %}"),
        ("{% macro f() %}" + "x" * 30_000 + "{% endmacro %}{{ f() }}", "{% macro %}"),
        ("{% call f() %}" + "x" * 30_000 + "{% endcall %}", "{% call %}"),
        ("{% include 'other' %}", "{% include %}"),
        ("{% import 'other' as o %}", "{% import %}"),
        ("{% from 'other' import o %}", "{% from %}"),
        ("{% extends 'other' %}", "{% extends %}"),
        ("{% block b %}{% endblock %}", "{% block %}"),
        ("{% with a = text %}{{ a }}{% endwith %}", "{% with %}"),
        ("{% autoescape true %}{{ text }}{% endautoescape %}", "{% autoescape %}"),
        ("{{ 'x' * 999999999 }}", "arithmetic ('*')"),
        ("{{ 9 ** 9 ** 9 }}", "arithmetic ('**')"),
        ("{{ '%999999999d' % 1 }}", "arithmetic ('%')"),
        ("{{ text + text }}", "arithmetic ('+')"),
        ("{{ -text }}", "arithmetic ('-')"),
        ("{{ range(10**9)|list }}", "the filter 'list'"),
        ("{% for i in range(10**9) %}{% endfor %}", "calls range(), which is not part of its language: only filters"),
        ("{{ text.strip() }}", "calls strip(), which is not part of its language: use the filter 'trim'"),
        ("{{ '{:999999999}'.format(1) }}", "calls format()"),
        ("{{ text|format(1) }}", "the filter 'format'"),
        ("{{ text|center(10**9) }}", "the filter 'center'"),
        ("{{ ''|attr('__class__') }}", "the filter 'attr'"),
        ("{{ text is eq text }}", "the test 'eq'"),
        ("{{ text is in text }}", "the test 'in'"),
        ("{{ [text, text] }}", "a list of its own"),
        ("{{ (text, text) }}", "a tuple of its own"),
        ("{{ {'a': text} }}", "a dict of its own"),
        ("{{ text in [[text]] }}", "a list of its own"),
        ("{{ text[::2] }}", "a step in [:]"),
        ("{% for a in text recursive %}{% endfor %}", "a recursive {% for %}"),
        ("{% for a, (b, c) in text %}{% endfor %}", "names in names"),
        ("{{ text|join(*text) }}", "arguments by '*'"),
        ("{{ text|upper(1) }}", "other arguments than it takes"),
        ("{{ '\\ud800' }}", "half a character (\\ud800)"),
        ("\ud800", "does not parse"),
        ("{{ " + "9" * 5000 + " }}", "does not parse"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", f"nested more than {DEPTH} deep"),
        ("{{ " + "not " * 15_000 + "1 }}", f"nested more than {DEPTH} deep"),
        ("{{ text" + ".a" * 30_000 + " }}", f"nested more than {DEPTH} deep"),
        ("{{ text" + "|trim" * 9_000 + " }}", f"nested more than {DEPTH} deep"),
        ("{{ text" + " or text" * 7_000 + " }}", f"nested more than {DEPTH} deep"),
        ("{% for a in b %}" * 40 + "{% endfor %}" * 40, f"nested more than {DEPTH} deep"),
        ("{{ text" + " ~ text" * 9_000 + " }}", f"more than {NODES:,} parts"),
        ("{{ text" + " < text" * 9_000 + " }}", f"more than {NODES:,} parts"),
        ("{{text}}" * 8_000, f"more than {NODES:,} parts"),
        ("{{text}}" * 120_000, f"has 960,010 characters, expected at most {LONGEST:,}: shorten it"),
        ("{{text}}" * 500_000, f"has 4,000,010 characters, expected at most {LONGEST:,}"),
        ("{% set a %}" + "x" * 300_000 + "{% endset %}", f"has 300,033 characters, expected at most {LONGEST:,}"),
    ],
    ids=lambda one: one[:40],
)
def test_refused_by_name(source: str, words: str) -> None:
    assert words in refused(source)


LIST = [["ab"] * 30] * 30


@pytest.mark.parametrize(
    ("source", "columns", "words"),
    [
        ("{% for a in list %}" * 30 + "x" + "{% endfor %}" * 30, {"list": [1] * 3}, "too many steps"),
        ("{% for a in list %}{% for b in list %}{% for c in list %}" + "{% endfor %}" * 3, {"list": [1] * 90}, "steps"),
        ("{% for a in list %}" * 3 + "{{ text }}" + "{% endfor %}" * 3, {"list": [1] * 30}, "too much"),
        ("{% for a in list %}" * 3 + "x" * 50_000 + "{% endfor %}" * 3, {"list": [1] * 30}, "too much"),
        ("{% for a in list %}" * 2 + "{{ list|tojson }}" + "{% endfor %}" * 2, {"list": LIST}, "too much"),
        ("{% for a in list %}" * 2 + "{{ list|join }}" + "{% endfor %}" * 2, {"list": ["x" * 99] * 99}, "too much"),
        (
            "{% for a in list %}" * 2 + "{% if list|string == text %}{% endif %}" + "{% endfor %}" * 2,
            {"list": LIST},
            "too much",
        ),
        ("{{ text" + "|replace('a', 'aaaaaaaaaaaaaaaa')" * 20 + " }}", {}, "too much"),
        ("{{ text|replace('', text) }}", {}, "too much"),
        ("{{ list|join(text) }}", {"list": [""] * 9_999}, "too much"),
        ("{{ text" + " ~ text" * 3_000 + " }}", {}, "too much"),
        ("{{ text }}" * 1_900, {}, "too much"),
    ],
    ids=lambda one: one[:40] if isinstance(one, str) else "row",
)
def test_bounded_before_it_is_made(source: str, columns: dict[str, Any], words: str) -> None:
    text = "a" * 2_000
    template, example = Template("{{ text }}" + source), Example(text, columns=columns)
    most = CHARACTERS + CHARACTERS_EACH * (len(template.source) + len(text) + len(json.dumps(str(columns))))
    tracemalloc.start()
    try:
        with pytest.raises(TemplateError, match=words) as caught:
            template.fill(example)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert peak < 4 * most + 1_000_000


def test_a_number_that_python_does_not_write() -> None:
    with pytest.raises(TemplateError, match="fails on an example: Exceeds the limit"):
        Template("{{ number }}").fill(Example("a", columns={"number": 10**5_000}))


def test_lists_in_lists_are_no_depth_of_ours() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(TemplateError, match="fails on an example: maximum recursion depth"):
        Template("{{ deep }}").fill(Example("a", columns={"deep": deep}))
    while isinstance(deep, list):  # taken apart by hand, as Python's own way would be deep too
        deep = deep.pop()


def test_what_a_long_text_needs_is_let_through() -> None:
    text = "ab cd " * 10_000
    messages = [{"role": "user", "content": "word"}] * 5_000
    template = Template(
        "{{ text }}{{ text|trim|truncate(2000, true)|length }}{{ text|replace('ab', 'longer')|upper|length }}"
        "{% for m in messages if m.role == 'user' %}{{ loop.index }}: {{ m.content|title }}\n{% endfor %}"
    )
    expected = "".join(f"{index}: Word\n" for index in range(1, 5_001))
    assert template.render(Example(text, columns={"messages": messages})) == f"{text}2000100000{expected}"
