"""The tree of a chat template: its statements and expressions.

{% if a %}x{% else %}{{ b | trim }}{% endif %}
If([(Name a, [Output x])], [Output Filter(Name b, trim)])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Literal:
    value: Any


@dataclass(frozen=True, slots=True)
class Name:
    name: str


@dataclass(frozen=True, slots=True)
class Items:
    """[a, b], or (a, b)."""

    items: tuple[Expression, ...]
    is_tuple: bool


@dataclass(frozen=True, slots=True)
class Pairs:
    """{a: b}."""

    pairs: tuple[tuple[Expression, Expression], ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """a + b - c, from left to right; so are ~ and * / // %."""

    first: Expression
    rest: tuple[tuple[str, Expression], ...]


@dataclass(frozen=True, slots=True)
class Compare:
    """a < b == c: each with the next."""

    first: Expression
    rest: tuple[tuple[str, Expression], ...]


@dataclass(frozen=True, slots=True)
class Logic:
    """a and b, or a or b: the value that decides."""

    stops_at: bool
    items: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Sign:
    """not a, -a, +a."""

    sign: str
    of: Expression


@dataclass(frozen=True, slots=True)
class Choice:
    """yes if test else no."""

    test: Expression
    yes: Expression
    no: Expression | None


@dataclass(frozen=True, slots=True)
class Member:
    """of.key, or of[key]."""

    of: Expression
    key: Expression
    dotted: bool


@dataclass(frozen=True, slots=True)
class Slice:
    of: Expression
    bounds: tuple[Expression | None, Expression | None, Expression | None]


@dataclass(frozen=True, slots=True)
class Arguments:
    given: tuple[Expression, ...] = ()
    named: tuple[tuple[str, Expression], ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    of: Expression
    arguments: Arguments


@dataclass(frozen=True, slots=True)
class Filter:
    of: Expression
    name: str
    arguments: Arguments


@dataclass(frozen=True, slots=True)
class Test:
    of: Expression
    name: str
    arguments: Arguments
    negated: bool


Expression = (
    Literal | Name | Items | Pairs | Chain | Compare | Logic | Sign | Choice | Member | Slice
    | Call | Filter | Test
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Output:
    value: Expression


@dataclass(frozen=True, slots=True)
class If:
    branches: tuple[tuple[Expression, Body], ...]
    otherwise: Body


@dataclass(frozen=True, slots=True)
class For:
    targets: tuple[str, ...]
    unpacks: bool
    over: Expression
    condition: Expression | None
    body: Body
    otherwise: Body


@dataclass(frozen=True, slots=True)
class Set:
    """{% set a, b.c = value %}: targets are (name, attribute of a namespace or "")."""

    targets: tuple[tuple[str, str], ...]
    unpacks: bool
    value: Expression


@dataclass(frozen=True, slots=True)
class SetBlock:
    target: tuple[str, str]
    filters: tuple[tuple[str, Arguments], ...]
    body: Body


@dataclass(frozen=True, slots=True)
class Macro:
    name: str
    parameters: tuple[tuple[str, Expression | None], ...]
    body: Body


@dataclass(frozen=True, slots=True)
class Group:
    """{% generation %}: written as if it were not there."""

    body: Body


@dataclass(frozen=True, slots=True)
class Jump:
    """{% break %}, or {% continue %}."""

    leaves: bool


Statement = Output | If | For | Set | SetBlock | Macro | Group | Jump
Body = tuple[Statement, ...]
