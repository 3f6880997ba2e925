"""A comparison as a page to read, as Markdown to commit, and as JSON to compute with.

``document`` says what a page holds, ``html`` and ``markdown`` how it looks, ``charts`` draws; ``study`` is the page of
a comparison. None of it needs PyTorch.
"""

from pathlib import Path

from softprompt.experiments.comparison.study_records import SizeStudy, Study
from softprompt.report.pages import model_sizes_page
from softprompt.report.pages.comparison_page import document
from softprompt.report.render.document import Block, Document, Figure, Fold
from softprompt.report.render.html import page, standalone
from softprompt.report.render.markdown import markdown
from softprompt.utils.files import expand_user, write_file


def write_report(study: Study, out: str | Path, *, figures: bool = False) -> list[Path]:
    """Write ``report.html``, ``report.md`` and ``report.json`` into ``out``, each in place of an older one.

    With ``figures``, the charts too, as ``figures/NAME.svg``, and the Markdown shows them. Every file is put in place
    whole, after all have been made.

    Raises:
        OutputError: a file cannot be written.
    """
    out = expand_user(out)
    report = document(study)
    contents = {"report.json": study.model_dump_json(indent=2) + "\n"} | pages(report, "report", figures)
    return _written(out, contents)


def write_scale(scale: SizeStudy, out: str | Path) -> list[Path]:
    """Write ``scale.html``, ``scale.md`` with its figures, and ``scale.json`` into ``out``.

    Raises:
        OutputError: a file cannot be written.
    """
    report = pages(model_sizes_page.document(scale), "scale", figures=True)
    return _written(expand_user(out), {"scale.json": scale.model_dump_json(indent=2) + "\n"} | report)


def _written(out: Path, contents: dict[str, str]) -> list[Path]:
    written = []
    for name, content in contents.items():
        path = out / name
        write_file(path, content.encode())
        written.append(path)
    return written


def pages(report: Document, name: str, figures: bool = False) -> dict[str, str]:
    """A document as files: ``NAME.html``, ``NAME.md``, and with ``figures`` its charts."""
    found = [figure for section in report.sections for figure in _figures(section.blocks)] if figures else []
    drawings = {f"figures/{figure.name}.svg": standalone(figure) for figure in found}
    return {f"{name}.html": page(report), f"{name}.md": markdown(report, figures), **drawings}


def _figures(blocks: tuple[Block, ...]) -> list[Figure]:
    inner = [figure for block in blocks if isinstance(block, Fold) for figure in _figures(block.blocks)]
    return [block for block in blocks if isinstance(block, Figure)] + inner
