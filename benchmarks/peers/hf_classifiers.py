"""Tiny classifiers in the published layout, and transformers' probabilities of texts and pairs.

    python benchmarks/peers/hf_classifiers.py JOB.json OUT.npz

JOB: {"corpus": [text], "jobs": [{"name", "folder", "config": FILE or null, "family",
"tokenizer": FOLDER or null, "runs": [{"name", "texts", "pairs" or null, "max_length"}]}]}. Each
folder is made: a config.json with its sizes cut (or a family's own), random weights, and the
tokenizer's files, copied or trained on the corpus. In the npz: NAME.RUN (N, C), the probabilities
of AutoTokenizer and AutoModelForSequenceClassification with truncation, one row at a time.
"""

import inspect
import json
import shutil
import sys
from pathlib import Path

import numpy
import torch
import transformers as hf
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SIZES = {
    "hidden_size": 32, "dim": 32, "n_embd": 32, "intermediate_size": 48, "hidden_dim": 48,
    "n_inner": 48, "num_hidden_layers": 2, "n_layers": 2, "n_layer": 2, "num_attention_heads": 4,
    "n_heads": 4, "n_head": 4, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
SPREAD = 0.25  # of the weights: enough that the scores of texts differ
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                   "vocab.txt", "vocab.json", "merges.txt", "added_tokens.json",
                   "tokenizer.model")  # fmt: skip
DECODERS = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gpt_neox")


def trained(family, corpus):
    """A tokenizer of the family's kind, of a few hundred tokens."""
    roles = {}
    if family in ("bert", "distilbert"):
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        found = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        found.normalizer = normalizers.BertNormalizer(lowercase=True)
        found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        found.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=900, special_tokens=names,
                                            show_progress=False)  # fmt: skip
        found.train_from_iterator(corpus, trainer)
        found.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]",
                 "sep_token": "[SEP]", "mask_token": "[MASK]"}  # fmt: skip
        read = ["input_ids", "token_type_ids", "attention_mask"]  # as the family's own class has it
        return hf.PreTrainedTokenizerFast(tokenizer_object=found, model_max_length=512,
                                          model_input_names=read, **roles)  # fmt: skip
    encoder = family == "roberta"
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if encoder else ["<|begin|>", "<|end|>"]
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=names, initial_alphabet=alphabet,
                                  show_progress=False)  # fmt: skip
    found.train_from_iterator(corpus, trainer)
    if encoder:
        found.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
        roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>",
                 "cls_token": "<s>", "pad_token": "<pad>", "mask_token": "<mask>"}  # fmt: skip
    elif family == "gpt2":
        found.post_processor = processors.ByteLevel(trim_offsets=False)
        roles = {"bos_token": "<|end|>", "eos_token": "<|end|>", "unk_token": "<|end|>"}
    else:
        begin = ("<|begin|>", 0)
        found.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", pair="<|begin|> $A <|begin|>:1 $B:1", special_tokens=[begin]
        )
        roles = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|end|>"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=found, model_max_length=512, **roles)


def make(job, corpus):
    """The folder of one model."""
    folder, family = Path(job["folder"]), job["family"]
    folder.mkdir()
    if job["tokenizer"]:
        for name in TOKENIZER_FILES:
            if (Path(job["tokenizer"]) / name).exists():
                shutil.copyfile(Path(job["tokenizer"]) / name, folder / name)
        vocab = len(hf.AutoTokenizer.from_pretrained(folder))
    else:
        tokenizer = trained(family, corpus)
        tokenizer.save_pretrained(folder)
        vocab = len(tokenizer)
    if job["config"]:
        data = json.loads(Path(job["config"]).read_text())
    else:
        data = hf.AutoConfig.for_model(family, num_labels=3).to_dict()
        data["architectures"] = None
    sizes = {key: size for key, size in SIZES.items() if data.get(key) is not None}
    data |= sizes | {"vocab_size": vocab}
    if family == "roberta" and not job["config"]:
        data |= {"pad_token_id": 1, "max_position_embeddings": 514}  # as published ones have it
    ids = {key: min(data[key], vocab - 1) for key in ("pad_token_id", "bos_token_id",
           "eos_token_id", "sep_token_id", "cls_token_id")
           if isinstance(data.get(key), int)}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(data | ids, indent=2))
    config = hf.AutoConfig.from_pretrained(folder)
    model = hf.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, SPREAD)
    if not job["config"]:
        data["architectures"] = [type(model).__name__]
        (folder / "config.json").write_text(json.dumps(data | ids, indent=2))
    kept = (folder / "config.json").read_bytes()
    model.save_pretrained(folder)
    (folder / "config.json").write_bytes(kept)  # as it was published


@torch.no_grad()
def score(job):
    tokenizer = hf.AutoTokenizer.from_pretrained(job["folder"])
    if job["family"] in DECODERS:
        tokenizer.truncation_side = "left"  # the token that is scored stays, as in minift
    model = hf.AutoModelForSequenceClassification.from_pretrained(job["folder"]).eval()
    known = inspect.signature(model.forward).parameters
    found = {}
    for run in job["runs"]:
        rows = []
        for i, text in enumerate(run["texts"]):
            texts = (text, run["pairs"][i]) if run["pairs"] else (text,)
            given = tokenizer(*texts, truncation=True, max_length=run["max_length"],
                              return_tensors="pt")  # fmt: skip
            taken = {key: value for key, value in given.items() if key in known}
            rows.append(model(**taken).logits[0].float().softmax(-1).numpy())
        found[f"{job['name']}.{run['name']}"] = numpy.stack(rows)
    return found


def main():
    torch.manual_seed(0)
    data = {"versions": numpy.array(json.dumps({"transformers": hf.__version__}))}
    task = json.loads(Path(sys.argv[1]).read_text())
    for job in task["jobs"]:
        make(job, task["corpus"])
        data |= score(job)
    numpy.savez(sys.argv[2], **data)


if __name__ == "__main__":
    main()
