"""How fast are tokens, beside transformers.generate and llama.cpp?

    python benchmarks/decode.py --peer-python PATH [--llama-python PATH] [--only bf16] [--quick]

SmolLM2-135M, greedy, no end: prompts of 64 tokens of film reviews, 128 new tokens each, 1, 8 and 32
rows in a batch.

    float32, bf16    dtype of the weights, the same on every side
    int8             minift's linears in 8 bits, worked with in bf16 (--base int8); transformers in
                     bf16, llama.cpp in Q8_0, where the output matrix has 8 bits, too (minift: 16)

    shipped    transformers as installed
    tuned      the same with the two process switches that minift uses itself
    llama      llama.cpp, one row: it is given the same ids, and the file that minift writes
    minift     `decode`, with all that `minift generate` sets
    readable   the same with the readable kernels

Each run is a process of its own: load, a short decoding to warm up, then the measured ones, of
which the median counts. Prefill is the time to the first token of every row (minift's making of
what it keeps for the decoding included), decode that of the 127 others. The sides take turns, in
alternating order; ratios are those of one round. A round in which the memory's rate moved by more
than 5 % between its start and its end is measured again, at most `--rounds` times in all. Cells of
the result file that were not asked for stay as they are; each has its own certificate.

Agreement: how many of the first tokens of a row are those of the peer; the fewest and the mean over
the rows. The gate: in float32 all of them in nine rows of ten, since near ties may fall either way.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peer import told

MODEL = "smollm2-135m-instruct"
PROMPT, NEW = 64, 128
BATCHES = (1, 8, 32)
CASES = {  # dtype of the work, minift's base, llama.cpp's kind
    "float32": ("float32", None, "F32"),
    "bf16": ("bf16", None, "BF16"),
    "int8": ("bf16", "int8", "Q8_0"),
}
PEERS = Path(__file__).with_name("peers")
RESULTS = Path(__file__).with_name("results")
STEADY = 0.05


def prompts_of(count: int) -> list[list[int]]:
    """The first tokens of as many different reviews."""
    from texts import asset, reviews

    from minift.checkpoints.tokenizers import tokenizer_of
    from minift.formats import gguf

    path, found = asset(MODEL), []
    tokenizer = tokenizer_of(gguf.read(path).metadata, str(path))
    for text in reviews():
        if len(text) > 6 * PROMPT and len(ids := tokenizer.encode(text[: 12 * PROMPT])) >= PROMPT:
            found.append(ids[:PROMPT])
            if len(found) == count:
                break
    return found


def worker(job: dict[str, Any], side: str) -> dict[str, Any]:
    """minift's run; a line of JSON with the keys of the peers'."""
    from minift.checkpoints.open import load_model
    from minift.generation.decode import decode
    from minift.kernels.choice import using
    from minift.runtime import tuned

    model = load_model(job["model"], dtype=job["dtype"], base=job["base"])
    prefill, rest = [], []
    with tuned(job["threads"]), using("reference" if side == "readable" else "auto"):
        decode(model, job["prompts"], max_new_tokens=2)
        for _ in range(job["repeats"]):
            told_at: list[float] = []
            start = time.perf_counter()
            out = decode(
                model, job["prompts"], max_new_tokens=job["new"],
                emit=lambda row, token, at=told_at: at.append(time.perf_counter()),
            )  # fmt: skip
            end, first = time.perf_counter(), told_at[len(job["prompts"]) - 1]
            prefill.append(first - start)
            rest.append(end - first)
    status = Path("/proc/self/status").read_text()  # getrusage knows the parent's peak, too
    return {"prefill_seconds": prefill, "decode_seconds": rest, "tokens": out,
            "peak_rss_mb": int(status.partition("VmHWM:")[2].split()[0]) / 1024}  # fmt: skip


def canary() -> float:
    """GB/s of copying what fits no cache."""
    import torch

    source, best = torch.ones(32 << 20), float("inf")
    target = torch.empty_like(source)
    for _ in range(7):
        start = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - start)
    return 2e-9 * source.nbytes / best


def measured(commands: dict[str, list[str]], number: int) -> dict[str, Any]:
    """One round: every side once, and the canary around them."""
    before = canary()
    order = list(commands) if number % 2 == 0 else list(commands)[::-1]
    found: dict[str, Any] = {}
    for side in order:
        row = told(commands[side])
        for name in ("prefill_seconds", "decode_seconds"):
            row[name] = statistics.median(row[name])
        found[side] = row
    return found | {"canary": [round(before, 2), round(canary(), 2)]}


def steady(row: dict[str, Any]) -> bool:
    before, after = row["canary"]
    return abs(after - before) <= STEADY * before


def agreement(mine: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> list[int]:
    """Of every row, how many of the first tokens are the same."""
    found = []
    for one, other in zip(mine, theirs, strict=True):
        same = [a == b for a, b in zip(one, other, strict=True)]
        found.append(same.index(False) if False in same else len(same))
    return found


def spread(ratios: Sequence[float]) -> dict[str, float]:
    names = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    return {name: round(value, 2) for name, value in names.items()}


def compared(rounds: list[dict[str, Any]], rows: int, new: int) -> dict[str, Any]:
    """Medians, the ratio of every round, and how far the tokens agree."""
    out: dict[str, Any] = {"sides": {}, "times_minift": {}, "first_tokens_alike": {}}
    for side in (name for name in rounds[0] if name != "canary"):
        prefill = statistics.median(row[side]["prefill_seconds"] for row in rounds)
        rest = statistics.median(row[side]["decode_seconds"] for row in rounds)
        out["sides"][side] = {
            "prefill_seconds": round(prefill, 4),
            "decode_seconds": round(rest, 4),
            "tokens_a_second": round(rows * (new - 1) / rest, 1),
            "peak_mb": round(statistics.median(row[side]["peak_rss_mb"] for row in rounds)),
        }
        if side == "minift":
            continue
        out["times_minift"][side] = {
            "decode": spread([r[side]["decode_seconds"] / r["minift"]["decode_seconds"]
                              for r in rounds]),
            "whole": spread([total(r[side]) / total(r["minift"]) for r in rounds]),
        }  # fmt: skip
        alike = agreement(rounds[0]["minift"]["tokens"], rounds[0][side]["tokens"])
        out["first_tokens_alike"][side] = {
            "fewest": min(alike),
            "mean": round(statistics.mean(alike), 1),
            "whole_rows": sum(count == new for count in alike),
        }
    return out


def total(row: dict[str, Any]) -> float:
    return float(row["prefill_seconds"] + row["decode_seconds"])


def llama_file(folder: Path, kind: str) -> Path:
    """The model as minift writes it for llama.cpp, once."""
    import minift

    path = folder / f"{kind}.gguf"
    if not path.exists():
        model, tokenizer = minift.load(MODEL)
        minift.export(model, tokenizer, path, dtype=kind)
    return path


def commands_of(
    case: str, rows: int, ids: list[list[int]], folder: Path, options: argparse.Namespace
) -> dict[str, list[str]]:
    from minift.checkpoints.hub.assets import cached

    dtype, base, kind = CASES[case]
    job = {"model": str(cached(MODEL)), "dtype": dtype, "base": base, "threads": options.threads,
           "prompts": ids[:rows], "new": options.new, "repeats": options.repeats}  # fmt: skip
    path = folder / f"{case}_{rows}.json"
    path.write_text(json.dumps(job))
    mine = [sys.executable, __file__, "--worker", str(path)]
    commands = {"minift": [*mine, "minift"]}
    if base is None and not options.quick:
        commands["readable"] = [*mine, "readable"]
    peer = [options.peer_python, str(PEERS / "hf_decode.py"), str(path)]
    commands |= {"shipped": peer, "tuned": [*peer, "--tuned"]}
    if options.llama_python and rows == 1:
        script, file = str(PEERS / "llama_cpp_decode.py"), str(llama_file(folder, kind))
        commands["llama"] = [options.llama_python, script, file, str(path)]
    return commands


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(worker(json.loads(Path(sys.argv[2]).read_text()), sys.argv[3])))
        return
    from certificate import certificate, write

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True, help="with transformers")
    parser.add_argument("--llama-python", help="with llama-cpp-python")
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--batches", type=int, nargs="*", default=BATCHES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=3, help="measured decodings of a process")
    parser.add_argument("--new", type=int, default=NEW, help="new tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one round, one repeat, 1 and 8 rows")
    parser.add_argument("--out", type=Path, help="the folder of the result file")
    options = parser.parse_args()
    if options.quick:
        options.rounds = options.repeats = 1
        options.batches = [rows for rows in options.batches if rows <= 8]
    settings = {"rounds": options.rounds, "repeats": options.repeats, "prompt": PROMPT,
                "new": options.new, "threads": options.threads}  # fmt: skip
    path = (options.out or RESULTS) / "decode.json"
    before = json.loads(path.read_text())["cases"] if path.exists() else {}
    result: dict[str, Any] = {"cases": before}
    bad, ids = [], prompts_of(max(options.batches))
    with tempfile.TemporaryDirectory() as name:
        for case in CASES if options.only is None else (options.only,):
            result["cases"].setdefault(case, {})
            for rows in options.batches:
                commands = commands_of(case, rows, ids, Path(name), options)
                rounds: list[dict[str, Any]] = []
                unsteady = 0
                while len(rounds) < options.rounds:
                    row = measured(commands, len(rounds))
                    if not steady(row) and unsteady < options.rounds and not options.quick:
                        unsteady += 1
                        continue
                    rounds.append(row)
                    seconds = {k: round(total(v), 2) for k, v in row.items() if k != "canary"}
                    print(case, rows, seconds, row["canary"], flush=True)
                one = compared(rounds, rows, options.new)
                for row in rounds:
                    for side in commands:
                        del row[side]["tokens"]
                result["cases"][case][str(rows)] = one | {
                    "settings": settings,
                    "measured_again": unsteady,
                    "steady_rounds": sum(map(steady, rounds)),
                    "rounds": rounds,
                    "certificate": certificate(),
                }
                print(json.dumps(one), flush=True)
                alike = one["first_tokens_alike"]["shipped"]
                if case == "float32" and alike["whole_rows"] < 0.9 * rows:
                    bad.append(f"{case}, {rows} rows: {alike}")
                write("decode", result, options.out)
    if bad:
        sys.exit("tokens differ from the peer's: " + "; ".join(bad))


if __name__ == "__main__":
    main()
