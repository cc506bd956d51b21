"""The part of Jinja that published chat templates use, evaluated as data: none of it is executed.

    render("{{ 'a' if x else 'b' }}{% for m in messages %}{{ m.content }}{% endfor %}", ...)

What comes out is what Jinja's sandbox writes as transformers sets it up, or a JinjaError: for what
the template itself refuses (`raise_exception`, a value that is not there), for what is not part of
this, and for a template that would take long or write much. Each character of the output knows
whether the template wrote it or a message did (traced.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from minift.tokenizers.jinja import traced, tree
from minift.tokenizers.jinja.filters import filtered, tested
from minift.tokenizers.jinja.parse import parse
from minift.tokenizers.jinja.tokens import JinjaError
from minift.tokenizers.jinja.traced import TEMPLATE, Text
from minift.tokenizers.jinja.values import (
    COMPARES,
    UNDEFINED,
    Bound,
    Namespace,
    Work,
    iterate,
    member,
    number,
    operate,
    sliced,
    text_of,
)

STEPS, STEPS_A_MESSAGE = 20_000, 2_000  # published templates take up to 300 a message
LONGEST = 1 << 20  # characters of any text, beyond those of the messages
CALLS = 16  # macros within each other


@lru_cache(maxsize=64)
def parsed(source: str) -> tree.Body | JinjaError:
    """The tree of a template, or what is wrong with it."""
    try:
        return parse(source)
    except JinjaError as error:
        return error


class Refused(JinjaError):
    """`raise_exception(...)`: what the template says of the messages."""


def render(
    source: str, messages: Sequence[Mapping[str, str]], now: datetime, **values: Any
) -> Text:
    """The text that the template `source` writes; message k is the source k of its characters.

    `values` are the other variables: text of the template's own, truth values, None.
    """
    body = parsed(source)
    if isinstance(body, JinjaError):
        raise JinjaError(str(body))
    size = sum(len(message["content"]) for message in messages)
    work = Work(STEPS + STEPS_A_MESSAGE * len(messages) + size, LONGEST + 4 * size)
    written = [
        {
            "role": traced.traced(message["role"], TEMPLATE),
            "content": traced.traced(message["content"], k),
        }
        for k, message in enumerate(messages, 1)
    ]
    variables = {
        name: traced.traced(value, TEMPLATE) if isinstance(value, str) else value
        for name, value in values.items()
    }
    run = _Run(work, now)
    out: list[str] = []
    try:
        run.execute(body, _Scope(_Scope(None, variables | {"messages": written})), out)
        return work.join(out)
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise JinjaError(f"it fails: {error}") from None
    except RecursionError:
        raise JinjaError("it is nested too deeply") from None


class _Scope:
    """The names that a part of the template has set, within those of the part around it."""

    __slots__ = ("around", "names")

    def __init__(self, around: _Scope | None, names: dict[str, Any] | None = None):
        self.around, self.names = around, names if names is not None else {}

    def __getitem__(self, name: str) -> Any:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.around
        if name in _UNREAD:
            raise JinjaError(f"the function {name!r}")
        return GLOBALS.get(name, UNDEFINED)


@dataclass
class _Loop:
    """`loop`, within a loop."""

    items: list[Any]
    depth: int
    at: int = 0

    def __getitem__(self, name: str) -> Any:
        last = len(self.items) - 1
        match name:
            case "index0" | "index":
                return self.at + (name == "index")
            case "revindex0" | "revindex":
                return last - self.at + (name == "revindex")
            case "first" | "last":
                return self.at == (0 if name == "first" else last)
            case "length":
                return last + 1
            case "previtem":
                return self.items[self.at - 1] if self.at else UNDEFINED
            case "nextitem":
                return self.items[self.at + 1] if self.at < last else UNDEFINED
            case "depth0" | "depth":
                return self.depth + (name == "depth")
        raise JinjaError(f"loop.{name[:40]}")


@dataclass
class _Callable:
    """A macro, with the scope that it was written in."""

    macro: tree.Macro
    scope: _Scope


def _range(run: _Run, *given: int) -> list[int]:
    found = range(*given)
    run.work.spend(len(found))
    return list(found)


def _namespace(run: _Run, *given: dict[str, Any], **named: Any) -> Namespace:
    names = dict(*given, **named)
    run.work.charge(names)
    if any(name.startswith("_") for name in names):
        raise JinjaError("a name in a namespace that begins with _")
    return Namespace(names)


def _dict(run: _Run, *given: Any, **named: Any) -> dict[Any, Any]:
    run.work.charge(*given)
    return dict(*given, **named)


def _raise_exception(run: _Run, message: Any) -> NoReturn:
    raise Refused(text_of(message))


def _strftime_now(run: _Run, form: str) -> Text:
    """The time of the run in a form; each sign by itself, since "%999999999d" is one, too."""
    if len(form) > 100:
        raise JinjaError("a form of a date that is over 100 characters long")

    def written(match: re.Match[str]) -> str:
        if match[0] == "%" or match[1] not in "aAbBdfHIjmMpSuUwWyYzZ%":
            raise JinjaError(f"the form {match[0]!r} of a date")
        return run.now.strftime(match[0])

    return traced.traced(re.sub(r"%(.?)", written, form), TEMPLATE)


GLOBALS = {
    "range": _range,
    "namespace": _namespace,
    "dict": _dict,
    "raise_exception": _raise_exception,
    "strftime_now": _strftime_now,
}
_UNREAD = frozenset(("lipsum", "cycler", "joiner", "self", "super", "caller", "varargs", "kwargs"))
_FUNCTIONS = tuple(GLOBALS.values())


@dataclass
class _Run:
    """One rendering of a template."""

    work: Work
    now: datetime
    calls: int = 0
    loops: int = field(default=0)

    def execute(self, body: tree.Body, scope: _Scope, out: list[str]) -> tree.Jump | None:
        """Write what statements write to `out`; -> the jump that ended them, if one did."""
        for statement in body:
            self.work.spend(1)
            jump = None
            if isinstance(statement, tree.Output):
                out.append(text_of(self.value(statement.value, scope)))
            elif isinstance(statement, tree.If):
                chosen = statement.otherwise
                for test, branch in statement.branches:
                    if self.value(test, scope):
                        chosen = branch
                        break
                jump = self.execute(chosen, scope, out)
            elif isinstance(statement, tree.For):
                jump = self.loop(statement, scope, out)
            elif isinstance(statement, tree.Set):
                value = self.value(statement.value, scope)
                self.assign(statement.targets, statement.unpacks, value, scope)
            elif isinstance(statement, tree.SetBlock):
                parts: list[str] = []
                self.execute(statement.body, _Scope(scope), parts)
                value = self.work.join(parts)
                for name, arguments in statement.filters:
                    given, named = self.arguments(arguments, scope)
                    value = filtered(self.work, name, value, *given, **named)
                self.assign((statement.target,), False, value, scope)
            elif isinstance(statement, tree.Macro):
                scope.names[statement.name] = _Callable(statement, scope)
            elif isinstance(statement, tree.Group):
                self.execute(statement.body, _Scope(scope), out)
            else:
                return statement
            if jump is not None:
                return jump
        return None

    def loop(self, statement: tree.For, scope: _Scope, out: list[str]) -> tree.Jump | None:
        items = iterate(self.work, self.value(statement.over, scope))
        targets = tuple((name, "") for name in statement.targets)
        if statement.condition is not None:
            kept = []
            for item in items:
                self.work.spend(1)
                inner = _Scope(scope)
                self.assign(targets, statement.unpacks, item, inner)
                if self.value(statement.condition, inner):
                    kept.append(item)
            items = kept
        loop, ended = _Loop(items, self.loops), False
        self.loops += 1
        for loop.at, item in enumerate(items):
            self.work.spend(1)
            inner = _Scope(scope, {"loop": loop})
            self.assign(targets, statement.unpacks, item, inner)
            jump = self.execute(statement.body, inner, out)
            if jump is not None and jump.leaves:
                break
            ended |= jump is None
        self.loops -= 1
        # Jinja's "else" is for a loop none of whose turns came to its end.
        return None if ended else self.execute(statement.otherwise, _Scope(scope), out)

    def assign(
        self, targets: Sequence[tuple[str, str]], unpacks: bool, value: Any, scope: _Scope
    ) -> None:
        values = iterate(self.work, value) if unpacks else [value]
        if len(values) != len(targets):
            raise JinjaError(f"{len(values)} values for {len(targets)} names")
        for (name, attribute), one in zip(targets, values, strict=True):
            if not attribute:
                scope.names[name] = one
                continue
            holder = scope[name]
            if not isinstance(holder, Namespace) or attribute.startswith("_"):
                raise JinjaError(f"an assignment to {name[:40]}.{attribute[:40]}")
            holder.names[attribute] = one

    def value(self, node: tree.Expression, scope: _Scope) -> Any:
        """What an expression is worth."""
        self.work.spend(1)
        match node:
            case tree.Literal():
                return node.value
            case tree.Name():
                return scope[node.name]
            case tree.Member():
                value, key = self.value(node.of, scope), self.value(node.key, scope)
                if isinstance(value, _Loop) and isinstance(key, str):
                    return value[key]
                return member(self.work, value, key, dotted=node.dotted)
            case tree.Chain():
                result = self.value(node.first, scope)
                for sign, other in node.rest:
                    result = operate(self.work, sign, result, self.value(other, scope))
                return result
            case tree.Compare():
                left = self.value(node.first, scope)
                for sign, other in node.rest:
                    right = self.value(other, scope)
                    if not COMPARES[sign](self.work, left, right):
                        return False
                    left = right
                return True
            case tree.Logic():
                for item in node.items:
                    result = self.value(item, scope)
                    if bool(result) is node.stops_at:
                        break
                return result
            case tree.Sign():
                return self.signed(node.sign, self.value(node.of, scope))
            case tree.Choice():
                if self.value(node.test, scope):
                    return self.value(node.yes, scope)
                return UNDEFINED if node.no is None else self.value(node.no, scope)
            case tree.Test():
                value = self.value(node.of, scope)
                given, named = self.arguments(node.arguments, scope)
                return tested(self.work, node.name, value, *given, **named) is not node.negated
            case tree.Filter():
                value = self.value(node.of, scope)
                given, named = self.arguments(node.arguments, scope)
                return filtered(self.work, node.name, value, *given, **named)
            case tree.Call():
                return self.call(node, scope)
            case tree.Slice():
                value = self.value(node.of, scope)
                bounds = [None if one is None else self.value(one, scope) for one in node.bounds]
                return sliced(self.work, value, *bounds)
            case tree.Items():
                items = [self.value(item, scope) for item in node.items]
                return tuple(items) if node.is_tuple else items
            case tree.Pairs():
                return {self.key(key, scope): self.value(value, scope) for key, value in node.pairs}

    def key(self, node: tree.Expression, scope: _Scope) -> Any:
        key = self.value(node, scope)
        if key is not None and not isinstance(key, str | int | float):
            raise JinjaError("a key that is neither text nor a number")
        return key

    def signed(self, sign: str, value: Any) -> Any:
        if sign == "not":
            return not value
        if not isinstance(value, int | float):
            raise JinjaError(f"the sign {sign} before what is no number")
        return number(-value if sign == "-" else +value)

    def arguments(
        self, arguments: tree.Arguments, scope: _Scope
    ) -> tuple[list[Any], dict[str, Any]]:
        given = [self.value(one, scope) for one in arguments.given]
        return given, {name: self.value(one, scope) for name, one in arguments.named}

    def call(self, node: tree.Call, scope: _Scope) -> Any:
        function = self.value(node.of, scope)
        given, named = self.arguments(node.arguments, scope)
        if isinstance(function, Bound):
            return function(self.work, *given, **named)
        if isinstance(function, _Callable):
            return self.call_macro(function, given, named)
        if function in _FUNCTIONS:
            return function(self, *given, **named)
        raise JinjaError("a call of what is no function")

    def call_macro(self, called: _Callable, given: list[Any], named: dict[str, Any]) -> Text:
        parameters = called.macro.parameters
        if len(given) > len(parameters) or not set(named) <= {name for name, _ in parameters}:
            raise JinjaError(f"other arguments than those of the macro {called.macro.name[:40]!r}")
        self.calls += 1
        if self.calls > CALLS:
            raise JinjaError("macros that call each other too deeply")
        scope = _Scope(called.scope)
        for k, (name, default) in enumerate(parameters):
            if k < len(given):
                if name in named:
                    raise JinjaError(f"the argument {name[:40]!r} twice")
                scope.names[name] = given[k]
            elif name in named:
                scope.names[name] = named[name]
            else:
                scope.names[name] = UNDEFINED if default is None else self.value(default, scope)
        out: list[str] = []
        self.execute(called.macro.body, scope, out)
        self.calls -= 1
        return self.work.join(out)
