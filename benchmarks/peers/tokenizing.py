"""Token ids of a file of texts by a peer library: a digest per text, and the time they took.

    python benchmarks/peers/tokenizing.py tokenizers WORK
    python benchmarks/peers/tokenizing.py transformers WORK

Runs in the peers' own environment. WORK holds texts.jsonl (one JSON string a line), bpe.json
(vocab, merges: those of the model file, not of minift), model/ (what minift saved); the answer is
written to WORK/<reader>.json.

`tokenizers` is the library itself on bpe.json, cut as SmolLM2's own files say: digits one by one,
then GPT-2's pattern. Special tokens in texts are plain text to it, as they are to minift.
`tokenizers-tuned` is the same without offsets, all texts in one call, and with minift's cache size.
`transformers` loads model/, and so also shows that other programs read what minift saves.
"""

import hashlib
import json
import struct
import sys
import time
from pathlib import Path


def digest(ids):
    return hashlib.sha256(struct.pack(f"<{len(ids)}I", *ids)).hexdigest()[:16]


def tokenizers_reader(work, **options):
    from tokenizers import Tokenizer, models, pre_tokenizers

    rows = json.loads((work / "bpe.json").read_text())
    merges = [tuple(merge.split(" ")) for merge in rows["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=rows["vocab"], merges=merges, **options))
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    if options:
        return lambda texts: [row.ids for row in tokenizer.encode_batch_fast(texts)]
    return lambda texts: [tokenizer.encode(text).ids for text in texts]


def tuned_reader(work):
    return tokenizers_reader(work, cache_capacity=1 << 17)


def transformers_reader(work):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(work / "model")
    return lambda texts: [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


READERS = {
    "tokenizers": tokenizers_reader,
    "tokenizers-tuned": tuned_reader,
    "transformers": transformers_reader,
}


def main(reader, work):
    texts = [json.loads(line) for line in (work / "texts.jsonl").read_text().splitlines()]
    before = time.perf_counter()
    encode = READERS[reader](work)
    loaded = time.perf_counter()
    ids = encode(texts)
    done = time.perf_counter()
    answer = {
        "version": __import__(reader.split("-")[0]).__version__,
        "load_seconds": loaded - before,
        "seconds": done - loaded,
        "tokens": sum(map(len, ids)),
        "digests": [digest(row) for row in ids],
    }
    (work / f"{reader}.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
