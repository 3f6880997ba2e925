"""The language of templates: the part of Jinja2 that puts a row's values into words. All else is refused by name.

Jinja2's parser reads it, nothing of Jinja2 runs it. Source, nodes and nesting are bounded before anything is made of
them; what there is to choose from (tags, filters, tests) stands in docs/how-to/templates.md.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field

import jinja2
from jinja2 import nodes
from jinja2.parser import Parser

from softprompt.data.templates.template_filters import FILTERS, TESTS
from softprompt.errors import TemplateError

CHARACTERS = 65_536  # of a template
NODES = 4_000  # words, names, operators and tags of a template
DEPTH = 32  # how deep they may stand in each other

_ENVIRONMENT = jinja2.Environment(keep_trailing_newline=True)
_TAGS = {
    nodes.Assign: "set",
    nodes.AssignBlock: "set",
    nodes.Block: "block",
    nodes.CallBlock: "call",
    nodes.Extends: "extends",
    nodes.FilterBlock: "filter",
    nodes.FromImport: "from",
    nodes.Import: "import",
    nodes.Include: "include",
    nodes.Macro: "macro",
    nodes.Scope: "autoescape",
    nodes.With: "with",
}
_OPERATORS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "floordiv": "//", "mod": "%", "pow": "**", "pos": "+"}
_ALLOWED = (
    nodes.And,
    nodes.Compare,
    nodes.Concat,
    nodes.CondExpr,
    nodes.Const,
    nodes.Filter,
    nodes.For,
    nodes.Getattr,
    nodes.Getitem,
    nodes.If,
    nodes.Keyword,
    nodes.Name,
    nodes.Not,
    nodes.Operand,
    nodes.Or,
    nodes.Output,
    nodes.TemplateData,
    nodes.Test,
)
CHOICES = (nodes.List, nodes.Tuple)  # what may stand behind ``in``, and nowhere else
_HINTS = {"strip": "trim", "items": "items", "join": "join", **{name: name for name in FILTERS}}


class UnsupportedSyntax(Exception):
    """A part of Jinja2 that is none of the language; the message goes on behind "the template"."""


@dataclass
class Syntax:
    """A parsed template.

    Attributes:
        body: its nodes, all of the language.
        names: the columns of the row that it uses.
    """

    body: Sequence[nodes.Node] = ()
    names: set[str] = field(default_factory=set)
    _nodes: int = 0

    @classmethod
    def of(cls, source: str) -> "Syntax":
        """Parse ``source``; raises TemplateError for what is too large, does not parse, or is not of the language."""
        if len(source) > CHARACTERS:
            raise TemplateError(
                f"the template has {len(source):,} characters, expected at most {CHARACTERS:,}: shorten it"
            )
        try:
            source.encode()
            tree = Parser(_ENVIRONMENT, source).parse()
        except RecursionError as error:
            raise TemplateError(f"the template does not parse: it is nested more than {DEPTH} deep") from error
        except (jinja2.TemplateError, ValueError) as error:  # ValueError: half characters, numbers of 5,000 digits
            what = error.message if isinstance(error, jinja2.TemplateSyntaxError) else error
            raise TemplateError(f"the template does not parse: {what}") from error
        syntax = cls(tree.body)
        try:
            syntax._check_all(tree.body, frozenset(), 0)
        except UnsupportedSyntax as refused:
            raise TemplateError(f"the template {refused}") from refused
        return syntax

    def _check_all(self, some: Sequence[nodes.Node], local: frozenset[str], depth: int) -> None:
        for node in some:
            self._check(node, local, depth)

    def _check(self, node: nodes.Node, local: frozenset[str], depth: int) -> None:
        """Refuse what is not of the language; ``local`` names are those of loops, no columns."""
        self._nodes += 1
        if self._nodes > NODES:
            raise UnsupportedSyntax(f"has more than {NODES:,} parts: shorten it")
        if depth > DEPTH:
            raise UnsupportedSyntax(f"is nested more than {DEPTH} deep: simplify it")
        inner: Sequence[nodes.Node] = list(node.iter_child_nodes())
        if isinstance(node, nodes.Neg) and isinstance(node.node, nodes.Const) and _is_number(node.node.value):
            return
        if not isinstance(node, _ALLOWED):
            raise UnsupportedSyntax(_describe_refusal(node))
        if isinstance(node, nodes.Name):
            if node.name not in local:
                self.names.add(node.name)
        elif isinstance(node, nodes.Const):
            _check_unicode(node.value)
        elif isinstance(node, nodes.Filter | nodes.Test):
            _check_function(node)
        elif isinstance(node, nodes.Operand) and node.op in ("in", "notin") and isinstance(node.expr, CHOICES):
            inner = node.expr.items  # a list of choices
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            if node.arg.step is not None:
                raise UnsupportedSyntax("uses a step in [:]: only [first:last] is there")
            inner = [node.node, *(one for one in (node.arg.start, node.arg.stop) if one is not None)]
        elif isinstance(node, nodes.For):
            self._check_loop(node, local, depth)
            return
        self._check_all(inner, local, depth + 1)

    def _check_loop(self, node: nodes.For, local: frozenset[str], depth: int) -> None:
        if node.recursive:
            raise UnsupportedSyntax(
                "uses a recursive {% for %}, which is not part of its language: loop over a list of the row"
            )
        targets = loop_names(node)
        within = local | {*targets, "loop"}
        self._check_all([node.iter, *node.else_], local, depth + 1)
        self._check_all([*([] if node.test is None else [node.test]), *node.body], within, depth + 1)


def loop_names(node: nodes.For) -> list[str]:
    """What a loop calls the items of its list, or the parts of an item."""
    parts = node.target.items if isinstance(node.target, nodes.Tuple) else [node.target]
    names = [part.name for part in parts if isinstance(part, nodes.Name)]
    if len(names) < len(parts):
        raise UnsupportedSyntax("uses a {% for %} with names in names: expected one name, or several with commas")
    return names


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _describe_refusal(node: nodes.Node) -> str:
    """Words for a node that is not of the language, and what to do instead."""
    if isinstance(node, nodes.Call):
        called = node.node
        name = (
            called.name if isinstance(called, nodes.Name) else called.attr if isinstance(called, nodes.Getattr) else ""
        )
        hint = f": use the filter '{_HINTS[name]}'" if name in _HINTS else ": only filters are there"
        return f"calls {name}(), which is not part of its language{hint}"
    for kind, tag in _TAGS.items():
        if isinstance(node, kind):
            return f"uses {{% {tag} %}}, which is not part of its language: {{% if %}} and {{% for %}} are"
    if isinstance(node, nodes.Neg):
        return "uses arithmetic ('-'), which is not part of its language: add a column that has the value"
    if isinstance(node, nodes.BinExpr | nodes.UnaryExpr):
        operator = _OPERATORS.get(str(node.operator), str(node.operator))
        return f"uses arithmetic ('{operator}'), which is not part of its language: write the parts one after another"
    return f"uses a {type(node).__name__.lower()} of its own, which is not part of its language: use columns of the row"


def _check_unicode(value: object) -> None:
    try:
        str(value).encode()
    except UnicodeEncodeError as error:
        raise UnsupportedSyntax(f"spells half a character (\\u{ord(str(value)[error.start]):x}): mend it") from error


def _check_function(node: nodes.Filter | nodes.Test) -> None:
    what, known = ("filter", FILTERS) if isinstance(node, nodes.Filter) else ("test", TESTS)
    if node.name not in known:
        raise UnsupportedSyntax(
            f"uses the {what} '{node.name}', which is not part of its language: {', '.join(sorted(known))} are"
        )
    if node.dyn_args is not None or node.dyn_kwargs is not None:
        raise UnsupportedSyntax(f"gives the {what} '{node.name}' arguments by '*', which is not part of its language")
    named = {str(keyword.key): None for keyword in node.kwargs if isinstance(keyword, nodes.Keyword)}
    try:
        # in front of the arguments stand what there is to spend, and the value
        inspect.signature(known[node.name]).bind(None, None, *node.args, **named)
    except TypeError as error:
        raise UnsupportedSyntax(f"gives the {what} '{node.name}' other arguments than it takes: {error}") from error
