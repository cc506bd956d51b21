"""The spellings of other programs and older versions, and what they are called here."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

# Our word, with a value where one goes with it, and what others call it: without dashes, in small
# letters. Of several rows the first counts whose option the command has.
OPTION_ALIASES: tuple[tuple[str, str], ...] = (
    ("help", "hlep usage ?"),
    ("help-all", "options"),
    ("lr", "learning-rate learningrate rate"),
    ("schedule", "lr-scheduler lr-scheduler-type scheduler lr-schedule"),
    ("warmup", "warmup-ratio warmup-steps"),
    ("epochs", "num-epochs num-train-epochs epoch n-epochs"),
    ("steps", "max-steps num-steps iters iterations updates train-steps"),
    ("max-new-tokens", "max-tokens n-predict max-new num-tokens new-tokens length max-length"),
    ("max-length",
     "max-seq-length max-seq-len seq-length seq-len max-len cutoff-len context "
     "context-length block-size length"),
    ("batch-size", "batch bs train-batch-size per-device-train-batch-size b"),
    ("micro-batch-tokens",
     "micro-tokens micro-batch-size gradient-accumulation-steps grad-accum accumulation"),
    ("clip", "max-grad-norm grad-clip gradient-clipping"),
    ("weight-decay", "wd decay"),
    ("beta1", "adam-beta1"),
    ("beta2", "adam-beta2"),
    ("eps", "adam-epsilon epsilon"),
    ("eval-every", "eval-steps steps-per-eval eval-interval evaluate-every"),
    ("checkpointing", "gradient-checkpointing grad-checkpoint"),
    ("pack", "packing"),
    ("seed", "random-seed"),
    ("sampling-seed", "random-seed seed"),
    ("threads", "n-threads cpus num-threads t cores workers"),
    ("rank", "lora-r lora-rank r"),
    ("alpha", "lora-alpha"),
    ("dropout", "lora-dropout"),
    ("targets", "target-modules lora-target lora-targets lora-target-modules modules"),
    ("dora", "use-dora"),
    ("rslora", "use-rslora"),
    ("lora-init", "init-lora-weights"),
    ("ranks", "rank-pattern"),
    ("alphas", "alpha-pattern"),
    ("lr-ratio", "loraplus-lr-ratio"),
    ("prompt-tokens", "num-virtual-tokens"),
    ("method", "peft-type peft peft-method finetuning-type use-peft train-type"),
    ("method lora", "lora use-lora"),
    ("out",
     "output-dir output o save-dir outdir out-dir outfile save output-file save-path "
     "logging-dir dest"),
    ("held-out",
     "test-file test eval-data val valid validation validation-file eval-file eval-dataset "
     "val-data"),
    ("data",
     "dataset data-path dataset-name train-file train train-data training-data data-file "
     "dataset-path file input d i test-file test eval-data val valid validation "
     "validation-file eval-file eval-dataset val-data"),
    ("held-out-share", "test-split val-split validation-split val-set-size test-size val-size"),
    ("samples", "num-samples n num-return-sequences"),
    ("limit", "max-train-samples max-samples num-samples n rows head first"),
    ("adapter",
     "checkpoint adapter-path adapter-name-or-path lora-path resume resume-from-checkpoint "
     "peft-model run"),
    ("model",
     "model-name m model-name-or-path base-model model-path model-id pretrained-model "
     "checkpoint hf-path pretrained"),
    ("to", "format"),
    ("template", "prompt-template format text-column dataset-text-field text-field"),
    ("target", "label-column label-col target-column answer response"),
    ("labels", "label classes label-names class-names num-labels"),
    ("pair", "text-pair"),
    ("base nf4", "load-in-4bit 4bit qlora"),
    ("base int8", "load-in-8bit 8bit"),
    ("base", "bits quantize quantization q"),
    ("dtype bf16", "bf16"),
    ("dtype float32", "fp32 float32"),
    ("dtype",
     "quantize quantization q outtype fp16 torch-dtype precision "
     "mixed-precision"),
    ("device", "device-map gpus"),
    ("device cuda", "gpu cuda"),
    ("device cpu", "cpu no-cuda"),
    ("temperature", "temp"),
    ("top-k", "topk"),
    ("top-p", "topp"),
    ("repetition-penalty", "repeat-penalty frequency-penalty"),
    ("stop", "stop-words stop-sequence stop-strings stop-sequences reverse-prompt eos"),
    ("system", "system-prompt sys system-message s"),
    ("overwrite", "force f yes y overwrite-output-dir replace clobber"),
    ("debug", "verbose v traceback"),
    ("quiet", "silent"),
    ("chat", "apply-chat-template interactive instruct"),
    ("against", "compare reference other"),
)  # fmt: skip

COMMAND_ALIASES: tuple[tuple[str, str], ...] = (
    ("sft", "train finetune fine-tune fine_tune fit tune lora qlora learn instruct"),
    ("classify", "train-classifier classifier label"),
    ("chat", "run talk serve interactive"),
    ("generate", "ask predict infer inference complete sample prompt"),
    ("export", "convert quantize gguf save"),
    ("eval", "test evaluate score accuracy benchmark"),
    ("download", "get pull fetch install list ls models"),
    ("info", "show inspect describe"),
    ("merge", "fuse"),
    ("explain", "methods"),
    ("verify", "compare check diff"),
    ("quickstart", "demo start init tutorial"),
)  # fmt: skip


def suggest_option(typed: str, known: Iterable[str], others: Sequence[str] = ()) -> str:
    """Suggest a known option for an unknown one, as the end of an error line.

    `others`: the commands that have this very option.
    """
    options = {*known, "--help", "--help-all"}
    name = typed.lstrip("-").replace("_", "-").lower()
    if f"--{name}" in options:
        return f"; it is --{name}"
    if found := option_of_alias(name, options):
        return f"; here it is {found}"
    if others:
        return f"; it is an option of {' and '.join(others)}"
    others_words = (word for _, words in OPTION_ALIASES for word in words.split() if len(word) > 3)
    spellings = [*(option[2:] for option in options), *others_words]
    for near in difflib.get_close_matches(name, spellings, 3):
        if f"--{near}" in options or (found := option_of_alias(near, options)):
            return f"; nearest: {f'--{near}' if f'--{near}' in options else found}"
    return ""


def option_of_alias(name: str, options: Iterable[str]) -> str:
    """The first row with this alias whose option is known; with the value that it sets."""
    for ours, words in OPTION_ALIASES:
        if "--" + ours.partition(" ")[0] in options and name in words.split():
            return f"--{ours}"
    return ""


def suggest_command(typed: str, commands: Iterable[str]) -> str:
    """Suggest a command for an unknown one, as the end of an error line."""
    ours = {word: command for command, words in COMMAND_ALIASES for word in words.split()}
    if typed.lower() in ours:
        return f"; here it is {ours[typed.lower()]}"
    near = difflib.get_close_matches(typed, [*commands, *ours], 1)
    return f"; nearest: {ours.get(near[0], near[0])}" if near else ""
