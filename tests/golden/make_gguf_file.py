"""Make gguf_file.gguf, as the gguf package writes it: every metadata type and tensor kind of ours.

Run in an environment that has gguf and numpy:  python tests/golden/make_gguf_file.py
tests/formats/test_gguf_write.py writes the same pairs and tensors, and wants the same bytes.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np

writer = gguf.GGUFWriter(Path(__file__).with_name("gguf_file.gguf"), "llama")
writer.add_string("made.by", f"gguf {version('gguf')}")
writer.add_uint32("whole", 4_000_000_000)
writer.add_int32("below zero", -7)
writer.add_float32("real", 0.1)
writer.add_bool("yes", True)
writer.add_bool("no", False)
writer.add_string("text", "Ġa naïve 日本 🙂")
writer.add_array("texts", ["a", "", "Ġb"])
writer.add_array("wholes", [1, 2, 300, -1])
writer.add_array("reals", [0.5, -1.0])
writer.add_array("bools", [True, False])
wave = np.sin(np.arange(7 * 96, dtype=np.float32) * 0.37).reshape(7, 96) * 0.8
for kind in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"):
    number = gguf.GGMLQuantizationType[kind]
    data = gguf.quants.quantize(wave, number)
    writer.add_tensor(f"{kind}.weight", data, raw_dtype=number)
writer.add_tensor("vector", wave[0, :5])
writer.add_tensor("cube", wave[:, :6].reshape(7, 2, 3))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
