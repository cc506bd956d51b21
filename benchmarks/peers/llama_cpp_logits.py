"""Logits and greedy continuations of given token ids by llama.cpp.

    python benchmarks/peers/llama_cpp_logits.py MODEL.gguf IDS.json OUT.npz [--lora FILE.gguf]

IDS.json holds {"prompts": [[ids], ...], "texts": [text, ...]}. Keys and values are cached in
float32 (llama.cpp's own choice is float16), without flash attention, on the CPU.

With --whole IDS.json also has "ways", a continuation for each prompt, and each prompt is evaluated
with its way in one batch of at least 32 tokens: from that size on a llama.cpp built with BLAS
multiplies decoded weights with activations as they are. In smaller batches, and without BLAS in
all, it first rounds the activations as the weights are. continuation.i then has the largest logit
of each step of the way: llama.cpp's own greedy text as far as the two are the same.

In the npz, for prompt i:
    continuation.i (new,)   greedy: the largest logit, the first of equals; ends at no token
    logits.i (T + new - 1, V) float32   at every position of the prompt and of the continuation
and for text i: ids.i, the file's own tokenizer, special tokens taken as text.
"""

import argparse
import json
import platform
from pathlib import Path

import llama_cpp
import numpy

F32 = 0  # ggml.h, enum ggml_type
LEAST = 32  # tokens of a batch that BLAS takes (ggml-blas.cpp)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("ids", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--lora", type=Path)
    parser.add_argument("--new-tokens", type=int, default=40)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    job = json.loads(args.ids.read_text())
    longest = max(LEAST, max(map(len, job["prompts"])) + args.new_tokens)
    model = llama_cpp.Llama(
        str(args.model),
        n_ctx=longest,
        n_batch=longest,
        n_ubatch=longest,
        n_threads=args.threads,
        n_threads_batch=args.threads,
        n_gpu_layers=0,
        logits_all=True,
        flash_attn=False,
        type_k=F32,
        type_v=F32,
        lora_path=str(args.lora) if args.lora else None,
        lora_scale=1.0,
        verbose=False,
    )
    versions = {"llama-cpp-python": llama_cpp.__version__, "python": platform.python_version()}
    system = llama_cpp.llama_print_system_info().decode()
    out = {"versions": numpy.array(json.dumps(versions | {"system": system}))}
    for i, prompt in enumerate(job["prompts"]):
        model.reset()
        new = []
        if args.whole:
            ids = prompt + job["ways"][i][:-1]
            model.eval(ids + ids[-1:] * (LEAST - len(ids)))
            new = model.scores[len(prompt) - 1 : len(ids)].argmax(axis=1).tolist()
        while len(new) < args.new_tokens:
            ids = prompt + new
            model.eval(ids[model.n_tokens :])
            new.append(int(model.scores[len(ids) - 1].argmax()))
        out[f"logits.{i}"] = model.scores[: len(ids)].astype(numpy.float32)
        out[f"continuation.{i}"] = numpy.array(new)
    for i, text in enumerate(job.get("texts", [])):
        out[f"ids.{i}"] = numpy.array(model.tokenize(text.encode(), add_bos=False, special=False))
    numpy.savez(args.out, **out)
    print(f"{len(job['prompts'])} prompts, {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
