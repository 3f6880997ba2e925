"""Settings searched on validation; the test split scores the winner once.

python examples/sweep.py    # about ten minutes on two cores; a second call goes on where the first was stopped
"""

from pathlib import Path

import softprompt as sp
from softprompt.data.builtin_data import rotten_tomatoes

OUT = Path(__file__).parent / "out" / "sweep"

sentences = rotten_tomatoes()
rows = [{"text": one.text, "label": one.label} for one in sentences.train[::20]]
found = sp.sweep(
    "embedded:gemma-3-270m",
    rows,
    "learning-rate=0.03..0.3:log;length=10,20",
    OUT,
    trials=4,
    steps=20,
    eval_every=10,
    template="Review: {{ text }}\nSentiment:",
)
print(found.to_pandas().to_string(index=False))

prompt = sp.load_prompt(OUT / "prompt")
print(prompt)
