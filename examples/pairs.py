"""Two texts, one answer: do two questions of customers ask the same?

python examples/pairs.py    # a few minutes on two cores

A template may use any columns. Here it has two, so no column is called ``text``.
"""

from itertools import combinations

import softprompt as sp

QUESTIONS = {
    "password": "i forgot my password|how do i reset my password|can not sign in, password lost|my login does not work",
    "invoice": "where is my invoice|please send the bill again|i need a copy of the receipt|the bill is missing",
    "delivery": "when will my parcel arrive|where is my order now|the package has not come yet|is my parcel late",
    "refund": "i want my money back|how do i get a refund|can you return the payment|please pay me back",
    "address": "i have moved to another street|change my address please|how do i update where i live|i have a new home",
    "cancel": "please end my contract|how do i cancel the subscription|i no longer want the service|stop my plan",
}
asked = [(intent, question) for intent, questions in QUESTIONS.items() for question in questions.split("|")]
pairs = [
    {"first": one, "second": other, "same": "yes" if intent == its else "no"}
    for (intent, one), (its, other) in combinations(asked, 2)
]
# two that ask the same are rare; a fourth of the others is enough
same, others = ([pair for pair in pairs if pair["same"] == kind] for kind in ("yes", "no"))
pairs = same + others[::4]

task = sp.Task.of(pairs, template="1: {{ first }}\n2: {{ second }}\nThe same:", label_column="same")
base = sp.load_model("embedded:gemma-3-270m")
prompt = sp.fit(base, task, init="text:Do both questions ask for the same?", length=20, steps=40)
print(prompt)

predictor = sp.Predictor.of_prompt(base, prompt)
new = [
    {"first": "my password does not work", "second": "i can not remember my password"},
    {"first": "my password does not work", "second": "the parcel is late"},
]
print(predictor.predict(new).to_pandas().to_string(index=False))
