"""From a table to a served prompt: look, learn, compare with the written prompt, see mistakes, save, serve, ask.

python examples/reviews.py    # a few minutes on two cores; writes into examples/out/reviews
"""

from pathlib import Path

import httpx
import pandas as pd

import softprompt as sp
from softprompt.data.builtin_data import rotten_tomatoes

OUT = Path(__file__).parent / "out" / "reviews"

# Data: any table with a column of texts and one of labels. These are sentences about films, from PyPI.
sentences = rotten_tomatoes()
reviews = pd.DataFrame({"text": one.text, "label": one.label} for one in sentences.train[:800])
print(reviews.sample(3, random_state=0).to_string(index=False))

# A task says what is asked. One table is split: 80% to learn from, 10% to choose the step, 10% for the score.
task = sp.Task.of(reviews, template="Review: {{ text }}\nSentiment:")
print(task)

# Before: the model with the words of the template, and nothing learned.
base = sp.load_model("embedded:gemma-3-270m")
print("written prompt:", sp.evaluate(base, task))

# Learn 20 virtual tokens in front of the text. The model itself does not change.
prompt = sp.fit(base, task, init="text:Decide whether the review is negative or positive.", length=20, steps=60)
print("learned prompt:", sp.evaluate(base, task, prompt))

# The mistakes it is surest of.
predictor = sp.Predictor.of_prompt(base, prompt)
answers = predictor.predict(task.test).to_pandas()
mistakes = answers[answers.label != answers.gold].sort_values("probability", ascending=False)
print(f"{len(mistakes)} of {len(answers)} wrong, the surest:")
print(mistakes.head(3).to_string(index=False))

# Keep it: a folder, or a version in a store that a server reads.
prompt.save(OUT / "sentiment")
store = sp.Store(OUT / "store")
store.put(prompt, "sentiment")
store.promote("sentiment@1", "prod")

# Serve it, here for one question; `softprompt serve` does the same from the shell.
with sp.serve(base, store, port=0, block=False) as server:
    asked = {"model": "sentiment", "input": ["a quiet film that stays with you for days", "two hours i want back"]}
    for result in httpx.post(f"{server.url}/v1/classify", json=asked).raise_for_status().json()["results"]:
        print(asked["input"][result["index"]], "->", result["label"])
