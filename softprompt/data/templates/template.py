"""Template: words with places for the columns of a row; ``{{ text }}`` is the example's text.

It is written in a small part of Jinja2 (template_syntax.py) and filled in here, step by step: what the row's data
brings is told apart from the template's own words by position, so that no text can become a special token. A template
from somebody else's prompt can reach nothing but the row, and every size is bounded before it is made.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import nodes

from softprompt.data.examples import Example
from softprompt.data.templates.template_filters import (
    FILTERS,
    LENIENT,
    TESTS,
    Budget,
    FillError,
    Undefined,
    describe_type,
    measure_size,
    print_value,
)
from softprompt.data.templates.template_syntax import CHOICES, Syntax, loop_names
from softprompt.errors import DataError, TemplateError, printable

# what one filling may make: so many characters, and so many for each of the template's and of the row's
CHARACTERS, CHARACTERS_EACH = 100_000, 16
STEPS, STEPS_EACH = 20_000, 1

_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "lteq": operator.le,
    "gt": operator.gt,
    "gteq": operator.ge,
}
_QUOTED = 200  # characters of a template that an error shows


@dataclass(frozen=True)
class Rendered:
    """A filled-in template.

    Attributes:
        text: the whole of it.
        fields: the ranges of ``text`` that the row's data brought: half open, ascending, disjoint, none empty.
    """

    text: str
    fields: tuple[tuple[int, int], ...]


class Template:
    """A template that is parsed and checked.

    Attributes:
        source: as the user wrote it.
        names: the columns of the data that it uses, ``text`` among them if it is, by whichever name.

    Args:
        text: what the data calls its column of the text; the template may call it so too.

    Raises:
        TemplateError: it does not parse, does more than its language has, or uses no column.
    """

    def __init__(self, source: str, text: str = "text") -> None:
        self.source = source
        try:
            syntax = Syntax.of(source)
        except TemplateError as error:
            raise TemplateError(f"{error}; got {_quote(source)}") from error
        self._body, self._used, self._text = syntax.body, frozenset(syntax.names), text
        self.names = frozenset("text" if name == text else name for name in syntax.names)
        if not self.names:
            raise TemplateError(
                f"the template must contain {{{{ text }}}}, the place of the example's text, or other columns of the "
                f"data: without them every example reads the same; got {_quote(source)}"
            )

    def fill(self, example: Example, text: str | None = None) -> Rendered:
        """Fill in the example, with ``text`` in place of its own, if given.

        Raises:
            TemplateError: a name in the template is no column of the data, an expression fails, or it makes too much.
        """
        columns = {**example.columns, **dict.fromkeys(("text", self._text), example.said if text is None else text)}
        row = {name: columns[name] for name in self._used if name in columns}
        size = len(self.source) + sum(map(measure_size, row.values()))
        writing = _Renderer(Budget(CHARACTERS + CHARACTERS_EACH * size, STEPS + STEPS_EACH * size))
        try:
            writing.write(self._body, row)
        except _Undefined as error:
            names = ", ".join(sorted(columns))
            raise TemplateError(
                example.locate_message(
                    f"the template uses a name that the data lacks: {error}; columns: {printable(names, _QUOTED)}"
                )
            ) from error
        # RecursionError: lists in lists; ValueError: numbers of more digits than Python writes
        except (FillError, RecursionError, ValueError) as error:
            what = f"the template fails on an example: {error}; got {_quote(self.source)}"
            raise TemplateError(example.locate_message(what)) from error
        return Rendered("".join(writing.pieces), tuple(writing.fields))

    def render(self, example: Example) -> str:
        """The filled-in template as plain text."""
        return self.fill(example).text

    def fields(self, example: Example) -> list[str]:
        """What the filled-in template has from the data, without the template's own words."""
        rendered = self.fill(example)
        return [rendered.text[start:end] for start, end in rendered.fields]


def reader_options(source: str | None, text: str | None = None) -> dict[str, Any]:
    """What ``read_splits`` is told of a template, or of the usual one: its columns, and what fails on rows without.

    ``text``: what the task calls its column of the text, if not so.
    """
    template = None if source is None else Template(source, text or "text")
    if template is None or template.names == {"text"}:
        return {"names": frozenset({"text"})}  # which every row fills
    return {"names": template.names, "fill": template.fill}


def check_fills(template: Template, example: Example) -> None:
    """Raise DataError for a row that the template cannot be filled with."""
    try:
        template.fill(example)
    except TemplateError as error:
        raise DataError(str(error)) from error


class _Undefined(Exception):
    """A value that the row lacks is needed."""


class _TemplateText(str):
    """Text that stands in the template itself: printed as it is, it is none of the row's."""


class _Renderer:
    """A filling under way: the pieces of its text, and which ranges of it are the row's."""

    def __init__(self, room: Budget) -> None:
        self.pieces: list[str] = []
        self.fields: list[tuple[int, int]] = []
        self._length, self._room = 0, room

    def write(self, body: Sequence[nodes.Node], scope: dict[str, Any]) -> None:
        for node in body:
            if isinstance(node, nodes.Output):
                for one in node.nodes:
                    if isinstance(one, nodes.TemplateData):
                        self._put(one.data, own=True)
                    else:
                        value = self._evaluate(one, scope)
                        self._put(print_value(self._room, value), own=isinstance(value, _TemplateText))
            elif isinstance(node, nodes.If):
                branches = (node, *node.elif_)
                chosen = next((one for one in branches if self._evaluate(one.test, scope)), None)
                self.write(node.else_ if chosen is None else chosen.body, scope)
            elif isinstance(node, nodes.For):
                self._loop(node, scope)

    def _put(self, text: str, *, own: bool) -> None:
        self._room.make(len(text))
        end = self._length + len(text)
        if text and not own:
            self.fields.append((self._length, end))
        self.pieces.append(text)
        self._length = end

    def _loop(self, node: nodes.For, scope: dict[str, Any]) -> None:
        items = self._evaluate(node.iter, scope)
        if not isinstance(items, list | dict):
            raise FillError(f"{{% for %}} expects a list, got {describe_type(items)}")
        names = loop_names(node)
        self._room.make(len(items) + len(scope))
        inner = dict(scope)
        turns = [named for one in items if (named := self._name_item(names, one)) is not None]
        if node.test is not None:
            turns = [named for named in turns if self._evaluate(node.test, {**inner, **named})]
        for index, named in enumerate(turns):
            self._room.step()
            inner.update(named)
            inner["loop"] = {
                "index": index + 1,
                "index0": index,
                "revindex": len(turns) - index,
                "revindex0": len(turns) - index - 1,
                "first": index == 0,
                "last": index == len(turns) - 1,
                "length": len(turns),
            }
            self.write(node.body, inner)
        if not turns:
            self.write(node.else_, scope)

    def _name_item(self, names: Sequence[str], item: Any) -> dict[str, Any]:
        if len(names) == 1:
            return {names[0]: item}
        self._room.step()
        if not isinstance(item, list) or len(item) != len(names):
            got = f"a list of {len(item)}" if isinstance(item, list) else describe_type(item)
            raise FillError(f"{{% for {', '.join(names)} %}} expects lists of {len(names)} in the list, got {got}")
        return dict(zip(names, item, strict=True))

    def _evaluate(self, node: nodes.Node, scope: Mapping[str, Any]) -> Any:
        """What an expression comes to: a value of the row or a scalar."""
        value = self._find(node, scope)
        if isinstance(value, Undefined):
            raise _Undefined(f"{value.name} is undefined")
        return value

    def _find(self, node: nodes.Node, scope: Mapping[str, Any]) -> Any:
        """``_evaluate``, or that it is missing."""
        self._room.step()
        match node:
            case nodes.Const():
                return _TemplateText(node.value) if isinstance(node.value, str) else node.value
            case nodes.Name():
                return scope[node.name] if node.name in scope else Undefined(f"'{node.name}'")
            case nodes.Neg():
                return -node.node.value  # type: ignore[attr-defined]  # checked to be a number
            case nodes.Getattr():
                return self._item(self._evaluate(node.node, scope), node.attr)
            case nodes.Getitem(arg=nodes.Slice()):
                return self._slice(node, scope)
            case nodes.Getitem():
                return self._item(self._evaluate(node.node, scope), self._evaluate(node.arg, scope))
            case nodes.Not():
                return not self._evaluate(node.node, scope)
            case nodes.And():
                left = self._evaluate(node.left, scope)
                return self._evaluate(node.right, scope) if left else left
            case nodes.Or():
                left = self._evaluate(node.left, scope)
                return left if left else self._evaluate(node.right, scope)
            case nodes.CondExpr():
                if self._evaluate(node.test, scope):
                    return self._evaluate(node.expr1, scope)
                return None if node.expr2 is None else self._evaluate(node.expr2, scope)
            case nodes.Concat():
                parts = [print_value(self._room, self._evaluate(one, scope)) for one in node.nodes]
                self._room.make(sum(map(len, parts)))
                return "".join(parts)
            case nodes.Compare():
                return self._compare(node, scope)
            case nodes.Filter() | nodes.Test():
                known = FILTERS if isinstance(node, nodes.Filter) else TESTS
                find = self._find if node.name in LENIENT else self._evaluate
                assert node.node is not None
                named = {
                    str(one.key): self._evaluate(one.value, scope)
                    for one in node.kwargs
                    if isinstance(one, nodes.Keyword)
                }
                given = [self._evaluate(one, scope) for one in node.args]
                return known[node.name](self._room, find(node.node, scope), *given, **named)
        raise AssertionError(f"{type(node).__name__} passed the check of the syntax")

    def _item(self, value: Any, key: Any) -> Any:
        """The item of an object or a list; text and numbers have none."""
        if isinstance(value, dict) and isinstance(key, str):
            return value[key] if key in value else Undefined(f"'{key}'")
        if isinstance(value, list | str) and isinstance(key, int) and not isinstance(key, bool):
            return value[key] if -len(value) <= key < len(value) else Undefined(f"item {key} of {len(value)}")
        return Undefined(f"'{key}' of {describe_type(value)}")

    def _slice(self, node: nodes.Getitem, scope: Mapping[str, Any]) -> Any:
        value = self._evaluate(node.node, scope)
        assert isinstance(node.arg, nodes.Slice)
        start, stop = (None if one is None else self._evaluate(one, scope) for one in (node.arg.start, node.arg.stop))
        if not isinstance(value, list | str) or not all(isinstance(one, int | None) for one in (start, stop)):
            raise FillError(f"[:] expects a list or text, and whole numbers, got {describe_type(value)}")
        self._room.make(len(range(*slice(start, stop).indices(len(value)))))
        return value[start:stop]

    def _compare(self, node: nodes.Compare, scope: Mapping[str, Any]) -> bool:
        left = self._evaluate(node.expr, scope)
        for one in node.ops:
            if one.op in ("in", "notin"):
                right = one.expr if isinstance(one.expr, CHOICES) else self._evaluate(one.expr, scope)
                if self._contains(left, right, scope) is (one.op == "notin"):
                    return False
            else:
                right = self._evaluate(one.expr, scope)
                if not self._compare_scalars(one.op, left, right):
                    return False
            left = right
        return True

    def _contains(self, left: Any, right: Any, scope: Mapping[str, Any]) -> bool:
        """Whether ``left`` is in ``right``: a part of a text, an item of a list, a name of an object."""
        if isinstance(right, CHOICES):
            return any(self._compare_scalars("eq", left, self._evaluate(one, scope)) for one in right.items)
        if isinstance(right, str) and isinstance(left, str):
            self._room.step(3 * len(right))
            return left in right
        if isinstance(right, dict) and isinstance(left, str):
            return left in right
        if isinstance(right, list):
            return any(self._compare_scalars("eq", left, one) for one in right if not isinstance(one, list | dict))
        raise FillError(
            f"'in' expects text in a text, a list or an object, got {describe_type(left)} in {describe_type(right)}"
        )

    def _compare_scalars(self, op: str, left: Any, right: Any) -> bool:
        for one in (left, right):
            if isinstance(one, list | dict):
                raise FillError(
                    f"comparing expects text or numbers, got {describe_type(one)}: compare its length or its items"
                )
        self._room.step(min(measure_size(left), measure_size(right)))
        try:
            return bool(_COMPARE[op](left, right))
        except TypeError as error:
            raise FillError(
                f"comparing expects two texts or two numbers, got {describe_type(left)} and {describe_type(right)}"
            ) from error


def _quote(source: str) -> str:
    return repr(printable(source, _QUOTED)) if len(source) > _QUOTED else repr(source)
