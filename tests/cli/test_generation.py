"""What `generate` and `chat` share, on a tiny model."""

from __future__ import annotations

from minift import runtime


def test_a_base_that_every_token_decodes_is_named(cli, tiny_model, monkeypatch):
    monkeypatch.setattr(runtime, "advice", lambda *settings: [])  # on a machine without bf16 units
    words = ["generate", "The movie", "--model", tiny_model, "--max-new-tokens", 2, "--base"]
    code, _, err = cli(*words, "nf4", "--dtype", "bf16")
    assert (code, err) == (0, "minift: base nf4 is decoded for every token: "
                              "nf4 has no product of its own\n")  # fmt: skip
    code, _, err = cli(*words, "int8", "--dtype", "float32")
    assert (code, err.count("\n")) == (0, 1)
    assert "the work is in float32, which needs --dtype bf16" in err
    code, _, err = cli(*words, "int8", "--dtype", "bf16")
    assert (code, "rows of 16 are no multiple of 32" in err) == (0, True)
