"""The pass of fixed shape gives what the growing cache gives. Its capture needs a GPU; that nothing
in it makes the CPU wait, or is made on the CPU, is shown on a device without numbers."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import minift
from minift.errors import ConfigError
from minift.generation import static_cache
from minift.generation.cache import KVCache
from minift.generation.decode import decode
from minift.generation.sampling import Sampling
from minift.generation.static_cache import DynamicPass, StaticPass
from minift.model.config import ModelConfig, RopeScaling
from minift.model.transformer import Transformer

TINY = ModelConfig("llama", 37, 24, 2, 4, 2, 6, 20, 64)
WINDOWED = replace(TINY, family="mistral", window=4, local=(True, False))
LEARNED = replace(TINY, family="gpt2", positions="learned")
PROMPTS = [[5], [7, 30, 2, 2, 19], [11, 3, 36], [1, 2, 3, 4, 5, 6, 7, 8]]


def made(config, dtype=torch.float64):
    generator = torch.Generator().manual_seed(4)
    model = Transformer(config).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.5)
    return model.eval()


@pytest.fixture
def uncaptured(monkeypatch):
    """As on a GPU, but each pass is made call by call. -> the batch sizes of all passes."""
    sizes = []

    def captured(self):
        sizes.append(len(self.tokens))
        return self.plain

    monkeypatch.setattr(StaticPass, "captured", captured)
    monkeypatch.setattr(static_cache, "check", lambda model: None)
    return sizes


def filled(model, prompts, room):
    """A cache after left-padded prompts."""
    longest = max(map(len, prompts))
    dtype = model.embed.weight.dtype
    cache = KVCache(model.config, len(prompts), longest + room, dtype=dtype)
    tokens, mask = torch.zeros(2, len(prompts), longest, dtype=torch.long)
    for i, ids in enumerate(prompts):
        tokens[i, longest - len(ids) :], mask[i, longest - len(ids) :] = torch.tensor(ids), 1
    model(tokens, mask=mask.bool(), cache=cache, hidden_only=True)
    return cache


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1], [[3, 4], [9, 2]]])
@pytest.mark.parametrize("config", [TINY, WINDOWED, LEARNED])
@torch.no_grad()
def test_hidden_states_are_those_of_the_growing_cache(config, prompts, uncaptured):
    model = made(config)
    growing = DynamicPass(model, filled(model, prompts, 12))
    still = StaticPass(model, filled(model, prompts, 12))
    generator = torch.Generator().manual_seed(9)
    for _ in range(12):
        tokens = torch.randint(37, (len(prompts),), generator=generator)
        torch.testing.assert_close(still(tokens), growing(tokens), rtol=0, atol=1e-12)
    assert uncaptured == [len(prompts)]


@torch.no_grad()
def test_rows_leave_and_the_rest_goes_on(uncaptured):
    model = made(TINY)
    growing = DynamicPass(model, filled(model, PROMPTS, 12))
    still = StaticPass(model, filled(model, PROMPTS, 12))
    tokens = torch.tensor([1, 2, 3, 4])
    for rows in ([0, 1, 2, 3], [0, 2, 3], [1, 2], [0]):
        kept = torch.tensor(rows)
        tokens = (tokens[kept] * 5 + 1) % 37
        growing.select(kept)
        still.select(kept)
        for _ in range(2):
            found, wanted = still(tokens), growing(tokens)
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    assert uncaptured == [4, 2, 1]  # three of four stay in a batch of four


def test_decoding_by_it_gives_the_same_tokens(uncaptured):
    model = made(TINY)
    assert decode(model, PROMPTS, max_new_tokens=20, graph=True) == decode(
        model, PROMPTS, max_new_tokens=20
    )
    drawn = Sampling(temperature=1.5, repetition_penalty=1.2, sampling_seed=3)
    ends = {t for row in decode(model, PROMPTS, max_new_tokens=20, sampling=drawn) for t in row[9:]}
    many = [p for p in PROMPTS for _ in range(3)]
    stop = frozenset(list(ends)[:3])
    expected, found = (
        decode(model, many, max_new_tokens=20, sampling=drawn, stop=stop, graph=graph)
        for graph in (False, True)
    )
    assert found == expected
    assert len({len(row) for row in expected}) > 2  # rows did leave


@pytest.mark.parametrize("method", [minift.LoRA(rank=2), minift.Prefix(prefix_tokens=3)])
def test_with_a_method(method, uncaptured):
    model = made(TINY, torch.float32)
    minift.attach(model, method)
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.5)
    assert decode(model, PROMPTS, max_new_tokens=12, graph=True) == decode(
        model, PROMPTS, max_new_tokens=12
    )


class Elsewhere(TorchDispatchMode):
    """Every tensor is on the device without numbers, where none can be asked for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs, out)):
            assert not isinstance(x, torch.Tensor) or x.device.type == "meta", func
        return out


@pytest.mark.parametrize("config", [TINY, WINDOWED, LEARNED])
def test_nothing_waits_and_nothing_is_on_the_cpu(config):
    with torch.device("meta"), torch.no_grad():
        model = Transformer(config).eval()
        cache = KVCache(config, 2, 9, device="meta")
        cache.length = 4
        one = StaticPass(model, cache)
    with torch.no_grad():
        one.plain()  # what is made once
    with torch.no_grad(), Elsewhere():
        assert one.plain().shape == (2, config.dim)
    with pytest.raises(AssertionError), Elsewhere():  # it does see what it should
        torch.zeros(2)


def test_where_it_cannot_be():
    with pytest.raises(ConfigError, match="graph: found a model on cpu, allowed on a GPU"):
        decode(made(TINY), [[1]], max_new_tokens=2, graph=True)


def test_which_models_it_fits_on_a_gpu():
    dynamic = RopeScaling("dynamic", factor=2.0, original_context=32)
    with pytest.raises(ConfigError, match=r"graph: found RoPE whose angles follow the length"):
        static_cache.check(there(replace(TINY, rope_scaling=dynamic)))
    static_cache.check(there(TINY))


def there(config):
    """A model that says it is on a GPU."""
    weight = SimpleNamespace(device=torch.device("cuda"))
    return SimpleNamespace(config=config, embed=SimpleNamespace(weight=weight))
