"""Write the reference beside this file from the code: ``python.md`` of the public names, ``command-line.md`` of verbs.

``make reference`` runs it; ``tests/project/test_reference_pages.py`` compares the pages with the code.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import GenericAlias, UnionType
from typing import Any

import click
import pydantic

import softprompt
from softprompt.cli.main import cli
from softprompt.cli.verbs.help_pages import group_options
from softprompt.utils.notebook_display import Displayed

HERE = Path(__file__).parent
MADE = "Made from the code by `make reference`; change the docstrings there."
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")


def main() -> None:
    for name, text in pages().items():
        (HERE / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """Each page by the name of its file."""
    return {"python.md": "\n".join(python_page()), "command-line.md": "\n".join(command_page())}


def python_page() -> Iterator[str]:
    functions, classes = [], []
    for name in sorted(softprompt.__all__):
        (classes if inspect.isclass(getattr(softprompt, name)) else functions).append(name)
    yield "# Python\n"
    yield f"What `import softprompt as sp` offers. {MADE}\n"
    yield f"Functions: {', '.join(f'[{name}](#{name})' for name in functions)}.\n"
    yield f"Classes: {', '.join(f'[{name}](#{name.lower()})' for name in classes)}.\n"
    for name in functions:
        yield from function_part(name, getattr(softprompt, name))
    for name in classes:
        yield from class_part(name, getattr(softprompt, name))


def function_part(name: str, value: Any) -> Iterator[str]:
    yield f"## {name}\n"
    if not callable(value):
        yield f"`{value!r}`\n"
    elif inspect.isroutine(value):
        yield signature_block(f"sp.{name}", definition_of(value))
        yield from docstring_parts(value)
    else:
        yield from docstring_parts(value)


def class_part(name: str, value: type) -> Iterator[str]:
    yield f"## {name}\n"
    kinds = (base for base in value.__bases__ if base is not Displayed)
    bases = [base.__name__ for base in kinds if base.__module__.startswith("softprompt")]
    if bases:
        yield f"A {' and '.join(f'`{base}`' for base in bases)}.\n"
    node = definition_of(value)
    assert isinstance(node, ast.ClassDef)
    yield from docstring_parts(value)
    if issubclass(value, pydantic.BaseModel):
        yield from fields_table(value)
    else:
        yield from attributes_table(node)
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and not part.name.startswith("_") and ast.get_docstring(part):
            yield f"### {name}.{part.name}\n"
            decorators = {ast.unparse(one) for one in part.decorator_list}
            if not any(one.endswith("property") for one in decorators):
                owner = f"sp.{name}" if "classmethod" in decorators else name.lower()
                yield signature_block(f"{owner}.{part.name}", part)
            elif part.returns:
                yield f"A property: `{ast.unparse(part.returns)}`.\n"
            yield from text_parts(ast.get_docstring(part) or "")


def definition_of(value: Any) -> ast.FunctionDef | ast.ClassDef:
    node = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(value)))).body[0]
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    return node


def signature_block(name: str, node: ast.FunctionDef | ast.ClassDef) -> str:
    assert isinstance(node, ast.FunctionDef)
    arguments = node.args
    plain = arguments.posonlyargs + arguments.args
    given = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    parts = [shown(*pair) for pair in zip(plain, given, strict=True) if pair[0].arg not in ("self", "cls")]
    if arguments.vararg:
        parts.append("*" + shown(arguments.vararg, None))
    elif arguments.kwonlyargs:
        parts.append("*")
    parts += [shown(*pair) for pair in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    if arguments.kwarg:
        parts.append("**" + shown(arguments.kwarg, None))
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{name}({', '.join(parts)}){result}"
    if len(line) > 100:
        line = f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){result}"
    return f"```python\n{line}\n```\n"


def shown(argument: ast.arg, default: ast.expr | None) -> str:
    text = ast.unparse(argument)
    if default is None:
        return text
    return f"{text}{' = ' if argument.annotation else '='}{ast.unparse(default)}"


def docstring_parts(value: Any) -> Iterator[str]:
    # a class without a docstring of its own would show that of its base
    doc = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
    yield from text_parts(inspect.cleandoc(doc or ""))


def text_parts(doc: str) -> Iterator[str]:
    """A docstring in Google's form as Markdown: arguments and errors as lists."""
    doc = doc.replace("``", "`")
    for block in re.split(rf"\n(?=(?:{'|'.join(SECTIONS)}):\n)", doc):
        head, _, rest = block.partition("\n")
        if head.rstrip(":") in SECTIONS and head.endswith(":"):
            yield f"**{head}**\n"
            yield section_list(textwrap.dedent(rest))
        elif block.strip():
            yield with_code_blocks(block.strip()) + "\n"


def section_list(text: str) -> str:
    items: list[str] = []
    for line in text.strip().splitlines():
        if items and (line.startswith(" ") or not line):
            items[-1] += f" {line.strip()}"
        elif named := re.match(r"([\w*, .]+): (.*)", line):
            items.append(f"- `{named[1]}`: {named[2]}")
        else:
            items.append(f"- {line}")
    return "\n".join(item.rstrip() for item in items) + "\n"


def with_code_blocks(text: str) -> str:
    """What stands indented behind ``::`` as fenced code."""
    return re.sub(
        r"::\n\n((?:(?: {4}.*)?\n?)+)",
        lambda code: f":\n\n```python\n{textwrap.dedent(code[1]).strip()}\n```\n\n",
        text,
    ).strip()


def fields_table(model: type[pydantic.BaseModel]) -> Iterator[str]:
    rows = []
    for name, field in model.model_fields.items():
        default = "" if field.is_required() else f"`{field.get_default(call_default_factory=True)!r}`"
        rows.append((f"`{name}`", f"`{type_name(field.annotation)}`", default, field.description or ""))
    yield from table(("setting", "type", "default", "what it is"), rows)


def attributes_table(node: ast.ClassDef) -> Iterator[str]:
    """The fields of a dataclass, with the comment or string behind each left to its docstring."""
    rows = []
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and part.target.id[0] != "_":
            default = f"`{ast.unparse(part.value)}`" if part.value else ""
            rows.append((f"`{part.target.id}`", f"`{ast.unparse(part.annotation)}`", default))
    if rows:
        yield from table(("attribute", "type", "default"), rows)


def type_name(annotation: Any) -> str:
    if isinstance(annotation, type) and not isinstance(annotation, GenericAlias):
        return annotation.__name__
    text = str(annotation).replace("typing.", "")
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text) if not isinstance(annotation, UnionType) else text


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    lines = [heads, ("---",) * len(heads), *rows]
    yield "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def command_page() -> Iterator[str]:
    yield "# Command line\n"
    yield f"`softprompt VERB --help` says the same. {MADE}\n"
    verbs: dict[str, click.Command] = {}
    for heading, commands in cli.sections().items():
        yield f"**{heading}**\n"
        rows = [(f"[{name}](#{name})", summary_of(command)) for name, command in commands.items()]
        yield from table(("verb", "does"), rows)
        verbs |= commands
    for name, command in verbs.items():
        yield from verb_part(name, command)


def summary_of(command: click.Command) -> str:
    return inspect.cleandoc(command.help or "").partition("\n")[0]


def verb_part(name: str, command: click.Command, level: str = "##") -> Iterator[str]:
    yield f"{level} {name}\n"
    arguments = [one for one in command.params if isinstance(one, click.Argument)]
    options = [one for one in command.params if isinstance(one, click.Option) and not one.hidden]
    words = ["softprompt", name, *(argument_name(one) for one in arguments), *(["[OPTIONS]"] if options else [])]
    if isinstance(command, click.Group):
        words.append("COMMAND")
    yield f"```console\n$ {' '.join(words)}\n```\n"
    yield inspect.cleandoc(command.help or "").replace("\b\n", "").replace("``", "`").strip() + "\n"
    if command.epilog:
        yield in_python(command.epilog) + "\n"
    for heading, grouped in group_options(command).items() if options else ():
        if heading != "Options":
            yield f"**{heading}**\n"
        rows = [(option_names(one), option_help(one)) for one in grouped if isinstance(one, click.Option)]
        yield from table(("option", "what it is"), rows)
    if isinstance(command, click.Group):
        for part, inner in sorted(command.commands.items()):
            yield from verb_part(f"{name} {part}", inner, level + "#")


def in_python(epilog: str) -> str:
    """The function that does what a verb does, with a link where it is one of the public names."""
    words, _, path = epilog.rpartition(" ")
    name = path.removeprefix("softprompt.").partition(".")[0]
    anchor = f"{name}" if inspect.isroutine(getattr(softprompt, name, None)) else name.lower()
    return f"{words} [`{path}`](python.md#{anchor})." if name in softprompt.__all__ else f"{words} `{path}`."


def argument_name(argument: click.Argument) -> str:
    name = argument.metavar or str(argument.name).upper()
    return name if argument.required or name.startswith("[") else f"[{name}]"


def option_names(option: click.Option) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    if option.is_flag or option.count:
        return f"`{names}`"
    if option.metavar:
        takes = option.metavar
    elif isinstance(option.type, click.Choice):
        takes = "|".join(str(choice) for choice in option.type.choices)
    else:
        takes = option.type.name.upper().replace(" RANGE", "")
    return f"`{names} {takes}`"


def option_help(option: click.Option) -> str:
    text = " ".join((option.help or "").split())
    if option.required:
        return f"{text} Required."
    if option.show_default and option.default is not None and not callable(option.default):
        return f"{text} Default: `{option.default}`."
    return text


if __name__ == "__main__":
    main()
