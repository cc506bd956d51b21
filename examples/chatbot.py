"""A chatbot: multi-turn supervised fine-tuning on conversations; only the answers are learned.

    minift download smollm2-135m-instruct && minift download chatterbot
    python examples/chatbot.py                  # 150 steps: minutes
    python examples/chatbot.py --small          # 4 steps: seconds

The corpus repeats itself (tech_support.yml has ten questions a hundred times over), so equal
conversations are dropped first: what is there twice would be learned twice.
"""

import argparse
from pathlib import Path

import minift
from minift.checkpoints.hub.assets import cached


def conversations(file: Path) -> list[list[str]]:
    """The turns of each conversation: "- - " opens one, "  - " goes on (all the YAML there is)."""
    found: list[list[str]] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("- - "):
            found.append([line[4:].strip()])
        elif line.startswith("  - ") and found:
            found[-1].append(line[4:].strip())
        elif line.strip() and found:  # a long turn that was wrapped
            found[-1][-1] += " " + line.strip()
    return found


def rows_of(folder: Path) -> list[dict[str, object]]:
    """The different conversations of the corpus that are whole, as rows to learn from."""
    files = sorted((folder / "english").glob("*.yml"))
    everything = [turns for file in files for turns in conversations(file)]
    whole = [turns for turns in everything if len(turns) > 1 and all(turns)]
    unique = list(dict.fromkeys(map(tuple, whole)))
    print(f"{len(everything):,} conversations, {len(unique):,} of them different and whole")
    return [
        {
            "messages": [
                {"role": "assistant" if k % 2 else "user", "content": turn}
                for k, turn in enumerate(turns[: len(turns) // 2 * 2])  # ends with an answer
            ]
        }
        for turns in unique
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--data", default=cached("chatterbot"), help="the folder of the corpus")
    parser.add_argument("--out", default="runs/chatbot")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    if args.data is None:
        parser.error("minift download chatterbot")

    rows = rows_of(Path(args.data))
    held_out = rows[::20]
    train = [row for k, row in enumerate(rows) if k % 20]

    model, tokenizer = minift.load(args.model)
    minift.attach(model, minift.LoRA(rank=8, alpha=16))
    objective = minift.SFT(tokenizer, train=train, held_out=held_out, max_length=256)
    config = minift.TrainConfig(steps=4 if args.small else 150, batch_size=8, lr=5e-4)
    run = minift.fit(model, objective, config, out=args.out, overwrite=True)
    step, loss = run.evaluations[-1]
    print(
        f"loss {run.losses[0]:.2f} to {run.losses[-1]:.2f}; held out {loss:.2f} after step {step}"
    )

    questions = ["What is AI?", "Tell me a joke.", "Do you like movies?"]
    chats = [tokenizer.chat([{"role": "user", "content": q}], reply=True)[0] for q in questions]
    with minift.disabled(model):
        before = minift.generate(model, tokenizer, chats, max_new_tokens=40)
    after = minift.generate(model, tokenizer, chats, max_new_tokens=40)
    for question, old, new in zip(questions, before, after, strict=True):
        print(f"\n{question}\n  before  {' '.join(old.split())}\n  after   {' '.join(new.split())}")


if __name__ == "__main__":
    main()
