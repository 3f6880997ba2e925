"""Task: examples, template, labels and metric; TaskSpec is the part that a saved prompt keeps.

A template is Jinja2, sandboxed: ``{{ text }}`` is the example's text, other names are columns of its row. What the
user's data puts into it is marked while rendering, so that later steps can tell the template's own words from text
that must never become a special token.
"""

import math
import threading
from collections import Counter
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from dataclasses import dataclass, field
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, Literal, Self

import jinja2
import jinja2.meta
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from softprompt.data import Example, Splits, read_splits
from softprompt.errors import DataError, PromptFileError, TemplateError

CLASSIFICATION_TEMPLATE = "{{ text }}\nLabel:"
GENERATION_TEMPLATE = "{{ text }}\nOutput:"

# private-use characters around what the data put into a template
FIELD_START, FIELD_END = "\ue000", "\ue001"

# what one rendering may make, in characters and items: so many, and so many for each character of its data
ALLOWANCE, ALLOWANCE_PER_CHARACTER = 1_000_000, 1_000
STEP, ITEM = 100, 10  # what a call, a filter or a turn of a loop counts for, and what an item of a list does
_CONTAINERS = (list, tuple, dict, set, frozenset, KeysView, ValuesView, ItemsView)


class Template:
    """A compiled template, in a sandbox that also limits what it makes: a hostile one ends soon, and in little memory.

    Raises:
        TemplateError: it does not parse, or never uses ``{{ text }}``.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._sandbox = _Sandbox()
        try:
            tree = self._sandbox.parse(source)
            names = jinja2.meta.find_undeclared_variables(tree)
            self._compiled = self._sandbox.from_string(_Metering().visit(tree))
        except Exception as error:  # Jinja2's own, and Python's of what is nested too deep
            raise TemplateError(f"the template does not parse: {error}; got {source!r}") from error
        if "text" not in names:
            raise TemplateError(
                f"the template must contain {{{{ text }}}}, the place of the example's text; got {source!r}"
            )

    def render_marked(self, example: Example, text: str | None = None) -> str:
        """Fill in the example (with ``text`` in place of its own, if given); fields stay between their marks.

        Raises:
            TemplateError: a name in the template is no column of the data, an expression fails, or it makes too much.
        """
        values = {**example.columns, "text": example.text if text is None else text}
        self._sandbox.meter.start(values)
        try:
            return "".join(self._sandbox.counted(part) for part in self._compiled.generate(values))
        except jinja2.UndefinedError as error:
            columns = ", ".join(sorted(values))
            raise TemplateError(f"the template uses a name that the data lacks: {error}; columns: {columns}") from error
        except Exception as error:
            raise TemplateError(f"the template fails on an example: {error}; got {self.source!r}") from error

    def render(self, example: Example) -> str:
        """The filled-in template as plain text."""
        return unmarked(self.render_marked(example))


class _Meter(threading.local):
    """What a rendering may still make; nothing while compiling, so that constants too are made at rendering."""

    most = left = 0.0

    def start(self, values: Mapping[str, Any]) -> None:
        self.most = self.left = ALLOWANCE + ALLOWANCE_PER_CHARACTER * sum(len(str(value)) for value in values.values())

    def spend(self, amount: float) -> None:
        self.left -= amount
        if self.left < 0:
            raise SecurityError(f"it makes too much, more than {self.most:,} characters and items: simplify it")


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja2's sandbox with a meter on what can make much of little; formatting, which could with any width, is off."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=self._printed)
        self.meter = _Meter()
        del self.globals["lipsum"], self.filters["format"]
        self.filters = {name: self._metered(function) for name, function in self.filters.items()}
        self.filters["loop_items"] = self._loop_items

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str | bytes):
            raise SecurityError("% does not format text here: write the parts one after another")
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if operator in ("*", "**") and bits > 64:
                raise SecurityError("it makes a number of more than 64 bits")
        elif operator == "*":
            self._foresee(left, right)
        return self.counted(super().call_binop(context, operator, left, right))

    def call(self, context: Any, function: Any, *arguments: Any, **named: Any) -> Any:
        if getattr(function, "__name__", "") in ("format", "format_map"):
            raise SecurityError("format is not available here: write the parts one after another")
        self._foresee(getattr(function, "__self__", None), *arguments, *named.values())
        return self.counted(super().call(context, function, *arguments, **named))

    def counted(self, value: Any) -> Any:
        """``value``, taken off what may still be made."""
        self.meter.spend(STEP + self._size(value))
        return value

    def _printed(self, value: Any) -> str:
        return f"{FIELD_START}{unmarked(str(self.counted(value)))}{FIELD_END}"

    def _loop_items(self, value: Any) -> Any:
        items = value if isinstance(value, str | list | tuple | dict | range) else list(value)
        self.meter.spend(STEP * len(items))
        return items

    def _metered(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def metered(*arguments: Any, **named: Any) -> Any:
            self._foresee(*arguments, *named.values())
            result = function(*arguments, **named)
            return self.counted(list(result) if isinstance(result, Iterator) else result)

        return metered

    def _foresee(self, *operands: Any) -> None:
        """Refuse what could make more than memory holds: the product of the two largest, as in replacing or padding."""
        sizes = sorted(max(1, abs(one) if isinstance(one, int) else self._size(one)) for one in operands)
        if math.prod(sizes[-2:]) > 10 * self.meter.left:
            self.meter.spend(math.inf)

    def _size(self, value: Any) -> float:
        """Characters and items of ``value`` written out; infinite if they are more than may still be made."""
        size, rest = 0, [value]
        while rest and size <= self.meter.left:
            one = rest.pop()
            if isinstance(one, Namespace):
                one = one._Namespace__attrs
            if isinstance(one, str | bytes | range):
                size += len(one)
            elif isinstance(one, _CONTAINERS):
                items = [*one, *one.values()] if isinstance(one, dict) else [*one]
                size += STEP + ITEM * len(items)
                rest += items
        return size if size <= self.meter.left else math.inf


class _Metering(NodeTransformer):
    """Put what loops and ``~`` do through filters, which are metered."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "loop_items")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno, environment=node.environment), "join")


def _filtered(node: nodes.Node, name: str) -> nodes.Node:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=node.environment)


def unmarked(text: str) -> str:
    """A rendered template without the marks around its fields."""
    return text.replace(FIELD_START, "").replace(FIELD_END, "")


@dataclass(frozen=True)
class TaskSpec:
    """What a prompt was learned for, without the examples.

    Attributes:
        kind: classification or generation.
        template: the Jinja2 source.
        labels: names of the classes as they stand in the data; empty for generation.
        verbalizers: the words the model sees for each label, in the same order.
        max_length: tokens of template and text, at most.
    """

    kind: Literal["classification", "generation"]
    template: str
    labels: tuple[str, ...] = ()
    verbalizers: tuple[str, ...] = ()
    max_length: int = 512

    def __post_init__(self) -> None:
        if self.kind == "generation":
            return
        if len(self.labels) < 2:
            only = f"only '{self.labels[0]}'" if self.labels else "none"
            raise DataError(f"classification needs at least two labels, got {only}: add examples of another class")
        if len(set(self.labels)) < len(self.labels):
            raise DataError(f"labels must differ, got {', '.join(self.labels)}")
        if len(self.verbalizers) != len(self.labels):
            raise DataError(
                f"expected one verbalizer for each of {len(self.labels)} labels, got {len(self.verbalizers)}"
            )
        if blank := [label for label, words in zip(self.labels, self.verbalizers, strict=True) if not words.strip()]:
            raise DataError(f"label '{blank[0]}' has a blank verbalizer: give the words that the model should answer")

    @cached_property
    def compiled(self) -> Template:
        return Template(self.template)

    @property
    def answer_separator(self) -> str:
        """A space before the answer, unless the template ends in white space already."""
        return "" if self.template[-1:].isspace() else " "

    @cached_property
    def label_index(self) -> dict[str, int]:
        return {label: index for index, label in enumerate(self.labels)}

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "template": self.template,
            "labels": list(self.labels),
            "verbalizers": list(self.verbalizers),
            "max_length": self.max_length,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read back ``to_dict``'s result.

        Raises:
            PromptFileError: keys or types are not those of a task.
        """
        try:
            kind, template, max_length = values["kind"], values["template"], values["max_length"]
            labels, verbalizers = tuple(values["labels"]), tuple(values["verbalizers"])
        except (KeyError, TypeError) as error:
            raise PromptFileError(f"the saved task lacks or misuses {error}") from error
        strings = all(isinstance(value, str) for value in (template, *labels, *verbalizers))
        if kind not in ("classification", "generation") or not strings or not isinstance(max_length, int):
            raise PromptFileError("the saved task has values of the wrong type")
        try:
            spec = cls(kind, template, labels, verbalizers, max_length)
            spec.compiled  # noqa: B018 (a template that does not compile is found here, not at the first example)
        except (DataError, TemplateError) as error:
            raise PromptFileError(f"the saved task cannot be used: {error}") from error
        return spec


@dataclass(frozen=True)
class Task:
    """A TaskSpec with its examples. Build one with ``Task.classification``, ``Task.generation`` or ``Task.of``."""

    spec: TaskSpec
    splits: Splits
    name: str = field(default="task")

    @property
    def train(self) -> tuple[Example, ...]:
        return self.splits.train

    @property
    def validation(self) -> tuple[Example, ...]:
        return self.splits.validation

    @property
    def test(self) -> tuple[Example, ...]:
        return self.splits.test

    @classmethod
    def classification(
        cls,
        source: str | Path | Splits,
        *,
        template: str | None = None,
        labels: Sequence[str] | None = None,
        verbalizers: Mapping[str, str] | None = None,
        max_length: int = 512,
        **columns: str,
    ) -> Self:
        """A classification task.

        Args:
            source: what ``data.read_splits`` reads, or splits already read.
            labels: class names in the order wanted; those of the training examples, sorted, if not given.
            verbalizers: words for some or all labels; a label's own name for the others.
            max_length: tokens of template and text, at most.
            columns: ``text_column=``, ``label_column=`` of the reader.

        Raises:
            DataError: no examples, one class only, a label that is not among ``labels``.
            TemplateError: a template that cannot be used.
        """
        splits = _splits(source, columns)
        if splits.kind != "classification":
            raise DataError(f"{splits.source}: expected rows with a label, got generation rows (target or references)")
        found = sorted({example.label for example in splits.train or splits["all"] if example.label is not None})
        names = tuple(labels) if labels is not None else tuple(found)
        words = dict(verbalizers or {})
        if unknown := sorted(set(words) - set(names)):
            raise DataError(f"verbalizer for unknown label '{unknown[0]}': labels are {', '.join(names)}")
        spec = TaskSpec(
            "classification",
            CLASSIFICATION_TEMPLATE if template is None else template,
            names,
            tuple(words.get(name, name) for name in names),
            max_length,
        )
        return cls._checked(spec, splits)

    @classmethod
    def generation(
        cls, source: str | Path | Splits, *, template: str | None = None, max_length: int = 512, **columns: str
    ) -> Self:
        """A text-to-text task; arguments and errors as for ``classification``, ``target_column=`` among ``columns``."""
        splits = _splits(source, columns)
        if splits.kind != "generation":
            raise DataError(f"{splits.source}: expected rows with target or references, got classification rows")
        spec = TaskSpec("generation", GENERATION_TEMPLATE if template is None else template, max_length=max_length)
        return cls._checked(spec, splits)

    @classmethod
    def of(cls, source: str | Path | Splits, *, labels: Sequence[str] | None = None, **options: Any) -> Self:
        """The kind of task that the columns of ``source`` show."""
        columns = {name: options.pop(name) for name in tuple(options) if name.endswith("_column")}
        splits = _splits(source, columns)
        if splits.kind == "classification":
            return cls.classification(splits, labels=labels, **options)
        if labels is not None or options.pop("verbalizers", None):
            raise DataError(f"{splits.source}: labels were given, but its rows are for generation")
        return cls.generation(splits, **options)

    @classmethod
    def matching(cls, spec: TaskSpec, source: str | Path | Splits, **columns: str) -> Self:
        """Other data for a task that is known already, as ``eval`` needs it.

        Raises:
            DataError: the data is of the other kind, or holds labels that the task does not know.
        """
        splits = _splits(source, columns)
        if splits.kind != spec.kind:
            raise DataError(
                f"{splits.source}: the prompt was learned for {spec.kind}, these rows are for {splits.kind}"
            )
        return cls._checked(spec, splits)

    @classmethod
    def _checked(cls, spec: TaskSpec, splits: Splits) -> Self:
        known = spec.label_index
        for split_name in ("train", "validation", "test") if spec.labels else ():
            examples: tuple[Example, ...] = getattr(splits, split_name)
            unknown = Counter(str(example.label) for example in examples if example.label not in known)
            if unknown:
                label, count = unknown.most_common(1)[0]
                raise DataError(
                    f"{splits.source}: the {split_name} split has label '{label}' ({count} rows), "
                    f"which is not among the labels {', '.join(spec.labels)}: correct the rows, or name all labels"
                )
        first = next(iter(splits.train or splits.validation or splits.test), None)
        if first is not None:
            spec.compiled.render(first)
        return cls(spec, splits, Path(splits.source).stem or "task")


def _splits(source: str | Path | Splits, columns: Mapping[str, str]) -> Splits:
    return source if isinstance(source, Splits) else read_splits(source, **columns)  # type: ignore[arg-type]
