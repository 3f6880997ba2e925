"""Tasks: templates that are sandboxed and checked at once, labels, verbalizers, and data that does not fit them."""

import json
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from softprompt.data import Example, Splits
from softprompt.errors import DataError, PromptFileError, SoftpromptError, TemplateError
from softprompt.task import Task, TaskSpec
from softprompt.template import FIELD_END, FIELD_START, Template


def splits(train: Sequence[Example], validation: Sequence[Example] = (), test: Sequence[Example] = ()) -> Splits:
    return Splits(tuple(train), tuple(validation), tuple(test), "made/here", ())


GOOD, BAD = Example("fine", "good"), Example("dull", "bad")
TRANSLATED = Example("one", references=("eins", "ein"))


class TestTemplate:
    def test_text_and_columns_are_filled_in(self) -> None:
        example = Example("It rains.", "bad", columns={"title": "Weather", "n": "3"})
        assert Template("{{ title }} {{ n }}: {{ text }}\n").render(example) == "Weather 3: It rains.\n"

    def test_jinja_works(self) -> None:
        template = Template("{% if title %}{{ title | upper }}: {% endif %}{{ text | trim }}")
        assert template.render(Example(" a ", columns={"title": "x"})) == "X: a"
        assert template.render(Example(" a ", columns={"title": ""})) == "a"

    def test_only_what_the_data_gave_is_marked(self) -> None:
        marked = Template("say {{ text }}!").render_marked(Example("hi"))
        assert marked == f"say {FIELD_START}hi{FIELD_END}!"

    def test_marks_in_the_text_itself_are_dropped(self) -> None:
        text = f"a{FIELD_END}<bos>{FIELD_START}b"
        assert Template("{{ text }}").render_marked(Example(text)) == f"{FIELD_START}a<bos>b{FIELD_END}"

    def test_another_text_may_stand_in(self) -> None:
        assert Template("{{ text }}.").render_marked(Example("long"), "lo") == f"{FIELD_START}lo{FIELD_END}."

    def test_template_syntax_in_the_text_is_only_text(self) -> None:
        assert Template("{{ text }}").render(Example("{{ 7 * 7 }} {% raw %}")) == "{{ 7 * 7 }} {% raw %}"

    @pytest.mark.parametrize(
        "source", ["", "no place", "{{ txt }}", "{% set text = 'mine' %}{{ text }}", "{# {{ text }} #}", "{ text }"]
    )
    def test_without_text(self, source: str) -> None:
        with pytest.raises(TemplateError, match=r"the template must contain \{\{ text \}\}, the place of") as caught:
            Template(source)
        assert f"got {source!r}" in str(caught.value)

    @pytest.mark.parametrize("source", ["{{ text", "{% if text %}{{ text }}", "{{ text | nofilter }}", "{% bad %}"])
    def test_that_does_not_parse(self, source: str) -> None:
        with pytest.raises(TemplateError, match="the template does not parse: ") as caught:
            Template(source)
        assert repr(source) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_unknown_column(self) -> None:
        with pytest.raises(TemplateError, match=r"a name that the data lacks: 'titel' is undefined; columns: text, ti"):
            Template("{{ titel }} {{ text }}").render(Example("a", columns={"title": "x"}))

    def test_expression_that_fails(self) -> None:
        with pytest.raises(TemplateError, match=r"fails on an example: .*division.*got '\{\{ text \}\}\{\{ 1/0 \}\}'"):
            Template("{{ text }}{{ 1/0 }}").render(Example("a"))

    @pytest.mark.parametrize(
        "escape",
        [
            "{{ ''.__class__.__mro__ }}",
            "{{ text.__class__.__base__.__subclasses__() }}",
            "{{ ''['__class__']['__mro__'] }}",
            "{{ '' | attr('__class__') | attr('__mro__') }}",
            "{{ self.__init__.__globals__ }}",
            "{{ cycler.__init__.__globals__.os.system('true') }}",
            "{{ '{0.__class__.__mro__}'.format(text) }}",
            "{{ range(10 ** 9) | list }}",
            "{% set _ = [].append(1) %}",
        ],
    )
    def test_sandbox_holds(self, escape: str) -> None:
        with pytest.raises(TemplateError) as caught:
            print(Template("{{ text }} " + escape).render(Example("a")))
        assert "\n" not in str(caught.value)

    def test_names_are_the_columns_that_it_uses(self) -> None:
        source = "{% for i in range(2) %}{{ title }}{% endfor %} {{ text|lower }}{% if n %}!{% endif %}"
        assert Template(source).names == {"text", "title", "n"}

    def test_fields_are_what_comes_from_the_data(self) -> None:
        template = Template("Title: {{ title|upper }}\nText: {{ text }}\nLabel:")
        example = Example("two\nlines", columns={"title": "x", "other": "unused"})
        assert template.fields(example) == ["X", "two\nlines"]


class TestHostileTemplates:
    """They end at once, whatever they try; the alarm is for the day when one does not."""

    @pytest.fixture(autouse=True)
    def _alarm(self) -> Iterator[None]:
        def late(*_: object) -> None:
            raise TimeoutError("still at it")

        # seconds of this process's own computing: others on the machine do not count
        before = signal.signal(signal.SIGPROF, late)
        signal.setitimer(signal.ITIMER_PROF, 60)
        yield
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)

    def refused(self, source: str, text: str = "a") -> str:
        with pytest.raises(TemplateError) as caught:
            Template("{{ text }}" + source).render(Example(text))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize("text", ["a", "long " * 1000], ids=["short", "long"])
    @pytest.mark.parametrize(
        "source",
        [
            "{{ 'a' * 10**9 }}",
            "{{ [0] * 10**8 }}",
            "{% for i in range(10**9) %}x{% endfor %}",
            "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(99) %}" + "{% endfor %}" * 3,
            "{% set x = range(1000) | list %}{% for a in x %}{% for b in x %}{% for c in x %}" + "{% endfor %}" * 3,
            "{% set a = 'a' %}" + "{% set a = a ~ a %}" * 30,
            "{% set a = 'a' %}" + "{% set a = a + a %}" * 30,
            "{% set a = 'a' %}" + "{% set a = a | replace('a', 'aaaaaaaa') %}" * 10,
            "{% set a = 'a' %}" + "{% set a = a.replace('a', 'aaaaaaaa') %}" * 10,
            "{% set a = 'a' %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 30,
            "{% set a = [1] %}" + "{% set a = [a, a] %}" * 30 + "{{ a }}",
            "{% set a = 1 %}" + "{% set a = namespace(a=a, b=a) %}" * 30 + "{{ a }}",
            "{% set n = namespace(a='a') %}{% for i in range(30) %}{% set n.a = n.a + n.a %}{% endfor %}",
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
            "{{ 'a' | center(10**9) }}",
            "{{ 'a'.zfill(10**9) }}",
            "{{ range(9000) | map('string') | map('center', 90000) | join }}",
            "{% set x = 'a' * 90000 %}{{ range(9000) | join(x) }}",
            "{% set x = 'a' * 90000 %}{{ {}.fromkeys(range(9000), x).values() | join }}",
            "{{ 1.5 | round(10**9, 'ceil') }}",
        ],
        ids=lambda source: source[:50],
    )
    def test_that_makes_too_much(self, source: str, text: str) -> None:
        most = 1_000_000 + 1_000 * len(text)
        message = self.refused(source, text)
        assert f": it makes too much, more than {most:,} characters and items: simplify it; got " in message

    @pytest.mark.parametrize(
        ("source", "words"),
        [
            ("{{ 10 ** 10 ** 10 }}", "a number of more than 64 bits"),
            ("{% set n = namespace(a=7) %}{% for i in range(40) %}{% set n.a = n.a * n.a %}{% endfor %}", "64 bits"),
            ("{{ '%999999999d' % 1 }}", "% does not format text here"),
            ("{{ '%999999999d' | format(1) }}", "No filter named 'format'"),
            ("{{ '{:999999999}'.format(1) }}", "format is not available here"),
            ("{{ lipsum(10**6) }}", "'lipsum' is undefined"),
            ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
            ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "does not parse: maximum recursion"),
            ("{{ " + "9" * 5000 + " }}", "does not parse: Exceeds the limit"),
        ],
        ids=lambda source: source[:40],
    )
    def test_that_tries_something_else(self, source: str, words: str) -> None:
        assert words in self.refused(source)

    @pytest.mark.parametrize(
        ("source", "expected"),
        [
            ("{{ '-' * 20 }}", "-" * 20),
            ("{{ 2 ** 10 }} {{ 7 % 3 }} {{ 3000 * 4000 }}", "1024 1 12000000"),
            ("{{ (text ~ 1 ~ '!')[-2:] }}", "1!"),
            (
                "{% for w in text.split()[:3] %}{{ loop.index }}/{{ loop.length }}{{ w | upper }} {% endfor %}",
                "1/3AB 2/3CD 3/3AB ",
            ),
            ("{% set n = namespace(a=0) %}{% for c in text %}{% set n.a = n.a + 1 %}{% endfor %}{{ n.a }}", "60000"),
            ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m('a') }}{{ m(m('a')) }}", "<a><<a>>"),
            ("{{ text | trim | truncate(2000, true, '...') | length }}", "2000"),
            ("{{ text | replace('ab', 'longer') | wordcount }}", "20000"),
            ("{{ [] | first | default('none') }}", "none"),
            ("{{ range(3) | map('string') | join('-') }}", "0-1-2"),
            ("{% for k, v in {'a': 1}.items() if v %}{{ k }}{{ v }}{% else %}none{% endfor %}", "a1"),
        ],
    )
    def test_what_a_long_text_needs_is_let_through(self, source: str, expected: str) -> None:
        text = "ab cd " * 10000
        assert Template("{{ text }}" + source).render(Example(text)) == text + expected


class TestClassification:
    def test_labels_are_those_of_train_sorted(self) -> None:
        spec = Task.classification(splits([GOOD, BAD])).spec
        assert spec.labels == spec.verbalizers == ("bad", "good")

    def test_labels_given_keep_their_order(self) -> None:
        task = Task.classification(splits([GOOD, BAD]), labels=["good", "bad", "neutral"])
        assert task.spec.labels == ("good", "bad", "neutral")
        assert task.spec.label_index == {"good": 0, "bad": 1, "neutral": 2}

    def test_verbalizers_for_some(self) -> None:
        spec = Task.classification(splits([GOOD, BAD]), verbalizers={"bad": "a waste"}).spec
        assert dict(zip(spec.labels, spec.verbalizers, strict=True)) == {"bad": "a waste", "good": "good"}

    def test_separator_depends_on_the_end_of_the_template(self) -> None:
        for template, separator in (("{{ text }}:", " "), ("{{ text }}: ", ""), ("{{ text }}\n", "")):
            assert Task.classification(splits([GOOD, BAD]), template=template).spec.answer_separator == separator

    def test_name_is_that_of_the_source(self) -> None:
        assert Task.classification(splits([GOOD, BAD])).name == "here"

    def test_from_a_file_with_other_columns(self, tmp_path: Path) -> None:
        rows = [{"review": f"r{i}", "stars": i % 2} for i in range(20)]
        (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = Task.classification(tmp_path / "r.jsonl", text_column="review", label_column="stars")
        assert task.spec.labels == ("0", "1")
        assert len(task.train) + len(task.validation) + len(task.test) == 20

    @pytest.mark.parametrize(
        ("train", "options", "words"),
        [
            ([GOOD, GOOD], {}, "at least two labels, got only 'good': add examples of another class"),
            ([GOOD, BAD], {"labels": []}, "at least two labels, got none"),
            ([GOOD, BAD], {"labels": ["good", "good", "bad"]}, "labels must differ, got good, good, bad"),
            ([GOOD, BAD], {"verbalizers": {"bda": "poor"}}, "verbalizer for unknown label 'bda': labels are bad, good"),
            ([GOOD, BAD], {"verbalizers": {"bad": " "}}, "label 'bad' has a blank verbalizer"),
            ([GOOD, BAD], {"labels": ["good", "neutral"]}, r"train split has label 'bad' \(1 rows\).*good, neutral"),
            ([TRANSLATED], {}, "made/here: expected rows with a label, got generation rows"),
        ],
    )
    def test_mistakes(self, train: list[Example], options: dict[str, list[str]], words: str) -> None:
        with pytest.raises(DataError, match=words):
            Task.classification(splits(train), **options)  # type: ignore[arg-type]

    @pytest.mark.parametrize("where", ["validation", "test"])
    def test_unknown_label_outside_train(self, where: str) -> None:
        odd = [Example("x", "neutral"), Example("y", "neutral"), Example("z", "other"), GOOD]
        with pytest.raises(DataError) as caught:
            Task.classification(splits([GOOD, BAD], **{where: odd}))
        assert str(caught.value) == (
            f"made/here: the {where} split has label 'neutral' (2 rows), which is not among the labels bad, good: "
            "correct the rows, or name all labels"
        )

    @pytest.mark.parametrize(
        "template", ["{{ text", "no place", "{{ text }}{{ nothing }}", "{{ text.__class__.mro() }}"]
    )
    def test_template_is_tried_at_once(self, template: str) -> None:
        with pytest.raises(TemplateError):
            Task.classification(splits([GOOD, BAD]), template=template)

    def test_empty_template_is_not_the_default_one(self) -> None:
        with pytest.raises(TemplateError):
            Task.classification(splits([GOOD, BAD]), template="")


class TestOtherWays:
    def test_generation(self) -> None:
        spec = Task.generation(splits([TRANSLATED]), template="{{ text }} =", max_length=64).spec
        assert (spec.kind, spec.template, spec.labels, spec.max_length) == ("generation", "{{ text }} =", (), 64)

    def test_generation_of_labels(self) -> None:
        with pytest.raises(DataError, match="expected rows with target or references, got classification rows"):
            Task.generation(splits([GOOD, BAD]))

    def test_of_tells_the_kind(self) -> None:
        assert Task.of(splits([GOOD, BAD]), template="{{ text }}:").spec.kind == "classification"
        assert Task.of(splits([TRANSLATED]), template="{{ text }}:").spec.kind == "generation"

    @pytest.mark.parametrize("options", [{"labels": ["a", "b"]}, {"verbalizers": {"a": "b"}}])
    def test_of_refuses_labels_for_generation(self, options: dict[str, list[str]]) -> None:
        with pytest.raises(DataError, match="labels were given, but its rows are for generation"):
            Task.of(splits([TRANSLATED]), **options)  # type: ignore[arg-type]

    def test_matching_takes_the_task_as_it_was(self) -> None:
        spec = Task.classification(splits([GOOD, BAD]), verbalizers={"bad": "poor"}).spec
        task = Task.matching(spec, splits([], test=[GOOD]))
        assert task.spec is spec
        assert task.test == (GOOD,)

    def test_matching_refuses_an_unknown_label(self) -> None:
        spec = Task.classification(splits([GOOD, BAD])).spec
        with pytest.raises(DataError, match=r"the test split has label 'so-so' \(1 rows\)"):
            Task.matching(spec, splits([], test=[GOOD, Example("x", "so-so")]))

    def test_matching_refuses_the_other_kind(self) -> None:
        spec = Task.classification(splits([GOOD, BAD])).spec
        with pytest.raises(DataError, match="was learned for classification, these rows are for generation"):
            Task.matching(spec, splits([TRANSLATED]))

    def test_matching_refuses_data_without_the_columns(self) -> None:
        titled = Example("x", "good", columns={"title": "t"})
        spec = Task.classification(
            splits([titled, Example("y", "bad", columns={"title": "t"})]), template="{{ text }}{{ title }}"
        ).spec
        with pytest.raises(TemplateError, match="'title' is undefined; columns: text"):
            Task.matching(spec, splits([], test=[GOOD]))


class TestSpecAsDictionary:
    def test_round_trip(self) -> None:
        spec = TaskSpec("classification", "{{ text }}\n", ("a", "b"), ("yes", "no"), 77)
        assert TaskSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec

    @pytest.mark.parametrize(
        "change",
        [
            {"kind": "regression"},
            {"template": None},
            {"template": "no place"},
            {"template": "{{ text"},
            {"labels": None},
            {"labels": ["a"]},
            {"labels": [1, 2]},
            {"verbalizers": ["yes"]},
            {"max_length": "77"},
        ],
        ids=str,
    )
    def test_damage_is_a_prompt_file_error(self, change: dict[str, object]) -> None:
        whole = TaskSpec("classification", "{{ text }}", ("a", "b"), ("yes", "no"), 77).to_dict()
        with pytest.raises(PromptFileError, match="the saved task "):
            TaskSpec.from_dict({**whole, **change})

    @pytest.mark.parametrize("lost", ["kind", "template", "labels", "verbalizers", "max_length"])
    def test_loss_is_a_prompt_file_error(self, lost: str) -> None:
        values = TaskSpec("generation", "{{ text }}").to_dict()
        del values[lost]
        with pytest.raises(SoftpromptError, match=f"the saved task lacks or misuses '{lost}'"):
            TaskSpec.from_dict(values)
