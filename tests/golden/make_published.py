"""Make published.json: folders as people publish them, and what transformers reads in them.

    python tests/golden/make_published.py

Runs in an environment of its own with transformers; minift is not imported. The vocabularies are
those of tokens.json and wordpiece.json; a file in which one of them stands names it instead. Every
folder is read by AutoTokenizer. The names of special tokens in a text are encoded as text.
"""

import copy
import json
import tempfile
from pathlib import Path

import tokenizers
import transformers
from transformers import AutoTokenizer

HERE = Path(__file__).parent
BPE = json.loads((HERE / "tokens.json").read_text())
WORDS = json.loads((HERE / "wordpiece.json").read_text())["settings"][0]["tokenizer"]
SHARED = {
    "$bpe": BPE["tokenizer"]["model"]["vocab"],
    "$merges": BPE["tokenizer"]["model"]["merges"],
    "$words": WORDS["model"]["vocab"],
}
TEXTS = [
    "", "Hello world", "the film isn't Unaffable! ",
    "  Bad  NAIVE caf\u00e9 cafe\u0301 123  4 5\n 6",
    "a\r\nb\n\n c\t\td", " " * 7 + "x" + " " * 12, "\u706f\u5854 abc",
    "a \u0301b\u0323\u0301 \u212b",
    "low1234567 78", "ABC abc aBc [E1] x[E1]y  [E1]  z", "### End\n  more",
    "<|endoftext|> [SEP] <s>",
    "keeperabckeeper abc-keeper", "\u00a0lamp\u3000 lamp  lamps",
]  # fmt: skip
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
PAIR = ("The keeper", " lit it")
HUGE = int(1e30)
EOT = "<|endoftext|>"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
RAW = {"normalized": False}
LLAMA3_STEP = BPE["small"]["llama3"]["tokenizer"]["pre_tokenizer"]


def token(i, text, special=False, **flags):
    return {"id": i, "content": text} | FLAGS | {"special": special} | flags


def special(i, text):
    return token(i, text, special=True, normalized=False)


def decoder(rows):
    """added_tokens_decoder of tokenizer_config.json."""
    return {str(row["id"]): {k: v for k, v in row.items() if k != "id"} for row in rows}


def bpe(pattern="gpt2", added=(), **changes):
    data = copy.deepcopy(BPE["tokenizer"]) | BPE["small"][pattern]["tokenizer"]
    data["model"] |= {"vocab": "$bpe", "merges": "$merges"}
    data["added_tokens"] += added
    return {"tokenizer.json": data | changes}


def words(added=(), **changes):
    data = copy.deepcopy(WORDS)
    data["model"]["vocab"] = "$words"
    data["added_tokens"] += added
    for key, value in changes.items():
        data[key] = data[key] | value if isinstance(value, dict) else value
    return {"tokenizer.json": data}


def config(**fields):
    return {"tokenizer_config.json": fields}


def model(kind, **fields):
    return {"config.json": {"model_type": kind, "vocab_size": 760} | fields}


def roberta_vocab():
    return {"$join": ["$bpe", {"<s>": 700, "<pad>": 701, "</s>": 702, "<unk>": 703, "<mask>": 704}]}


ROBERTA_SPECIAL = [special(i, text) for text, i in roberta_vocab()["$join"][1].items()]
LINES = {"vocab.txt": "$lines"}
BARE = {"vocab.json": "$bpe", "merges.txt": "$merges.txt"}
ROBERTA = {"vocab.json": roberta_vocab(), "merges.txt": "$merges.txt"}
MARKED = [
    token(197, "[E1]", lstrip=True, **RAW),
    token(198, "ABC", single_word=True),
    token(199, "### End", rstrip=True, **RAW),
    token(200, "Caf\u00e9 x"),
    special(201, "[NAME]"),
]
RUNS = [
    *(token(700 + n, " " * (24 - n)) for n in range(23)),
    token(723, "abc", single_word=True, rstrip=True, **RAW),
    token(724, "### End\n", lstrip=True),
    token(725, "[E1]", lstrip=True, rstrip=True, **RAW),
    special(726, "<|padding|>"),
]
MAP = {"eos_token": {"content": EOT} | FLAGS, "bos_token": EOT, "unk_token": "", "pad_token": "[P]"}
STARTS = {
    "type": "Sequence",
    "processors": [
        BYTE_LEVEL | {"use_regex": True},
        {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {
                "<|begin_of_text|>": {
                    "id": "<|begin_of_text|>", "ids": [3], "tokens": ["<|begin_of_text|>"],
                }
            },
        },
    ],
}  # fmt: skip
TWO = [token(700, "[E1]", **RAW), special(2, "<|im_end|>")]
FAST = "PreTrainedTokenizerFast"
CASED = {"lowercase": False}
BERT_ROLES = {f"{role}_token": f"[{role.upper()}]" for role in ("unk", "cls", "sep", "pad", "mask")}
LLAMA3 = {"tokenizer_class": FAST, "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
QWEN2 = {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "unk_token": None}
QWEN2 |= {"eos_token": "<|im_end|>", "pad_token": EOT, "add_prefix_space": False}

FOLDERS = {
    "gpt2: tokenizer.json, a length": bpe() | config(model_max_length=1024) | model("gpt2"),
    "gpt2: tokenizer.json alone": bpe() | model("gpt2"),
    "gpt2: vocab.json and merges.txt": BARE | model("gpt2"),
    "gpt2: BOS, without tokenizer.json": BARE
    | config(add_bos_token=True, tokenizer_class="GPT2Tokenizer", model_max_length=HUGE)
    | model("gpt2"),
    "gpt2: BOS and EOS, without tokenizer.json": BARE
    | config(add_bos_token=True, add_eos_token=True)
    | model("gpt2"),
    "gpt2: BOS beside tokenizer.json": bpe() | config(add_bos_token=True) | model("gpt2"),
    "gpt2: a space before texts": bpe() | config(add_prefix_space=True) | model("gpt2"),
    "gpt2: a new token for padding": bpe() | config(pad_token="[P]") | model("gpt2"),
    "gpt2: named tokens": bpe()
    | config(extra_special_tokens={"image_token": "<image>"}, boi_token="<boi>")
    | model("gpt2"),
    "smollm: the class of GPT-2": bpe("smollm")
    | config(tokenizer_class="GPT2Tokenizer", bos_token=EOT, eos_token="<|im_end|>")
    | model("llama"),
    "smollm: as it is": bpe("smollm")
    | config(tokenizer_class=FAST, eos_token="<|im_end|>")
    | model("llama"),
    "roberta: vocab.json and merges.txt": ROBERTA | model("roberta"),
    "roberta: a space, a mask with flags": ROBERTA
    | config(
        add_prefix_space=True,
        tokenizer_class="RobertaTokenizer",
        mask_token={"__type": "AddedToken", "content": "<mask>"} | FLAGS | {"lstrip": True},
    )
    | model("bert"),
    "roberta: tokenizer.json": bpe(added=ROBERTA_SPECIAL)
    | config(tokenizer_class="RobertaTokenizer")
    | model("roberta"),
    "neox: runs of spaces": bpe(added=RUNS, normalizer={"type": "NFC"})
    | config(tokenizer_class="GPTNeoXTokenizer", eos_token=EOT)
    | model("gpt_neox"),
    "neox: without a word": bpe(added=RUNS) | model("gpt_neox"),
    "neox: the file as it is": bpe(added=RUNS)
    | config(tokenizer_class=FAST, eos_token=EOT)
    | model("gpt_neox"),
    "qwen2: tokenizer.json": bpe("qwen2") | config(**QWEN2) | model("qwen2"),
    "qwen2: another class, another file": bpe("llama3", post_processor=STARTS)
    | config(**(LLAMA3 | {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True}))
    | model("qwen2"),
    "qwen3: vocab.json and merges.txt": BARE
    | config(**QWEN2, added_tokens_decoder=decoder(TWO))
    | model("qwen3"),
    "llama3: tokenizer.json": bpe("llama3", post_processor=STARTS)
    | config(**LLAMA3)
    | model("llama"),
    "llama3: the class of Llama, no BOS": bpe("llama3", post_processor=STARTS)
    | config(**(LLAMA3 | {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}))
    | model("llama"),
    "llama3: what does not match is dropped": bpe(
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [
                LLAMA3_STEP["pretokenizers"][0] | {"behavior": "Removed", "invert": True},
                LLAMA3_STEP["pretokenizers"][1],
            ],
        }
    )
    | config(tokenizer_class=FAST, eos_token="<|eot_id|>")
    | model("llama"),
    "bert: tokenizer.json alone, which keeps the case": words(normalizer=CASED)
    | model("bert"),
    "bert: the case kept, as both say": words(normalizer=CASED)
    | config(do_lower_case=False, tokenizer_class="BertTokenizer", model_max_length=HUGE)
    | model("bert"),
    "bert: accents and Chinese": words()
    | config(strip_accents=False, tokenize_chinese_chars=False)
    | model("distilbert"),
    "bert: the file as it is": words(normalizer=CASED, model={"max_input_chars_per_word": 5})
    | config(tokenizer_class=FAST, **BERT_ROLES)
    | model("bert"),
    "bert: nothing around texts": words(post_processor=None)
    | config(tokenizer_class=FAST, **BERT_ROLES)
    | model("bert"),
    "bert: added tokens": words(added=MARKED) | model("bert"),
    "bert: added tokens, as it is": words(added=MARKED)
    | config(tokenizer_class=FAST, **BERT_ROLES)
    | model("bert"),
    "bert: added tokens in the configuration": words()
    | config(added_tokens_decoder=decoder(MARKED), **BERT_ROLES)
    | model("bert"),
    "bert: vocab.txt": LINES | model("bert"),
    "bert: vocab.txt and two more files": LINES
    | config(do_lower_case=False)
    | {"special_tokens_map.json": {"sep_token": "[SEP]", "additional_special_tokens": ["[NAME]"]}}
    | {"added_tokens.json": {row["content"]: row["id"] for row in MARKED}}
    | model("bert"),
    "bert: vocab.txt of Windows": {"vocab.txt": "$lines\r"} | model("bert"),
    "bert: vocab.txt with lines twice and empty": {"vocab.txt": "$lines again"} | model("bert"),
    "roberta's model, bert's class": LINES
    | config(tokenizer_class="BertTokenizer", do_lower_case=False, bos_token="[CLS]")
    | model("roberta"),
}  # fmt: skip


def put_back(value):
    """A file's content, the vocabularies in their places."""
    if isinstance(value, dict) and "$join" in value:
        whole = {}
        for part in value["$join"]:
            whole |= put_back(part)
        return whole
    if isinstance(value, dict):
        return {key: put_back(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [put_back(inner) for inner in value]
    if isinstance(value, str) and value in SHARED:
        return SHARED[value]
    lines = "\n".join(SHARED["$words"]) + "\n"
    texts = {
        "$lines": lines,
        "$lines\r": lines.replace("\n", "\r\n"),
        "$lines again": lines.replace("the\n", "the\n\nfilm\n \n", 1) + "a\n\n",
        "$merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in SHARED["$merges"]),
    }
    return texts.get(value, value) if isinstance(value, str) else value


def write(folder, files):
    for name, content in files.items():
        content = put_back(content)
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_bytes(text.encode())


def answer(files):
    with tempfile.TemporaryDirectory() as place:
        write(Path(place), files)
        tokenizer = AutoTokenizer.from_pretrained(place)
        plain = tokenizer(TEXTS, add_special_tokens=False, split_special_tokens=True).input_ids
        two = tokenizer(*PAIR, split_special_tokens=True, return_token_type_ids=True)
        one = tokenizer(PAIR[0], split_special_tokens=True).input_ids
        roles = {}
        for role in ("eos", "bos", "pad", "cls", "sep", "mask"):
            roles[role] = getattr(tokenizer, role + "_token_id")
    return {
        "class": type(tokenizer).__name__, "ids": plain, "one": one,
        "two": [two.input_ids, two.token_type_ids], "roles": roles,
    }  # fmt: skip


def main():
    versions = {module.__name__: module.__version__ for module in (tokenizers, transformers)}
    golden = {"versions": versions, "texts": TEXTS, "pair": PAIR, "folders": {}}
    for name, files in FOLDERS.items():
        golden["folders"][name] = {"files": files} | answer(files)
    path = Path(__file__).with_name("published.json")
    path.write_text(json.dumps(golden, ensure_ascii=True) + "\n")
    print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
