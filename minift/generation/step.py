"""One more token of every row, without calling modules: for models with changed Linears at most.

    x = x + W_o attention(W_qkv norm(x))        x = x + W_down act(W_hidden norm(x))

The same operations in the same order as the forward pass (model/transformer.py, the readable twin),
so the result is the same bit for bit. Left out are nine module calls per layer, with their hooks,
and the seams where methods change the model. For one row of SmolLM2 that saves a fifth of a token's
time on int8 weights.

It serves layers with a norm before each sublayer and no window, on a CPU. With a hook, or a method
that changes more than Linears, the forward pass runs instead: LoRA can be decoded here, prefix
tuning cannot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType

from torch import Tensor, nn

from minift.generation.cache import KVCache
from minift.generation.decode_weights import GroupWeights, Outputs
from minift.kernels.attention.dispatch import attend
from minift.kernels.lora.reference import hooks_of
from minift.kernels.rope import fused
from minift.kernels.rope.dispatch import rotate_both
from minift.model.attention_mask import forward_context
from minift.model.norm import LayerNorm, RMSNorm
from minift.model.transformer import MLP, Attention, Block, Projections, Transformer

BYPASSED = (Transformer, Block, Attention, MLP, LayerNorm, RMSNorm)  # never called here
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Layer:
    """The functions of a layer that are called, instead of its modules."""

    attn_norm: Function
    qkv: Outputs
    q_norm: Function | None
    k_norm: Function | None
    o: Outputs
    mlp_norm: Function
    hidden: Outputs
    act: Function
    down: Outputs


def step_of(model: Transformer) -> Step | None:
    """For a model inside `decode_weights` that has read its prompt; None if it needs the forward
    pass."""
    config = model.config
    if config.norm_at != "pre" or any(config.local) or model.embed.weight.device.type != "cpu":
        return None
    bypassed = [
        m for m in model.modules() if isinstance(m, (*BYPASSED, Projections, nn.ModuleList))
    ]
    if any("forward" in vars(m) or not has_idle_hooks(m, model) for m in bypassed):
        return None
    layers = [layer_of(block) for block in model.blocks]
    found = [layer for layer in layers if layer is not None]
    return Step(model, found) if len(found) == len(layers) else None


def has_idle_hooks(module: nn.Module, model: Transformer) -> bool:
    """True if all hooks of the module are those of an extension that changes nothing now."""
    idle = [extension for extension in model.extensions if extension.is_identity]
    return all(
        isinstance(hook, MethodType) and any(hook.__self__ is extension for extension in idle)
        for hook in hooks_of(module)
    )


def layer_of(block: nn.Module) -> Layer | None:
    if type(block) is not Block or type(block.attn) is not Attention or type(block.mlp) is not MLP:
        return None
    attn, mlp = block.attn, block.mlp
    if attn.change is not None or mlp.change is not None:
        return None
    qkv, o, hidden, down = (outputs_of(g) for g in (attn.qkv, attn.out, mlp.hidden, mlp.out))
    if qkv is None or o is None or hidden is None or down is None:
        return None
    q_norm, k_norm = (None if n is None else n.forward for n in (attn.q_norm, attn.k_norm))
    act = mlp.act.forward
    norms = attn.norm.forward, mlp.norm.forward
    return Layer(norms[0], qkv, q_norm, k_norm, o, norms[1], hidden, act, down)


def outputs_of(group: Projections) -> Outputs | None:
    return group.together.outputs if isinstance(group.together, GroupWeights) else None


class Step:
    """Computes `model(tokens, cache=cache, hidden_only=True)` for one token of every row."""

    def __init__(self, model: Transformer, layers: list[Layer]):
        self.model, self.layers = model, layers

    def __call__(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """tokens (B, 1) -> (B, 1, D)."""
        model, (B, _) = self.model, tokens.shape
        attn = model.blocks[0].attn
        assert isinstance(attn, Attention)
        E, scale, softcap = attn.head_dim, attn.scale, attn.softcap
        x = model.embed_tokens(tokens)  # (B, 1, D)
        context = forward_context(model.config, x, cache=cache)
        x = model.embed_positions(x, context, None)
        rotary, mask = context.full.rotary, context.full.masks[0].mask
        rotate: Callable[..., tuple[Tensor, Tensor]] = rotate_both
        if rotary is not None and 2 * rotary[0].shape[-1] == E:
            rotate, rotary = fused.turn_widened, fused.widened(*rotary)
        for i, layer in enumerate(self.layers):
            q, k, v = layer.qkv(layer.attn_norm(x))
            q = q.view(B, -1, 1, E)  # (B, H, 1, E)
            k, v = k.view(B, -1, 1, E), v.view(B, -1, 1, E)  # (B, K, 1, E)
            if layer.q_norm is not None and layer.k_norm is not None:
                q, k = layer.q_norm(q), layer.k_norm(k)
            if rotary is not None:
                q, k = rotate(q, k, *rotary)
            k, v = cache.write(i, k, v)  # (B, K, S, E)
            y = attend(q.to(k.dtype), k, v, mask, False, scale, softcap)  # (B, H, 1, E)
            x = x + layer.o(y.view(B, 1, -1).to(x.dtype))[0]
            first, *gated = layer.hidden(layer.mlp_norm(x))
            h = layer.act(first)
            x = x + layer.down(h * gated[0] if gated else h)[0]
        cache.advance(1)
        return x if model.norm is None else model.norm(x)
