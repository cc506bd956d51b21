"""Does llama.cpp compute what minift computes, from the files that minift exports?

    python benchmarks/export.py --peer-python PATH/TO/python      (benchmarks/peers/llama_cpp.txt)

SmolLM2-135M-Instruct as F32, F16 and Q8_0, and as F32 with a GGUF LoRA (rsLoRA, both matrices
noise). Each file is loaded by both sides, on the ids of 20 prompts that minift's tokenizer gives,
and llama.cpp's 40 greedy tokens after each; the logits of all positions are compared on those. The
limits, and the script fails where one is not kept:
  - F32, and the LoRA: minift's own greedy text is the same, token for token;
  - F16 and Q8_0: the same up to the first step whose two best logits are closer than 0.1
    (minift's), and a mean KL below 1e-3;
  - the tokenizer in each file gives llama.cpp minift's ids. The LoRA moves logits by more than 1.

Where llama.cpp multiplies with Q8_0 weights token by token it rounds the activations to Q8_0 too,
which moves the logits of this small model more than the rounding of its weights does. So the limits
for Q8_0 are held against a llama.cpp built with BLAS, in batches that BLAS takes; what it gives
token by token is written as `Q8_0 token by token`, without a limit.

    CMAKE_ARGS="-DGGML_BLAS=ON -DGGML_BLAS_VENDOR=OpenBLAS" pip install -r peers/llama_cpp.txt
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from certificate import write
from parity import MODEL, QUESTIONS, TEXTS
from peer import ask

import minift
from minift.checkpoints.hub.assets import cached
from minift.generation.decode import decode
from minift.model.transformer import Transformer
from minift.runtime import tuned

PEER, NEW_TOKENS = "llama_cpp_logits.py", 40
CLOSE, KL = 0.1, 1e-3
KINDS = ("F32", "F16", "Q8_0")


def greedy(model: Transformer, prompts: list[list[int]]) -> list[list[int]]:
    return decode(model.eval(), prompts, max_new_tokens=NEW_TOKENS)


@torch.no_grad()
def compare(
    model: Transformer, prompts: list[list[int]], theirs: Any, whole: bool = False
) -> dict[str, Any]:
    """Logits where llama.cpp went, and where minift's own greedy text leaves that way."""
    ours = greedy(model, prompts)
    largest, total, positions, identical, left = 0.0, 0.0, 0, 0, []
    before_close = True
    for i, prompt in enumerate(prompts):
        way = theirs[f"continuation.{i}"].tolist()
        went = ours[i] if whole else way
        logits = model(torch.tensor([prompt + went[:-1]]))[0]  # (T + new - 1, V)
        found = torch.from_numpy(theirs[f"logits.{i}"])
        largest = max(largest, float((logits - found).abs().max()))
        logp, logq = logits.double().log_softmax(-1), found.double().log_softmax(-1)
        total += float((logp.exp() * (logp - logq)).sum())
        positions += len(logits)
        identical += ours[i] == way
        step = next((n for n, (a, b) in enumerate(zip(ours[i], way, strict=True)) if a != b), None)
        if step is not None:
            best = logits[len(prompt) - 1 :].topk(2).values
            margins = (best[:, 0] - best[:, 1]).tolist()
            first = next((n for n, margin in enumerate(margins) if margin < CLOSE), NEW_TOKENS)
            before_close &= first <= step
            left.append({"prompt": i, "step": step, "margin": margins[step], "first_close": first})
    return {
        "logits": largest,
        "mean_kl": total / positions,
        "positions": positions,
        "greedy_identical": identical,
        "left_at": left,
        "identical_up_to_the_first_close_step": before_close,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True, help="with llama-cpp-python")
    parser.add_argument("--out", type=Path, help="the folder of the result file")
    options = parser.parse_args()
    if cached(MODEL) is None:
        sys.exit(f"{MODEL} is not in the cache: minift download {MODEL}")
    model, tokenizer = minift.load(MODEL)
    prompts = [tokenizer.encode(text) for text in TEXTS]
    prompts += [tokenizer.chat([{"role": "user", "content": q}], reply=True)[0] for q in QUESTIONS]
    texts = [*TEXTS, *QUESTIONS, "<|im_end|> café naïve 日本 12345 \n\n  x"]
    result: dict[str, Any] = {"prompts": len(prompts), "new_tokens": NEW_TOKENS}
    kept = []
    with tempfile.TemporaryDirectory() as name, tuned(2):
        work = Path(name)
        job, out = work / "ids.json", work / "out.npz"
        job.write_text(json.dumps({"prompts": prompts, "texts": texts}))
        for kind in KINDS:
            path = work / f"{kind}.gguf"
            done = minift.export(model, tokenizer, path, dtype=kind)
            words = [path, job, out, "--new-tokens", NEW_TOKENS]
            loaded, _ = minift.load(path)
            if kind == "Q8_0":
                ask(options.peer_python, PEER, *words)
                with np.load(out) as theirs:
                    result["Q8_0 token by token"] = compare(loaded, prompts, theirs)
                ways = {"prompts": prompts, "texts": texts, "ways": greedy(loaded, prompts)}
                job.write_text(json.dumps(ways))
                words.append("--whole")
            ask(options.peer_python, PEER, *words)
            with np.load(out) as theirs:
                found = compare(loaded, prompts, theirs, whole="--whole" in words)
                same = sum(theirs[f"ids.{i}"].tolist() == tokenizer.encode(text)
                           for i, text in enumerate(texts))  # fmt: skip
                result["peer"] = json.loads(str(theirs["versions"]))
            found |= {"bytes": done.bytes, "texts_tokenized_the_same": same, "texts": len(texts)}
            exact = kind == "F32"
            kept += [same == len(texts), found["identical_up_to_the_first_close_step"]]
            kept += [found["greedy_identical"] == len(prompts) if exact else found["mean_kl"] < KL]
            result[kind] = found
            print(kind, json.dumps(found), flush=True)

        plain = [model(torch.tensor([ids])).detach() for ids in prompts]
        minift.attach(model, minift.LoRA(rank=4, alpha=8, rslora=True))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(noise, alpha=0.02)
            pairs = zip(prompts, plain, strict=True)
            moved = max(float((model(torch.tensor([a])) - b).abs().max()) for a, b in pairs)
        adapter = work / "lora.gguf"
        done = minift.export(model, tokenizer, adapter, to="gguf-lora")
        words = (work / "F32.gguf", job, out, "--new-tokens", NEW_TOKENS, "--lora", adapter)
        ask(options.peer_python, PEER, *words)
        with np.load(out) as theirs:
            found = compare(model, prompts, theirs)
        result["lora"] = found | {"bytes": done.bytes, "moves_logits_by": moved}
        kept += [found["greedy_identical"] == len(prompts), moved > 1]
    print(json.dumps(result, indent=2), write("export", result, options.out), sep="\n")
    if not all(kept):
        sys.exit("export: a limit is not kept")


if __name__ == "__main__":
    main()
