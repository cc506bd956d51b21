"""Prompt tuning in PEFT's files (PEFT's numbers: the goldens)."""

from __future__ import annotations

from minift.peft.prompt import Prompt

CONFIG = Prompt(prompt_tokens=4)


def test_the_folder_by_hand(soft_prompt_folder):
    options = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "token_dim": 24,
               "num_layers": 3}  # fmt: skip
    soft_prompt_folder.check_by_hand(CONFIG, (4, 24), options)


def test_a_size_that_the_tensors_contradict_is_refused(soft_prompt_folder):
    soft_prompt_folder.check_contradicted_size(CONFIG)


def test_what_each_option_means_when_it_is_absent(soft_prompt_folder):
    soft_prompt_folder.check_absent_size(CONFIG)
