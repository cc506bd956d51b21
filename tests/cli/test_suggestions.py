"""Words of other programs lead to ours, which exist on the command that suggests them."""

from __future__ import annotations

import pytest

from minift.cli.main import COMMON, hint
from minift.cli.options import of
from minift.cli.suggestions import COMMANDS, OPTIONS, command_like, meant, option_like
from minift.cli.verbs import VERBS


def options_of(command):
    verb = VERBS[command]
    return {flag.option: flag for flag in (*verb.flags, *of(verb.configs), *COMMON)}


KNOWN = {command: options_of(command) for command in VERBS}


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
    line = option_like(typed, KNOWN[command])
    assert line.endswith(f" is {ours}"), line


def test_options_are_suggested_by_spelling_too_also_of_other_programs():
    assert option_like("--epocs", KNOWN["sft"]) == "; nearest: --epochs"
    assert option_like("--learing-rate", KNOWN["sft"]) == "; nearest: --lr"
    assert option_like("--zzzz", KNOWN["sft"]) == ""


def test_an_option_of_other_commands_is_said_to_be_theirs():
    assert hint("--epochs", KNOWN["chat"]) == "; it is an option of sft and classify"
    assert hint("--system", KNOWN["sft"]) == "; it is an option of chat"


@pytest.mark.parametrize(("ours", "words"), OPTIONS)
def test_every_word_of_the_table_leads_to_an_option_that_its_command_has(ours, words):
    everywhere = {"--help", "--help-all"}
    for word in words.split():
        found = [meant(word, everywhere | set(options)) for options in KNOWN.values()]
        assert f"--{ours}" in found, f"no command suggests --{ours} for --{word}"
        for command, options in KNOWN.items():
            line = option_like(f"--{word}", options)
            if " is --" in line:
                assert line.rpartition(" is ")[2].split()[0] in everywhere | set(options), command


def test_the_table_never_hides_an_option_of_the_same_name():
    for ours, words in OPTIONS:
        for word in words.split():
            for options in KNOWN.values():
                if f"--{word}" in options:
                    assert option_like(f"--{word}", options) == f"; it is --{word}", ours


def test_commands_are_suggested_by_meaning_and_by_spelling():
    for command, words in COMMANDS:
        assert command in VERBS
        for word in words.split():
            assert word not in VERBS
            assert command_like(word, VERBS) == f"; here it is {command}"
    assert command_like("finetunes", VERBS) == "; nearest: sft"
    assert command_like("Train", VERBS) == "; here it is sft"
    assert command_like("zzzz", VERBS) == ""
