"""The README's tables of measured numbers, from the result files.

    python benchmarks/table.py            write them into README.md
    python benchmarks/table.py --check    fail if README.md says anything else

A table stands between `<!-- NAME: benchmarks/table.py -->` and `<!-- end -->`. Nothing between
the two is written by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
MARK = "<!-- {}: benchmarks/table.py -->\n"
END = "<!-- end -->"


def result(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def share(number: float) -> str:
    return f"{number * 100:.1f} %"


FAMILIES = {
    "llama": "Llama 1 to 3.x, SmolLM2",
    "mistral": "Mistral",
    "qwen2": "Qwen2, Qwen2.5",
    "qwen3": "Qwen3",
    "gemma": "Gemma 1",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 (text)",
    "gpt2": "GPT-2",
    "gpt_neox": "GPT-NeoX, Pythia",
    "bert": "BERT, MiniLM",
    "roberta": "RoBERTa",
    "distilbert": "DistilBERT",
}


def families() -> str:
    """Each family's proof: real weights where there are some, else tiny random checkpoints."""
    models, real = result("families")["models"], {}
    real["llama"] = f"SmolLM2-135M, logits {result('parity')['logits']:.1e}"
    found = {row["family"] for row in models.values()}
    assert found == set(FAMILIES), f"families.json and the list of families: {found}"
    lines = []
    for family, name in FAMILIES.items():
        rows = {key: row for key, row in models.items() if row["family"] == family}
        tiny = [row for row in rows.values() if not row["real"]]
        for key, row in rows.items():
            if row["real"]:
                real[family] = f"{key}, hidden states {row['saved_hidden']:.1e}"
        saved = [v for row in rows.values() for k, v in row.items() if k.startswith("saved")]
        golden, back = max(row["golden"] for row in tiny), max(saved)
        proof = real.get(family, "no: golden-proven")
        lines.append([name, proof, len(tiny), f"{golden:.1e}", f"{back:.1e}"])
    head = ["family", "real weights", "tiny checkpoints", "golden error", "saved and read there"]
    return table(head, lines)


def published() -> str:
    """Published folders, templates and adapters: tried, opened, equal; by family."""

    folders = result("folders")["folders"].values()
    adapters = result("adapters_published")["adapters"].values()
    limit = 1e-5

    def folder_cells(rows: Sequence[Any]) -> list[str]:
        opened = sum(row["opened"] for row in rows)
        counts = f"{len(rows)}, {opened}, {sum(not row['wrong'] for row in rows)}" if rows else ""
        worst = [row["difference"] for row in rows if "difference" in row]
        return [counts, f"{max(worst):.0e}" if worst else ""]

    def template_cell(rows: Sequence[Any]) -> str:
        spoken = [row for row in rows if row.get("template")]
        return f"{len(spoken)}, {sum(row['chat'] for row in spoken)}" if spoken else ""

    def adapter_cells(rows: Sequence[Any]) -> list[str]:
        def equal(row: Any) -> bool:
            return all(row[k] <= limit for k in ("difference", "merged", "again") if k in row)

        opened = [row for row in rows if "difference" in row]
        counts = f"{len(rows)}, {len(opened)}, {sum(map(equal, opened))}" if rows else ""
        worst = [row[k] for row in opened for k in ("difference", "merged") if k in row]
        return [counts, f"{max(worst):.0e}" if worst else ""]

    lines = []
    for family, name in FAMILIES.items():
        own = [r for r in folders if r["kind"] == "models" and r.get("family") == family]
        theirs = [r for r in adapters if r["family"] == family]
        lines.append([name, *folder_cells(own), template_cell(own), *adapter_cells(theirs)])
    alone = [r for r in folders if r["kind"] == "templates"]
    lines.append(["chat templates, on a small model", *folder_cells(alone), template_cell(alone)])
    lines[-1] += adapter_cells([])
    assert sum(r["kind"] == "models" and not r.get("family") for r in folders) == 0, "not opened"
    head = ["family", "folders: tried, opened, equal", "largest difference",
            "templates: tried, equal", "adapters: tried, opened, equal",
            "largest difference"]  # fmt: skip
    return table(head, lines)


def measured() -> str:
    load, text, tokens = result("load"), result("tokenizing"), result("token_parity")["parity"]
    f64, f32, quick = (result(f"reference_{n}") for n in ("float64", "float32", "quickstart"))
    parity, export, memory = result("parity"), result("export"), result("memory")
    seconds, faster = load["median_seconds"], load["times_faster"]
    speed = text["median"]
    adapters = max(row["float64"] for row in parity["adapter_written_by"].values())
    control = quick["agreement_of_minift_with_itself_on_one_thread"]
    texts = min(sum(row["texts"] for row in found["sources"].values()) for found in tokens.values())
    q8 = export["Q8_0"]
    gguf = memory["loading"]["gguf to float32"]
    fuzzed = result("fuzz")["readers"]
    batching = result("batching")["arms"]
    classifiers: dict[str, float] = {}
    for row in result("classifiers")["models"].values():
        worst = max(v for key, v in row.items() if key.startswith(("texts", "pairs")))
        classifiers[row["family"]] = max(worst, classifiers.get(row["family"], 0.0))
    encoders = ("bert", "distilbert", "roberta")
    mixed, like = batching["random, packed"], batching["like, padded"]
    rows = [
        [
            "cached GGUF to first logits, torch's import taken off (`load`)",
            f"{seconds['minift']:.2f} s",
            f"transformers {seconds['transformers']:.1f} s: {faster['median']} times, pair by pair "
            f"{faster['least']} to {faster['most']}",
        ],
        [
            "its logits on 20 prompts, float32 (`parity`)",
            f"{parity['greedy_identical']} of 20 greedy texts identical",
            f"transformers: largest difference {parity['logits']:.1e}",
        ],
        [
            "an adapter of one read by the other, float64 (`parity`)",
            "",
            f"PEFT: largest difference of a logit {adapters:.1e}",
        ],
        [
            "published classifiers on 100 texts and 100 pairs, probabilities (`classifiers`)",
            "",
            f"transformers: largest difference {max(classifiers[f] for f in encoders):.0e} for "
            f"encoders, {max(classifiers.values()):.0e} for decoders",
        ],
        [
            "fifty LoRA steps in float64, four layers (`reference_float64`)",
            "",
            f"PEFT: largest difference of a loss {f64['largest_loss_difference']:.1e}",
        ],
        [
            f"{f32['steps']} LoRA steps of {f32['batch']} at {f32['lr']:g} (`reference_float32`)",
            f"{share(f32['minift_before'])} to {share(f32['minift_after'])}",
            f"PEFT {share(f32['peft_after'])}; {share(f32['agreement_after'])} of the rows alike",
        ],
        [
            f"{quick['steps']} of {quick['batch']} at {quick['lr']:g} (`reference_quickstart`)",
            f"{share(quick['minift_before'])} to {share(quick['minift_after'])}",
            f"PEFT {share(quick['peft_after'])}; {share(quick['agreement_after'])} of the rows "
            f"alike (minift on one thread and minift on two: {share(control)})",
        ],
        [
            "tokenizing 34 MB of reviews, one thread (`tokenizing`)",
            f"{speed['minift']:.1f} MB/s",
            f"tokenizers {speed['tokenizers']:.1f} MB/s, with the same ids",
        ],
        [
            f"ids and decoded texts of {len(tokens)} vocabularies (`token_parity`)",
            "",
            f"tokenizers, sentencepiece, transformers: equal on {texts:,} texts or more for each",
        ],
        [
            "GGUF written by minift, run by llama.cpp: greedy texts identical (`export`)",
            f"F32 {export['F32']['greedy_identical']}, with a LoRA "
            f"{export['lora']['greedy_identical']}, Q8_0 {q8['greedy_identical']} of "
            f"{export['prompts']}",
            f"mean KL in Q8_0 {q8['mean_kl']:.0e} nats; F16 leaves at margins under 0.1 only",
        ],
        [
            "held-out loss after an epoch of conversations, rows in random order and packed "
            "(`batching`)",
            f"{mixed['held_out']:.2f}, at {mixed['tokens_a_second']} tokens/s",
            f"rows of like length together: {like['held_out']:.2f}, {like['tokens_a_second']}",
        ],
        [
            f"mutated files for each of {len(fuzzed)} readers (`fuzz`)",
            f"{min(row['files'] for row in fuzzed):,}: refused in one line, or read",
            "",
        ],
        [
            "memory to load it as float32, above one copy of the weights (`memory`)",
            f"{(gguf['peak_bytes'] - gguf['one_copy_bytes']) / 1e6:.0f} MB",
            f"its largest tensor has {gguf['largest_tensor_float32_bytes'] / 1e6:.0f} MB",
        ],
        [
            "opening a sparse safetensors file of 10 GB (`memory`)",
            f"{memory['opening']['median_ms']:.1f} ms",
            "",
        ],
    ]
    return table(["question", "minift", "peer"], rows)


NAMES = {
    "head": "the head alone (features)",
    "lora": "LoRA, rank 8",
    "lora on nf4": "LoRA on a base in NF4",
    "dora": "DoRA",
    "ia3": "IA3",
    "bitfit": "BitFit",
    "bottleneck": "bottleneck adapters",
    "prefix": "prefix tuning",
    "prompt": "prompt tuning",
    "ptuning": "P-tuning",
}


def methods() -> str:
    """Every method on a decoder and on an encoder: what it reaches and what it costs."""
    lines = []
    for base, rows in result("methods")["bases"].items():
        before = next(iter(rows.values()))["before"]
        lines.append([f"**{base}**, untouched", "", "", share(before), "", ""])
        for method, row in sorted(rows.items(), key=lambda item: -item[1]["after"]):
            low, high = (100 * x for x in row["interval"])
            lines.append([
                NAMES[method], f"{row['trainable']:,}", f"{row['steps']} at {row['lr']:g}",
                f"{share(row['after'])} ({low:.1f} to {high:.1f})", f"{row['seconds']:.0f} s",
                f"{row['peak_bytes'] / 1e9:.1f} GB",
            ])  # fmt: skip
    return table(["method", "trained", "steps", "accuracy", "training", "peak memory"], lines)


def decoding() -> str:
    """Tokens a second, and the peers' time over minift's, pair by pair."""
    lines = []
    cases = result("decode")["cases"]
    for case in (name for name in ("float32", "bf16", "int8") if name in cases):
        for rows, row in sorted(cases[case].items(), key=lambda item: int(item[0])):
            mine, alike = row["sides"]["minift"], row["first_tokens_alike"]["shipped"]
            times = {
                side: f"{found['decode']['median']} ({found['decode']['least']} to "
                      f"{found['decode']['most']})"
                for side, found in row["times_minift"].items()
            }  # fmt: skip
            lines.append([
                f"{case}, {rows}", f"{mine['tokens_a_second']:.0f}",
                f"{1000 * mine['prefill_seconds']:.0f} ms; "
                f"{1000 * row['sides']['shipped']['prefill_seconds']:.0f} ms",
                *(times.get(side, "") for side in ("shipped", "tuned", "llama")),
                f"{row['times_minift']['shipped']['whole']['median']}",
                f"{alike['mean']:.0f} (fewest {alike['fewest']})",
            ])  # fmt: skip
    head = [
        "weights, rows", "tokens/s", "the prompt: minift; transformers", "a token: transformers",
        "the same, tuned", "llama.cpp", "the whole: transformers", "first tokens alike",
    ]  # fmt: skip
    return table(head, lines)


STEPS = {
    "float32": "8 x 256 tokens, float32",
    "bf16": "8 x 256 tokens, bf16",
    "default": "as each comes: PEFT in float32, minift in bf16 here",
    "half": "8 x 256 tokens, float32, half of the labels masked",
    "ragged": "16 conversations, float32, packed",
    "short": "8 reviews of about 33 tokens, bf16",
}
SIDES = {"shipped": "PEFT as installed", "tuned": "PEFT tuned", "readable": "readable kernels",
         "padded": "padded rows"}  # fmt: skip


def ratio(row: dict[str, float]) -> str:
    return f"{row['median']:.2f} ({row['least']:.2f} to {row['most']:.2f})"


def steps() -> str:
    """A LoRA step beside the peer's, as it comes and with the same process switches."""
    lines = []
    found = result("sft_step")["cases"]
    for case in (name for name in STEPS if name in found):
        row = found[case]
        ours, times = row["sides"]["minift"], row["times_minift"]
        lines.append([
            STEPS[case], f"{ours['step_seconds']:.2f} s",
            *(ratio(times[side]) if side in times else "" for side in SIDES),
            "", f"{ours['peak_mb'] / 1000:.1f} GB",
            share(row["main_products"]) if "main_products" in row else "",
        ])  # fmt: skip
        peers = row["sides"]
        less = [
            f"{side}: {peers[side]['above_loaded_mb'] / ours['above_loaded_mb']:.1f}"
            for side in ("shipped", "tuned")
            if side in peers
        ]
        lines[-1][-3] = ", ".join(less)
    head = [
        "step",
        "minift",
        *SIDES.values(),
        "memory above loading, times less",
        "peak",
        "main products",
    ]
    return table(head, lines)


def kernels() -> str:
    """Each fused kernel against its readable twin, forward and backward."""
    found = result("kernels")["kernels"]
    names = list(next(iter(found.values())))
    lines = []
    for name in names:
        line: list[object] = [name]
        for rows in found.values():
            row = rows[name]
            text = f"{row['fused_ms']:.2f} ms, {row['times_faster']:.2f}"
            if "roofline" in row:
                text += f", {100 * row['roofline']:.0f} %"
            if "overhead" in row:
                text += f", +{100 * (row['overhead'] - 1):.0f} %"
            line.append(text)
        lines.append(line)
    return table(["kernel", *found], lines)


def few_bits() -> str:
    """A frozen base in few bits: what it takes, and what it costs."""
    found = result("quantized")
    lines = [
        [
            name, f"{row['bytes_a_weight']:.2f}", f"{row['linear_bytes'] / 1e6:.0f} MB",
            f"{row['load_peak_bytes'] / 1e6:.0f} MB", f"{row['step_seconds']:.2f} s",
            f"{row['step_peak_bytes'] / 1e6:.0f} MB", f"{row['held_out_loss']:.3f}",
            f"{row['kl']:.4f}",
        ]
        for name, row in found["bases"].items()
    ]  # fmt: skip
    head = [
        "linears, work in", "bytes a weight", "linears", "peak of loading", "a LoRA step",
        "its peak above the loaded", "held-out loss", "KL from float32",
    ]  # fmt: skip
    return table(head, lines)


TABLES: dict[str, Callable[[], str]] = {
    "families": families,
    "published": published,
    "measured": measured,
    "steps": steps,
    "kernels": kernels,
    "decoding": decoding,
    "few bits": few_bits,
    "methods": methods,
}


def written(text: str) -> str:
    """README.md with every table as the result files have it."""
    for name, make in TABLES.items():
        mark = MARK.format(name)
        pattern = re.compile(re.escape(mark) + "(.*?)" + re.escape(END), re.DOTALL)
        assert len(pattern.findall(text)) == 1, f"README.md has no one place for {name}"
        new = f"{mark}\n{make()}\n{END}"
        text = pattern.sub(lambda match, new=new: new, text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    path = REPOSITORY / "README.md"
    now = path.read_text()
    new = written(now)
    if options.check and new != now:
        sys.exit("README.md is not what the result files say: python benchmarks/table.py")
    if not options.check:
        path.write_text(new)


if __name__ == "__main__":
    main()
