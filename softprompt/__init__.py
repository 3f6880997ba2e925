"""softprompt: learn a few virtual tokens for a task on a frozen language model, see what they gain, use them.

The flow, each name being public here::

    base   = sp.load_model("embedded:gemma-3-270m")            # frozen, fingerprinted
    task   = sp.Task.classification("reviews/", template="{{ text }}; sentiment:")
    prompt = sp.fit(base, task)                          # learns, keeps the best, evaluates
    print(sp.evaluate(base, task.test, prompt))          # value, 95% interval, n
    prompt.save("prompts/sentiment")
"""

import warnings

import lazy_loader

from softprompt.utils.notebook_display import set_renderer
from softprompt.utils.version import VERSION as __version__  # noqa: F401

# of tqdm, which transformers imports: its bars want ipywidgets in a notebook, and ours do without
warnings.filterwarnings("ignore", message="IProgress not found")
# torch and transformers take seconds to import: only when a name that needs them is used
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def _render_for_notebook(shown: object) -> str | None:
    from softprompt.report.notebook.notebook_documents import render_for_notebook

    return render_for_notebook(shown)


set_renderer(_render_for_notebook)
