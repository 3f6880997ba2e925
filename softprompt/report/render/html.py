"""A document as one HTML page that needs nothing else: no network, no JavaScript to be read."""

import base64
import hashlib
import re
import uuid
from functools import cache
from importlib.resources import files
from xml.etree.ElementTree import Element, tostring

import jinja2
from markupsafe import Markup, escape

from softprompt.report.render.document import Document, Figure, replace_unprintable

WIDE, NARROW = 700, 330  # pixels at which charts are drawn
_MARGIN = 16  # pixels around a chart that stands alone

_COLOR = re.compile(r"(--[\w-]+): ([^;]+);")
_OF_THE_PAGE = ("--paper", "--ink", "--soft", "--hair", "--rule", "--wash")
# as JupyterLab, nbconvert, Visual Studio Code, Colab and Sphinx say that their ground is dark
_DARK = (
    ':is([data-jp-theme-light="false"], .vscode-dark, .vscode-high-contrast, html[theme="dark"], [data-theme="dark"]) &'
)


def render_html(document: Document) -> str:
    """The page. What comes from users is escaped, and a content security policy allows no script but the page's own."""
    script = _resource("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template("page.html")
        .render(
            document=document,
            styles=Markup(_resource("palette.css") + _resource("chart.css") + _resource("page.css")),
            script=Markup(script),
            policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'",
        )
    )


def render_fragment(document: Document) -> str:
    """The document as a part of somebody else's page: its styles are for nothing around it, its ids nobody else's.

    Its ground and its ink are the page's own; colours are those for dark grounds where a notebook says that it is one.
    """
    place = f"softprompt-{uuid.uuid4().hex[:12]}"
    light, dark = re.findall(r":root {([^}]*)}", _resource("palette.css"))
    styles = f"{_colors(light)} {_DARK} {{ {_colors(dark)} }}\n{_resource('notebook.css')}{_resource('chart.css')}"
    return _environment().get_template("notebook.html").render(document=document, place=place, styles=Markup(styles))


def _colors(palette: str) -> str:
    """Those of a palette that do not come from the page around."""
    return " ".join(f"{name}: {color};" for name, color in _COLOR.findall(palette) if name not in _OF_THE_PAGE)


def render_figure(figure: Figure, width: int = WIDE) -> str:
    """A figure as an SVG file with its own colours, light or dark as the reader's system is, on its own ground."""
    svg = _told(figure, width, "file")
    across, down = (f"{float(length) + 2 * _MARGIN:g}" for length in svg.attrib["viewBox"].split()[2:])
    svg.attrib |= {"xmlns": "http://www.w3.org/2000/svg", "width": across, "height": down}
    svg.attrib["viewBox"] = f"{-_MARGIN} {-_MARGIN} {across} {down}"
    style = Element("style")
    style.text = _resource("palette.css") + _resource("chart.css")
    ground = Element("rect", {"x": f"{-_MARGIN}", "y": f"{-_MARGIN}", "width": across, "height": down, "rx": "8"})
    ground.attrib["style"] = "fill: var(--paper)"
    svg[2:2] = [style, ground]
    return tostring(svg, encoding="unicode") + "\n"


def _drawing(figure: Figure, width: int, form: str, place: str = "") -> Markup:
    return Markup(tostring(_told(figure, width, form, place), encoding="unicode"))


def _told(figure: Figure, width: int, form: str, place: str = "") -> Element:
    """The drawing with the title and description for those who cannot see it; their ids begin with ``place``."""
    svg = figure.draw(width)
    told = []
    for part, texts in (("title", [figure.title]), ("desc", [figure.description, figure.caption])):
        element = Element(part, {"id": f"{place}{figure.name}-{form}-{part}"})
        element.text = " ".join(map(replace_unprintable, texts))
        told.append(element)
    svg[0:0] = told
    svg.attrib |= {"role": "img", "aria-labelledby": " ".join(element.attrib["id"] for element in told)}
    return svg


def _whole(code: str) -> Markup:
    """What a reader may copy is not cut."""
    return escape(replace_unprintable(code, len(code)))


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("softprompt.report.render"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: replace_unprintable(value) if type(value) is str else value,
    )
    environment.globals |= {"drawing": _drawing, "whole": _whole, "WIDE": WIDE, "NARROW": NARROW}
    return environment


@cache
def _resource(name: str) -> str:
    return (files("softprompt.report.render") / "templates" / name).read_text(encoding="utf-8")
