"""Words of other programs lead to ours, which exist on the command that suggests them."""

from __future__ import annotations

import pytest

from minift.cli.commands import COMMANDS
from minift.cli.main import hint
from minift.cli.suggestions import (
    COMMAND_ALIASES,
    OPTION_ALIASES,
    option_of_alias,
    suggest_command,
    suggest_option,
)


def options_of(command):
    command = COMMANDS[command]
    return {flag.option: flag for flag in command.options}


KNOWN = {command: options_of(command) for command in COMMANDS}


@pytest.mark.parametrize(
    ("command", "typed", "ours"),
    [
        ("sft", "--learning-rate", "--lr"),
        ("sft", "--learning_rate", "--lr"),
        ("sft", "--hlep", "--help"),
        ("sft", "--num-epochs", "--epochs"),
        ("sft", "--num_train_epochs", "--epochs"),
        ("sft", "--max-seq-length", "--max-length"),
        ("sft", "--batch", "--batch-size"),
        ("sft", "--micro-tokens", "--micro-batch-tokens"),
        ("sft", "--per_device_train_batch_size", "--batch-size"),
        ("sft", "--lora-r", "--rank"),
        ("sft", "--r", "--rank"),
        ("sft", "--lora-alpha", "--alpha"),
        ("sft", "--output-dir", "--out"),
        ("sft", "-o", "--out"),
        ("sft", "--dataset", "--data"),
        ("sft", "--train-file", "--data"),
        ("sft", "--model-name-or-path", "--model"),
        ("sft", "--base-model", "--model"),
        ("sft", "--val", "--held-out"),
        ("sft", "--validation-file", "--held-out"),
        ("sft", "--test", "--held-out"),
        ("eval", "--test", "--data"),
        ("sft", "--target-modules", "--targets"),
        ("sft", "--load-in-4bit", "--base nf4"),
        ("chat", "--load_in_8bit", "--base int8"),
        ("sft", "--fp16", "--dtype"),
        ("sft", "--bf16", "--dtype bf16"),
        ("sft", "--gradient-checkpointing", "--checkpointing"),
        ("generate", "--max-tokens", "--max-new-tokens"),
        ("chat", "--n-predict", "--max-new-tokens"),
        ("generate", "--temp", "--temperature"),
        ("sft", "--force", "--overwrite"),
        ("sft", "-f", "--overwrite"),
        ("export", "--yes", "--overwrite"),
        ("sft", "-model", "--model"),
        ("sft", "--LR", "--lr"),
        ("classify", "--classes", "--labels"),
        ("generate", "--max-length", "--max-new-tokens"),
    ],
)
def test_options_are_suggested_by_meaning(command, typed, ours):
    line = suggest_option(typed, KNOWN[command])
    assert line.endswith(f" is {ours}"), line


def test_options_are_suggested_by_spelling_too_also_of_other_programs():
    assert suggest_option("--epocs", KNOWN["sft"]) == "; nearest: --epochs"
    assert suggest_option("--learing-rate", KNOWN["sft"]) == "; nearest: --lr"
    assert suggest_option("--zzzz", KNOWN["sft"]) == ""


def test_an_option_of_other_commands_is_said_to_be_theirs():
    assert hint("--epochs", KNOWN["chat"]) == "; it is an option of sft and classify"
    assert hint("--system", KNOWN["sft"]) == "; it is an option of chat"


@pytest.mark.parametrize(("ours", "words"), OPTION_ALIASES)
def test_every_word_of_the_table_leads_to_an_option_that_its_command_has(ours, words):
    everywhere = {"--help", "--help-all"}
    for word in words.split():
        found = [option_of_alias(word, everywhere | set(options)) for options in KNOWN.values()]
        assert f"--{ours}" in found, f"no command suggests --{ours} for --{word}"
        for command, options in KNOWN.items():
            line = suggest_option(f"--{word}", options)
            if " is --" in line:
                assert line.rpartition(" is ")[2].split()[0] in everywhere | set(options), command


def test_the_table_never_hides_an_option_of_the_same_name():
    for ours, words in OPTION_ALIASES:
        for word in words.split():
            for options in KNOWN.values():
                if f"--{word}" in options:
                    assert suggest_option(f"--{word}", options) == f"; it is --{word}", ours


def test_commands_are_suggested_by_meaning_and_by_spelling():
    for command, words in COMMAND_ALIASES:
        assert command in COMMANDS
        for word in words.split():
            assert word not in COMMANDS
            assert suggest_command(word, COMMANDS) == f"; here it is {command}"
    assert suggest_command("finetunes", COMMANDS) == "; nearest: sft"
    assert suggest_command("Train", COMMANDS) == "; here it is sft"
    assert suggest_command("zzzz", COMMANDS) == ""
