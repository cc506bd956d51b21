"""A newcomer's first hour: every command of the README's "Use it", typed as it stands there.

    python tests/newcomer.py [--only WORD]

Small data of one's own are written into an empty folder, under the names that the README has: a
table with three labels, prompts with answers, conversations, a text of three chapters. Then each
command of "Use it" runs in a terminal of 100 columns, in its order, and its Python in one process;
what a person sees is read: no traceback, no line wider than the terminal, and the facts that each
command owes (READ). Then some commands again at 60 columns, in a terminal and a pipe that know no
UTF-8, and typed wrongly (SLIPS). Exit code 1 if anything is amiss.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import itertools
import json
import os
import pty
import re
import select
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MINIFT = [sys.executable, "-m", "minift"]
LONGEST = 600  # seconds of one command
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


# ---- data of one's own ---------------------------------------------------------------------------

DISHES = ("soup", "bread", "fish", "rice", "tea", "cake", "curry", "salad")
VERDICTS = {
    "bad": ("was cold and came far too late", "tasted of nothing, never again"),
    "mixed": ("was fine, no more than that", "was good, but far too dear"),
    "good": ("was the best that I have had", "came hot and tasted wonderful"),
}
QUESTIONS = {
    "When do you open?": "Ahoy! We open at eight bells in the morning.",
    "Where are you?": "Ahoy! You find us at the old harbour, behind the mill.",
    "Do you have tea?": "Ahoy! Tea we have, black and green.",
    "Can I bring my dog?": "Ahoy! Dogs are welcome on deck.",
    "Is there wifi?": "Ahoy! There is none, but the sea view is free.",
    "Do you take cards?": "Ahoy! Cards and coins, we take both.",
    "Is there a table for four?": "Ahoy! There is one by the window.",
    "What is the soup today?": "Ahoy! Fish soup, as on every day.",
}
CHAPTERS = (
    ("The lamp", "The keeper climbed the stairs each evening and lit the lamp.",
     "Ships passed far out, and their crews saw the light and knew where they were."),
    ("The storm", "In the third week of autumn the wind turned and the sea rose to the rocks.",
     "The keeper stayed awake for two nights and turned the lamp by hand."),
    ("The letter", "When it was over, a boat brought a letter from a captain.",
     "He wrote that he had seen the light, and that he had brought home every man."),
)  # fmt: skip


def write_data(folder: Path) -> None:
    """The files that "Use it" names."""
    reviews = [
        (f"The {dish} {verdict}.", label)
        for dish, (label, verdicts) in itertools.product(DISHES, VERDICTS.items())
        for verdict in verdicts
    ]
    for name, rows in (("reviews.csv", reviews[6:]), ("held.csv", reviews[:6])):
        with open(folder / name, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("review", "verdict"), *rows])
    numbers = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
    prompts = [
        {"prompt": f"Order: {word} {dish}, please.\nTicket:", "completion": f" {count} x {dish}"}
        for (word, count), dish in itertools.product(numbers.items(), DISHES)
    ]
    lines(folder / "prompts.jsonl", prompts[5:])
    lines(folder / "held.jsonl", prompts[:5])
    system = {"role": "system", "content": "You answer for the Old Harbour café."}
    chats = [
        {"messages": [system, {"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in QUESTIONS.items()
    ]
    lines(folder / "chats.jsonl", chats)
    book = "\n\n\n".join(
        f"{title}\n\n{one} {' '.join([two] * 12)}\n\n{two}" for title, one, two in CHAPTERS
    )
    (folder / "book.txt").write_text(book + "\n", encoding="utf-8")


def lines(path: Path, rows: list[dict[str, object]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


# ---- what the README says ------------------------------------------------------------------------


def use_it() -> tuple[list[str], list[str]]:
    """The commands of "Use it" in their order, and its Python."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("\n## Use it\n")[2].partition("\n## ")[0]
    commands, python = [], []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", section, re.M | re.S):
        if language == "python":
            python.append(block)
        elif "\n$ " not in f"\n{block}":  # else a transcript, which has its own data
            whole = block.replace("\\\n", " ")
            commands += [line for line in whole.splitlines() if line.startswith("minift ")]
    return commands, python


# ---- a person's terminal -------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What a command printed, as a terminal shows it, and its exit code."""

    code: int
    text: str
    seconds: float

    @property
    def lines(self) -> list[str]:
        """Each line as it was drawn: a bar draws one again and again."""
        return [line.rstrip() for line in re.split(r"[\r\n]+", ANSI.sub("", self.text))]


def run(
    words: list[str], folder: Path, *, columns: int, typed: str = "", **environment: str
) -> Seen:
    """In a terminal of so many columns; `typed` is what the person types, then Ctrl-D."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    settings = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    begin = time.monotonic()
    process = subprocess.Popen(
        words, cwd=folder, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        env=settings | {"TERM": "xterm", "PYTHONWARNINGS": "error"} | environment,
    )  # fmt: skip
    os.close(slave)
    os.write(master, typed.encode() + b"\x04")
    shown = b""
    while time.monotonic() - begin < LONGEST:
        if select.select([master], [], [], 1.0)[0]:
            try:
                piece = os.read(master, 1 << 16)
            except OSError:  # EIO: the last process has closed its side
                break
            if not piece:
                break
            shown += piece
    else:
        process.kill()
    os.close(master)
    return Seen(process.wait(), shown.decode(errors="replace"), time.monotonic() - begin)


def piped(words: list[str], folder: Path, **environment: str) -> Seen:
    """Without a terminal: stdout and stderr one after the other."""
    begin = time.monotonic()
    done = subprocess.run(
        words, cwd=folder, capture_output=True, env=os.environ | environment, timeout=LONGEST,
        stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    text = (done.stdout + done.stderr).decode(errors="replace")
    return Seen(done.returncode, text, time.monotonic() - begin)


# ---- what must be there --------------------------------------------------------------------------

# What a command that begins so owes its reader: patterns, all of them somewhere in its output.
READ = {
    "minift sft": (r"trainable", r"\d held out", r"loss \d+\.\d+ to \d+\.\d+",
                   r"saved +runs/[\w-]+/", r"next +minift"),
    "minift classify": (r"labels bad, mixed, good", r"accuracy +\d+\.\d %", r"saved +runs/[\w-]+/"),
    "minift eval": (r"(accuracy +\d+\.\d %|loss +\d+\.\d+ nats)",),
    "minift generate": (r"\w{3,}",),
    "minift chat": (r"you> ", r"\w{3,}"),
    "minift merge": (r"merged +\S+ ·", r"difference \d"),
    "minift export": (r"exported +\S+ ·", r"read back"),
    "minift explain": (r"lora",),
    "minift info": (r"(parameters|steps)",),
}  # fmt: skip
# Commands that a person gets wrong, and what the one line must say.
SLIPS = (
    ("minift sft --model smollm2-135m-instruct --data reviews.cvs --out runs/x", "no such file"),
    ("minift classify --model minilm-l6-v2 --data reviews.csv --labels bad,good --out runs/x",
     r"review, verdict.*--template '\{review\}'.*--target verdict"),
    ("minift classify --model minilm-l6-v2 --data reviews.csv --template {review} --target verdict"
     " --labels bad,good --out runs/x", r"mixed.*--labels"),
    ("minift sft --model smollm2-135m-instruct --data prompts.jsonl --out runs/x --learning-rate 1",
     r"--lr"),
    ("minift sft --hlep", r"--help"),
    ("minift sft --model smollm2-135m-instruct --data prompts.jsonl --out runs/x "
     "--max-length 99999", r"8,?192"),
    ("minift merge runs/a --out . --overwrite", r"did not write|not write"),
    ("minift chat --model smolm2", r"smollm2-135m-instruct"),
)  # fmt: skip
NARROW = (
    "minift classify --model minilm-l6-v2 --data reviews.csv --template {review} --target verdict "
    "--labels bad,mixed,good --steps 4 --out runs/narrow",
    "minift sft --model smollm2-135m-instruct --data prompts.jsonl --steps 3 --batch-size 4 "
    "--out runs/narrow-sft",
    "minift info runs/narrow-sft",
    "minift eval --adapter runs/narrow --data held.csv",
)
SPEAKS = ("minift generate", "minift chat")  # their lines are a model's, as wide as it makes them


def faults(command: str, seen: Seen, columns: int | None) -> list[str]:
    """What is amiss in what a command printed."""
    found = []
    if seen.code != 0:
        found.append(f"exit code {seen.code}")
    if "Traceback" in seen.text or "Warning:" in seen.text:
        found.append("a traceback or a raw warning")
    kind = " ".join(command.split()[:2])
    plain = " ".join(" ".join(seen.lines).split())  # lines may be broken anywhere
    found += [f"nothing like {p!r}" for p in READ.get(kind, ()) if not re.search(p, plain)]
    if columns is not None and kind not in SPEAKS:
        wide = [line for line in seen.lines if len(line) > columns]
        found += [
            f"{len(line)} columns: {line}" for line in wide if not line.startswith("minift: ")
        ]
    return found


class Walk:
    """Runs commands, prints one line for each, and keeps count."""

    def __init__(self, folder: Path, only: str | None):
        self.folder, self.only, self.amiss = folder, only, 0

    def wanted(self, command: str) -> bool:
        return self.only is None or self.only in command

    def judge(self, command: str, seen: Seen, found: list[str]) -> None:
        print(f"{'ok   ' if not found else 'AMISS'} {seen.seconds:5.1f} s  {command[:150]}")
        if found:
            self.amiss += 1
            for fault in found:
                print(f"        {fault}")
            print(textwrap.indent("\n".join(seen.lines[-30:]), "      | "))
        sys.stdout.flush()

    def literally(self, command: str) -> None:
        if not self.wanted(command):
            return
        typed = "When do you open?\n" if command.startswith("minift chat") else ""
        seen = run(MINIFT + shlex.split(command)[1:], self.folder, columns=100, typed=typed)
        self.judge(command, seen, faults(command, seen, 100))

    def narrow(self, command: str) -> None:
        if not self.wanted(command):
            return
        seen = run(MINIFT + shlex.split(command)[1:], self.folder, columns=60)
        drawn = [line for line in seen.lines if re.search(r"\d+/\d+ ", line)]
        found = faults(command, seen, None)
        found += [f"a bar of {len(line)} columns" for line in drawn if len(line) > 60]
        self.judge(f"60 columns: {command}", seen, found)

    def without_utf8(self, command: str) -> None:
        if not self.wanted(command):
            return
        words = MINIFT + shlex.split(command)[1:] + ["--overwrite"] * ("--out" in command)
        for encoding in ("ascii", "cp1252"):
            settings = {"PYTHONIOENCODING": f"{encoding}:strict", "PYTHONUTF8": "0", "LC_ALL": "C"}
            seen = piped(words, self.folder, **settings)
            self.judge(f"{encoding}: {command}", seen, faults(command, seen, None))

    def slip(self, command: str, says: str) -> None:
        if not self.wanted(command):
            return
        seen = piped(MINIFT + shlex.split(command)[1:], self.folder)
        found = [] if seen.code == 2 else [f"exit code {seen.code}, not 2"]
        told = [line for line in seen.lines if line.startswith("minift: ")]
        if not any(re.search(says, line) for line in told):
            found.append(f"no line says {says!r}")
        if "Traceback" in seen.text:
            found.append("a traceback")
        self.judge(f"wrong: {command}", seen, found)

    def python(self, block: str) -> None:
        if not self.wanted("python"):
            return
        (self.folder / "use_it.py").write_text(block, encoding="utf-8")
        seen = piped([sys.executable, "-W", "error", "use_it.py"], self.folder)
        self.judge(f"python: {block.strip().splitlines()[0]} ...", seen,
                   faults("python", seen, None))  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", help="commands that have this word")
    parser.add_argument("--folder", help="work there, in a new folder of that name")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.folder or scratch)
        folder.mkdir(exist_ok=True)
        write_data(folder)
        commands, python = use_it()
        assert commands
        assert python
        walk = Walk(folder, options.only)
        for command in commands:
            walk.literally(command)
        walk.python("\n".join(python))
        for command in NARROW:
            walk.narrow(command)
        for command in NARROW:
            walk.without_utf8(command)
        for command, says in SLIPS:
            walk.slip(command, says)
    print(f"{walk.amiss} amiss")
    return 1 if walk.amiss else 0


if __name__ == "__main__":
    sys.exit(main())
