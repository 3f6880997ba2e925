"""A soft prompt in a training loop of one's own: your optimiser, your loss, your batches.

python examples/torch_loop.py    # a few minutes on two cores; docs/how-to/train-with-trainer.md has Trainer and TRL
"""

from itertools import islice

import torch
from torch.utils.data import DataLoader

import softprompt as sp
from softprompt.data.builtin_data import rotten_tomatoes

STEPS, BATCH_SIZE = 30, 8

sentences = rotten_tomatoes()
rows = [{"text": one.text, "label": one.label} for one in sentences.train[::20]]
task = sp.Task.of(rows, template="Review: {{ text }}\nSentiment:")

base = sp.load_model("embedded:gemma-3-270m")
soft = sp.SoftPrompt(base, task, length=20, init="text:Decide whether the review is negative or positive.")
model = soft.attach()  # the same transformers model, the prompt in front of every text
optimizer = torch.optim.AdamW(soft.parameter_groups(0.1), weight_decay=0.0)

tokenizer = base.tokenizer
torch.manual_seed(0)
batches = DataLoader(task.train, BATCH_SIZE, shuffle=True, collate_fn=list)
for step, some in enumerate(islice(batches, STEPS), start=1):
    texts = [f"Review: {one.text}\nSentiment: {one.label}" for one in some]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    # only the label counts, which is each text's last token here
    labels = torch.full_like(batch.input_ids, -100)
    last = batch.attention_mask.cumsum(1).argmax(1)
    labels[torch.arange(len(some)), last] = batch.input_ids[torch.arange(len(some)), last]
    loss = model(**batch, labels=labels).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(soft.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if step % 10 == 0:
        print(f"step {step}: loss {loss.item():.3f}")

soft.detach()
prompt = soft.to_prompt(task)  # a saved prompt like any other, scored on validation and test
print(prompt)
