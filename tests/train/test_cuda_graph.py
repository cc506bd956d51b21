"""The step of fixed shape, run uncaptured on a CPU: beside the ordinary loop, and what a capture
needs: the same operations on the same memory whatever the data, and nothing that waits."""

from __future__ import annotations

import math
import os
import signal
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from minift.errors import ConfigError
from minift.kernels.attention import varlen
from minift.kernels.choice import using
from minift.model import attention_mask
from minift.model.config import ModelConfig, RopeScaling
from minift.model.transformer import Transformer
from minift.peft import methods
from minift.peft.adapters import trainable
from minift.peft.bitfit import BitFit
from minift.peft.bottleneck import Bottleneck
from minift.peft.ia3 import IA3
from minift.peft.lora import LoRA
from minift.peft.methods import attach
from minift.peft.prefix import Prefix
from minift.peft.prompt import Prompt
from minift.train import cuda_graph, loop
from minift.train import optimizer as optimizer_module
from minift.train.chunks import Chunks
from minift.train.config import TrainConfig
from minift.train.cuda_graph import GraphAdamW, GraphStep, NoSync, pack_rows, round_up, shape_of
from minift.train.keeper import Diverged
from minift.train.loop import fit
from minift.train.objectives.batch import Window, token_batches
from minift.train.objectives.sft import SFT
from minift.train.optimizer import AdamW

VOCAB = 61
TINY = {"family": "test", "vocab": VOCAB, "dim": 24, "layers": 2, "heads": 4, "kv_heads": 2,
        "head_dim": 6, "ff": 40, "context": 128}  # fmt: skip


class Ids(SFT):
    """An SFT whose rows are ids already."""

    def __init__(self, train, held_out=()):
        self.train, self.held_out, self.pack = list(train), list(held_out), "auto"
        self.tokenizer, self.window = None, Window(self.encode)
        self.chunks = {False: Chunks(len(self.train), {})}

    def encode(self, i, held_out=False):
        return (self.held_out if held_out else self.train)[i]

    def check(self, model):
        pass

    def held_out_batches(self, max_tokens):
        yield from token_batches(self.held_out, max_tokens) if self.held_out else ()

    def summary(self):
        return {}


def rows_of(lengths, seed=0):
    """Random ids of which the second half is learned, but for every third row: all."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for k, n in enumerate(lengths):
        ids = torch.randint(VOCAB, (n,), generator=generator).tolist()
        learned = n if k % 3 == 0 else n - n // 2
        rows.append((ids, [0] * (n - learned) + [1] * learned))
    return rows


RAGGED = [3, 40, 12, 65, 5, 7, 2, 30, 9, 21, 4, 60]


def made(method=None, dtype=torch.float64, **fields):
    torch.manual_seed(1)
    model = Transformer(ModelConfig(**TINY | fields)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, dtype=torch.float64) * 0.3)
    attach(model, LoRA(rank=3) if method is None else method)
    with torch.no_grad():
        for p in trainable(model).values():
            p.copy_(torch.randn(p.shape, dtype=torch.float64) * 0.3)
    return model


# Rates that float32 holds exactly: the captured step keeps them in it.
STEPS = {"steps": 8, "lr": 2**-6, "warmup": 0, "threads": 1, "batch_size": 4}


@pytest.fixture
def anywhere(monkeypatch):
    monkeypatch.setattr(cuda_graph, "DEVICES", ("cuda", "cpu"))


def trained(graph, rows, model=None, held=(), watch=lambda progress: None, **options):
    model = made() if model is None else model
    config = TrainConfig(**STEPS | options, graph=graph)
    return fit(model, Ids(rows, held), config, watch=watch), model


def same(rows, model=made, **options):
    """Both loops, and the run of the captured one."""
    (run, mine), (other, exact) = (trained(g, rows, model(), **options) for g in ("on", "off"))
    assert run.losses == pytest.approx(other.losses, rel=1e-10, abs=1e-12, nan_ok=True)
    assert run.norms == pytest.approx(other.norms, rel=1e-10, abs=1e-12, nan_ok=True)
    assert (run.tokens, run.skipped, run.steps) == (other.tokens, other.skipped, other.steps)
    expected = trainable(exact)
    for name, p in trainable(mine).items():
        torch.testing.assert_close(p, expected[name], rtol=0, atol=1e-10)
    return run


@pytest.fixture
def micros(monkeypatch):
    """How many micro-batches every `micro` was; one a growth is a rehearsal's, twice."""
    calls, one = [], GraphStep.micro
    monkeypatch.setattr(GraphStep, "micro", lambda self: calls.append(self.shape) or one(self))
    return calls


@pytest.mark.parametrize("options", [
    {}, {"clip": 0.05}, {"clip": 0.0}, {"micro_batch_tokens": 64},
    {"micro_batch_tokens": 1, "batch_size": 5},
    {"weight_decay": 0.5, "schedule": "constant"}, {"batch_size": 1},
])  # fmt: skip
def test_losses_norms_and_weights_are_the_ordinary_loops(anywhere, options):
    run = same(rows_of(RAGGED), **options)
    assert len(set(run.losses)) == 8
    assert options.get("clip") != 0.05 or min(run.norms) > 0.05


def test_several_micro_batches_a_step(anywhere, micros):
    same(rows_of(RAGGED), micro_batch_tokens=64, batch_size=6)
    assert len(micros) > 8 + 2
    assert {shape.tokens for shape in micros} == {64}
    assert {shape.longest for shape in micros} == {64}


FORMS = {
    "gpt2-like": {"positions": "learned", "norm": "layer", "qkv_bias": True, "gated": False},
    "window": {"local": (True, False), "window": 5},
    "scaled rope": {"rope_scaling": RopeScaling("linear", factor=4.0)},
    "gemma2-like": {"attention_softcap": 5.0, "logit_softcap": 3.0, "embed_scale": 24**0.5,
                    "norm_at": "sandwich", "local": (True, False), "window": 9},
    "parallel": {"norm_at": "parallel"},
    "one head each": {"kv_heads": 4, "qk_norm": True},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_decoder(anywhere, form):
    same(rows_of(RAGGED), lambda: made(**FORMS[form]), steps=4)


@pytest.mark.parametrize("method", [
    LoRA(rank=3, lr_ratio=16.0), LoRA(rank=2, dora=True), LoRA(rank=2, lora_init="pissa"),
    LoRA(rank=2, targets=("q", "down")), LoRA(rank=2, targets=("all", "embed")), IA3(),
    BitFit(), Bottleneck(), Prefix(prefix_tokens=3), Prefix(prefix_tokens=3, prefix_mlp=8),
    LoRA(rank=2, tokens=(3, 9), token_rows=("embed",)),
], ids=str)  # fmt: skip
def test_every_method_that_changes_no_text(anywhere, method):
    same(rows_of(RAGGED), lambda: made(method), steps=4)


def test_the_dtype_of_a_base_in_bf16(anywhere):
    """Gradients in float32 of sums in bf16, cut elsewhere: rounding apart, the same losses."""
    both = [trained(g, rows_of(RAGGED), made(dtype=torch.bfloat16))[0] for g in ("on", "off")]
    assert both[0].losses == pytest.approx(both[1].losses, rel=0.02)


LOST = VOCAB - 1


def lost():
    """A model that gives no number where it reads one token."""
    model = made()
    with torch.no_grad():
        model.embed.weight[LOST] = math.nan
    return model


def test_a_step_that_is_not_finite_leaves_everything_as_it_was(anywhere, monkeypatch):
    monkeypatch.setattr(loop, "check_finite", lambda model: None)  # which would see the lost row
    rows = [([min(i, LOST - 1) for i in ids], bits) for ids, bits in rows_of([20] * 12)]
    rows[5] = ([LOST, *rows[5][0]], [0, *rows[5][1]])
    run = same(rows, lost, steps=9, schedule="constant")
    bad = [k for k, loss in enumerate(run.losses) if math.isnan(loss)]
    assert len(bad) == 3  # once in each of three passes
    assert run.skipped == 3
    assert max(bad) < 8
    assert math.isfinite(run.losses[-1])


def test_three_bad_steps_in_a_row_end_the_run(anywhere, monkeypatch):
    monkeypatch.setattr(loop, "check_finite", lambda model: None)
    model = lost()
    before = {n: p.detach().clone() for n, p in trainable(model).items()}
    rows, told = [([LOST, 5, 6], [0, 1, 1])] * 8, []
    with pytest.raises(Diverged, match="step 3"):
        trained("on", rows, model, watch=lambda p: told.append(p.step))
    assert told == [1, 2, 3]
    assert all(torch.equal(p, before[n]) for n, p in trainable(model).items())


def test_a_step_without_a_target_is_skipped(anywhere):
    rows = rows_of([9] * 8)
    rows[5] = (rows[5][0], [0] * 9)
    run = same(rows, batch_size=1, clip=1.0)
    assert run.skipped == 1
    assert run.losses.count(0.0) == 1


def test_rows_without_a_target_and_rows_of_one_token(anywhere):
    rows = rows_of(RAGGED)
    rows[3], rows[7] = (rows[3][0], [0] * 65), ([4], [1])
    same(rows)


@pytest.mark.parametrize("every", [1, 3])
def test_evaluations_see_the_weights_of_their_step(anywhere, every):
    rows, held = rows_of(RAGGED), rows_of([7, 11], seed=9)
    (mine, model), (other, exact) = (
        trained(g, rows, held=held, eval_every=every, lr=2**-3) for g in ("on", "off")
    )
    assert [step for step, _ in mine.evaluations] == [step for step, _ in other.evaluations]
    for (_, a), (_, b) in zip(mine.evaluations, other.evaluations, strict=True):
        assert a == pytest.approx(b, rel=1e-9)
    assert mine.best_step == other.best_step
    for a, b in zip(trainable(model).values(), trainable(exact).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_ctrl_c_ends_with_the_step_that_was_under_way(anywhere):
    rows, held, told = rows_of(RAGGED), rows_of([7]), []

    def watch(progress):
        told.append(progress.step)
        if progress.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    run, model = trained("on", rows, held=held, watch=watch, schedule="constant")
    assert run.interrupted
    assert told == [1, 2, 3]
    assert [step for step, _ in run.evaluations] == [3]
    other, exact = trained("off", rows, held=held, schedule="constant", steps=3)
    assert run.losses == pytest.approx(other.losses, rel=1e-10)
    for a, b in zip(trainable(model).values(), trainable(exact).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_the_parameters_are_their_own_afterwards(anywhere):
    _, model = trained("on", rows_of(RAGGED))
    for p in trainable(model).values():
        assert p.grad is None
        assert p.untyped_storage().nbytes() == p.numel() * p.element_size()


# ---- what a capture needs ------------------------------------------------------------------------


def taker(model, config=None, **options):
    parameters = trainable(model)
    optimizer = GraphAdamW(
        parameters, methods.learning_ratios(model), betas=(0.9, 0.999), eps=1e-8, decay=0.1
    )
    return GraphStep(model.train(), None, optimizer, parameters, TrainConfig(**STEPS | options))


class Trace(TorchDispatchMode):
    """Every operation with all that a replay would repeat: shapes, strides, plain arguments."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace != "profiler":
            self.found.append((str(func), described((args, kwargs or {}))))
        return func(*args, **(kwargs or {}))


def described(x):
    if isinstance(x, torch.Tensor):
        return (x.dtype, tuple(x.shape), x.stride())
    if isinstance(x, dict):
        return {key: described(value) for key, value in x.items()}
    if isinstance(x, torch.UntypedStorage):  # of Triton's interpreter
        return x.nbytes()
    return tuple(map(described, x)) if isinstance(x, list | tuple) else x


@pytest.mark.parametrize("kernels", ["triton", "torch"])
def test_every_step_is_the_same_operations_in_the_same_places(interpreted, kernels):
    interpreted("lora.triton")
    drop = 0.1 if kernels == "triton" else 0.0
    one = taker(made(LoRA(rank=2, dropout=drop)), micro_batch_tokens=64)
    with using(kernels):
        one.queue(rows_of([30, 30, 30]), 0.5)
    traces, places = [], []
    for lengths, lr in (([60, 4], 0.5), ([20, 9, 3], 0.25), ([2], 0.125)):
        one.optimizer.set_rate(lr)
        (part,) = one.shape.cut(rows_of(lengths, seed=len(lengths)))
        one.load(part, 1 / 7)
        with using(kernels), Trace() as trace:
            one.micro()
            one.update()
        traces.append(trace.found)
        kept = [*vars(one.buffers).values(), one.loss, one.report, one.optimizer.bad]
        kept += [t for p in one.optimizer.flat.storages for t in (p, p.grad)]
        kept += [
            t for p in one.optimizer.flat.storages for t in one.optimizer.inner.state[p].values()
        ]
        kept += [group["lr"] for group in one.optimizer.inner.param_groups]
        kept += [p.grad for p in one.parameters.values()]
        places.append([t.data_ptr() for t in kept])
    assert len(traces[0]) > 100
    assert traces[0] == traces[1] == traces[2]
    assert places[0] == places[1] == places[2]


@pytest.mark.parametrize("kernels", ["triton", "torch"])
def test_nothing_in_a_step_waits(interpreted, kernels):
    """All of a step but filling the buffers; and `grow` looks by itself."""
    interpreted("lora.triton")
    one = taker(made(LoRA(rank=2, dropout=0.1 if kernels == "triton" else 0.0)))
    rows = rows_of([30, 8])
    with using(kernels):
        one.queue(rows, 0.5)
        one.load(rows, 0.1)
        with NoSync():
            one.optimizer.set_rate(0.25)
            one.micro()
            one.update()
            one.report.clone()


@pytest.mark.parametrize("form", FORMS)
def test_all_of_it_is_on_the_device(form, monkeypatch):
    """On torch's device without numbers: one that a step needs would raise, and so would a copy
    from the CPU. The kernel for texts by its own declaration."""
    model = made(dtype=torch.bfloat16, head_dim=8, **FORMS[form]).to("meta")
    shape = shape_of(rows_of(RAGGED), 4, 128, group_by_length=True)
    buffers = pack_rows(rows_of([30, 8]), shape, 0.1, torch.float32)
    called, real = [], varlen.attention
    monkeypatch.setattr(attention_mask, "suits", lambda dtype, device, width: True)
    monkeypatch.setattr(varlen, "attention", lambda *a: called.append(1) or real(*a))
    one = taker(model)
    one.shape = shape
    one.buffers = type(buffers)(*(t.to("meta") for t in vars(buffers).values()))
    one.micro()  # tables are copied to the device once
    with NoSync():
        one.micro()
    assert all(p.grad is not None for p in one.parameters.values())
    assert len(called) == (0 if form == "gemma2-like" else 4)


def waiting():
    x = torch.arange(4.0)
    return {
        "_local_scalar_dense": lambda: float(x.sum()),
        "nonzero": lambda: x.nonzero(),
        "masked_select": lambda: x.masked_select(x > 1),
        "index": lambda: x[x > 1],
        "index_put_": lambda: x.__setitem__(x > 1, torch.zeros(2)),
        "_unique2": lambda: x.unique(),
        "equal": lambda: torch.equal(x, x),
        "repeat_interleave": lambda: torch.arange(4).repeat_interleave(torch.arange(4)),
        "_to_copy": lambda: x.to("meta"),
    }


@pytest.mark.parametrize("name", waiting())
def test_what_waits_is_refused(name):
    with pytest.raises(ConfigError, match=f"found on with {name} in a step"), NoSync():
        waiting()[name]()
    with NoSync():  # places given by numbers are not
        x = torch.arange(4.0)
        assert x[torch.tensor([1, 2])].sum().add(1).shape == ()


def test_a_mask_seeded_on_the_cpu_is_refused(anywhere):
    """A replay would draw the same mask again."""
    with pytest.raises(ConfigError, match="_local_scalar_dense in a step"):
        trained("on", rows_of(RAGGED), made(LoRA(rank=2, dropout=0.1)))


def test_a_rehearsal_changes_nothing():
    """Growing calls `micro` and `update`, and leaves weights, moments and gradients alone."""
    model = made()
    before = {n: p.detach().clone() for n, p in trainable(model).items()}
    one = taker(model)
    one.grow(rows_of([9, 5]), ())
    for name, p in trainable(model).items():
        assert torch.equal(p, before[name])
        assert not p.grad.any()
    for state in one.optimizer.state_dict().values():
        assert state["step"] == 0
        assert not state["exp_avg"].any()
        assert not state["exp_avg_sq"].any()
    assert one.loss == 0


def test_a_row_beyond_the_shape_makes_it_grow(micros):
    """Beside one that had the room from the start."""
    steps = [rows_of([9, 5]), rows_of([70, 3], 1), rows_of([9, 5], 2), rows_of([120], 3)]
    model, exact = made(), made()
    one, other = taker(model, batch_size=2), taker(exact, batch_size=2)
    other.grow(rows_of([120, 120]), ())
    micros.clear()
    for rows in steps:
        found, expected = (step.queue(rows, 2**-6).read() for step in (one, other))
        assert found.loss == pytest.approx(expected.loss, rel=1e-11)
        assert found.norm == pytest.approx(expected.norm, rel=1e-11)
    for a, b in zip(trainable(model).values(), trainable(exact).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
    shapes = list(dict.fromkeys(micros))
    assert [(shape.tokens, shape.longest) for shape in shapes] == [
        (64, 8), (256, 119), (128, 69), (128, 119)
    ]  # fmt: skip


# ---- the optimizer -------------------------------------------------------------------------------


def some_parameters():
    generator = torch.Generator().manual_seed(1)
    shapes = [(3, 5), (7,), (40, 30), (1,), (), (0, 4), (6, 2)]
    values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return {f"p{i}": nn.Parameter(value) for i, value in enumerate(values)}


@pytest.mark.parametrize("small", [2**18, 100, -1])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_step_that_waits_for_nothing_is_the_other_one(clip, small, monkeypatch):
    """Rates that float32 holds; two backward passes each; the third step has a gradient and the
    fourth a loss that is not finite, and they leave no trace."""
    monkeypatch.setattr(optimizer_module, "SMALL", small)
    mine, other = some_parameters(), some_parameters()
    fixed, usual = optimizers = [
        kind(p, {p["p0"]: 16.0, p["p3"]: 0.5}, betas=(0.9, 0.99), eps=1e-8, decay=0.1)
        for kind, p in ((GraphAdamW, mine), (AdamW, other))
    ]  # fmt: skip
    fixed.pin()
    places = [p.grad.data_ptr() for p in mine.values()]
    rates = [group["lr"] for group in fixed.inner.param_groups]
    for step in range(6):
        lr = 2.0 ** -(step + 4)
        for parameters, optimizer in zip((mine, other), optimizers, strict=True):
            optimizer.set_rate(lr)
            for k in (1, 2):
                sum((k * p).sin().sum() for p in parameters.values()).backward()
            if step == 2:
                parameters["p1"].grad[2] = float("inf")
        loss = torch.tensor(float("nan") if step == 3 else 1.0)
        norm = fixed.update(clip, loss)
        expected = usual.clip(clip)
        assert float(norm) == pytest.approx(expected, rel=1e-12)
        if step not in (2, 3):
            usual.step()
        usual.zero_grad()
        for name in mine:
            torch.testing.assert_close(mine[name], other[name], rtol=0, atol=1e-12)
            assert not mine[name].grad.any()
    assert places == [p.grad.data_ptr() for p in mine.values()]
    assert all(a is g["lr"] for a, g in zip(rates, fixed.inner.param_groups, strict=True))
    assert {one["step"] for one in fixed.state_dict().values()} == {4}
    for name, one in usual.state_dict().items():
        for key in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(fixed.state_dict()[name][key], one[key], rtol=0, atol=1e-12)
    fixed.release()
    assert all(p.grad is None for p in mine.values())


# ---- shapes --------------------------------------------------------------------------------------


def test_rows_are_packed_and_padded():
    """By hand: two texts of 5 and 3 ids, in a row of 12 with room for 6 targets and 5 texts."""
    rows = [([11, 12, 13, 14, 15], [0, 0, 0, 1, 1]), ([21, 22, 23], [0, 1, 1])]
    found = pack_rows(rows, cuda_graph.Shape(12, 6, 5, 4), 0.25, torch.float64)
    assert found.tokens.tolist() == [[11, 12, 13, 14, 21, 22, 11, 12, 13, 14, 21, 22]]
    assert found.segments.tolist() == [[0] * 4 + [1] * 2 + [2] * 4 + [3] * 2]
    assert found.cu_seqlens.tolist() == [0, 4, 6, 10, 12, 12]
    assert found.cu_seqlens.dtype == torch.int32
    assert found.selected.tolist() == [2, 3, 4, 5, 0, 1]
    assert found.targets.tolist() == [14, 15, 22, 23, 12, 13]
    assert found.weights.tolist() == [0.25] * 4 + [0, 0]
    assert found.weights.dtype == torch.float64


@pytest.mark.parametrize("lengths", [RAGGED, [2], [65] * 4, [64] * 40, [2] * 7, [100, 2, 2]])
@pytest.mark.parametrize("micro_batch_tokens", [1, 64, 200, 4096])
def test_every_step_of_those_rows_has_room(lengths, micro_batch_tokens):
    rows = rows_of(lengths)
    shape = shape_of(rows, 4, micro_batch_tokens, group_by_length=True)
    assert shape.tokens % 64 == shape.targets % 64 == 0
    longest = max(lengths) - 1
    assert shape.longest == longest
    assert shape.tokens <= round_up(max(longest, micro_batch_tokens))
    assert shape.holds(rows)
    for k in range(0, len(rows), 4):
        step = rows[k : k + 4]
        parts = shape.cut(step)
        assert sorted(map(id, (row for part in parts for row in part))) == sorted(map(id, step))
        for part in parts:
            found = pack_rows(part, shape, 1.0, torch.float64)
            assert found.tokens.shape == found.segments.shape == (1, shape.tokens)
            assert len(found.selected.unique()) == len(found.selected) == shape.targets
            learned = sum(sum(mask[1:]) for _, mask in part)
            assert found.weights.tolist() == [1.0] * learned + [0.0] * (shape.targets - learned)
            ends = found.cu_seqlens.tolist()
            assert len(ends) == shape.texts + 1
            assert ends[-1] == shape.tokens
            sizes = [b - a for a, b in pairwise(ends)]
            assert max(sizes) <= shape.longest
            texts = torch.arange(shape.texts).repeat_interleave(torch.tensor(sizes))
            assert torch.equal(texts, found.segments[0])


def test_the_shape_is_the_cheapest():
    """Steps of one long row or of three short ones: not as wide as the largest step."""
    rows = rows_of([300] + [20] * 300)
    assert shape_of(rows, 4, 4096, group_by_length=True).tokens == 320
    assert shape_of(rows_of([500] * 8), 4, 4096, group_by_length=True).tokens == round_up(4 * 499)
    assert shape_of(rows_of([500] * 8), 4, 1024, group_by_length=True).tokens == 1024


# ---- what is refused -----------------------------------------------------------------------------


class Other(Ids):
    pass


def hooked():
    model = made()
    model.blocks[1].mlp.register_forward_hook(lambda module, inputs, out: None)
    return model


class Sharded(nn.Parameter):
    pass


def sharded():
    model = made()
    change = model.blocks[0].attn.qkv.changes["q"]["default"]
    change.A = Sharded(change.A.data)
    return model


@pytest.mark.parametrize(("model", "text"), [
    (lambda: made(LoRA(rank=2, targets=("q", "head"))), "an output matrix that is trained or chan"),
    (lambda: made(Prompt(prompt_tokens=2)), "virtual tokens before every text, allowed another"),
    (lambda: made(rope_scaling=RopeScaling("dynamic", factor=2.0, original_context=8)),
     "rotary scaling that follows the longest row, allowed any other"),
    (lambda: made(causal=False), "the encoder test, allowed a decoder"),
    (hooked, r"hooks on blocks\.1\.mlp, which a replay passes by, allowed none"),
    (sharded, r"sharded parameters \(blocks\.0\.attn\.qkv\.changes\.q\.default\.A\), allowed who"),
])  # fmt: skip
def test_what_cannot_be_fixed_is_refused(anywhere, tmp_path, model, text):
    config = TrainConfig(**STEPS, graph="on")
    with pytest.raises(ConfigError, match=f"^graph: found on with {text}") as error:
        fit(model(), Ids(rows_of([9])), config, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_cpu_another_objective_and_readable_kernels_are_refused_together():
    class NoSFT:
        rows, lengths, fits_cuda_graph, tokenizer = 1, None, False, None

        def check(self, model):
            pass

    config = TrainConfig(**STEPS, graph="on")
    text = (
        "graph: found on with the device cpu, allowed a GPU; and readable kernels, allowed the "
        "fused ones; and the objective NoSFT, allowed SFT"
    )
    with using("reference"), pytest.raises(ConfigError) as error:
        fit(made(), NoSFT(), config)
    assert str(error.value) == text
