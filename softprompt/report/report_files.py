"""The pages that there are, and their files: HTML to read, Markdown to commit, and JSON to compute with."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from softprompt.analysis.drift.drift_records import DriftReport
from softprompt.analysis.inspection.inspection_records import Inspection
from softprompt.experiments.comparison.study_records import SizeStudy, Study
from softprompt.report.pages.comparison_page import make_comparison_document
from softprompt.report.pages.drift_page import make_drift_document
from softprompt.report.pages.inspection_page import make_inspection_document
from softprompt.report.pages.model_sizes_page import make_model_sizes_document
from softprompt.report.render.document import Block, Document, Figure, Fold
from softprompt.report.render.html import render_figure, render_html
from softprompt.report.render.markdown import render_markdown
from softprompt.utils.files import expand_user, write_file


class Page(NamedTuple):
    """A kind of page: the name of its files, and how a record becomes a document."""

    name: str
    document: Callable[[Any], Document]


PAGES: dict[type[BaseModel], Page] = {
    Study: Page("report", make_comparison_document),
    SizeStudy: Page("scale", make_model_sizes_document),
    Inspection: Page("inspection", make_inspection_document),
    DriftReport: Page("monitoring", make_drift_document),
}


def write_report(record: BaseModel, out: str | Path, *, figures: bool = False) -> list[Path]:
    """Write ``NAME.html``, ``NAME.md`` and ``NAME.json`` of a record into ``out``, each in place of an older one.

    With ``figures``, the charts too, as ``figures/NAME.svg``, and the Markdown shows them. Every file is put in place
    whole, after all have been made.

    Raises:
        OutputError: a file cannot be written.
    """
    kind = PAGES[type(record)]
    contents = {f"{kind.name}.json": record.model_dump_json(indent=2) + "\n"}
    return _write_files(contents | page_files(kind.document(record), kind.name, figures), out)


def write_document(document: Document, out: str | Path, name: str) -> list[Path]:
    """Write ``NAME.html`` and ``NAME.md`` into ``out``; raises as ``write_report``."""
    return _write_files(page_files(document, name), out)


def _write_files(contents: Mapping[str, str], out: str | Path) -> list[Path]:
    paths = {expand_user(out) / name: content for name, content in contents.items()}
    for path, content in paths.items():
        write_file(path, content.encode())
    return list(paths)


def write_page(document: Document, path: Path, option: str = "--html") -> None:
    """Write a document as one HTML file, in place of an older one.

    Raises:
        OutputError: the file cannot be written; the message tells to give another ``option``.
    """
    write_file(expand_user(path), render_html(document).encode(), f"give another {option}")


def page_files(document: Document, name: str, figures: bool = False) -> dict[str, str]:
    """A document as files: ``NAME.html``, ``NAME.md``, and with ``figures`` its charts."""
    found = [figure for section in document.sections for figure in _figures(section.blocks)] if figures else []
    drawings = {f"figures/{figure.name}.svg": render_figure(figure) for figure in found}
    return {f"{name}.html": render_html(document), f"{name}.md": render_markdown(document, figures), **drawings}


def _figures(blocks: tuple[Block, ...]) -> list[Figure]:
    inner = [figure for block in blocks if isinstance(block, Fold) for figure in _figures(block.blocks)]
    return [block for block in blocks if isinstance(block, Figure)] + inner
