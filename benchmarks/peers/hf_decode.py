"""Greedy tokens by transformers.generate, and when they came.

    python benchmarks/peers/hf_decode.py JOB.json [--tuned]

JOB: model (.gguf file or folder), dtype (float32 or bf16), threads, prompts [row][id] of one
length, new (tokens of every row; there is no end), repeats.

The last line: prefill_seconds and decode_seconds of every repeat, tokens [row][new], peak_rss_mb,
versions. A stopping criterion, which is asked after every token, keeps the time and never stops.
--tuned adds the two process switches that cost a user three lines (hf_sft.py).
"""

import argparse
import ctypes
import json
import time
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList


def tune():
    if not torch.cpu._is_amx_tile_supported():
        torch.set_float32_matmul_precision("medium")
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
    libc = ctypes.CDLL(None)
    assert libc.mallopt(M_MMAP_MAX, 0) == 1
    assert libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1) == 1


class Clock(StoppingCriteria):
    def __init__(self):
        self.at = []

    def __call__(self, ids, scores, **_):
        self.at.append(time.perf_counter())
        return torch.zeros(ids.shape[0], dtype=torch.bool)


def peak_mb():
    """VmHWM; getrusage would tell the peak of whoever started this program, if that was higher."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", type=Path)
    parser.add_argument("--tuned", action="store_true")
    args = parser.parse_args()
    job = json.loads(args.job.read_text())
    if args.tuned:
        tune()
    torch.set_num_threads(job["threads"])
    path = Path(job["model"])
    where = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    folder = path.parent if where else path
    dtype = torch.bfloat16 if job["dtype"] == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **where).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    ids = torch.tensor(job["prompts"])

    def generate(new):
        clock = Clock()
        start = time.perf_counter()
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=False,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        end = time.perf_counter()
        return out[:, ids.shape[1] :].tolist(), clock.at[0] - start, end - clock.at[0]

    generate(2)
    prefill, rest = [], []
    for _ in range(job["repeats"]):
        tokens, first, others = generate(job["new"])
        assert {len(row) for row in tokens} == {job["new"]}
        prefill.append(first)
        rest.append(others)
    print(json.dumps({
        "prefill_seconds": prefill,
        "decode_seconds": rest,
        "tokens": tokens,
        "peak_rss_mb": peak_mb(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
