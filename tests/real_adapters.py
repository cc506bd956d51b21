"""Published adapters against PEFT: python tests/real_adapters.py --peer-python PYTHON [--real DIR]

For every adapter_config.json of DIR, a folder for each, PEFT makes that adapter on a small
model of its base's family and moves all of its weights; minift opens both, answers, merges
and answers again, and writes the adapter, which PEFT opens. Where there is no DIR, it takes
configurations of the same kinds that are written out below, and kinds that no configuration tells.
Prints a table; fails where a number is further off than 1e-5 of the largest, and where an adapter
is refused that is not listed as one that minift does not have.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "benchmarks")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from certificate import write  # noqa: E402
from peer import ask  # noqa: E402

import minift  # noqa: E402
from minift.checkpoints.open import load_model  # noqa: E402
from minift.errors import ConfigError, FormatError, Notice  # noqa: E402

LIMIT = 1e-5
# A base's family by a part of its name; the first that is in it.
BASES = {
    "open-calm": "gpt_neox", "pythia": "gpt_neox", "distilbert": "distilbert",
    "roberta": "roberta", "bert": "bert", "gpt2": "gpt2", "gemma-3": "gemma3_text",
    "gemma-2-": "gemma2", "gemma2": "gemma2", "gemma": "gemma", "qwen3": "qwen3",
    "qwen": "qwen2", "mistral": "mistral", "llama": "llama", "koalpaca": "llama",
    "smollm": "llama",
}  # fmt: skip
# What minift does not have, and a word of the line that says so.
NOT_HERE = {"kasa_config": "kasa_config", "TOKEN_CLS": "TOKEN_CLS", "QUESTION_ANS": "QUESTION_ANS"}
CALLED_BIN = "loftq_config"  # configurations without it are of the time of adapter_model.bin


def lora(base: str, **options: Any) -> dict[str, Any]:
    usual = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": 4,
             "lora_alpha": 8, "bias": "none", "loftq_config": {}}  # fmt: skip
    return usual | options


QV, GPT2, CLS = ["q_proj", "v_proj"], "gpt2", "SEQ_CLS"
OWN: dict[str, dict[str, Any]] = {
    "plain": lora("llama", target_modules=QV),
    "first": lora("llama", target_modules=QV, enable_lora=None, merge_weights=False),
    "regex": lora("gemma-3", target_modules=r".*\.layers\.[01]\.(?:self_attn|mlp)\.[qv].*_proj"),
    "alphas": lora("llama", target_modules=QV, alpha_pattern={
        "^v_proj": 100, "self.attn.q_proj": 50, r".*1\..*v_proj": 3}),
    "ranks": lora("qwen3", target_modules=QV, rank_pattern={r"layers\.1\..*": 2, "v_proj": 6}),
    "excluded": lora("llama", target_modules=[*QV, "c_attn"], exclude_modules=r".*\.0\..*v_proj"),
    "layers": lora("llama", target_modules=QV, layers_to_transform=[1], layers_pattern="layers"),
    "default": lora("llama", target_modules=None),
    "all": lora("bert", target_modules="all-linear", task_type=CLS),
    "pooler": lora("bert", target_modules=["query", "pooler.dense"], task_type=CLS),
    "masked": lora("bert", target_modules=["dense"], task_type=None),
    "bias all": lora("gpt2", target_modules=["c_attn"], bias="all", fan_in_fan_out=True),
    "bias all bert": lora("bert", target_modules=["query"], bias="all", task_type=CLS),
    "bias lora_only": lora("qwen2", target_modules=[*QV, "o_proj"], bias="lora_only"),
    "lora_bias": lora("qwen2", target_modules=QV, lora_bias=True),
    "head and table": lora("llama", target_modules=QV, modules_to_save=["lm_head", "embed_tokens"]),
    "tied table": lora("qwen2", target_modules=QV, modules_to_save=["embed_tokens"]),
    "tied together": lora("qwen2", target_modules=QV, modules_to_save=["embed_tokens"],
                          ensure_weight_tying=True),
    "norms": lora("gemma2", target_modules=QV, modules_to_save=["norm"]),
    "embed": lora("qwen2", target_modules=["embed_tokens", "q_proj"]),
    "embed and head": lora("llama", target_modules=["embed_tokens", "lm_head", "q_proj"]),
    "tokens": lora("qwen2", target_modules=QV, trainable_token_indices=[5, 9]),
    "dora": lora("gpt2", target_modules=["c_attn", "mlp.c_proj"], use_dora=True),
    "dora everywhere": lora("llama", target_modules=["embed_tokens", "lm_head", "q_proj"],
                            use_dora=True),
    "rslora": lora("mistral", target_modules=QV, use_rslora=True),
    "wide": lora("llama", target_modules=QV, r=64, lora_alpha=16),
    "gaussian": lora("llama", target_modules=QV, init_lora_weights="gaussian"),
    "orthogonal": lora("llama", target_modules=QV, init_lora_weights="orthogonal"),
    "classes": lora("distilbert", target_modules=["q_lin"], task_type=CLS),
    "classes by class": lora("gpt2", target_modules=["c_attn"], task_type=None, auto_mapping={
        "base_model_class": "GPT2ForSequenceClassification", "parent_library": "x"},
        modules_to_save=["score"]),
    "raw names": lora("llama", target_modules=QV),
    "beside pictures": lora("gemma-3", target_modules=QV),
    "old file": lora("llama", target_modules=QV),
    "more tokens": lora("llama", target_modules=QV),
    "more tokens, tied": lora("qwen2", target_modules=QV),
    "fewer tokens": lora("qwen2", target_modules=QV, modules_to_save=["embed_tokens", "lm_head"]),
    "body": lora("bert", target_modules=["query"], task_type="FEATURE_EXTRACTION"),
    "ia3": {"peft_type": "IA3", "task_type": "CAUSAL_LM", "base_model_name_or_path": "llama",
            "target_modules": None, "feedforward_modules": None},
    "prefix": {"peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 5,
               "base_model_name_or_path": "llama", "num_layers": 2, "token_dim": 32,
               "num_attention_heads": 4, "num_transformer_submodules": 1},
    "prompt": {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 5,
               "base_model_name_or_path": "gpt2"},
    "p-tuning": {"peft_type": "P_TUNING", "task_type": CLS, "num_virtual_tokens": 5,
                 "base_model_name_or_path": "bert", "encoder_hidden_size": 8},
}  # fmt: skip
TRANSFORMS: dict[str, dict[str, Any]] = {
    "raw names": {"raw": "default"}, "beside pictures": {"raw": "language_model"},
    "old file": {"bin": True}, "more tokens": {"tokens": 101}, "more tokens, tied": {"tokens": 101},
    "fewer tokens": {"tokens": 90}, "classes": {"labels": 6},
}  # fmt: skip


def family_of(config: dict[str, Any]) -> str:
    name = str(config.get("base_model_name_or_path") or "llama").lower()
    return next(family for part, family in BASES.items() if part in name)


def jobs_of(real: Path | None, work: Path) -> list[dict[str, Any]]:
    configs = OWN
    if real is not None:
        files = sorted(real.glob("*/adapter_config.json"))
        configs = {file.parent.name: json.loads(file.read_text()) for file in files}
    jobs = []
    for number, (name, config) in enumerate(configs.items()):
        old = real is not None and config.get("peft_type") == "LORA" and CALLED_BIN not in config
        job = {"name": name, "config": config, "family": family_of(config), "bin": old}
        how = TRANSFORMS.get(name, {}) if real is None else {}
        jobs.append(job | {"folder": str(work / str(number))} | how)
    return jobs


def outputs(model: Any) -> torch.Tensor:
    tokens = (torch.arange(14).view(2, 7) * 17 + 5) % 60 + 4
    with torch.no_grad():
        found: torch.Tensor = model.eval()(tokens)
    return found


def apart(mine: torch.Tensor, theirs: np.ndarray) -> float:
    other = torch.from_numpy(theirs)
    return float((mine - other).abs().max()) / max(1.0, float(other.abs().max()))


def opened(job: dict[str, Any], theirs: np.ndarray) -> dict[str, Any]:
    """What minift makes of one: the refusal, or how far it is off."""
    base, again = Path(job["folder"]) / "base", Path(job["folder"]) / "again"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", Notice)
        model = load_model(base)
        try:
            model = minift.load_adapter(model, Path(job["folder"]) / "adapter")
        except (FormatError, ConfigError) as error:
            return {"refused": str(error).partition("/adapter/")[2] or str(error)}
    row: dict[str, Any] = {"difference": apart(outputs(model), theirs)}
    row["said"] = [str(one.message).partition(": ")[2] for one in said]
    try:
        row["merged"] = apart(outputs(minift.merge(model)), theirs)
    except ConfigError as error:
        row["unmerged"] = str(error)
    minift.save_adapter(model, again)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True, help="with transformers and PEFT")
    parser.add_argument("--real", type=Path, help="a folder of published configurations")
    parser.add_argument("--only", default="", help="a part of the names to try")
    parser.add_argument("--out", type=Path, help="the folder of the result file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        real = options.real if options.real is not None and options.real.is_dir() else None
        jobs = [job for job in jobs_of(real, work) if options.only in job["name"]]
        theirs = peer(options.peer_python, work, {"make": jobs, "check": []})
        failed = json.loads(str(theirs["failed"]))
        checks = []
        for job in jobs:
            key = job["name"]
            if key in failed:
                rows[key] = {"peer": failed[key]}
                continue
            rows[key] = opened(job, theirs[key])
            if "refused" not in rows[key]:
                folder = Path(job["folder"])
                places = {"base": str(folder / "base"), "adapter": str(folder / "again")}
                checks.append({"name": key, "tokens": job.get("tokens")} | places)
        again = peer(options.peer_python, work, {"make": [], "check": checks})
        for check in checks:
            key = check["name"]
            if key in (lost := json.loads(str(again["failed"]))):
                rows[key]["peer"] = lost[key]
            else:
                rows[key]["again"] = apart(torch.from_numpy(again[key]), theirs[key])
        bad = show(jobs, rows)
        for job in jobs:
            rows[job["name"]]["family"] = job["family"]
        result = {"adapters": rows, "peer_versions": json.loads(str(theirs["versions"]))}
        name = "adapters_published" if real else "adapters_kinds"
        print(write(name, result, options.out or work))
    right = sum("difference" in row for row in rows.values())
    print(
        f"{len(rows)} adapters, {right} opened, {len(bad)} wrong{': ' * bool(bad)}{', '.join(bad)}"
    )
    sys.exit(1 if bad else 0)


def peer(python: str, work: Path, jobs: dict[str, Any]) -> Any:
    job, out = work / "job.json", work / "out.npz"
    job.write_text(json.dumps(jobs))
    ask(python, "peft_published.py", job, out)
    return dict(np.load(out))


def show(jobs: list[dict[str, Any]], rows: dict[str, dict[str, Any]]) -> list[str]:
    """The table; -> the names of what is wrong."""
    bad = []
    print(f"{'':<26} {'family':<12} {'opened':>8} {'merged':>8} {'written':>8}")
    for job in jobs:
        name, config = job["name"], job["config"]
        row = rows[name]
        numbers = [row.get(key) for key in ("difference", "merged", "again")]
        cells = " ".join(f"{'-' if n is None else f'{n:.1e}':>8}" for n in numbers)
        words = "; ".join([row[k] for k in ("refused", "peer") if k in row] + row.get("said", []))
        print(f"{name:<26} {job['family']:<12} {cells}  {words}"[:400])
        unknown = [
            config.get("peft_type"),
            config.get("task_type"),
            *(k for k in config if config[k] is not None),
        ]
        expected = next((NOT_HERE[key] for key in unknown if key in NOT_HERE), None)
        if expected is not None:
            fine = expected in row.get("refused", "") or "peer" in row
        else:
            worst = max((n for n in numbers if n is not None), default=1.0)
            merges = "merged" in row or "unmerged" in row
            fine = worst <= LIMIT and merges and "again" in row
        bad += [] if fine else [name]
    return bad


if __name__ == "__main__":
    main()
