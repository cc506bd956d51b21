import pytest

from minift.errors import ConfigError
from minift.model.config import ModelConfig, RopeScaling

SIZES = {"vocab": 50, "dim": 24, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 6, "ff": 20}
GOOD = {"family": "llama", "context": 64, **SIZES}


@pytest.mark.parametrize(("field", "value"), [
    ("vocab", 0), ("layers", 2**40), ("kv_heads", 3), ("head_dim", 5), ("norm_eps", 0.0),
    ("rope_base", 0.5), ("rope_base", float("inf")), ("norm_eps", float("nan")),
])  # fmt: skip
def test_a_shape_that_cannot_be_is_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        ModelConfig(**GOOD | {field: value})


def test_all_problems_come_at_once():
    with pytest.raises(ConfigError, match=r"vocab.*head_dim"):
        ModelConfig(**GOOD | {"vocab": 0, "head_dim": 5})


def test_rope_scaling_has_its_ranges():
    RopeScaling(8.0, 1.0, 4.0, 8192)
    with pytest.raises(ConfigError):
        RopeScaling(8.0, 4.0, 1.0, 8192)
