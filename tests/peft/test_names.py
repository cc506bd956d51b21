"""A config's names are given in any shape that means one thing, and are shown in short."""

from __future__ import annotations

import contextlib
from dataclasses import fields
from typing import get_origin, get_type_hints

import pytest

from minift.errors import ConfigError
from minift.peft.bottleneck import Bottleneck
from minift.peft.ia3 import IA3
from minift.peft.lora import LoRA
from minift.peft.methods import METHODS
from minift.peft.names import summarize_targets
from minift.peft.prompt import Prompt


@pytest.mark.parametrize(
    ("given", "same"),
    [
        (LoRA(targets="all"), LoRA()),
        (LoRA(targets="q"), LoRA(targets=("q",))),
        (LoRA(targets="q, down"), LoRA(targets=("q", "down"))),
        (LoRA(targets=["q", "down"]), LoRA(targets=("q", "down"))),
        (LoRA(tokens=[5, 7], token_rows="embed"), LoRA(tokens=(5, 7), token_rows=("embed",))),
        (LoRA(tokens=5), LoRA(tokens=(5,))),
        (LoRA(ranks={"down": 16}), LoRA(ranks=(("down", 16),))),
        (LoRA(alphas=[["q", 4.0]]), LoRA(alphas=(("q", 4.0),))),
        (IA3(outputs="v", inputs="down"), IA3(("v",), ("down",))),
        (Bottleneck(sublayers="attn"), Bottleneck(sublayers=("attn",))),
        (
            Prompt(prompt_init="text", prompt_ids=[1, 2]),
            Prompt(prompt_init="text", prompt_ids=(1, 2)),
        ),
    ],
    ids=str,
)
def test_one_text_a_list_or_a_mapping_is_the_tuple(given, same):
    assert given == same
    assert hash(given) == hash(same)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoRA(targets=7), r"targets: found 7, allowed a text \(\"q\", or \"q,v\"\)"),
        (lambda: LoRA(targets=b"q"), "targets: found b'q'"),
        (lambda: LoRA(targets=(1, "q")), r"targets: found \(1, 'q'\)"),
        (lambda: LoRA(targets=" , "), "targets: found none"),
        (lambda: LoRA(tokens="12"), "tokens: found 12, allowed a whole number or several"),
        (lambda: LoRA(ranks="down=16"), "ranks: found down=16, allowed a mapping"),
        (lambda: LoRA(alphas=(("q", "4"),)), "alphas: found .*, allowed a mapping"),
        (lambda: IA3(outputs=None), "outputs: found None"),
        (lambda: Bottleneck(sublayers="attention"), "sublayers: found attention"),
    ],
)
def test_what_means_nothing_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("kind", [kind for kind, _ in METHODS.values()])
def test_no_field_of_any_method_is_read_by_the_character(kind):
    hints = get_type_hints(kind)
    for item in fields(kind):
        if get_origin(hints[item.name]) is not tuple:
            continue
        with contextlib.suppress(ConfigError):
            assert getattr(kind(**{item.name: "down"}), item.name) == ("down",)


def paths(leaves, blocks):
    return [f"blocks.{i}.{leaf}" for i in range(blocks) for leaf in leaves]


ALL = ["attn.qkv.q", "attn.qkv.k", "attn.qkv.v", "attn.out.o", "mlp.gate", "mlp.up", "mlp.down"]


@pytest.mark.parametrize(
    ("targets", "shown"),
    [
        (["all"], "all"),
        (["q", "down"], "q,down"),
        (paths(ALL, 30), "all linears in 30 blocks"),
        (paths(["attn.qkv.v", "attn.qkv.q"], 12), "q,v in 12 blocks"),
        (paths(["attn.qkv.q"], 2) + paths(["mlp.down"], 1), "q in 2 blocks, down in 1 block"),
        (["head", *paths(["mlp.up"], 3)], "head, up in 3 blocks"),
        ([f"model.layers.{i}.mlp.up_proj" for i in range(4)], "up_proj in 4 blocks"),
        (["q_proj", "v_proj"], "q_proj,v_proj"),
        (["up", "q", "k", "v", "o", "down", "gate"], "all linears"),
    ],
)
def test_many_paths_are_shown_by_their_ends(targets, shown):
    assert summarize_targets(targets) == shown


def test_a_method_of_ninety_paths_is_one_short_line():
    assert str(LoRA(targets=paths(ALL, 30))) == "LoRA r=8 alpha=16 on all linears in 30 blocks"
    assert len(str(IA3(outputs=paths(["attn.qkv.k"], 90)))) < 60
