"""What a terminal shows of a document."""

from softprompt.report.render.document import Document
from softprompt.report.render.terminal import render_terminal


def told_lines(document: Document) -> list[str]:
    """The lines of a log: each row of a table is one of them."""
    return render_terminal(document).splitlines()
