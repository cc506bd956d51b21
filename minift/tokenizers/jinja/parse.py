"""The tokens of a chat template to its tree.

The grammar and its precedences are Jinja's. What it has beyond the statements that chat templates
use (inheritance, imports, call blocks, recursive loops, powers) is not read: JinjaError.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from minift.tokenizers.jinja.tokens import JinjaError, Token, tokens_of
from minift.tokenizers.jinja.traced import TEMPLATE, traced
from minift.tokenizers.jinja.tree import (
    Arguments,
    Body,
    Call,
    Chain,
    Choice,
    Compare,
    Expression,
    Filter,
    For,
    Group,
    If,
    Items,
    Jump,
    Literal,
    Logic,
    Macro,
    Member,
    Name,
    Output,
    Pairs,
    Set,
    SetBlock,
    Sign,
    Slice,
    Statement,
    Test,
)

DEEPEST = 40  # expressions, and blocks, within each other; published templates have up to 10

_LITERALS = {"true": True, "True": True, "false": False, "False": False, "none": None, "None": None}
_COMPARES = ("==", "!=", "<", "<=", ">", ">=")
_LEVELS = (("+", "-"), ("~",), ("*", "/", "//", "%"))  # the loosest first


def parse(source: str) -> Body:
    """The statements of a template; JinjaError where it is not one that minift can read."""
    try:
        reader = _Reader(tokens_of(source))
        return reader.body(())
    except RecursionError:
        raise JinjaError("it is nested too deeply") from None


@dataclass
class _Reader:
    tokens: list[Token]
    at: int = 0
    depth: int = 0
    loops: int = 0  # that the statement stands in
    ends: list[str] = field(default_factory=list)

    @property
    def next(self) -> Token:
        return self.tokens[self.at]

    def take(self) -> Token:
        self.at += 1
        return self.tokens[self.at - 1]

    def skip(self, *values: str) -> bool:
        """Take such a name or operator, if it is next."""
        found = self.next.is_one_of(*values)
        self.at += found
        return found

    def expect(self, value: str) -> None:
        token = self.take()
        if token.kind != value and not token.is_one_of(value):
            raise JinjaError(f"found {token.value!r}, allowed {value!r}")

    def name(self) -> str:
        token = self.take()
        if token.kind != "name":
            raise JinjaError(f"found {token.value!r}, allowed a name")
        return token.value

    # ---- statements

    def body(self, ends: tuple[str, ...]) -> Body:
        """Statements up to one of `ends`, whose name is taken; up to the end of all for none."""
        found: list[Statement] = []
        self.depth += 1
        if self.depth > DEEPEST:
            raise JinjaError("its blocks are nested too deeply")
        while True:
            token = self.take()
            if token.kind == "end" and not ends:
                break
            if token.kind == "text":
                found.append(Output(Literal(traced(token.value, TEMPLATE))))
            elif token.kind == "{{":
                found.append(Output(self.output()))
            elif token.kind == "{%":
                if self.next.is_one_of(*ends):
                    self.ends.append(self.take().value)
                    break
                found.append(self.statement())
                self.expect("%}")
            else:
                raise JinjaError(f"found {token.value!r}, allowed {' or '.join(ends)}")
        self.depth -= 1
        return tuple(found)

    def block(self, *ends: str) -> Body:
        """The body of a statement, from behind its head."""
        self.expect("%}")
        return self.body(ends)

    def output(self) -> Expression:
        value = self.listing()
        self.expect("}}")
        # `safe` only matters where output is escaped, and for what is then done to its result.
        return value.of if isinstance(value, Filter) and value.name == "safe" else value

    def statement(self) -> Statement:
        word = self.name()
        if word == "set":
            return self.assignment()
        if word == "if":
            return self.conditional()
        if word == "for":
            return self.loop()
        if word == "macro":
            return self.macro()
        if word == "generation":
            return Group(self.block("endgeneration"))
        if word in ("break", "continue") and self.loops:
            return Jump(word == "break")
        raise JinjaError(f"the statement {word!r} is not one of chat templates")

    def conditional(self) -> If:
        branches = []
        otherwise: Body = ()
        while True:
            test = self.listing(choice=False)
            branches.append((test, self.block("elif", "else", "endif")))
            end = self.ends.pop()
            if end == "else":
                otherwise = self.block("endif")
                self.ends.pop()
            if end != "elif":
                return If(tuple(branches), otherwise)

    def loop(self) -> For:
        targets, unpacks = self.targets("in")
        if any(attribute for _, attribute in targets):
            raise JinjaError("a loop over an attribute")
        self.expect("in")
        over = self.listing(choice=False)
        condition = self.expression() if self.skip("if") else None
        self.loops += 1
        body = self.block("else", "endfor")
        otherwise: Body = ()
        self.loops -= 1
        if self.ends.pop() == "else":
            otherwise = self.block("endfor")
            self.ends.pop()
        return For(tuple(name for name, _ in targets), unpacks, over, condition, body, otherwise)

    def assignment(self) -> Set | SetBlock:
        targets, unpacks = self.targets("=")
        if self.skip("="):
            return Set(targets, unpacks, self.listing())
        if len(targets) > 1:
            raise JinjaError("a block that sets two names")
        filters = []
        while self.skip("|"):
            filters.append((self.dotted(), self.arguments_if_any()))
        body = self.block("endset")
        self.ends.pop()
        return SetBlock(targets[0], tuple(filters), body)

    def targets(self, end: str) -> tuple[tuple[tuple[str, str], ...], bool]:
        """(name, attribute) of what is assigned to, and whether a value is taken apart for it."""
        found: list[tuple[str, str]] = []
        unpacks, bracket = False, self.skip("(")
        while not self.next.is_one_of(end, ")"):
            name = self.name()
            if name in _LITERALS:
                raise JinjaError(f"an assignment to {name}")
            found.append((name, self.name() if self.skip(".") else ""))
            if not self.skip(","):
                break
            unpacks = True
        if bracket:
            self.expect(")")
        if not found:
            raise JinjaError("an assignment to nothing")
        return tuple(found), unpacks

    def macro(self) -> Macro:
        name = self.name()
        parameters: list[tuple[str, Expression | None]] = []
        self.expect("(")
        while not self.skip(")"):
            if parameters:
                self.expect(",")
            parameter = self.name()
            default = self.expression() if self.skip("=") else None
            if default is None and parameters and parameters[-1][1] is not None:
                raise JinjaError("a parameter without a default behind one with it")
            parameters.append((parameter, default))
        loops, self.loops = self.loops, 0
        body = self.block("endmacro")
        self.loops = loops
        self.ends.pop()
        return Macro(name, tuple(parameters), body)

    # ---- expressions

    def listing(self, *, choice: bool = True) -> Expression:
        """One expression, or several with commas."""
        found = [self.expression(choice=choice)]
        if not self.next.is_one_of(","):
            return found[0]
        while self.skip(","):
            if self.next.kind in ("}}", "%}") or self.next.is_one_of(")", "=", "in"):
                break
            found.append(self.expression(choice=choice))
        return Items(tuple(found), is_tuple=True)

    def expression(self, *, choice: bool = True) -> Expression:
        self.depth += 1
        if self.depth > DEEPEST:
            raise JinjaError("its expressions are nested too deeply")
        value = self.either()
        while choice and self.skip("if"):
            test = self.either()
            no = self.expression() if self.skip("else") else None
            value = Choice(test, value, no)
        self.depth -= 1
        return value

    def either(self) -> Expression:
        items = [self.both()]
        while self.skip("or"):
            items.append(self.both())
        return Logic(True, tuple(items)) if len(items) > 1 else items[0]

    def both(self) -> Expression:
        items = [self.negation()]
        while self.skip("and"):
            items.append(self.negation())
        return Logic(False, tuple(items)) if len(items) > 1 else items[0]

    def negation(self) -> Expression:
        signs = 0
        while self.skip("not"):
            signs += 1
        value = self.comparison()
        # `not not x` is a truth value, not x; more of them add nothing.
        for _ in range(min(signs, 2 - signs % 2)):
            value = Sign("not", value)
        return value

    def comparison(self) -> Expression:
        first = self.chain(0)
        rest: list[tuple[str, Expression]] = []
        while True:
            if self.next.is_one_of(*_COMPARES, "in"):
                sign = self.take().value
            elif self.next.is_one_of("not") and self.tokens[self.at + 1].is_one_of("in"):
                sign, self.at = "not in", self.at + 2
            else:
                return Compare(first, tuple(rest)) if rest else first
            rest.append((sign, self.chain(0)))

    def chain(self, level: int) -> Expression:
        if level == len(_LEVELS):
            return self.signed()
        first = self.chain(level + 1)
        rest: list[tuple[str, Expression]] = []
        while self.next.is_one_of(*_LEVELS[level]):
            rest.append((self.take().value, self.chain(level + 1)))
        return Chain(first, tuple(rest)) if rest else first

    def signed(self, filters: bool = True) -> Expression:
        if self.next.is_one_of("-", "+"):
            self.depth += 1
            if self.depth > DEEPEST:
                raise JinjaError("its expressions are nested too deeply")
            value: Expression = Sign(self.take().value, self.signed(False))
            self.depth -= 1
        else:
            value = self.primary()
        return self.behind(value, filters)

    def behind(self, value: Expression, filters: bool = True) -> Expression:
        """What stands behind a value: .name [key] (arguments), then also |filter and is test."""
        links, subscripts = 0, True
        while True:
            links += 1
            if links > DEEPEST:
                raise JinjaError("too many names, filters or calls behind each other")
            if subscripts and self.skip("."):
                token = self.take()
                if token.kind not in ("name", "integer"):
                    raise JinjaError(f"found {token.value!r}, allowed a name")
                key = int(token.value) if token.kind == "integer" else token.value
                value = Member(value, Literal(key), token.kind == "name")
            elif subscripts and self.skip("["):
                value = self.subscript(value)
            elif self.next.is_one_of("("):
                value = Call(value, self.arguments())
            elif filters and self.skip("|"):
                value, subscripts = Filter(value, self.dotted(), self.arguments_if_any()), False
            elif filters and self.skip("is"):
                value, subscripts = self.test(value), False
            else:
                return value

    def dotted(self) -> str:
        name = self.name()
        while self.skip("."):
            name += "." + self.name()
        return name

    def test(self, value: Expression) -> Test:
        negated = self.skip("not")
        name, arguments = self.dotted(), Arguments()
        if self.next.is_one_of("("):
            arguments = self.arguments()
        elif self.next.kind in ("name", "string", "integer", "float") or self.next.is_one_of(
            "[", "{"
        ):
            if self.next.is_one_of("is"):
                raise JinjaError("a test of a test")
            if not self.next.is_one_of("else", "or", "and"):
                arguments = Arguments((self.behind(self.primary(), filters=False),))
        return Test(value, name, arguments, negated)

    def subscript(self, value: Expression) -> Expression:
        bounds: list[Expression | None] = []
        colons = 0
        while True:
            stops = self.next.is_one_of(":", "]")
            bounds.append(None if stops else self.expression())
            if not self.skip(":"):
                break
            colons += 1
        self.expect("]")
        if not colons:
            if bounds[0] is None:
                raise JinjaError("found ']', allowed an index")
            return Member(value, bounds[0], dotted=False)
        if colons > 2:
            raise JinjaError("a slice of more than three parts")
        start, stop, step = [*bounds, None][:3]
        return Slice(value, (start, stop, step))

    def arguments_if_any(self) -> Arguments:
        return self.arguments() if self.next.is_one_of("(") else Arguments()

    def arguments(self) -> Arguments:
        given: list[Expression] = []
        named: list[tuple[str, Expression]] = []
        self.expect("(")
        while not self.skip(")"):
            if given or named:
                self.expect(",")
                if self.skip(")"):
                    break
            if self.next.kind == "name" and self.tokens[self.at + 1].is_one_of("="):
                name = self.name()
                self.expect("=")
                named.append((name, self.expression()))
            elif named:
                raise JinjaError("an argument behind one with a name")
            else:
                given.append(self.expression())
        return Arguments(tuple(given), tuple(named))

    def primary(self) -> Expression:
        token = self.take()
        if token.kind == "name":
            known = token.value in _LITERALS
            return Literal(_LITERALS[token.value]) if known else Name(token.value)
        if token.kind == "string":
            text = token.value
            while self.next.kind == "string":
                text += self.take().value
            return Literal(traced(text, TEMPLATE))
        if token.kind in ("integer", "float"):
            if len(token.value) > 18:
                raise JinjaError(f"the number {token.value[:20]}")
            digits = token.value.replace("_", "")
            return Literal(int(digits) if token.kind == "integer" else float(digits))
        if token.is_one_of("("):
            value = Items((), True) if self.next.is_one_of(")") else self.listing()
            self.expect(")")
            return value
        if token.is_one_of("["):
            return Items(tuple(self.listed("]", self.expression)), is_tuple=False)
        if token.is_one_of("{"):
            return Pairs(tuple(self.listed("}", self.pair)))
        raise JinjaError(f"found {token.value!r}, allowed a value")

    def listed(self, end: str, item: Any) -> list[Any]:
        found: list[Any] = []
        while not self.skip(end):
            if found:
                self.expect(",")
                if self.skip(end):
                    break
            found.append(item())
        return found

    def pair(self) -> tuple[Expression, Expression]:
        key = self.expression()
        self.expect(":")
        return key, self.expression()
