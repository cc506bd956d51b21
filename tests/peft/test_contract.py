"""What every method keeps on every family: one suite, and the few exceptions are named here.

The bases are the tiny checkpoints of tests/golden; a pair of a method and a base shares its models
between the tests, so a test that changes one takes a copy of its own (`case.fresh()`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from minift.checkpoints.open import load_model
from minift.errors import ConfigError, FormatError
from minift.formats import safetensors
from minift.generation.cache import KVCache
from minift.interop.adapter_files import CONFIG, STATE, TENSORS, adapter_files, load_adapter
from minift.kernels.attention import packed
from minift.kernels.choice import using
from minift.model import transformer
from minift.model.heads import LabelHead
from minift.model.transformer import Transformer
from minift.peft.adapters import active, detach, disabled, modules_of, names, rows, trainable, use
from minift.peft.bitfit import BitFit
from minift.peft.head import own_head
from minift.peft.ia3 import IA3
from minift.peft.lora import LoRA, changes_of
from minift.peft.merge import combine, merge
from minift.peft.methods import attach, count
from minift.peft.prefix import Prefix
from minift.peft.prompt import Prompt
from minift.peft.ptuning import PTuning

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = {
    folder.name: folder
    for folder in (*sorted((GOLDEN / "families").iterdir()), GOLDEN / "llama_gqa",
                   GOLDEN / "llama_biased")
}  # fmt: skip
METHODS: dict[str, Callable[[Transformer], object]] = {
    "lora": lambda model: LoRA(rank=3, alpha=5, ranks=(("down", 2),), alphas=(("k", 1.0),)),
    "lora_whole": lambda model: LoRA(rank=2, rslora=True, targets=("v", "embed", *matrix(model))),
    "lora_tokens": lambda model: LoRA(rank=2, targets=("q", "v"), tokens=(3, 15, 8)),
    "dora": lambda model: LoRA(rank=2, dora=True, ranks=(("up", 3),)),
    "pissa": lambda model: LoRA(rank=2, lora_init="pissa", targets=("attention", "down")),
    "ia3": lambda model: IA3(),
    "bitfit": lambda model: BitFit(),
    "prefix": lambda model: Prefix(3),
    "prefix_mlp": lambda model: Prefix(3, prefix_mlp=5),
    "prompt": lambda model: Prompt(3),
    "ptuning": lambda model: PTuning(3, encoder_hidden=5),
    "ptuning_lstm": lambda model: PTuning(3, "lstm", encoder_hidden=4, encoder_layers=1),
}
EXACT = ("lora", "lora_whole", "ia3", "bitfit")  # at their start, the base bit for bit
NEAR = ("dora", "pissa", "lora_tokens")  # the same up to rounding
SUMS = ("lora", "pissa")  # added to linears of the blocks
WITH_STATE = ("pissa", "prefix_mlp", "ptuning", "ptuning_lstm")  # see interop/adapter_files.py
SOFT = ("prefix", "prefix_mlp", "prompt", "ptuning", "ptuning_lstm")
RATES = {"prompt": 0.3, "prefix": 0.3, "ia3": 0.1, "bitfit": 0.1}
LENGTHS = (7, 4, 1)


def matrix(model):
    return ("head",) if model.config.head == "lm" else ()


@cache
def base(name: str) -> Transformer:
    """Never changed, always copied."""
    return load_model(FOLDERS[name], dtype=torch.float64).eval()


def perturb(model: Transformer, name: str = "default", seed: int = 7) -> Transformer:
    """As if trained: noise on every parameter of an adapter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in modules_of(model, name):
            for parameter in module.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.1 * noise.to(parameter))
    return model


class Case:
    def __init__(self, name: str, method: str):
        self.name, self.method = name, method
        self.base = base(name)
        self.config = METHODS[method](self.base)
        longest = max(LENGTHS)
        i = torch.arange(len(LENGTHS) * longest).view(len(LENGTHS), longest)
        self.tokens = (i * i * 7 + i * 5 + 3) % self.base.config.vocab
        self.keep = torch.arange(longest) < torch.tensor(LENGTHS)[:, None]

    def fresh(self) -> Transformer:
        return attach(copy.deepcopy(self.base), self.config)

    @cached_property
    def spare(self) -> Transformer:
        """Of the base, for what must leave it as it is."""
        return copy.deepcopy(self.base)

    @cached_property
    def start(self) -> Transformer:
        return self.fresh()

    @cached_property
    def trained(self) -> Transformer:
        return perturb(copy.deepcopy(self.start))

    @cached_property
    def out(self) -> torch.Tensor:
        with torch.no_grad():
            return self.trained(self.tokens, mask=self.keep)

    @cached_property
    def plain(self) -> torch.Tensor:
        with torch.no_grad():
            return self.base(self.tokens, mask=self.keep)

    def real(self, out: torch.Tensor) -> torch.Tensor:
        """The output at real positions; a label head's as it is."""
        return out[self.keep] if out.dim() == 3 else out

    def __call__(self, model: Transformer) -> torch.Tensor:
        with torch.no_grad():
            return self.real(model(self.tokens, mask=self.keep))


@pytest.fixture(
    scope="module", params=[(name, method) for name in FOLDERS for method in METHODS],
    ids=lambda pair: "-".join(pair),
)  # fmt: skip
def case(request):
    return Case(*request.param)


def close(got, expected, tolerance=1e-9):
    size = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * size)


def test_it_starts_where_its_page_says(case):
    got, plain = case(case.start), case.real(case.plain)
    if case.method in EXACT:
        assert torch.equal(got, plain)
    elif case.method in NEAR:
        close(got, plain, 1e-11)
    else:
        assert not torch.equal(got, plain)
    assert not torch.allclose(case.real(case.out), plain)  # and it can change something


def test_what_is_trained_is_the_closed_form_count(case):
    found = trainable(case.start)
    head = own_head(case.start, "default")
    assert (head is not None) == isinstance(case.base.head, LabelHead)
    own = sum(p.numel() for p in head.parameters()) if head is not None else 0
    assert sum(p.numel() for p in found.values()) - own == count(case.base, case.config)
    mine = {id(p) for m in modules_of(case.start, "default") for p in m.parameters()}
    assert {id(p) for p in found.values()} == mine


def loss_of(model, case):
    """Of one batch with fixed targets: words, labels or hidden states."""
    out = case.real(model(case.tokens, mask=case.keep))
    if model.config.head == "none":
        return (out - torch.sin(torch.arange(out.numel()).view(out.shape) * 1.0)).square().mean()
    return F.cross_entropy(out, torch.arange(len(out)) * 3 % out.shape[1])


def test_one_batch_is_learned_and_the_base_stays_bit_for_bit(case):
    model = case.fresh()
    parameters = list(trainable(model).values())
    optimizer = torch.optim.Adam(parameters, lr=RATES.get(case.method, 0.03))
    losses = []
    for _ in range(5):
        loss = loss_of(model, case)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in parameters)
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[1:]) < 0.97 * losses[0]
    there = dict(model.named_parameters())
    for name, parameter in case.base.named_parameters():
        assert torch.equal(there[name], parameter), name
    assert torch.equal(use(model, None)(case.tokens, mask=case.keep), case.plain)


def test_disabled_is_the_base_and_a_copy_carries_the_adapter(case):
    twin = copy.deepcopy(case.trained)
    with disabled(case.trained):
        assert torch.equal(case(case.trained), case.real(case.plain))
        assert torch.equal(case(twin), case.real(case.out))  # a switch of its own
    assert torch.equal(case(case.trained), case.real(case.out))


def written(model):
    """The files of an adapter as bytes."""
    files = adapter_files(model, "default").items()
    return {name: b if isinstance(b, bytes) else b"".join(map(bytes, b)) for name, b in files}


def put(model, folder):
    files = written(model)
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    return files


def test_saved_and_loaded_is_the_same_and_saved_again_the_same_bytes(case, tmp_path):
    first = put(case.trained, tmp_path)
    assert first == written(case.trained)
    loaded = load_adapter(copy.deepcopy(case.base), tmp_path)
    close(case(loaded), case.real(case.out), 1e-11)
    assert trainable(loaded) == {}
    again = written(loaded)
    assert all(again[file] == first[file] for file in (CONFIG, TENSORS))
    assert (STATE in first) == (case.method in WITH_STATE)
    if STATE in first:
        going_on = load_adapter(detach(loaded), tmp_path, trainable=True)
        assert torch.equal(case(going_on), case.real(case.out))
        assert trainable(going_on).keys() == trainable(case.trained).keys()
        assert written(going_on) == first


def test_a_file_of_something_else_lists_every_tensor(case, tmp_path):
    put(case.trained, tmp_path)
    file = safetensors.read(tmp_path / TENSORS)
    # Every other tensor under another name, the rest twice as long.
    # (A score or a classifier alone of other rows would be a head for other labels.)
    heads = [key for key in file.tensors if "score" in key or "classifier." in key]
    wrong = sorted({*sorted(file.tensors)[::2], *heads})
    tensors = {
        f"x.{key}" if key in wrong else key: torch.cat((file.load(key),) * 2)
        for key in file.tensors
    }
    safetensors.write(tmp_path / TENSORS, tensors)
    model = case.spare
    with pytest.raises(FormatError) as caught:
        load_adapter(model, tmp_path)
    text = str(caught.value)
    for key in wrong:
        assert f"missing {key}" in text
        assert f"unexpected x.{key}" in text
    assert text.count(", not (") == len(tensors) - len(wrong)
    assert names(model) == []
    with torch.no_grad():
        assert torch.equal(model(case.tokens, mask=case.keep), case.plain)


def test_merged_is_the_same_or_says_why_not(case):
    if case.method in SOFT:
        with pytest.raises(ConfigError, match=r"cannot become weights: its .* (no|not) weights"):
            merge(case.trained)
        return
    merged = merge(case.trained)
    close(case(merged), case.real(case.out))
    assert names(merged) == []
    assert torch.equal(case(case.trained), case.real(case.out))


def test_padding_changes_nothing(case):
    shifted, left = torch.zeros_like(case.tokens), case.keep.flip(1)
    shifted[left] = case.tokens[case.keep]
    with torch.no_grad():
        on_the_left = case.trained(shifted, mask=left)
        expected = case.out[case.keep] if case.out.dim() == 3 else case.out
        got = on_the_left[left] if case.out.dim() == 3 else on_the_left
        close(got, expected)
        for i, length in enumerate(LENGTHS):
            alone = case.trained(case.tokens[i : i + 1, :length])
            close(alone[0], case.out[i, :length] if case.out.dim() == 3 else case.out[i])


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_packed_rows_are_the_separate_ones(case, kernels, monkeypatch):
    """[7 tokens], [4 tokens, 1 token, padding]: values and all gradients."""
    if isinstance(case.base.head, LabelHead):
        return  # it reads one position a row
    monkeypatch.setattr(packed, "SHORT", 2)  # so that texts of 7, 4 and 1 are two buckets
    tokens, keep = torch.zeros(2, 7, dtype=torch.long), torch.ones(2, 7, dtype=torch.bool)
    tokens[0], tokens[1, :4], tokens[1, 4] = case.tokens[0], case.tokens[1, :4], case.tokens[2, 0]
    keep[1, 5:] = False
    segments = torch.tensor([[0] * 7, [1] * 4 + [2] * 3])
    model, found = case.trained, []
    for given in (
        {"tokens": case.tokens, "mask": case.keep},
        {"tokens": tokens, "mask": keep, "segments": segments},
    ):
        with using(kernels):
            out = model(**given, hidden_only=True)[given["mask"]]
            target = torch.sin(torch.arange(out.numel()).view(out.shape) * 1.0)
            loss = (out - target).square().sum()
            found.append([out.detach(), *torch.autograd.grad(loss, trained_of(model))])
    for a, b in zip(*found, strict=True):
        close(b, a)


class Ordered(TorchDispatchMode):
    """Refuses sums in the order of threads: on a CPU several add to one place of a float32
    tensor where x[index], with a tensor as the index, names that place more than once."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "index_put" in func._schema.name and len(args) > 3 and args[3]:
            indices = [at for at in args[1] if at is not None]
            if all(at.dtype == torch.long for at in indices):  # a mask names each place once
                places = torch.stack([at.flatten() for at in torch.broadcast_tensors(*indices)])
                assert places.unique(dim=1).shape == places.shape, "in the order of threads"
        return func(*args, **(kwargs or {}))


def test_no_gradient_is_added_up_in_the_order_of_threads(case):
    model, batches = case.trained, [{"tokens": case.tokens, "mask": case.keep}]
    if not isinstance(case.base.head, LabelHead):
        batches.append(
            {"tokens": case.tokens, "segments": torch.tensor([[0] * 7, [1] * 7, [2] * 7])}
        )
    with Ordered():
        for given in batches:
            model(**given).square().sum().backward()
        if case.method in SUMS and not isinstance(case.base.head, LabelHead):
            with rows(model, ["default", None, "default"]):
                model(case.tokens, mask=case.keep).square().sum().backward()
    model.zero_grad()


def trained_of(model):
    """The trainables that hidden states depend on: a head's own do not reach them."""
    return [p for key, p in trainable(model).items() if "head" not in key]


def test_decoding_with_a_cache_is_the_full_pass(case):
    shape = case.base.config
    if not shape.causal:
        cached = KVCache(shape, 1, 4, dtype=torch.float64)
        with pytest.raises(ConfigError, match="no cache can serve"):
            case.trained(case.tokens[:1], cache=cached)
        return
    left, shifted = case.keep.flip(1), torch.zeros_like(case.tokens)
    shifted[left] = case.tokens[case.keep]
    more = (case.tokens[:, :3] + 1) % shape.vocab
    with torch.no_grad():
        both = torch.cat((shifted, more), dim=1)
        real = torch.cat((left, torch.ones_like(more, dtype=torch.bool)), dim=1)
        full = case.trained(both, mask=real, hidden_only=True)[:, -3:]
        cached = KVCache(shape, len(LENGTHS), both.shape[1], dtype=torch.float64)
        case.trained(shifted, mask=left, cache=cached, hidden_only=True)
        steps = [case.trained(more[:, i : i + 1], cache=cached, hidden_only=True) for i in range(3)]
    close(torch.cat(steps, dim=1), full)


def wanted_of(case):
    """Of seven, four and one real positions two, three and none."""
    wanted = torch.zeros_like(case.keep)
    wanted[0, 2], wanted[0, 6], wanted[1, :4] = True, True, torch.tensor([1, 0, 1, 1]).bool()
    return wanted


@pytest.mark.parametrize("side", ["right", "left", "packed"])
def test_wanted_rows_are_those_of_the_whole_pass(case, side, monkeypatch):
    """Values and gradients, with and without the short way through the last block."""
    tokens, wanted, given = case.tokens, wanted_of(case), {"mask": case.keep}
    if side == "left":
        left = case.keep.flip(1)
        tokens, wanted = torch.zeros_like(tokens), torch.zeros_like(wanted)
        tokens[left], wanted[left] = case.tokens[case.keep], wanted_of(case)[case.keep]
        given = {"mask": left}
    elif side == "packed":
        tokens, wanted = tokens[case.keep][None], wanted[case.keep][None]
        given = {"segments": torch.arange(3).repeat_interleave(torch.tensor(LENGTHS))[None]}
    model, found, calls = case.trained, [], []
    parameters = list(trainable(model).values())
    block = model.blocks[-1].mlp
    hook = block.out.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0].shape))
    weights = torch.sin(torch.arange(5 * case.base.config.dim)).view(5, -1).double()
    for share in (None, 1.0, 0.0):
        monkeypatch.setattr(transformer, "FEW", share)
        if share is None:
            rows = model(tokens, hidden_only=True, **given)[wanted]
        else:
            rows = model(tokens, hidden_only=True, selected=wanted, **given)
        assert rows.shape == (5, case.base.config.dim)
        grads = torch.autograd.grad((rows * weights).sum(), parameters, allow_unused=True)
        found.append((rows, [torch.zeros(1) if g is None else g for g in grads]))
    hook.remove()
    assert calls[0][:-1].numel() > 5
    assert calls[1][:-1] == (1, 5)
    assert calls[2] == calls[0]
    for rows, grads in found[1:]:
        close(rows.detach(), found[0][0].detach(), 1e-12)
        for one, other in zip(grads, found[0][1], strict=True):
            close(one, other, 1e-10)


def test_recomputing_blocks_gives_the_same_gradients(case):
    model, found = case.trained, []
    for model.checkpointing in (True, False):
        loss = loss_of(model, case)
        found.append(torch.autograd.grad(loss, list(trainable(model).values())))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_two_adapters_are_switched_and_taken_off(case):
    model = copy.deepcopy(case.trained)
    perturb(attach(model, case.config, name="other", seed=1), "other", seed=8)
    other = case(model)
    assert not torch.allclose(other, case.real(case.out))
    assert torch.equal(case(use(model, "default")), case.real(case.out))
    assert torch.equal(case(use(model, "other")), other)
    with pytest.raises(ConfigError, match='an adapter "other" already'):
        attach(model, case.config, name="other")
    assert torch.equal(case(detach(model, "other")), case.real(case.plain))
    assert torch.equal(case(use(model, "default")), case.real(case.out))
    detach(model)
    assert active(model) is None
    assert case(model).equal(case.real(case.plain))
    own = {key for key, _ in case.base.named_parameters()}
    assert {key for key, _ in model.named_parameters()} == own


def test_rows_have_adapters_of_their_own_or_it_says_why_not(case):
    if case.method not in SUMS or isinstance(case.base.head, LabelHead):
        refused = pytest.raises(ConfigError, match='rows: "default" is')
        with refused, rows(case.trained, ["default"]):
            pass
        return
    model = copy.deepcopy(case.trained)
    perturb(attach(model, case.config, name="other", seed=1), "other", seed=8)
    alone = {"default": case.out, None: case.plain}
    with torch.no_grad():
        alone["other"] = model(case.tokens, mask=case.keep)
    for each in (["default", "other", None], ["other", "other", "default"]):
        with rows(model, each), torch.no_grad():
            mixed = model(case.tokens, mask=case.keep)
            if case.base.head is not None:
                wanted = wanted_of(case)
                with rows(model, each):
                    close(model(case.tokens, mask=case.keep, selected=wanted), mixed[wanted])
                    at = wanted.flatten().nonzero()[:, 0].flip(0)
                    found = model(case.tokens, mask=case.keep, selected=at)
                    close(found, mixed.flatten(0, 1)[at])
        for i, name in enumerate(each):
            close(mixed[i][case.keep[i]], alone[name][i][case.keep[i]])


def test_a_combination_is_the_sum_of_the_changes_or_it_says_why_not(case):
    if case.method not in ("lora", "lora_whole"):
        with pytest.raises(ConfigError, match="allowed plain LoRA"):
            combine(case.trained, {"default": 1.0}, name="sum")
        return
    model = copy.deepcopy(case.trained)
    perturb(attach(model, case.config, name="other", seed=1), "other", seed=8)
    combine(model, {"default": 0.5, "other": -2.0}, name="sum")
    parts = {name: changes_of(model, name) for name in ("default", "other", "sum")}
    for path, change in parts["sum"].items():
        one, other = parts["default"][path], parts["other"][path]
        expected = 0.5 * one.scale * one.B @ one.A - 2.0 * other.scale * other.B @ other.A
        close(change.scale * change.B @ change.A, expected, 1e-12)
    assert parts["sum"].keys() == parts["default"].keys()
