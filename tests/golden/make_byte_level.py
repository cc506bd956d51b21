"""Make byte_level.json: files of RoBERTa's and GPT-NeoX's kind, and what they make of texts.

    python tests/golden/make_byte_level.py

Runs in an environment of its own with tokenizers, transformers and gguf; minift is not imported.
The vocabulary is that of tokens.json. transformers writes the files; NeoX's runs of spaces, which
are ordinary added tokens outside the model's vocabulary, are added as its published file has them.
The name of a special token in a text is encoded as text, as minift does.
"""

import json
import tempfile
from pathlib import Path

import tokenizers
import transformers
from make_tokens import texts
from tokenizers import AddedToken, Tokenizer
from transformers import GPTNeoXTokenizer, RobertaTokenizer

SMALL = json.loads(Path(__file__).with_name("tokens.json").read_text())["tokenizer"]["model"]
MORE = [
    "if x:\n    return  1\n        y = 2   \n",
    " " * 30 + "x" + " " * 24 + "y" + " " * 25,
    "  two  and   three",
    "e\u0301  a\u0300",
    "\u2000\u2001 \u212b  \u037e  x",
    "a \u0301 b  \u0301",
    "|||IP_ADDRESS||| and |||IP_ADDRESS",
    "caf\u00e9 cafe\u0301 CAFE\u0301",  # one added token, in two spellings
    "<s></s><mask> <pad>",
    "<|endoftext|> <|padding|>",
    "  leading", "\tleading", "\u00a0leading",
]  # fmt: skip


def saved(tokenizer):
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        names = ("tokenizer.json", "tokenizer_config.json")
        return {name: json.loads((Path(folder) / name).read_text()) for name in names}


def decoded(tokenizer, ids, text):
    """The library's text; None where it takes the text of an added token for a row of bytes.

    All characters of "caf\u00e9" happen to be letters of the byte alphabet.
    """
    found = tokenizer.decode(ids)
    return found if "\ufffd" not in found or "\ufffd" in text else None


def case(files):
    """Ids of texts by the library on these files; the vocabulary is left out of the golden."""
    tokenizer = Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
    tokenizer.encode_special_tokens = True
    samples = texts() + MORE
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in samples]
    single, pair = tokenizer.encode("The keeper"), tokenizer.encode("The keeper", " lit it")
    vocab = files["tokenizer.json"]["model"].pop("vocab")
    more = {text: i for text, i in vocab.items() if SMALL["vocab"].get(text) != i}
    assert len(vocab) == len(SMALL["vocab"]) + len(more)
    assert files["tokenizer.json"]["model"].pop("merges") == SMALL["merges"]
    return {
        **files,
        "more_vocab": more,
        "texts": MORE,
        "ids": ids,
        "decoded": [decoded(tokenizer, row, text) for row, text in zip(ids, samples, strict=True)],
        "single": {"ids": single.ids, "types": single.type_ids},
        "pair": {"ids": pair.ids, "types": pair.type_ids},
    }


def roberta():
    vocab = dict(SMALL["vocab"])
    for token in ("<s>", "<pad>", "</s>", "<unk>", "<mask>"):
        vocab[token] = len(vocab)
    tokenizer = RobertaTokenizer(vocab=vocab, merges=list(map(tuple, SMALL["merges"])))
    files = saved(tokenizer)
    # As the published file has it: what stands left of <mask> belongs to it.
    for row in files["tokenizer.json"]["added_tokens"]:
        row["lstrip"] = row["content"] == "<mask>"
    return files


def spaced():
    """RoBERTa with a space before every text, cut as the library does."""
    files = roberta()
    files["tokenizer.json"]["pre_tokenizer"]["add_prefix_space"] = True
    files["tokenizer.json"]["post_processor"]["add_prefix_space"] = True
    return files


def neox():
    vocab = dict(SMALL["vocab"])
    vocab["<|padding|>"] = len(vocab)
    vocab["|||IP_ADDRESS|||"] = len(vocab)
    tokenizer = GPTNeoXTokenizer(vocab=vocab, merges=list(map(tuple, SMALL["merges"])))
    ordinary = ["|||IP_ADDRESS|||", *(" " * n for n in range(24, 1, -1))]
    tokenizer.add_tokens([AddedToken(t, normalized=True, special=False) for t in ordinary])
    tokenizer.add_tokens([AddedToken("cafe\u0301", normalized=True, special=False)])
    tokenizer.add_tokens([AddedToken("CAFE\u0301", normalized=False, special=False)])
    files = saved(tokenizer)
    plain = files["tokenizer.json"]["decoder"]
    files["tokenizer.json"]["post_processor"] = plain  # as in the published file
    return files


def main():
    golden = {
        "versions": {m.__name__: m.__version__ for m in (tokenizers, transformers)},
        "roberta": case(roberta()),
        "roberta_spaced": case(spaced()),
        "neox": case(neox()),
    }
    out = Path(__file__).with_name("byte_level.json")
    out.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    print(out.name, out.stat().st_size)


if __name__ == "__main__":
    main()
