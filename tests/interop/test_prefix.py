"""Prefix tuning in PEFT's files (PEFT's numbers: the goldens)."""

from __future__ import annotations

from minift.peft.prefix import Prefix

CONFIG = Prefix(prefix_tokens=4)


def test_the_folder_by_hand(soft_prompt_folder):
    options = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4,
               "num_attention_heads": 2, "token_dim": 12}  # fmt: skip
    soft_prompt_folder.check_by_hand(CONFIG, (4, 2 * 3 * 12), options)


def test_a_size_that_the_tensors_contradict_is_refused(soft_prompt_folder):
    soft_prompt_folder.check_contradicted_size(CONFIG)


def test_what_each_option_means_when_it_is_absent(soft_prompt_folder):
    soft_prompt_folder.check_absent_size(CONFIG)
