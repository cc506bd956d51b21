import pytest

from minift.errors import (
    ConfigError,
    DataError,
    EncodeError,
    FormatError,
    Notice,
    StorageError,
    notice,
    one_line,
)


def test_a_format_error_says_where_and_what():
    error = FormatError("a.gguf", "magic", "GGML", "GGUF", "bad-magic")
    assert str(error) == "a.gguf: magic: found GGML, allowed GGUF"
    assert (error.path, error.where, error.code) == ("a.gguf", "magic", "bad-magic")


def test_every_problem_has_a_line_of_its_own():
    error = FormatError("a", "tensors", "2", "none", "shape-mismatch", ["missing x", "missing\ny"])
    assert str(error).splitlines()[1:] == ["  missing x", r"  missing\ny"]


@pytest.mark.parametrize(("line", "field", "text"), [
    (41, "completion", 'r.jsonl line 41, field "completion": found null, allowed text'),
    (1_000_000, None, "r.jsonl line 1,000,000: found null, allowed text"),
    (None, None, "r.jsonl: found null, allowed text"),
])  # fmt: skip
def test_a_data_error_says_file_line_and_field(line, field, text):
    assert str(DataError("r.jsonl", line, field, "null", "text")) == text


def test_one_line_is_one_line_that_a_terminal_survives():
    assert one_line("a\x1b[31m\nb\ud800") == r"a\x1b[31m\nb\ud800"
    assert one_line("x" * 100) == "x" * 79 + "…"
    assert one_line(3) == "3"


EVIL = "a\n\x1b[2J\u202e" + "x" * 5000


@pytest.mark.parametrize("error", [
    ConfigError(f"labels: found {EVIL}, allowed others"),
    EncodeError(EVIL),
    FormatError(EVIL, EVIL, EVIL, EVIL, "bad-type", [EVIL]),
    DataError(EVIL, 3, EVIL, EVIL, EVIL),
    StorageError(EVIL, EVIL),
])  # fmt: skip
def test_no_error_says_more_than_a_line_whatever_a_file_has_in_it(error):
    first, *more = str(error).split("\n")
    assert len(first) <= 1000
    assert all(line.isprintable() for line in (first, *more))
    assert all(line.startswith("  ") for line in more)
    assert r"a\n\x1b[2J\u202exxx" in first


def test_a_list_of_problems_stays_a_list():
    assert str(ConfigError("all wrong:\n  one\n  two\nthree")) == "all wrong:\n  one\n  two\\nthree"


def test_a_text_that_cannot_be_spelled_is_a_config_error():
    assert issubclass(EncodeError, ConfigError)


def test_a_notice_is_a_warning_of_one_line():
    with pytest.warns(Notice) as caught:
        notice("a/config.json", "no model_type:\nread as bert")
    assert [str(row.message) for row in caught] == [r"a/config.json: no model_type:\nread as bert"]
