"""What strict_json takes, what it refuses and with which code; a seeded fuzz."""

from __future__ import annotations

import gc
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from minift.errors import FormatError
from minift.formats import strict_json
from minift.formats.strict_json import parse, uncollected

LIMIT = 1 << 20


def read(data: bytes, limit: int = LIMIT) -> object:
    return parse(data, "x.json", "header", limit_bytes=limit)


def nested(levels: int, opening: str = "[", closing: str = "]") -> bytes:
    return (opening * levels + "1" + closing * levels).encode()


GOOD = {
    "scalar": (b"1", 1),
    "white space around": (b" \t\r\n[1]\n ", [1]),
    "true is true": (b"[true,false,null]", [True, False, None]),
    "an integer stays one": (b"[0,-1,12345678901234567890]", [0, -1, 12345678901234567890]),
    "a float stays one": (b"[2.0,-0.0,4e0,1e-400]", [2.0, -0.0, 4.0, 0.0]),
    "float of 100 characters": (b"0." + b"1" * 98, 1 / 9),
    "64 levels of lists": (nested(64), json.loads(nested(64))),
    "64 levels of objects": (nested(64, '{"a":', "}"), json.loads(nested(64, '{"a":', "}"))),
    "many lists side by side": (b"[" + b"[],[]," * 100 + b"[]]", [[]] * 201),
    "brackets in texts": (b'["' + b"[" * 99 + b'","]{\\"[","\\\\"]', ["[" * 99, ']{"[', "\\"]),
    "empty key": (b'{"":{}}', {"": {}}),
    "a pair of surrogates": (b'"\\ud83d\\ude00"', "\U0001f600"),
    "an escaped backslash before u": (b'"\\\\ud800"', "\\ud800"),
    "NUL in a text": (b'"\\u0000"', "\0"),
    "UTF-8": ('{"ä":"日本"}'.encode(), {"ä": "日本"}),
}

BAD = {
    "empty": (b"", "bad-json"),
    "white space only": (b"  ", "bad-json"),
    "duplicate key": (b'{"a":1,"a":1}', "dup-key"),
    "duplicate key, escaped": (b'{"a":1,"\\u0061":1}', "dup-key"),
    "duplicate key inside": (b'[{"b":{"a":1,"c":2,"a":3}}]', "dup-key"),
    "NaN": (b"[NaN]", "bad-json"),
    "Infinity": (b"[Infinity]", "bad-json"),
    "-Infinity": (b"-Infinity", "bad-json"),
    "a float that overflows": (b"[1e999]", "out-of-range"),
    "a negative one": (b"[-1e999]", "out-of-range"),
    "21 digits": (b"[123456789012345678901]", "limit"),
    "21 digits, negative": (b"[-123456789012345678901]", "limit"),
    "5,000 digits": (b"1" * 5000, "limit"),
    "a float of 101 characters": (b"0." + b"1" * 99, "limit"),
    "-0": (b"[-0]", "bad-json"),
    "leading zero": (b"[01]", "bad-json"),
    "plus sign": (b"[+1]", "bad-json"),
    "hexadecimal": (b"[0x10]", "bad-json"),
    "65 levels of lists": (nested(65), "limit"),
    "65 levels of objects": (nested(65, '{"a":', "}"), "limit"),
    "half a million levels": (b"[" * 500_000, "limit"),
    "half a million objects": (b'{"":' * 200_000, "limit"),
    "BOM": (b"\xef\xbb\xbf{}", "bad-json"),
    "UTF-16": ('{"a":1}'.encode("utf-16"), "bad-utf8"),
    "UTF-16 without BOM": ('{"a":1}'.encode("utf-16-le"), "bad-json"),
    "not UTF-8": (b'"\xff"', "bad-utf8"),
    "surrogate in UTF-8": (b'"\xed\xa0\x80"', "bad-utf8"),
    "overlong UTF-8": (b'"\xc0\x80"', "bad-utf8"),
    "lone high surrogate": (b'"\\ud800"', "bad-utf8"),
    "lone low surrogate": (b'"a\\uDC00"', "bad-utf8"),
    "lone surrogate as a key": (b'{"\\ud800":1}', "bad-utf8"),
    "lone surrogate far inside": (b'[{"a":[{"b":["\\uDfff"]}]}]', "bad-utf8"),
    "two high surrogates": (b'"\\ud83d\\ud83d"', "bad-utf8"),
    "trailing comma": (b"[1,]", "bad-json"),
    "trailing data": (b"{}{}", "bad-json"),
    "a comment": (b"{} // ok", "bad-json"),
    "single quotes": (b"{'a':1}", "bad-json"),
    "a bare word": (b"[nul]", "bad-json"),
    "unfinished text": (b'"abc', "bad-json"),
    "unfinished list": (b"[1", "bad-json"),
    "a wrong bracket": (b"[1}", "bad-json"),
    "a control character in a text": (b'"\x01"', "bad-json"),
    "NUL at the end": (b"{}\0", "bad-json"),
    "a bad escape": (b'"\\x41"', "bad-json"),
    "deep nesting beside a surrogate": (
        b'{"a":"\\ud800","b":' + b"[" * 5000 + b"]" * 5000 + b"}",
        "limit",
    ),
    "quotes without end": (b'"' + b'\\"' * 400_000, "bad-json"),
    "quotes without end, cut in an escape": (b'"' + b'\\"' * 400_000 + b"\\", "bad-json"),
}


@pytest.mark.parametrize("name", GOOD)
def test_takes(name: str) -> None:
    data, expected = GOOD[name]
    found = read(data)
    assert found == expected
    assert repr(found) == repr(expected)  # True is not 1, 2.0 is not 2


@pytest.mark.parametrize("name", BAD)
def test_refuses(name: str) -> None:
    data, code = BAD[name]
    with pytest.raises(FormatError) as caught:
        read(data)
    assert caught.value.code == code
    assert caught.value.path == "x.json"
    assert str(caught.value).startswith("x.json: header: found ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_limit_of_bytes() -> None:
    assert read(b"[10]", limit=4) == [10]
    with pytest.raises(FormatError) as caught:
        read(b"[10]", limit=3)
    assert caught.value.code == "too-large"


def test_integers_of_a_configuration_may_be_longer_than_those_of_a_header(tmp_path: Path) -> None:
    """transformers writes int(1e30) wherever no limit is set."""
    path = tmp_path / "tokenizer_config.json"
    for number in (int(1e30), -(10**63), 10**63):
        path.write_text(json.dumps({"model_max_length": number, "same": 1e30}))
        assert strict_json.read(path) == {"model_max_length": number, "same": 1e30}
    path.write_text(json.dumps({"model_max_length": 10**64}))
    with pytest.raises(FormatError, match="integers of at most 64 digits"):
        strict_json.read(path)


def test_memory_stays_near_the_size_of_the_input() -> None:
    cases = [b"[" * LIMIT, b"[" + b"[]," * 100_000 + b"[]]", b'{"a":' * 99_000, b'"' * LIMIT]
    for data in cases:
        tracemalloc.start()
        try:
            read(data)
        except FormatError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 64 << 20


@pytest.mark.parametrize("before", [True, False])
def test_the_collector_is_put_back(before: bool) -> None:
    was = gc.isenabled()
    (gc.enable if before else gc.disable)()
    try:
        with uncollected():
            assert not gc.isenabled()
        assert gc.isenabled() == before
        with pytest.raises(FormatError):
            read(b"[")
        assert gc.isenabled() == before
    finally:
        (gc.enable if was else gc.disable)()


def mutated(seed: random.Random) -> bytes:
    """JSON that was valid once."""
    valid = [data for data, _ in GOOD.values()] + [b'{"w":{"shape":[2,3],"dtype":"F32"},"n":1.5}']
    parts = [b"[", b"]", b"{", b"}", b'"', b"\\", b",", b":", b"1", b"-", b"e9", b"\\ud800", b"\0"]
    parts += [b"NaN", b"true", b"\xff", b'"a":1,', b" "]
    data = bytearray(seed.choice(valid))
    for _ in range(seed.randint(1, 4)):
        at = seed.randrange(len(data) + 1)
        data[at : at + seed.randint(0, 2)] = seed.choice(parts)
    return bytes(data)


def test_fuzz() -> None:
    """Any bytes: a FormatError, or a value that Python's parser reads the same."""
    seed = random.Random(0)
    for _ in range(5000):
        data = mutated(seed)
        try:
            value = read(data)
        except FormatError:
            continue
        assert value == json.loads(data)


def hostile() -> dict[str, tuple[Callable[[Path], object], str]]:
    """For tests/hostile.py: as the header of a file, whatever its format."""
    more = {
        "a megabyte of empty lists": (b"[" + b"[]," * 340_000 + b"[]", "bad-json"),
        "a megabyte of small objects": (b"[" + b'{"":0},' * 149_000 + b"{}", "bad-json"),
        "a megabyte of floats": (b"[" + b"1.5," * 260_000 + b"1", "bad-json"),
        "100,000 keys, the last twice": (
            b"{" + b"".join(b'"%d":0,' % i for i in range(100_000)) + b'"99999":0}', "dup-key",
        ),
        "a megabyte of escapes": (b'["' + b"\\u00e9" * 170_000 + b"\\ud800\"]", "bad-utf8"),
        "an exponent of a megabyte": (b"[1e" + b"9" * (1 << 20), "limit"),
        "a float of a megabyte": (b"[0." + b"1" * 1_000_000 + b"]", "limit"),
        "lines without end": (b"[" + b"\n" * 1_000_000, "bad-json"),
    }  # fmt: skip
    return {
        name: (lambda folder, data=data: read(data, 2 << 20), code)
        for name, (data, code) in (BAD | more).items()
    }
