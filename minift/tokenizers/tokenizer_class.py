"""What transformers makes of a tokenizer: the class that a folder names goes before its file.

Since version 5 the classes of GPT-2, RoBERTa, Qwen2, GPT-NeoX and BERT take nothing but the
vocabulary, the merges and the added tokens from tokenizer.json, and build the rest themselves, out
of tokenizer_config.json. So a folder of BERT lowers the case where tokenizer_config.json says so
(or nothing at all), whatever the normalizer in tokenizer.json says. All other classes, and
`PreTrainedTokenizerFast` above all, read tokenizer.json as it is. minift does the same, and says
where that changes something. The class is also what reads a vocabulary without tokenizer.json.

Here a tokenizer.json and the files beside it become one tokenizer.json that says all of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from minift.errors import FormatError, notice
from minift.tokenizers import post_processor
from minift.tokenizers.beside import CONFIG, Beside
from minift.tokenizers.fitting import rows_of
from minift.tokenizers.tokenizer_json import added_tokens, byte_level_parts, shape
from minift.tokenizers.vocabulary import MOST_TOKENS, Added, added_rows, field_of
from minift.tokenizers.wrapping import Part, Wrapping, around, twice_around

ORDER = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # in which missing tokens are added


@dataclass(frozen=True)
class Class:
    """What a class builds, whatever tokenizer.json says."""

    model: str  # BPE or WordPiece
    roles: Mapping[str, str] = field(default_factory=dict)  # the tokens where no file names them
    pattern: str = "gpt2"  # a key of split.PATTERNS
    nfc: bool = False
    around: str = "file"  # what stands around texts: as the file, bos, bert or roberta say


END = "<|endoftext|>"
BERT = Class(
    "WordPiece",
    {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"},
    around="bert",
)
ROBERTA = Class(
    "BPE",
    {"bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>"}
    | {"unk": "<unk>", "pad": "<pad>", "mask": "<mask>"},
    around="roberta",
)
CLASSES = {
    "GPT2Tokenizer": Class("BPE", {"bos": END, "eos": END, "unk": END}),
    "RobertaTokenizer": ROBERTA,
    "BartTokenizer": ROBERTA,
    "LongformerTokenizer": ROBERTA,
    "Qwen2Tokenizer": Class("BPE", {"eos": END, "unk": END, "pad": END}, "qwen2", nfc=True),
    "GPTNeoXTokenizer": Class(
        "BPE", {"bos": END, "eos": END, "unk": END, "pad": "<|padding|>"}, nfc=True, around="bos"
    ),
    "BertTokenizer": BERT,
    "DistilBertTokenizer": BERT,
    "ElectraTokenizer": BERT,
    "MobileBertTokenizer": BERT,
    "ConvBertTokenizer": BERT,
}
# The class of a model whose files name none. Mistral's is that of tokenizer.json as it is, whatever
# the files name; and so is Qwen2Tokenizer for Qwen2, because published folders name wrong ones.
OF_MODELS = {
    "gpt2": "GPT2Tokenizer",
    "roberta": "RobertaTokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "gpt_neox": "GPTNeoXTokenizer",
    "bert": "BertTokenizer",
    "distilbert": "BertTokenizer",
}


def class_name(settings: Mapping[str, Any], beside: Beside) -> str | None:
    """The name of the class that reads a folder; None where none is named."""
    own = field_of(settings, "tokenizer_class", str, beside.path(CONFIG), none=True)
    of_config = beside.model.get("tokenizer_class")
    found = own or (of_config if isinstance(of_config, str) else None)
    model = beside.model.get("model_type")
    usual = OF_MODELS.get(model) if isinstance(model, str) else None
    if model == "mistral":
        return "PreTrainedTokenizerFast"
    if found is None or model == "qwen2":
        return usual
    return found.removesuffix("Fast") if found != "PreTrainedTokenizerFast" else found


def resolve(
    data: Mapping[str, Any], beside: Beside, path: str, *, whole: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json that say all that the folder says.

    Not `whole`: there is no tokenizer.json, and `data` has but the vocabulary; its class reads it.
    """
    found = beside.settings()
    settings = found or {}
    model = field_of(data, "model", dict, path)
    kind = model.get("type", "WordPiece" if "max_input_chars_per_word" in model else "BPE")
    name = class_name(settings, beside)
    row = CLASSES.get(name or "")
    if row is not None and row.model != kind:
        row = None
    if row is None and not whole:
        if name is not None and name not in CLASSES and not name.startswith("PreTrained"):
            allowed = "a tokenizer.json, or one of " + ", ".join(CLASSES)
            raise FormatError(
                beside.path(CONFIG), "tokenizer_class", name, allowed, "missing-field"
            )
        name = "BertTokenizer" if kind == "WordPiece" else "GPT2Tokenizer"
        row = CLASSES[name]
        if kind == "BPE":
            notice(path, "no file names the tokenizer's class: it is read as GPT2Tokenizer")
    tokens = _Tokens(field_of(model, "vocab", dict, path, at="model."), data, path)
    tokens.list_more(beside, settings, row)
    if kind == "BPE" and settings.get("eos_token") is None:
        settings["eos_token"] = _end_of_text(tokens, beside, settings, found is None)
    made = dict(data)
    add_bos = field_of(settings, "add_bos_token", bool, beside.path(CONFIG), none=True)
    if row is None:
        made = _as_it_is(made, kind)
    elif row.model == "WordPiece":
        made = _as_bert(made, settings, beside, tokens)
    else:
        made = _as_byte_level(made, row, settings, beside, tokens, whole)
    holes = tokens.fill_holes()
    made["model"] = made["model"] | {"vocab": made["model"]["vocab"] | holes}
    made["added_tokens"] = tokens.rows()
    if row is not None and whole and (keys := list(_differences(data, made, tokens.special, path))):
        what = ", ".join(keys[:6])
        text = f"the class {name} sets its own {what}, as in transformers 5"
        notice(path, f"{text}; what this file says of that is not used")
    if kind == "BPE":
        settings.pop("add_bos_token", None)
        opens = _opens(made, tokens.special, path)
        if whole and add_bos is not None and add_bos != opens and settings.get("bos_token"):
            does = "puts the BOS token before texts" if opens else "puts no BOS token before texts"
            notice(path, f"{does}; add_bos_token {json.dumps(add_bos)} in {CONFIG} is ignored")
    return made, settings


class _Tokens:
    """The ids of a vocabulary, and its added tokens."""

    def __init__(self, vocab: Mapping[str, Any], data: Mapping[str, Any], path: str):
        for text, i in vocab.items():
            if type(i) is not int:
                raise FormatError(path, f'model.vocab["{text}"]', i, "int", "bad-type")
            if not 0 <= i < MOST_TOKENS:
                allowed = f"0 to {MOST_TOKENS - 1:,}, each once"
                raise FormatError(path, f'model.vocab["{text}"]', i, allowed, "out-of-range")
        self.path, self.merges = path, data["model"].get("merges")
        self.added = added_tokens(data.get("added_tokens", []), vocab, path)
        self.ids: dict[str, int] = {t.text: i for i, t in self.added.items()} | dict(vocab)
        self.taken = set(self.ids.values())

    @cached_property
    def merged(self) -> frozenset[str]:
        """The tokens that merges make: a text can become one, so none is special by its role."""
        written = self.merges if isinstance(self.merges, list) else []
        merges = [merge.split(" ") if type(merge) is str else merge for merge in written]
        return frozenset("".join(parts) for parts in merges if _are_texts(parts))

    @property
    def special(self) -> dict[str, int]:
        return {token.text: i for i, token in self.added.items() if token.special}

    def put(self, i: int, token: Added) -> None:
        self.added[i] = token
        self.ids[token.text] = i
        self.taken.add(i)

    def list_more(self, beside: Beside, settings: dict[str, Any], row: Class | None) -> None:
        """Add what the files beside list and name; a role that has no token is set to None."""
        keys = [(role, role + "_token") for role in ORDER]
        explicit = {settings[key] for _, key in keys if settings.get(key)}
        more = beside.more_special(settings)
        rows, new, none = rows_of(beside.model), list[str](), list[str]()
        for i, token in sorted(beside.listed(explicit | set(more)).items()):
            if token.text in explicit and not token.special:
                token = Added(token.text, True, token.flags)
            if (own := self.ids.get(token.text)) is not None:
                self.put(own, token)
            elif i in self.taken or (rows is not None and i >= rows):
                none.append(f"{token.text!r} as {i:,}")
            else:
                self.put(i, token)
        for role, key in keys:
            if row is not None and key not in settings and role in row.roles:
                usual = row.roles[role]
                there = self.make_special(usual, rows or 0)
                settings[key] = None if there is None else usual
            elif text := settings.get(key):
                if (there := self.make_special(text, rows)) is None:
                    settings[key] = None
                (none if there is None else new if there else []).append(f"{text!r} ({key})")
        for text in more:
            there = self.make_special(text, rows)
            (none if there is None else new if there else []).append(repr(text))
        for found, what in (
            (new, "special tokens that are not in the vocabulary are added to it"),
            (none, "tokens without an id, or without a row of the embedding, are left out"),
        ):
            if found:
                more_of_them = f" and {len(found) - 3:,} more" if len(found) > 3 else ""
                notice(self.path, f"{what}: {', '.join(found[:3])}{more_of_them}")

    def make_special(self, text: str, rows: int | None) -> bool | None:
        """Make a token special; True: it is new, None: it is not there, nor has the model a row."""
        own = self.ids.get(text)
        if own is not None:
            if own not in self.added and text not in self.merged:
                self.put(own, Added(text))
            return False
        i = max(self.taken, default=-1) + 1
        if rows is not None and i >= rows:
            return None
        self.put(i, Added(text))
        return True

    def fill_holes(self) -> dict[str, int]:
        """Tokens that no text has, for the ids that no token has."""
        size = max(self.taken, default=-1) + 1
        holes = size - len(self.taken)
        if holes > len(self.taken):
            allowed = f"at most {len(self.taken):,}, as many as there are tokens"
            raise FormatError(self.path, "ids", f"{holes:,} without a token", allowed, "limit")
        filled = {f"[PAD{i}]": i for i in sorted(set(range(size)) - self.taken)} if holes else {}
        for text, i in filled.items():
            self.put(i, Added(text))
        return filled

    def rows(self) -> list[dict[str, Any]]:
        """The `added_tokens` of tokenizer.json."""
        return added_rows(self.added)


def _are_texts(parts: object) -> bool:
    return isinstance(parts, list) and len(parts) == 2 and type(parts[0]) is type(parts[1]) is str


def _end_of_text(
    tokens: _Tokens, beside: Beside, settings: Mapping[str, Any], alone: bool
) -> str | None:
    """The end of text, where no file of the tokenizer names it."""
    if settings.get("sep_token"):
        return str(settings["sep_token"])
    special = list(tokens.special)
    if alone and len(special) == 1:
        return special[0]
    ids = beside.model.get("eos_token_id")
    i = ids[0] if isinstance(ids, list) and ids else ids
    text = next((t for t, own in tokens.ids.items() if own == i), None) if type(i) is int else None
    if text is not None:
        notice(tokens.path, f"no file names an eos_token: {text!r}, {i:,}, as config.json says")
    return text


def _as_it_is(data: dict[str, Any], kind: object) -> dict[str, Any]:
    if kind == "WordPiece" and data.get("post_processor") is None:
        data["post_processor"] = post_processor.to_json(Wrapping(), {})
    return data


def _as_bert(
    data: dict[str, Any], settings: dict[str, Any], beside: Beside, tokens: _Tokens
) -> dict[str, Any]:
    path, unknown = beside.path(CONFIG), settings.get("unk_token") or "[UNK]"
    if unknown not in data["model"]["vocab"]:
        allowed = "a token of the vocabulary"
        raise FormatError(path, "unk_token", unknown, allowed, "missing-field")

    def asked(key: str, usual: bool | None) -> bool | None:
        value = field_of(settings, key, bool, path, none=True)
        return usual if value is None else bool(value)

    model = {"type": "WordPiece", "vocab": data["model"]["vocab"]}
    model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    data |= {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": asked("tokenize_chinese_chars", True),
            "strip_accents": asked("strip_accents", None),
            "lowercase": asked("do_lower_case", True),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": model,
    }
    data["post_processor"] = _around(around, settings, tokens, path)
    return data


def _around(made: Any, settings: Mapping[str, Any], tokens: _Tokens, path: str) -> dict[str, Any]:
    ids = []
    for role in ("cls", "sep"):
        text = settings.get(role + "_token") or f"[{role.upper()}]"
        if text not in tokens.ids:
            allowed = "a token of the vocabulary"
            raise FormatError(path, role + "_token", text, allowed, "missing-field")
        ids.append(tokens.ids[text])
        tokens.added.setdefault(ids[-1], Added(text))
    texts = {i: text for text, i in tokens.ids.items() if i in ids}
    return post_processor.to_json(made(*ids), texts)


def _as_byte_level(
    data: dict[str, Any],
    row: Class,
    settings: Mapping[str, Any],
    beside: Beside,
    tokens: _Tokens,
    whole: bool,
) -> dict[str, Any]:
    path = beside.path(CONFIG)
    space = field_of(settings, "add_prefix_space", bool, path, none=True)
    data |= byte_level_parts(row.pattern, row.nfc, bool(space))
    data["model"] = data["model"] | {"ignore_merges": False}
    if row.around == "roberta":
        data["post_processor"] = _around(twice_around, settings, tokens, path)
    elif not whole or row.around == "bos" or data.get("post_processor") is None:
        ends: dict[str, tuple[Part, ...]] = {}
        for role in ("bos", "eos"):
            asked = field_of(settings, f"add_{role}_token", bool, path, none=True)
            text = settings.get(role + "_token")
            ends[role] = ((tokens.ids[text], 0),) if asked and text and not whole else ()
        single: tuple[Part, ...] = (*ends["bos"], ("A", 0), *ends["eos"])
        second = [("B" if what == "A" else what, 1) for what, _ in single]
        wrapping = Wrapping(single, (*single, *second))
        texts = {i: text for text, i in tokens.ids.items() if (i, 0) in single}
        data["post_processor"] = post_processor.to_json(wrapping, texts)
    return data


def _wrapping(data: Mapping[str, Any], special: Mapping[str, int], path: str) -> Wrapping:
    return post_processor.wrapping_of(data.get("post_processor"), special, path) or Wrapping()


def _opens(data: Mapping[str, Any], special: Mapping[str, int], path: str) -> bool:
    """Whether one special token, and nothing else, stands around a text: before it."""
    match _wrapping(data, special, path).single:
        case ((int(), _), ("A", _)):
            return True
    return False


def _differences(
    file: Mapping[str, Any], made: Mapping[str, Any], special: Mapping[str, int], path: str
) -> Iterator[str]:
    """Where a tokenizer.json asks for something else than what was made of it."""
    for part in ("normalizer", "pre_tokenizer", "model"):
        a, b = shape(file.get(part)), shape(made.get(part))
        if isinstance(a, dict) and isinstance(b, dict) and a.get("type") == b.get("type"):
            for key in sorted((a.keys() | b.keys()) - {"vocab", "merges", "type", "unk_token"}):
                if (a.get(key) or None) != (b.get(key) or None):
                    yield f"{part}.{key}"
        elif part != "model" and json.dumps(a, sort_keys=True) != json.dumps(b, sort_keys=True):
            yield part
    try:
        same = _wrapping(file, special, path) == _wrapping(made, special, path)
    except FormatError:
        same = False
    if not same:
        yield "post_processor"
