"""Template: Jinja2, sandboxed; ``{{ text }}`` is the example's text, other names are columns of its row.

What the user's data puts into it is marked while rendering, so that later steps can tell the template's own words
from text that must never become a special token. A template from somebody else's prompt can neither reach out of the
sandbox nor eat time and memory.
"""

import math
import re
import threading
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from functools import wraps
from typing import Any

import jinja2
import jinja2.meta
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from softprompt.data import Example
from softprompt.errors import TemplateError
from softprompt.examples import written

# private-use characters around what the data put into a template
FIELD_START, FIELD_END = "\ue000", "\ue001"

# what one rendering may make, in characters and items: so many, and so many for each character of its data
ALLOWANCE, ALLOWANCE_PER_CHARACTER = 1_000_000, 1_000
STEP, ITEM = 100, 10  # what a call, a filter or a turn of a loop counts for, and what an item of a list does
_CONTAINERS = (list, tuple, dict, set, frozenset, KeysView, ValuesView, ItemsView)


class Template:
    """A compiled template, in a sandbox that also limits what it makes: a hostile one ends soon, and in little memory.

    Attributes:
        source: as the user wrote it.
        names: the columns of the data that it uses, ``text`` among them.

    Raises:
        TemplateError: it does not parse, or never uses ``{{ text }}``.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._sandbox = _Sandbox()
        try:
            tree = self._sandbox.parse(source)
            names = jinja2.meta.find_undeclared_variables(tree)
            self.names = frozenset(names - set(self._sandbox.globals))
            self._compiled = self._sandbox.from_string(_Metering().visit(tree))
        except Exception as error:  # Jinja2's own, and Python's of what is nested too deep
            # some of Jinja2's add the lines of a file that is none
            what = error.message if isinstance(error, jinja2.TemplateSyntaxError) else error
            raise TemplateError(f"the template does not parse: {what}; got {source!r}") from error
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

    def fields(self, example: Example) -> list[str]:
        """What the filled-in template has from the data, without the template's own words."""
        return re.findall(f"{FIELD_START}(.*?){FIELD_END}", self.render_marked(example), re.DOTALL)


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
        return f"{FIELD_START}{unmarked(_words(self.counted(value)))}{FIELD_END}"

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


def _words(value: Any) -> str:
    return written(value) if isinstance(value, int | float | list | tuple | dict | None) else str(value)


def unmarked(text: str) -> str:
    """A rendered template without the marks around its fields."""
    return text.replace(FIELD_START, "").replace(FIELD_END, "")
