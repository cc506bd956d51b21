"""Published folders with small random weights, and what transformers makes of them.

    python benchmarks/peers/hf_folders.py REAL WORK TEXTS.json OUT.json

REAL is a folder, or a file like tests/published.json with small ones of the same kinds.
REAL/models/NAME has config.json and what tokenizer files there are of a published model, and
REAL/templates/NAME the tokenizer_config.json of one with a chat template; REAL/links.json names
files that two folders share. For each a folder WORK/NAME is written: the files as they are, with
sizes in config.json cut; weights that transformers made, under the names that the published files
have (LAYOUTS); and where the vocabulary is not at hand, one of the kind and the size that the
published one has, trained on a few sentences and filled up.

Where TEXTS.json has "saved", folders by name, those are read instead of made: what minift saved.

OUT.json tells of each folder what transformers says: ids of TEXTS, alone and with special tokens
and in pairs, conversations, tokens and mask of a batch; NAME.npz beside it has the hidden states
and the logits or scores. A folder that transformers itself does not open has "error".
"""

import json
import re
import shutil
import sys
import warnings
from pathlib import Path

import numpy
import safetensors.torch
import sentencepiece
import sentencepiece.sentencepiece_model_pb2
import tokenizers as tk
import torch
import transformers as hf
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from minift.tokenizers.split import LLAMA3, QWEN2

warnings.simplefilter("ignore")
hf.logging.set_verbosity_error()
torch.set_num_threads(2)

SENTENCES = [
    "The keeper climbs the stairs each evening and lights the lamp.",
    "A gorgeous, witty film: positive or negative? It's 100 % mine, they said in 1999.",
    "def f(x):\n    return x + 1\n\n\nThe end.  Two spaces;   three.\tA tab.",
    "Ein schöner Tag, une belle journée, un día. 今天天气很好。 Привет, мир!",
] * 8

# ---- sizes ---------------------------------------------------------------------------------------

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "n_embd": 32,
    "n_layer": 4,
    "n_head": 4,
    "n_inner": 48,
    "dim": 32,
    "hidden_dim": 48,
    "n_layers": 4,
    "n_heads": 4,
}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "image_size": 28}
VISION |= {"num_hidden_layers": 1, "patch_size": 14}
# What Gemma's 4B leaves out is the default of its class: heads of 256, eight of them.
ABSENT = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}


def cut(config):
    """The same configuration with small sizes, and no key that was not there."""
    found = dict(config)
    for key, size in SMALL.items():
        if found.get(key) is not None:
            found[key] = size
    if found.get("num_key_value_heads") is not None:
        shared = config["num_key_value_heads"] < config["num_attention_heads"]
        found["num_key_value_heads"] = 2 if shared else 4
    if found.get("head_dim") is not None:
        found["head_dim"] = 16 if config["head_dim"] * config["num_attention_heads"] != config.get(
            "hidden_size") else 8  # fmt: skip
    if found.get("sliding_window") is not None:
        found["sliding_window"] = 8
    if found.get("layer_types") is not None:  # the last of Gemma 3's sees all, the first do not
        found["layer_types"] = [*config["layer_types"][:3], config["layer_types"][-1]]
    if isinstance(found.get("max_window_layers"), int):
        found["max_window_layers"] = 2
    if found.get("query_pre_attn_scalar") is not None:
        found["query_pre_attn_scalar"] = 24
    if "text_config" in found:
        found["text_config"] = cut(found["text_config"])
    if "vision_config" in found:
        found["vision_config"] = found["vision_config"] | VISION
    if "mm_tokens_per_image" in found:
        found["mm_tokens_per_image"] = 1
    return found


# ---- weights -------------------------------------------------------------------------------------


def rename(old, new):
    return lambda state, config: {name.replace(old, new): x for name, x in state.items()}


def under(prefix):
    return lambda state, config: {prefix + name: x for name, x in state.items()}


def with_names(make):
    return lambda state, config: state | make(state, config)


def random(*shape):
    return torch.randn(*shape) * 0.2


def gamma_beta(state, config):
    """As BERT's first checkpoints name the two of a LayerNorm."""
    return {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias",
        "LayerNorm.beta"): x for name, x in state.items()
    }  # fmt: skip


def pooler(prefix):
    return with_names(lambda state, config: {
        f"{prefix}pooler.dense.weight": random(config.hidden_size, config.hidden_size),
        f"{prefix}pooler.dense.bias": random(config.hidden_size),
    })  # fmt: skip


@with_names
def next_sentence(state, config):
    return {
        "cls.seq_relationship.weight": random(2, config.hidden_size),
        "cls.seq_relationship.bias": random(2),
    }


@with_names
def masked_words(state, config):
    """A head for masked words that the class does not have."""
    width = config.hidden_size
    return {
        "cls.predictions.bias": random(config.vocab_size),
        "cls.predictions.transform.dense.weight": random(width, width),
        "cls.predictions.transform.dense.bias": random(width),
        "cls.predictions.transform.LayerNorm.weight": random(width),
        "cls.predictions.transform.LayerNorm.bias": random(width),
        "cls.predictions.decoder.weight": random(config.vocab_size, width),
    }


@with_names
def fit_dense(state, config):
    """TinyBERT's projection to its teacher's width."""
    return {"fit_dense.weight": random(48, config.hidden_size), "fit_dense.bias": random(48)}


@with_names
def position_ids(state, config):
    name = next(name for name in state if "position_embeddings" in name)
    count = len(state[name])
    return {name.replace("position_embeddings.weight", "position_ids"): torch.arange(count)[None]}


def triangles(dtype, masked):
    """GPT-2's causal masks."""

    def make(state, config):
        found = {}
        size = config.n_positions
        for layer in range(config.n_layer):
            at = f"transformer.h.{layer}.attn."
            found[at + "bias"] = torch.ones(size, size).tril().to(dtype)[None, None]
            if masked:
                found[at + "masked_bias"] = torch.tensor(-1e4)
        return found

    return with_names(make)


@with_names
def neox_buffers(state, config):
    found = {}
    for layer in range(config.num_hidden_layers):
        at = f"gpt_neox.layers.{layer}.attention."
        found[at + "bias"] = torch.ones(64, 64, dtype=torch.bool).tril()[None, None]
        found[at + "masked_bias"] = torch.tensor(-1e9)
        found[at + "rotary_emb.inv_freq"] = torch.rand(2)
    return found


@with_names
def frequencies(state, config):
    return {
        f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.rand(4)
        for layer in range(config.num_hidden_layers)
    }


def half(state, config):
    return {name: x.half() if x.is_floating_point() else x for name, x in state.items()}


@with_names
def value_head(state, config):
    """As TRL's PPO saved it."""
    return {"v_head.summary.weight": random(1, config.n_embd), "v_head.summary.bias": random(1)}


@with_names
def tied_head(state, config):
    return {"lm_head.weight": state["transformer.wte.weight"].clone()}


def first_gemma_3(state, config):
    """The names of Gemma 3 before transformers 4.52."""
    return {
        name.replace("model.language_model.", "language_model.model.")
        .replace("model.vision_tower.", "vision_tower.")
        .replace("model.multi_modal_projector.", "multi_modal_projector."): x
        for name, x in state.items()
    }


LLAMA_OLD = (frequencies, half)
NEOX = (neox_buffers,)
# Folder -> what its published weights have otherwise than today's writer, and the file's form.
LAYOUTS = {
    "bert-base-chinese": (gamma_beta, next_sentence, pooler("bert.")),
    "bert-multilingual-ner": (position_ids, pooler("bert.")),
    "bert-tiny-classifier": (position_ids,),
    "hatebert-classifier": (position_ids, masked_words),
    "olm-bert-tiny": (pooler("bert."),),
    "multilingual-minilm": (position_ids,),
    "tinybert": (under("bert."), masked_words, next_sentence, fit_dense),
    "twitter-roberta-sentiment-b": (pooler("roberta."), position_ids),
    "klue-roberta-ner": (pooler("roberta."),),
    "gpt2": (triangles(torch.float32, False), rename("transformer.", "")),
    "gpt2-xl": (triangles(torch.float32, True), rename("transformer.", "")),
    "gpt2-reward": (triangles(torch.bool, True), value_head),
    "dialogpt-small": (tied_head, triangles(torch.uint8, True)),
    "dolly-v2-3b": NEOX,
    "gpt-neox-20b": NEOX,
    "pythia-12b-deduped": NEOX,
    "llama-7b-chatdoctor": LLAMA_OLD,
    "llama-2-7b-chat": LLAMA_OLD,
    "llama-2-70b": LLAMA_OLD,
    "codellama-7b": LLAMA_OLD,
    "gemma-3-4b-it": (first_gemma_3,),
}
PICKLED = {
    *("bert-base-chinese", "tinybert", "twitter-roberta-sentiment-b", "dialogpt-small"),
    *("gpt2-xl", "gpt-neox-20b", "dolly-v2-3b", "hatebert-classifier"),
}
SHARDED = {"llama-7b-chatdoctor", "llama-2-70b", "gpt-neox-20b", "qwen2.5-32b-instruct"}


# What is the embeddings once more, and not in a file where the two are tied.
TIED = (
    *("lm_head.weight", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"),
    *("lm_head.decoder.weight", "lm_head.decoder.bias", "vocab_projector.weight"),
)


def write_weights(folder, name, state):
    state = {key: tensor.contiguous() for key, tensor in state.items()}
    pickled = name in PICKLED or LAYOUTS.get(name) == LLAMA_OLD
    stem, end = ("pytorch_model", ".bin") if pickled else ("model", ".safetensors")

    def write(path, part):
        if pickled:
            torch.save(part, path)
        else:
            safetensors.torch.save_file(part, path, metadata={"format": "pt"})

    if name not in SHARDED:
        write(folder / f"{stem}{end}", state)
        return
    keys, homes = list(state), {}
    for n, part in enumerate((keys[::2], keys[1::2]), 1):
        shard = f"{stem}-{n:05d}-of-00002{end}"
        write(folder / shard, {key: state[key] for key in part})
        homes |= dict.fromkeys(part, shard)
    size = sum(x.numel() * x.element_size() for x in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(homes.items()))}
    (folder / f"{stem}{end}.index.json").write_text(json.dumps(index))


def class_of(config):
    """The class that config.json names; the body where it names none."""
    named = (config.architectures or [None])[0]
    named = {"LLaMAForCausalLM": "LlamaForCausalLM"}.get(named, named)
    return getattr(hf, named) if named else hf.AutoModel


def settings_of(folder):
    data = json.loads((folder / "config.json").read_text())
    if "model_type" not in data:  # its users name the class
        named = (data.get("architectures") or ["BertModel"])[0]
        return getattr(hf, named).config_class(**data)
    return hf.AutoConfig.from_pretrained(folder)


def make_model(config):
    torch.manual_seed(0)
    kind = class_of(config)
    model = kind.from_config(config) if kind is hf.AutoModel else kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15)
    return model.eval()


# ---- vocabularies --------------------------------------------------------------------------------


def added_rows(settings, more=()):
    """id -> an added token, as tokenizer_config.json lists them."""
    rows = {}
    for key, row in settings.get("added_tokens_decoder", {}).items():
        flags = {f: row.get(f, False) for f in ("lstrip", "rstrip", "single_word", "normalized")}
        rows[int(key)] = {"content": row["content"], **flags, "special": row.get("special", True)}
    for i, text in more:
        flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
        rows.setdefault(i, {"content": text, **flags, "special": True})
    return rows


def filled(trained, added, size):
    """token -> id: the added ones where they are, the trained ones in between, then fillers."""
    names = {row["content"] for row in added.values()}
    free = iter([text for text in trained if text not in names])
    vocabulary = {}
    for i in range(size):
        if i in added:
            vocabulary[added[i]["content"]] = i
        else:
            vocabulary[next(free, f"filler{i}")] = i
    assert next(free, None) is None, "a vocabulary smaller than what was trained"
    return vocabulary


def as_file(folder, tokenizer, vocabulary, added, **model):
    """tokenizer.json: the trained model with the filled vocabulary."""
    data = json.loads(tokenizer.to_str())
    data["model"] |= {"vocab": vocabulary} | model
    data["added_tokens"] = [{"id": i} | row for i, row in sorted(added.items())]
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False))
    return data


def byte_level(folder, size, added, family):
    """GPT-2's kind, with the pattern of the family."""
    tokenizer = tk.Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if family in ("llama3", "qwen2"):
        pattern = tk.Regex({"llama3": LLAMA3, "qwen2": QWEN2}[family])
        last = pre_tokenizers.Sequence([
            pre_tokenizers.Split(pattern, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])  # fmt: skip
    if family == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    if family == "smollm":
        last = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), last])
    tokenizer.pre_tokenizer = last
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(SENTENCES, trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, show_progress=False))  # fmt: skip
    if family == "llama3":
        tokenizer.post_processor = processors.Sequence([
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A",
                pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
                special_tokens=[("<|begin_of_text|>", min(added))],
            ),
        ])  # fmt: skip
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trained = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    vocabulary = filled(trained, added, size)
    last = max(i for i in range(size) if i not in added)  # added tokens behind it are no part
    plain = {text: i for text, i in vocabulary.items() if i <= last}
    ignore = {"ignore_merges": True} if family == "llama3" else {}
    return as_file(folder, tokenizer, plain, added, **ignore)


def two_files(folder, data):
    """vocab.json and merges.txt, as GPT-2 was first published."""
    model = data["model"]
    vocabulary = model["vocab"] | {row["content"]: row["id"] for row in data["added_tokens"]}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    (folder / "tokenizer.json").unlink()


def pieces(folder, size, added, family):
    """The kind of Llama 2 and of Gemma: pieces with a sign for the space, and bytes."""
    tokenizer = tk.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    replace = normalizers.Replace(" ", "▁")
    if family == "gemma":
        tokenizer.normalizer = replace
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if family != "gemma":
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    words = tk.Tokenizer(models.BPE())  # trained on words, so that no piece runs across a space
    words.normalizer, words.pre_tokenizer = replace, pre_tokenizers.Split("▁", "merged_with_next")
    words.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=600, show_progress=False))
    trained = sorted(words.get_vocab(), key=words.get_vocab().get)
    merges = json.loads(words.to_str())["model"]["merges"]
    vocabulary = filled([f"<0x{b:02X}>" for b in range(256)] + trained, added, size)
    bos = "<bos>" if family == "gemma" else "<s>"
    known = {row["content"]: i for i, row in added.items()}
    if bos in known:
        tokenizer.add_special_tokens([bos])
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, known[bos])]
        )
    return as_file(folder, tokenizer, vocabulary, added, merges=merges)


def word_pieces(folder, size, settings, added):
    """A vocab.txt of BERT's kind."""
    tokenizer = tk.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    lower = settings.get("do_lower_case", True)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(SENTENCES, trainers.WordPieceTrainer(
        vocab_size=500, show_progress=False))  # fmt: skip
    trained = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    vocabulary = filled(trained, added, size)
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n")


# The vocabularies at hand that other folders have too, by model type and size.
SAME = {
    ("bert", 30522): ("all-minilm-l6-v2", ("vocab.txt",)),
    ("distilbert", 30522): ("all-minilm-l6-v2", ("vocab.txt",)),
    ("bert", 21128): ("bge-large-zh-v1.5", ("vocab.txt",)),
    ("roberta", 50265): ("distilroberta-base", ("vocab.json", "merges.txt")),
    ("llama", 32000): ("llama-7b-chatdoctor", ("tokenizer.model",)),
}
# tokenizer_config.json of a model whose own is not at hand.
SETTINGS = {
    "qwen2.5-32b-instruct": "qwen2.5-instruct",
    "qwen3-32b": "qwen3-first",
    "mistral-7b-instruct-v0.3": "mistral-v0.3-instruct",
}
SPECIAL = {
    "gpt2": [(50256, "<|endoftext|>")],
    "gpt_neox": [(0, "<|endoftext|>"), (1, "<|padding|>")],
    "qwen2": [(151643, "<|endoftext|>"), (151644, "<|im_start|>"), (151645, "<|im_end|>")],
    "llama": [(0, "<unk>"), (1, "<s>"), (2, "</s>")],
    "mistral": [(0, "<unk>"), (1, "<s>"), (2, "</s>"), (3, "[INST]"), (4, "[/INST]")],
    "gemma": [(0, "<pad>"), (1, "<eos>"), (2, "<bos>"), (3, "<unk>")],
    "bert": [(0, "[PAD]"), (100, "[UNK]"), (101, "[CLS]"), (102, "[SEP]"), (103, "[MASK]")],
    "olm": [(0, "<s>"), (1, "<pad>"), (2, "</s>"), (3, "<unk>"), (4, "<mask>")],
}
SPECIAL["qwen3"] = SPECIAL["qwen2"] + [(151667, "<think>"), (151668, "</think>")]
SPECIAL["gemma2"] = SPECIAL["gemma3"] = SPECIAL["gemma"]
FILES = {"tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json"}


def write_vocabulary(real, folder, name, config):
    """Give the folder a vocabulary if it has none: one that is at hand, or one of its kind."""
    there = {path.name for path in folder.iterdir()}
    if there & FILES:
        return
    kind, size = config.get("model_type", "bert"), config.get("vocab_size", 262_208)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) if path.exists() else {}
    if name == "olm-bert-tiny":
        return two_files(folder, byte_level(folder, size, added_rows({}, SPECIAL["olm"]), "gpt2"))
    if (kind, size) in SAME and settings.get("tokenizer_class") != "PreTrainedTokenizerFast":
        other, names = SAME[kind, size]
        for file in names:
            shutil.copy(real / "models" / other / file, folder / file)
        return
    named = () if settings.get("added_tokens_decoder") else SPECIAL.get(kind, ())
    if name == "multilingual-minilm":
        return
    added = added_rows(settings, named)
    most = max(added) + 1
    if kind in ("bert", "roberta", "distilbert"):
        return word_pieces(folder, size, settings, added)
    if kind in ("gpt2", "gpt_neox"):
        data = byte_level(folder, most if kind == "gpt2" else 1200, added, "gpt2")
        if kind == "gpt2" and not settings:
            two_files(folder, data)
        return
    if kind in ("qwen2", "qwen3"):
        byte_level(folder, most, added, "qwen2")
    elif "<|begin_of_text|>" in {row["content"] for row in added.values()}:
        byte_level(folder, most, added, "llama3")
    elif "smollm" in name:
        byte_level(folder, most, added, "smollm")
    else:
        pieces(folder, max(most, 1500), added, "gemma" if "gemma" in kind else "llama")


def write_own(path, place):
    """The folders of a file like tests/published.json, as `place`/models/NAME."""
    for name, entry in json.loads(path.read_text())["folders"].items():
        folder = place / "models" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(entry["config"]))
        for file, value in entry.get("files", {}).items():
            text = value if isinstance(value, str) else json.dumps(value)
            (folder / file).write_text(text)
        form, family, special = entry["vocabulary"]
        text = entry["config"].get("text_config", entry["config"])
        size, added = text["vocab_size"], added_rows({}, special)
        if form == "words":
            word_pieces(folder, size, {}, added)
        elif form == "pieces":
            pieces(folder, size, added, family)
        else:
            data = byte_level(folder, size, added, family)
            if form == "two files":
                two_files(folder, data)
    return place


# ---- chat templates on a model of their own ------------------------------------------------------

NAMES = re.compile(r"<\|[\w ]+\|>|</?[a-z_]+>|\[/?[A-Z_]+\]|<<?/?SYS>>?")
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 900,
    "max_position_embeddings": 4096,
}  # fmt: skip


def template_folder(source, folder):
    """A tiny model under a published tokenizer_config.json, whose special tokens it has."""
    settings = json.loads((source / "tokenizer_config.json").read_text())
    template = settings["chat_template"]
    texts = [template] if isinstance(template, str) else [row["template"] for row in template]
    named = [settings.get(f"{role}_token") for role in ("bos", "eos", "pad", "unk")]
    named = [token["content"] if isinstance(token, dict) else token for token in named]
    found = [name for text in texts for name in NAMES.findall(text)]
    special = list(dict.fromkeys(t for t in (*named, *found) if t and "SYS" not in t))
    special = [t for t in special if t not in ("<think>", "</think>", "<tools>", "</tools>")]
    (folder / "config.json").write_text(json.dumps(LLAMA))
    rows = added_rows({}, enumerate(special, 900 - len(special)))
    family = "llama3" if "<|start_header_id|>" in special else "gpt2"
    data = byte_level(folder, 900, rows, family)
    data["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False))
    settings = {k: v for k, v in settings.items() if k != "added_tokens_decoder"}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


# ---- what transformers says ----------------------------------------------------------------------


def prepare(real, work, name, source):
    folder = work / name
    folder.mkdir(parents=True)
    for path in source.iterdir():
        shutil.copy(path, folder / path.name)
    links = real / "links.json"
    for at, target in (json.loads(links.read_text()) if links.exists() else {}).items():
        if at.startswith(name + "/"):
            shutil.copy(real / "models" / target, work / at)
    if source.parent.name == "templates":
        template_folder(source, folder)
    else:
        data = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(cut(data), indent=2))
        if name in SETTINGS and not (folder / "tokenizer_config.json").exists():
            place = real / "templates" / SETTINGS[name] / "tokenizer_config.json"
            if place.exists():
                shutil.copy(place, folder / "tokenizer_config.json")
        write_vocabulary(real, folder, name, data)
    config = settings_of(folder)
    model = make_model(config)
    state = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
    text = config.get_text_config()
    if text.tie_word_embeddings:
        for key in TIED:
            state.pop(key, None)
    for change in LAYOUTS.get(name, ()):
        state = change(state, text)
    if name in LAYOUTS and half in LAYOUTS[name]:  # what was rounded is what counts
        model.half().float()
    write_weights(folder, name, state)
    return folder, model


@torch.no_grad()
def computed(model, config):
    text = config.get_text_config()
    vocab = min(text.vocab_size, 1000)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(5, vocab, (2, 13), generator=generator)
    mask = torch.ones_like(tokens)
    mask[1, 9:] = 0
    offset = text.pad_token_id + 1 if text.model_type == "roberta" else 0
    given = {"input_ids": tokens, "attention_mask": mask, "output_hidden_states": True}
    if text.model_type != "distilbert":
        given["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0) + offset
    labels = hasattr(model, "score")
    if labels:  # a decoder's classifier looks for the last token that is no padding
        tokens = torch.where(mask.bool(), tokens, text.pad_token_id or 0)
        model.config.pad_token_id = text.pad_token_id or 0
        given["input_ids"] = tokens
    found = model(**given)
    arrays = {"hidden": torch.stack(found.hidden_states).float().numpy()}
    if getattr(found, "logits", None) is not None:
        arrays["out"] = found.logits.float().numpy()
    return tokens, mask, arrays


def spoken(tokenizer, conversations):
    found = []
    for messages in conversations:
        reply = messages[-1]["role"] == "user"
        try:
            ids = tokenizer.apply_chat_template(
                messages, tokenize=True, add_generation_prompt=reply, return_dict=False
            )
        except Exception as error:
            found.append({"error": f"{type(error).__name__}: {error}"[:200]})
            continue
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=reply)
        found.append({"ids": ids, "text": text})
    return found


def of_library(path, kind, texts):
    """Ids by sentencepiece; Llama's class puts a space first only where a text has none."""
    proto = sentencepiece.sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    usual = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    proto.normalizer_spec.add_dummy_prefix = False
    bare = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    as_llama = kind.__name__ == "LlamaTokenizer"
    return [
        (bare if as_llama and text.startswith((" ", "▁")) else usual).encode(text) for text in texts
    ]


def tokenized(folder, texts, conversations):
    if not any((folder / file).exists() for file in FILES):
        return {"error": "no vocabulary at hand"}
    kind = hf.AutoTokenizer
    if "model_type" not in json.loads((folder / "config.json").read_text()):
        roberta = (folder / "merges.txt").exists()
        kind = hf.RobertaTokenizerFast if roberta else hf.BertTokenizerFast  # as its users load it
    tokenizer = kind.from_pretrained(folder)
    pairs = list(zip(texts, texts[1:] + texts[:1], strict=True))
    said = {
        "class": type(tokenizer).__name__,
        "ids": [tokenizer(t, add_special_tokens=False).input_ids for t in texts],
        "whole": [tokenizer(t).input_ids for t in texts],
        "pairs": [tokenizer(a, b).input_ids if a and b else None for a, b in pairs],
        "chat": [],
    }
    if tokenizer.chat_template is not None:
        said["chat"] = spoken(tokenizer, conversations)
    pieces = folder / "tokenizer.model"
    if pieces.exists() and not (folder / "tokenizer.json").exists():
        # transformers 5 orders the merges that it makes of these by id and not by score, and puts
        # no space first where the class does not go with the model type. The published folders
        # have a tokenizer.json that is right. So the library that made the file is asked.
        said["class"], said["ids"] = "sentencepiece", of_library(pieces, type(tokenizer), texts)
        del said["whole"], said["pairs"]
    return said


def told(folder, model, kind, given):
    """All that is compared of one folder; its numbers stand beside it."""
    tokens, mask, arrays = computed(model, settings_of(folder))
    numpy.savez(folder.with_name(folder.name + ".npz"), **arrays)
    facts = {
        "kind": kind,
        "class": type(model).__name__,
        "tokens": tokens.tolist(),
        "mask": mask.tolist(),
    }
    try:
        facts["tokenizer"] = tokenized(folder, given["texts"], given["conversations"])
    except Exception as error:
        facts["tokenizer"] = {"error": f"{type(error).__name__}: {error}"[:300]}
    return facts


def read(folder, given):
    """A folder that minift saved."""
    try:
        config = settings_of(folder)
        model, report = class_of(config).from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        facts = told(folder, model.eval(), "saved", given)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    facts["missing"] = sorted(report["missing_keys"])
    return facts


def main():
    real, work = map(Path, sys.argv[1:3])
    given = json.loads(Path(sys.argv[3]).read_text())
    wanted, said = given.get("only"), {}
    if "saved" in given:
        said = {name: read(Path(folder), given) for name, folder in given["saved"].items()}
    else:
        if real.is_file():
            real = write_own(real, work / "own")
        for source in sorted([*real.glob("models/*"), *real.glob("templates/*")]):
            name = source.name if source.parent.name == "models" else f"template-{source.name}"
            if not wanted or name in wanted:
                try:
                    folder, model = prepare(real, work, name, source)
                    said[name] = told(folder, model, source.parent.name, given)
                except Exception as error:
                    said[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
    versions = {"transformers": hf.__version__, "tokenizers": tk.__version__}
    Path(sys.argv[4]).write_text(json.dumps({"versions": versions, "folders": said}))


if __name__ == "__main__":
    main()
