"""Every published folder, opened as it lies, against transformers, live:

    python tests/real_folders.py --peer-python PATH/TO/python [--real FOLDER] [--only NAME ...]

FOLDER has configurations, tokenizer files and chat templates of published models (models/NAME,
templates/NAME); without it the small ones of tests/published.json run, which are of the same
kinds.
benchmarks/peers/hf_folders.py gives each of them small random weights under the published names,
and says what transformers computes. Here `minift.load` opens the folder, and all is compared:
hidden states of every layer, logits or scores, ids of texts (alone, with special tokens, in pairs)
and of conversations. Then each is saved, as a folder and, if it can be, as a GGUF file: minift
reads both again, transformers the folder, and all is compared once more. A table says what opened
and what is equal; the exit code is 1 if not all.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from certificate import write  # noqa: E402
from peer import ask  # noqa: E402

import minift  # noqa: E402
from minift.checkpoints.open import load_model  # noqa: E402
from minift.errors import ConfigError, FormatError, Notice  # noqa: E402
from minift.model.transformer import Transformer  # noqa: E402
from minift.tokenizers.interface import Tokenizer  # noqa: E402
from minift.tokenizers.sentencepiece import SentencePiece  # noqa: E402

LIMIT = 1e-4  # of a hidden state, logit or score, relative to the largest of its layer
TEXTS = [
    *(" " * n + "a" for n in range(1, 41)),
    *("x" + "\n" * n + "y" for n in (1, 2, 3, 5, 8, 31)),
    *("x" + "\t" * n + " y" for n in (1, 2, 4, 7)),
    *("x" + "\r\n" * n + "  y" for n in (1, 2)),
    *("a \n b", " \n\n  \t mixed \t \n", "trailing   ", "\n", " ", "  ", "\t", ""),
    "The keeper climbs the stairs each evening and lights the lamp.",
    "it's they'll WE'VE I'D don't 'quoted' ''",
    "In 1999 12345 people paid $3.50 (or 2,75 €) for 100% of 1/2.",
    "Ein schöner Tag, une belle journée, Tiếng Việt, İstanbul, ΑΣ ὈΔΥΣΣΕΎΣ, Straße",
    "今天天气很好。日本語のテキスト 한국어 텍스트 ไทย हिन्दी العربية עברית",
    "emoji 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 combining é ö̲ ﬁ ½ ① Ⅷ",
    "def f(x):\n    if x > 0:\n        return {'a': [1, 2]}  # why?\n\n",
    "<b>tags</b> <unused99> &amp; http://example.org/a?b=c#d e@mail.org __init__ C++ [x] {y}",
    "zero\u200bwidth no\u00a0break \u3000wide \u2028line \u0085next soft\u00adhyphen \ufeffbom",
    "▁ is a sign, ▁▁two, Ġ and Ċ too, ##ing [unused1]",
]
CONVERSATIONS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Hello there"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2+2?"}],
    [
        {"role": "user", "content": " Who are you? \n"},
        {"role": "assistant", "content": "A keeper.\nOf the lamp. "},
        {"role": "user", "content": "Since when?"},
    ],
    [
        {"role": "system", "content": "You keep the light."},
        {"role": "user", "content": "When is the sun gone?"},
        {"role": "assistant", "content": "At eight."},
        {"role": "user", "content": "And in winter?"},
        {"role": "assistant", "content": "At four."},
    ],
    [
        {"role": "user", "content": "Think first."},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nDone."},
        {"role": "user", "content": "Again."},
        {"role": "assistant", "content": "<think>\nwell\n</think>\n\nDone, too."},
    ],
]
Row = dict[str, Any]


@torch.no_grad()
def largest_difference(model: Transformer, said: Row, arrays: Any) -> float:
    """Of all hidden states, logits and scores at real positions, relative to each layer's size."""
    tokens, mask = torch.tensor(said["tokens"]), torch.tensor(said["mask"]).bool()
    states: list[torch.Tensor] = []
    hooks = [
        block.register_forward_pre_hook(lambda m, inputs: states.append(inputs[0]))
        for block in model.blocks
    ]
    states.append(model(tokens, mask=mask, hidden_only=True))
    for hook in hooks:
        hook.remove()
    pairs = list(zip(states, arrays["hidden"], strict=True))
    if model.head is not None and "out" in arrays:
        pairs.append((model(tokens, mask=mask), arrays["out"]))
    worst = 0.0
    for mine, numbers in pairs:
        theirs = torch.from_numpy(numbers)
        real = mask if mine.dim() == 3 else slice(None)
        difference = (mine[real] - theirs[real]).abs().max() / theirs[real].abs().max()
        worst = max(worst, float(difference))
    return worst


def unequal_ids(tokenizer: Tokenizer, said: Row) -> list[str]:
    """Texts whose ids are not those of the reference."""
    wrong = []
    for n, (text, other) in enumerate(zip(TEXTS, TEXTS[1:] + TEXTS[:1], strict=True)):
        mine = tokenizer.encode(text)
        checks = [("alone", mine, said["ids"][n])]
        if "whole" in said:
            checks.append(("whole", tokenizer.wrap(mine)[0], said["whole"][n]))
        if "pairs" in said and said["pairs"][n] is not None:  # an empty text is no text there
            both = tokenizer.wrap(mine, tokenizer.encode(other))[0]
            checks.append(("pair", both, said["pairs"][n]))
        wrong += [f"{kind} {text!r}: {a}, not {b}" for kind, a, b in checks if a != b]
    return wrong


def unequal_conversations(tokenizer: Tokenizer, said: Row) -> list[str]:
    """Conversations that read otherwise than the reference's.

    Free are a conversation that its template refuses, and one whose system message it drops: there
    minift writes the message as the family's other templates do.
    The ids must be equal, but where an answer follows a text: the reference joins the two before it
    cuts them into tokens, minift never does, since generation cannot.
    """
    wrong = []
    for messages, answer in zip(CONVERSATIONS, said["chat"], strict=False):
        reply = messages[-1]["role"] == "user"
        if "error" in answer or messages[0]["content"].strip() not in answer["text"]:
            continue
        try:
            ids, _ = tokenizer.chat(messages, reply)
        except ConfigError as error:
            wrong.append(f"{messages[0]['role']} first: {error}")
            continue
        mine, theirs = tokenizer.decode(ids, skip_special=False), answer["text"]
        if isinstance(tokenizer, SentencePiece):
            mine, theirs = mine.replace(" ", ""), theirs.replace(" ", "")  # its spaces are its own
        same = ids == answer["ids"] or mine == theirs
        if not same:
            wrong.append(f"{mine!r}, not {theirs!r}")
    return wrong


@torch.no_grad()
def saved_again(model: Transformer, tokenizer: Tokenizer, folder: Path, row: Row) -> None:
    """Save as a folder and as a GGUF file; minift reads both, with equal ids and numbers."""
    tokens = torch.arange(24).view(2, 12) * 11 % min(model.config.vocab, 500)
    texts, before = [tokenizer.encode(text) for text in TEXTS], model(tokens)
    minift.save(model, tokenizer, folder)
    places = [folder]
    try:
        minift.save(model, tokenizer, folder.with_suffix(".gguf"))
        places.append(folder.with_suffix(".gguf"))
    except ConfigError as error:
        row["gguf"] = str(error)
    for place in places:
        again, other = minift.load(place)
        worst = float((again.eval()(tokens) - before).abs().max() / before.abs().max())
        wrong = [t for t, ids in zip(TEXTS, texts, strict=True) if other.encode(t) != ids]
        if wrong:
            row["wrong"].append(f"{place.name}: other ids for {wrong[:3]!r}, {len(wrong)} texts")
        if worst > 1e-5:
            row["wrong"].append(f"{place.name}: numbers differ by {worst:.1e}")
        own = dict(again.named_parameters())
        if place == folder and not all(torch.equal(own[n], p) for n, p in model.named_parameters()):
            row["wrong"].append(f"{place.name}: other weights")


def compare(folder: Path, said: Row, saved: Path) -> Row:
    """One folder: what opened, what is equal, and what is not."""
    row: Row = {"kind": said["kind"], "class": said["class"], "opened": False, "wrong": []}
    spoken = said["tokenizer"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Notice)
        try:
            if "error" in spoken:
                model, tokenizer = load_model(folder), None
            else:
                model, tokenizer = minift.load(folder)
        except (ConfigError, FormatError) as error:
            row["wrong"].append(str(error)[:600])
            return row
    row["opened"], row["family"] = True, model.config.family
    row["notices"] = sorted({str(w.message).replace(str(folder), ".") for w in caught})
    row["difference"] = largest_difference(
        model.eval(), said, np.load(folder.with_name(folder.name + ".npz"))
    )
    if not row["difference"] <= LIMIT:
        row["wrong"].append(f"numbers differ by {row['difference']:.1e}")
    if tokenizer is None:
        row["tokenizer"] = spoken["error"]
        return row
    ids = unequal_ids(tokenizer, spoken)
    row["ids"], row["tokenizer"] = not ids, spoken["class"]
    row["wrong"] += ids[:3] + [f"and {len(ids) - 3} more texts"] * (len(ids) > 3)
    row["template"] = any("ids" in answer for answer in spoken["chat"])
    if row["template"]:
        chats = unequal_conversations(tokenizer, spoken)
        row["chat"] = not chats
        row["wrong"] += chats[:2]
    saved_again(model, tokenizer, saved, row)
    return row


def compare_saved(folder: Path, row: Row, said: Row) -> None:
    """What transformers makes of the folder that minift saved."""
    if "error" in said:
        row["wrong"].append(f"saved, in transformers: {said['error']}")
        return
    missing = [name for name in said["missing"] if "pooler." not in name]  # heads may have none
    row["wrong"] += [f"saved, in transformers: no {name}" for name in missing]
    model, tokenizer = minift.load(folder)
    numbers = np.load(folder.with_name(folder.name + ".npz"))
    difference = largest_difference(model.eval(), said, numbers)
    if not difference <= LIMIT:
        row["wrong"].append(f"saved, in transformers: numbers differ by {difference:.1e}")
    if "error" in said["tokenizer"]:
        row["wrong"].append(f"saved, in transformers: {said['tokenizer']['error']}")
    else:
        wrong = unequal_ids(tokenizer, said["tokenizer"])
        wrong += unequal_conversations(tokenizer, said["tokenizer"])
        row["wrong"] += [f"saved, in transformers: {line}" for line in wrong[:2]]


def asked(python: str, real: Path, work: Path, given: Row) -> Row:
    """What the peer says."""
    job, out = work / "job.json", work / "answers.json"
    job.write_text(json.dumps(given))
    ask(python, "hf_folders.py", real, work, job, out)
    found: Row = json.loads(out.read_text())
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True, help="with transformers")
    parser.add_argument("--real", type=Path, help="the folder of published files")
    parser.add_argument("--only", nargs="*", help="names of folders")
    parser.add_argument("--keep", type=Path, help="leave the folders that were made here")
    parser.add_argument("--out", type=Path, help="the folder of the result file")
    options = parser.parse_args()
    published = options.real is not None and options.real.is_dir()
    real = options.real if published else ROOT / "tests" / "published.json"
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as place:
        work = options.keep or Path(place)
        work.mkdir(parents=True, exist_ok=True)
        given = {"texts": TEXTS, "conversations": CONVERSATIONS, "only": options.only}
        answers = partial(asked, options.peer_python, real, work)
        said, saved = answers(given), work / "saved"
        saved.mkdir()
        for name, facts in said["folders"].items():
            if "error" in facts:
                print(f"{name:<36} not by transformers: {facts['error']}", flush=True)
                continue
            rows[name] = compare(work / name, facts, saved / name)
        given["saved"] = {name: str(saved / name) for name in rows if (saved / name).is_dir()}
        for name, facts in answers(given)["folders"].items():
            compare_saved(saved / name, rows[name], facts)
        for name, row in rows.items():
            state = "equal" if not row["wrong"] else "WRONG" if row["opened"] else "REFUSED"
            numbers = f"{row['difference']:.0e}" if "difference" in row else ""
            print(f"{name:<36} {state:<8} {numbers:<6} {row.get('tokenizer', '')}", flush=True)
            for line in (*row.get("notices", ()), *row["wrong"]):
                print(f"    {line}", flush=True)
    result = {"published": published, "folders": rows, "peer_versions": said["versions"]}
    print(write("folders" if published else "own_folders", result, options.out))
    opened = Counter(row["opened"] for row in rows.values())[True]
    equal = sum(not row["wrong"] for row in rows.values())
    print(f"{len(rows)} folders tried, {opened} opened, {equal} equal in everything")
    return 0 if equal == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
