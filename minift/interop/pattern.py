"""Regular expressions from files, matched in bounded time: all the ways through a pattern at once.

    pattern -> a machine of states; text -> the set of states that its letters lead to

Thompson 1968, "Regular Expression Search Algorithm": no way is tried again, so the cost is at most
letters times states, whatever the pattern, and a `Budget` bounds the sum. What Python's `re` would
answer is answered: literals, escapes, `.`, classes, groups, `|`, `* + ?` and `{m,n}` (lazy too),
`^ $ \\A \\Z \\b \\B`. Looking around, back-references, flags, atomic groups and possessive
repetitions are not here: `Unreadable`. Module paths have no newline, which `$` could see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

STEPS = 1_000_000  # of one file's patterns together: a second at most
STATES = 5_000  # of one machine: a{1000}{1000} asks for more
DEPTH = 40  # of groups in groups
SINGLE = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a", "0": "\0"}

Letter = Callable[[str], bool]
Node = tuple[Any, ...]


class Unreadable(ValueError):
    """A pattern that is none, or that asks for what is not here; the text says which."""


@dataclass
class Budget:
    """Steps that are left for all patterns of a file."""

    left: int = STEPS

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise Unreadable(f"costs more than {STEPS:,} steps")


def is_word(letter: str) -> bool:
    return letter.isalnum() or letter == "_"


KINDS: dict[str, Letter] = {
    "d": str.isdecimal, "D": lambda c: not c.isdecimal(),
    "w": is_word, "W": lambda c: not is_word(c),
    "s": str.isspace, "S": lambda c: not c.isspace(),
}  # fmt: skip


@dataclass
class Reader:
    """Pattern text -> a tree: ("set", letters) ("at", kind) ("all", parts) ("any", parts)
    ("times", part, least, most)."""

    text: str
    at: int = 0

    def peek(self, word: str) -> bool:
        return self.text.startswith(word, self.at)

    def take(self) -> str:
        if self.at == len(self.text):
            raise Unreadable("ends too early")
        self.at += 1
        return self.text[self.at - 1]

    def choices(self, depth: int = 0) -> Node:
        if depth > DEPTH:
            raise Unreadable(f"has over {DEPTH} groups in each other")
        parts = [self.sequence(depth)]
        while self.peek("|"):
            self.at += 1
            parts.append(self.sequence(depth))
        return parts[0] if len(parts) == 1 else ("any", parts)

    def sequence(self, depth: int) -> Node:
        parts: list[Node] = []
        while self.at < len(self.text) and not self.peek("|") and not self.peek(")"):
            atom = self.atom(depth)
            parts.append(self.repeated(atom))
        return ("all", parts)

    def atom(self, depth: int) -> Node:
        letter = self.take()
        if letter == "(":
            if self.peek("?P<"):
                self.at = self.text.find(">", self.at) + 1 or len(self.text)
            elif self.peek("?:"):
                self.at += 2
            elif self.peek("?"):
                raise Unreadable("looks around, sets flags or refers back")
            inner = self.choices(depth + 1)
            if not self.peek(")"):
                raise Unreadable("has a group that does not end")
            self.at += 1
            return ("all", [inner])
        if letter == "[":
            return ("set", self.letters())
        if letter == ".":
            return ("set", lambda c: c != "\n")
        if letter in "^$":
            return ("at", letter)
        if letter in "*+?{":
            self.at -= 1
            if self.bounds() is not None:
                raise Unreadable("repeats nothing")
            self.at += 1
        if letter != "\\":
            return ("set", letter.__eq__)
        if self.peek("A") or self.peek("Z") or self.peek("b") or self.peek("B"):
            return ("at", {"A": "^", "Z": "$"}.get(word := self.take(), word))
        return ("set", self.escape())

    def escape(self) -> Letter:
        """After a backslash: a kind of letters, or one letter."""
        letter = self.take()
        if letter in KINDS:
            return KINDS[letter]
        return self.code(letter).__eq__

    def code(self, letter: str) -> str:
        if letter in SINGLE and not (letter == "0" and self.text[self.at : self.at + 1].isdigit()):
            return SINGLE[letter]
        if letter in "xuU":
            width = {"x": 2, "u": 4, "U": 8}[letter]
            digits = self.text[self.at : self.at + width]
            self.at += width
            try:
                return chr(int(digits, 16) if len(digits) == width else -1)
            except (ValueError, OverflowError):
                raise Unreadable("has an escape that is no letter") from None
        if letter.isdigit():
            raise Unreadable("refers back")
        if letter.isascii() and letter.isalpha():
            raise Unreadable(f"has the unknown escape \\{letter}")
        return letter

    def letters(self) -> Letter:
        """A class, after its bracket."""
        turned = self.peek("^")
        self.at += turned
        kinds: list[Letter] = []
        single: set[str] = set()
        ranges: list[tuple[str, str]] = []
        first = True
        while first or not self.peek("]"):
            first = False
            low = self.member(kinds)
            if not (self.peek("-") and not self.peek("-]")):
                single |= {low} if low is not None else set()
                continue
            self.at += 1
            high = self.member(kinds)
            if low is None or high is None or high < low:
                raise Unreadable("has a range that is none")
            ranges.append((low, high))
        self.at += 1

        def inside(letter: str) -> bool:
            found = letter in single or any(low <= letter <= high for low, high in ranges)
            return (found or any(kind(letter) for kind in kinds)) != turned

        return inside

    def member(self, kinds: list[Letter]) -> str | None:
        """One letter of a class; None for a kind of letters, which is noted."""
        letter = self.take()
        if letter != "\\":
            return letter
        letter = self.take()
        if letter in KINDS:
            kinds.append(KINDS[letter])
            return None
        return "\b" if letter == "b" else self.code(letter)

    def repeated(self, atom: Node) -> Node:
        bounds = self.bounds()
        if bounds is None:
            return atom
        if atom[0] == "at":
            raise Unreadable("repeats nothing")
        if self.peek("?"):
            self.at += 1  # lazy: the same texts match
        elif self.peek("+"):
            raise Unreadable("repeats possessively")
        if self.bounds() is not None:
            raise Unreadable("repeats a repetition")
        return ("times", atom, *bounds)

    def bounds(self) -> tuple[int, int | None] | None:
        """What follows says how often: (least, most)."""
        for sign, found in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self.peek(sign):
                self.at += 1
                return found
        if not self.peek("{"):
            return None
        end = self.text.find("}", self.at, self.at + 24)
        least, comma, most = self.text[self.at + 1 : max(end, 0)].partition(",")
        digits = all(part == "" or (part.isascii() and part.isdigit()) for part in (least, most))
        if end < 0 or not digits or not (least or comma):
            return None  # then it is a brace like any other letter
        self.at = end + 1
        low = int(least or 0)
        high = low if not comma else (int(most) if most else None)
        if high is not None and high < low:
            raise Unreadable("repeats at most less than at least")
        return low, high


@dataclass
class Pattern:
    """A pattern, ready to be matched from the beginning of a text."""

    text: str
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        self.budget.spend(10 * len(self.text))
        reader = Reader(self.text)
        tree = reader.choices()
        if reader.at < len(self.text):
            raise Unreadable("closes a group that is not open")
        # A state: (letters, next), ("at", kind, next), ("or", next, next) or None, the end.
        self.states: list[tuple[object, ...] | None] = []
        self.sets: dict[frozenset[int], frozenset[int]] = {}
        self.known: dict[tuple[frozenset[int], str, str], tuple[frozenset[int], bool]] = {}
        self.start = self.build(tree, self.state(None))

    def state(self, value: tuple[object, ...] | None) -> int:
        if len(self.states) >= STATES:
            raise Unreadable(f"has over {STATES:,} states")
        self.budget.spend(1)
        self.states.append(value)
        return len(self.states) - 1

    def build(self, node: Node, after: int) -> int:
        """The state that reads `node` and goes on at `after`."""
        match node[0]:
            case "set":
                return self.state((node[1], after))
            case "at":
                return self.state(("at", node[1], after))
            case "all":
                for part in reversed(node[1]):
                    after = self.build(part, after)
                return after
            case "any":
                first, *rest = [self.build(part, after) for part in node[1]]
                for other in rest:
                    first = self.state(("or", first, other))
                return first
        _, part, least, most = node
        if most is None:
            loop = self.state(("or", after, after))
            self.states[loop] = ("or", self.build(part, loop), after)
            after = loop
        for _ in range((most or least) - least):
            after = self.state(("or", self.build(part, after), after))
        for _ in range(least):
            after = self.build(part, after)
        return after

    def closed(self, states: Iterable[int], before: str, letter: str) -> tuple[set[int], bool]:
        """Those that wait for a letter, from `states` on, and whether the end is among them."""
        todo, seen, waiting, ended = list(states), set(states), set(), False
        while todo:
            state = self.states[here := todo.pop()]
            self.budget.spend(1)
            following: tuple[object, ...] = ()
            if state is None:
                ended = True
            elif state[0] == "or":
                following = state[1:]
            elif state[0] == "at":
                following = state[2:] if stands(str(state[1]), before, letter) else ()
            else:
                waiting.add(here)
            for other in following:
                assert isinstance(other, int)
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
        return waiting, ended

    def matches(self, text: str, *, whole: bool = True) -> bool:
        """Whether all of the text fits, or, not `whole`, a beginning of it."""
        current, before = frozenset((self.start,)), ""
        for letter in (*text, ""):
            self.budget.spend(1)
            key = current, before, letter
            if key not in self.known:
                waiting, ended = self.closed(current, before, letter)
                following = set()
                for state in waiting:
                    accepts, after = self.states[state]  # type: ignore[misc]
                    if letter and accepts(letter):  # type: ignore[operator]
                        following.add(after)
                self.known[key] = frozenset(following), ended  # type: ignore[arg-type]
            current, ended = self.known[key]
            if ended and (not whole or not letter):
                return True
            if not current:
                return False
            before = letter
        return False


def stands(kind: str, before: str, after: str) -> bool:
    """Whether an assertion holds between two letters; "" is beyond the text."""
    if kind == "^":
        return before == ""
    if kind == "$":
        return after == ""
    edge = bool(before and is_word(before)) != bool(after and is_word(after))
    return edge if kind == "b" else not edge and bool(before or after)  # as Python before 3.14
