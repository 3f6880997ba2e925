"""What a notebook shows of each kind of object: the document that its page is made from, or the main parts of it."""

from importlib import import_module

from softprompt.report.render.html import render_fragment

_DATA = "softprompt.data."  # whose kinds are shown without what needs PyTorch


def render_for_notebook(shown: object) -> str | None:
    """HTML that stands by itself within any page; ``None`` for what has no document."""
    name = "task_documents" if type(shown).__module__.startswith(_DATA) else "result_documents"
    documents = import_module(f"softprompt.report.notebook.{name}").DOCUMENTS
    make = next((documents[kind] for kind in type(shown).__mro__ if kind in documents), None)
    return None if make is None else render_fragment(make(shown))
