"""Adapters by name: which is active, none, one for each row, taken off."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minift.checkpoints.open import load_model
from minift.errors import ConfigError
from minift.generation.decode import decode
from minift.interop.adapter_files import load_adapter, save_adapter
from minift.peft.adapters import (
    activated,
    active,
    config_of,
    detach,
    disabled,
    freeze,
    names,
    rows,
    trainable,
    use,
)
from minift.peft.ia3 import IA3
from minift.peft.lora import LoRA
from minift.peft.methods import attach
from minift.peft.prompt import Prompt
from minift.peft.slots import changes

BASE = Path(__file__).parents[1] / "golden" / "llama_gqa"
TOKENS = torch.arange(21).view(3, 7)
CONFIGS = {"a": LoRA(rank=2, targets=("q", "down")), "b": LoRA(rank=3, alpha=5, targets=("all",))}


def model():
    return load_model(BASE, dtype=torch.float64).eval()


def perturb(adapted, name, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, _, change in changes(adapted, name):
            for parameter in change.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.1 * noise)
    return adapted


def two():
    """A model with two LoRAs that both change it; b is active."""
    adapted = model()
    for seed, (name, config) in enumerate(CONFIGS.items()):
        perturb(attach(adapted, config, name=name, seed=seed), name, seed)
    return adapted


def alone(name):
    if name is None:
        return model()
    seed = list(CONFIGS).index(name)
    return perturb(attach(model(), CONFIGS[name], name=name, seed=seed), name, seed)


def test_trainable_is_what_requires_a_gradient():
    frozen = model()
    freeze(frozen)
    assert trainable(frozen) == {}
    frozen.norm.weight.requires_grad_(True)
    assert list(trainable(frozen)) == ["norm.weight"]


def test_names_configs_and_the_active_one():
    adapted = two()
    assert (names(adapted), active(adapted)) == (["a", "b"], "b")
    assert config_of(adapted) == CONFIGS["b"]
    assert config_of(adapted, "a") == CONFIGS["a"]
    assert (names(model()), active(model()), config_of(model())) == ([], None, None)


def test_use_switches_what_computes_and_what_learns():
    adapted = two()
    for name in ("a", "b", None, "a"):
        use(adapted, name)
        assert active(adapted) == name
        assert torch.equal(adapted(TOKENS), alone(name)(TOKENS))
        learned = {key.rpartition(".")[0].rpartition(".")[2] for key in trainable(adapted)}
        assert learned == ({name} if name else set())
    assert use(two(), None) is not None
    plain = model()
    assert use(plain, None) is plain
    with pytest.raises(ConfigError, match='use: found no adapter "c", allowed a, b'):
        use(adapted, "c")
    with pytest.raises(ConfigError, match="none is attached"):
        use(plain, "a")


@pytest.mark.parametrize("name", ["a", None])
def test_activated_it_computes_and_nothing_else_changes(name):
    adapted = two()
    learned = list(trainable(adapted))
    with activated(adapted, name):
        assert torch.equal(adapted(TOKENS), alone(name)(TOKENS))
        assert list(trainable(adapted)) == learned
    assert active(adapted) == "b"
    assert torch.equal(adapted(TOKENS), alone("b")(TOKENS))
    with pytest.raises(ConfigError, match='activated: found no adapter "c", allowed a, b'):
        activated(adapted, "c").__enter__()


def test_checkpointed_blocks_are_computed_again_with_the_adapter_of_the_forward_pass():
    gradients = []
    for checkpointing in (False, True):
        adapted = two()
        for parameter in adapted.parameters():
            parameter.requires_grad_(True)
        adapted.checkpointing = checkpointing
        with activated(adapted, "a"):
            first = adapted(TOKENS).square().mean()
        (first + adapted(TOKENS).square().mean()).backward()  # while b is active
        gradients.append({name: p.grad for name, p in trainable(adapted).items()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, grad in gradients[0].items():
        torch.testing.assert_close(grad, gradients[1][name], rtol=0, atol=1e-12)


def test_checkpointed_rows_keep_their_adapters():
    gradients = []
    for checkpointing in (False, True):
        adapted = two()
        for parameter in adapted.parameters():
            parameter.requires_grad_(True)
        adapted.checkpointing = checkpointing
        with rows(adapted, ["a", "b", None]):
            loss = adapted(TOKENS).square().mean()
        loss.backward()
        gradients.append({name: p.grad for name, p in adapted.named_parameters() if "a" in name})
    for name, grad in gradients[0].items():
        if grad is not None:
            torch.testing.assert_close(grad, gradients[1][name], rtol=0, atol=1e-12)


def test_a_loaded_adapter_learns_only_if_asked_to(tmp_path):
    save_adapter(two(), tmp_path / "a", name="a")
    adapted = load_adapter(model(), tmp_path / "a", name="still")
    load_adapter(adapted, tmp_path / "a", name="moving", trainable=True)
    assert len(trainable(adapted)) == 2 * 2 * 3
    use(adapted, "still")
    assert trainable(adapted) == {}
    assert torch.equal(adapted(TOKENS), use(adapted, "moving")(TOKENS))


def test_detached_is_gone_and_the_base_is_back():
    adapted, plain = two(), model()(TOKENS)
    detach(adapted, "b")
    assert (names(adapted), active(adapted)) == (["a"], None)
    assert torch.equal(adapted(TOKENS), plain)
    assert torch.equal(use(adapted, "a")(TOKENS), alone("a")(TOKENS))
    detach(adapted, "a")
    assert names(adapted) == []
    base = {key for key, _ in model().named_parameters()}
    assert {key for key, _ in adapted.named_parameters()} == base
    with pytest.raises(ConfigError, match='detach: found no adapter "a"'):
        detach(adapted, "a")


def test_every_row_through_its_own():
    adapted, each = two(), ["b", None, "a"]
    with rows(adapted, each):
        mixed = adapted(TOKENS)
    for i, name in enumerate(each):
        expected = alone(name)(TOKENS[i : i + 1])[0]
        torch.testing.assert_close(mixed[i], expected, rtol=0, atol=1e-10)
    assert torch.equal(adapted(TOKENS), alone("b")(TOKENS))  # the active one, as before
    with rows(adapted, each), disabled(adapted):
        assert torch.equal(adapted(TOKENS), model()(TOKENS))
    with rows(adapted, each):
        with pytest.raises(IndexError):
            adapted(torch.full((3, 7), 10**6))
        with disabled(adapted):
            assert torch.equal(adapted(TOKENS), model()(TOKENS))


def test_rows_keep_their_adapters_while_texts_end():
    adapted, each = two(), ["a", "b", None, "b"]
    prompts = [[5, 9], [1], [7, 7, 7], [30, 2]]
    wanted = [decode(alone(n), [p], max_new_tokens=8) for n, p in zip(each, prompts, strict=True)]
    # A stop token that one text says early takes its row out of the batch.
    stop = wanted[0][0][2]
    wanted = [
        decode(alone(n), [p], max_new_tokens=8, stop=frozenset([stop]))[0]
        for n, p in zip(each, prompts, strict=True)
    ]
    with rows(adapted, each):
        assert decode(adapted, prompts, max_new_tokens=8, stop=frozenset([stop])) == wanted
    assert len({len(text) for text in wanted}) > 1


def test_rows_that_cannot_be_are_refused():
    adapted = two()
    for name, config, text in (
        ("c", IA3(), '"c" is IA3'),
        ("d", LoRA(rank=2, dora=True), '"d" is DoRA r=2 .* at .*, allowed LoRA on linears'),
        ("e", Prompt(2), '"e" is prompt of 2'),
        ("g", LoRA(rank=2, targets=("q", "head")), '"g" is LoRA .* at head'),
        ("f", LoRA(rank=2, targets=("embed",)), '"f" is LoRA .* at embed'),
    ):
        attach(adapted, config, name=name)
        with pytest.raises(ConfigError, match=text), rows(adapted, [name]):
            pass
    with pytest.raises(ConfigError, match="nothing is attached"), rows(model(), [None]):
        pass
    with pytest.raises(ConfigError, match='the text "ab", allowed a name'), rows(adapted, "ab"):
        pass
    with pytest.raises(ConfigError, match='found no adapter "x"'), rows(adapted, ["x"]):
        pass
    batch = "found a batch of 3, allowed 2"
    with rows(adapted, ["a", "b"]), pytest.raises(ConfigError, match=batch):
        adapted(TOKENS)


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "../x", "é", "keys", "a" * 65, "-a"])
def test_a_name_that_no_folder_or_module_can_have_is_refused(name):
    plain = model()
    with pytest.raises(ConfigError, match="name: found"):
        attach(plain, LoRA(rank=2), name=name)
    assert names(plain) == []
    assert all(parameter.requires_grad for parameter in plain.parameters())
