"""Greedy tokens by llama.cpp, and when they came.

    python benchmarks/peers/llama_cpp_decode.py MODEL.gguf JOB.json

JOB: threads, prompts (one row), new (tokens; there is no end), repeats; its other keys are for
others. Everything as llama-cpp-python has it by default, but for the context's length and the
logits, which are asked of the last position only.

The last line: prefill_seconds and decode_seconds of every repeat, tokens [[id]], peak_rss_mb,
versions, system (what the build uses).
"""

import argparse
import json
import time
from pathlib import Path

import llama_cpp
import numpy


def peak_mb():
    """VmHWM; getrusage would tell the peak of whoever started this program, if that was higher."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("job", type=Path)
    args = parser.parse_args()
    job = json.loads(args.job.read_text())
    [prompt] = job["prompts"]
    model = llama_cpp.Llama(
        str(args.model),
        n_ctx=len(prompt) + job["new"],
        n_threads=job["threads"],
        n_threads_batch=job["threads"],
        n_gpu_layers=0,
        verbose=False,
    )

    def best():
        pointer = llama_cpp.llama_get_logits_ith(model.ctx, -1)
        return int(numpy.ctypeslib.as_array(pointer, (model.n_vocab(),)).argmax())

    def generate(new):
        model.reset()
        start = time.perf_counter()
        model.eval(prompt)
        tokens = [best()]
        first = time.perf_counter()
        while len(tokens) < new:
            model.eval(tokens[-1:])
            tokens.append(best())
        return tokens, first - start, time.perf_counter() - first

    generate(2)
    prefill, rest = [], []
    for _ in range(job["repeats"]):
        tokens, first, others = generate(job["new"])
        prefill.append(first)
        rest.append(others)
    print(json.dumps({
        "prefill_seconds": prefill,
        "decode_seconds": rest,
        "tokens": [tokens],
        "peak_rss_mb": peak_mb(),
        "versions": {"llama-cpp-python": llama_cpp.__version__},
        "system": llama_cpp.llama_print_system_info().decode(),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
