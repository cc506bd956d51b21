"""transformers' Llama in float64 throughout, as a reference that rounding does not limit.

`model.double()` is not enough: the library computes the RMSNorm, the rotary angles (and their
frequencies) and, in its eager attention, the softmax in float32 whatever the model's dtype.
`exact` replaces the first two and asks for `sdpa`, whose softmax keeps the dtype of its input.
Its own loss casts the logits to float32 too, so take the cross-entropy of the logits instead.
"""

from types import MethodType
from unittest import mock

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding


def exact(model):
    """The same model in float64, changed in place: weights, norms, angles, softmax."""
    model.double()
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = MethodType(norm, module)
        if isinstance(module, LlamaRotaryEmbedding):
            module.inv_freq = exact_frequencies(module)
            module.forward = MethodType(rotary, module)
    model.set_attn_implementation("sdpa")
    return model


def norm(self, x):
    mean = x.square().mean(-1, keepdim=True)
    return self.weight * (x / torch.sqrt(mean + self.variance_epsilon))


@torch.no_grad()
def rotary(self, x, position_ids):
    angle = position_ids[..., None].double() * self.inv_freq  # (B, T, E/2)
    angle = torch.cat((angle, angle), dim=-1)  # (B, T, E)
    return angle.cos() * self.attention_scaling, angle.sin() * self.attention_scaling


def exact_frequencies(module):
    """The library's own formula, run with float64 where it names float32."""
    if module.rope_type == "default":
        formula = module.compute_default_rope_parameters
    else:
        formula = ROPE_INIT_FUNCTIONS[module.rope_type]
    with mock.patch.object(torch, "float", torch.float64):
        exact, _ = formula(module.config)
    # Fails here if the formula no longer says torch.float, or says it somewhere else as well.
    assert exact.dtype == torch.float64, exact.dtype
    torch.testing.assert_close(exact.float(), module.original_inv_freq.float(), rtol=1e-6, atol=0)
    assert not torch.equal(exact, exact.float().double()), "the frequencies were rounded"
    return exact
