"""Adapter folders of PEFT's CARTRIDGE (Eyuboglu et al. 2025): keys and values of every layer.

As what prefix tuning writes (peft.py), BOS among the rows, which are those that PEFT would not learn, as the paper
has the first token's. Virtual tokens become what every layer keeps of them. ``peft`` reads such folders.
"""

from dataclasses import replace
from typing import Any

from softprompt.export.export_formats import ExportRequest
from softprompt.export.peft import describe_feeding, write_peft
from softprompt.prompts.prefix import compute_keys_and_values


def write(request: ExportRequest) -> dict[str, Any]:
    """The prompt as such a folder; raises as ``write_peft``."""
    base, prompt = request.model, request.prompt
    if prompt.state.kind == "embeddings":
        prompt.check_base(base)
        state = compute_keys_and_values(base, prompt.state.tensor, prompt.state.placement)
        prompt = replace(prompt, states=(replace(state, label_rows=prompt.state.label_rows),))
    write_peft(base, prompt, request.out, cartridge=True)
    return describe_feeding(request)
