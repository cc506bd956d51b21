"""What a reference library makes of a file of texts: ids, decoded texts, pairs with their types.

    python benchmarks/peers/token_parity.py tokenizers|transformers|sentencepiece WORK PAIRED

Runs in the peers' own environment. WORK holds texts.jsonl (one JSON string a line) and a
vocabulary; the answer, a digest for every text and for every two neighbours of the last PAIRED, is
written to WORK/<reader>.json.

`tokenizers` reads tokenizer.json as a model came with it, or bpe.json (vocab, merges), which it
cuts as SmolLM2's own files say: digits one by one, then GPT-2's pattern. `sentencepiece` reads
tokenizer.model. `transformers` reads model/, which minift saved. All are told that the name of a
special token in a text is plain text, and leave truncation and padding out.
"""

import hashlib
import json
import struct
import sys
from itertools import pairwise
from pathlib import Path

BATCH = 2000  # texts


def digest(ids):
    return hashlib.sha256(struct.pack(f"<{len(ids)}I", *ids)).hexdigest()[:16]


def text_digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def tokenizers_reader(work):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    path = work / "tokenizer.json"
    if path.exists():
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
    else:
        rows = json.loads((work / "bpe.json").read_text())
        merges = [tuple(merge.split(" ")) for merge in rows["merges"]]
        tokenizer = Tokenizer(models.BPE(vocab=rows["vocab"], merges=merges))
        digits = pre_tokenizers.Digits(individual_digits=True)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
        tokenizer.decoder = decoders.ByteLevel()
    tokenizer.encode_special_tokens = True

    def encode(texts):
        return [row.ids for row in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def wrap(pairs):
        return [(row.ids, row.type_ids) for row in tokenizer.encode_batch(pairs)]

    return encode, tokenizer.decode, wrap


def transformers_reader(work):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(work / "model")

    def encode(texts):
        plain = {"add_special_tokens": False, "split_special_tokens": True}
        return tokenizer(texts, **plain)["input_ids"]

    def decode(ids):
        # Some folders ask for the spaces before signs to be taken out once more, of the whole text.
        plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        return tokenizer.decode(ids, **plain)

    def wrap(pairs):
        # Lists, since an empty second text by itself is taken for none.
        first, second = map(list, zip(*pairs, strict=True))
        rows = tokenizer(first, second, split_special_tokens=True, return_token_type_ids=True)
        return list(zip(rows["input_ids"], rows["token_type_ids"], strict=True))

    return encode, decode, wrap


def sentencepiece_reader(work):
    from sentencepiece import SentencePieceProcessor

    library = SentencePieceProcessor(model_file=str(work / "tokenizer.model"))
    return library.encode, library.decode, None


READERS = {
    "tokenizers": tokenizers_reader,
    "transformers": transformers_reader,
    "sentencepiece": sentencepiece_reader,
}


def main(reader, work, paired):
    texts = [json.loads(line) for line in (work / "texts.jsonl").read_text().splitlines()]
    encode, decode, wrap = READERS[reader](work)
    answer = {"version": __import__(reader).__version__, "ids": [], "decoded": [], "undone": []}
    for first in range(0, len(texts), BATCH):
        batch = texts[first : first + BATCH]
        for text, ids in zip(batch, encode(batch), strict=True):
            decoded = decode(ids)
            answer["ids"].append(digest(ids))
            answer["decoded"].append(text_digest(decoded))
            answer["undone"].append(decoded == text)
    if wrap is not None:
        pairs = list(pairwise(texts[-paired:]))
        answer["wrapped"] = [digest([*ids, *types]) for ids, types in wrap(pairs)]
    (work / f"{reader}.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
