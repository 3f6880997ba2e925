"""Texts out, judged by a metric of one's own: a sentence about a restaurant from its entry.

python examples/generation.py    # a few minutes on two cores

The metric is ``facts_named`` of facts_metric.py, given by its import path, which is kept with the prompt.
"""

from itertools import product

import softprompt as sp

NAMES = ("Alimentum", "Bella", "Castello", "Dorada", "Estrela", "Fontana")
FOODS = ("Italian", "French", "Indian", "Japanese")
AREAS = ("Riverside", "Midtown", "Harbour")
rows = [
    {"name": name, "food": food, "area": area, "target": f"{name} serves {food} food in {area}."}
    for name, food, area in product(NAMES, FOODS, AREAS)
]

task = sp.Task.of(
    rows,
    template="name: {{ name }}, food: {{ food }}, area: {{ area }}\nSentence:",
    metric="facts_metric:facts_named",
)
base = sp.load_model("embedded:gemma-3-270m")
print("written prompt:", sp.evaluate(base, task))
prompt = sp.fit(base, task, length=20, steps=40)
print("learned prompt:", sp.evaluate(base, task, prompt))

answer = sp.Predictor.of_prompt(base, prompt).predict({"name": "Girasol", "food": "Thai", "area": "Oldtown"})
print(answer.completion)
