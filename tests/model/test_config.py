import pytest

from minift.errors import ConfigError
from minift.model.config import ModelConfig, RopeScaling

SIZES = {"vocab": 50, "dim": 24, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 6, "ff": 20}
GOOD = {"family": "llama", "context": 64, **SIZES}


@pytest.mark.parametrize(("field", "value"), [
    ("vocab", 0), ("layers", 2**40), ("kv_heads", 3), ("rope_dims", 5), ("norm_eps", 0.0),
    ("rope_dims", 8), ("norm", "batch"), ("window", 0), ("logit_softcap", 0.0), ("head", "tail"),
    ("labels", None), ("local", (True,)),
    ("rope_base", 0.5), ("rope_base", float("inf")), ("norm_eps", float("nan")),
])  # fmt: skip
def test_a_shape_that_cannot_be_is_refused(field, value):
    fields = {"head": "label"} if field == "labels" else {field: value}
    with pytest.raises(ConfigError, match=field):
        ModelConfig(**GOOD | fields)


def test_all_problems_come_at_once():
    with pytest.raises(ConfigError, match=r"vocab.*rope_dims"):
        ModelConfig(**GOOD | {"vocab": 0, "head_dim": 5})


def test_rope_scaling_has_its_ranges():
    RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    with pytest.raises(ConfigError, match=r"low 4\.0 and high 1\.0"):
        RopeScaling("llama3", 8.0, 4.0, 1.0, 8192)
    with pytest.raises(ConfigError, match="kind ntk, allowed linear"):
        RopeScaling("ntk")
    with pytest.raises(ConfigError, match="found 2, allowed 3"):
        ModelConfig(**GOOD, rope_scaling=RopeScaling("factors", factors=(1.0, 2.0)))
