"""minift: fine-tune open language models with four dependencies and code you can read.

The public interface and nothing else. Importing it imports nothing: each name is found when it is
first used, so that a program that only asks for help or downloads a file never waits for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from minift.checkpoints.download import download as download
    from minift.checkpoints.open import load as load
    from minift.checkpoints.save import save as save
    from minift.data.read import open_records as open_records
    from minift.errors import ConfigError as ConfigError
    from minift.errors import DataError as DataError
    from minift.errors import FormatError as FormatError
    from minift.generation.decode import generate as generate
    from minift.generation.sampling import Sampling as Sampling
    from minift.peft.attach import disabled as disabled
    from minift.peft.attach import merge as merge
    from minift.peft.attach import merge_error as merge_error
    from minift.peft.export import export as export
    from minift.peft.files import load_adapter as load_adapter
    from minift.peft.files import save_adapter as save_adapter
    from minift.peft.lora import LoRA as LoRA
    from minift.peft.methods import attach as attach
    from minift.train.evaluate import label_accuracy as label_accuracy
    from minift.train.loop import TrainConfig as TrainConfig
    from minift.train.loop import fit as fit
    from minift.train.objectives import SFT as SFT

PUBLIC = {
    "download": "minift.checkpoints.download",
    "load": "minift.checkpoints.open",
    "save": "minift.checkpoints.save",
    "open_records": "minift.data.read",
    "ConfigError": "minift.errors",
    "DataError": "minift.errors",
    "FormatError": "minift.errors",
    "generate": "minift.generation.decode",
    "Sampling": "minift.generation.sampling",
    "disabled": "minift.peft.attach",
    "merge": "minift.peft.attach",
    "merge_error": "minift.peft.attach",
    "export": "minift.peft.export",
    "load_adapter": "minift.peft.files",
    "save_adapter": "minift.peft.files",
    "LoRA": "minift.peft.lora",
    "attach": "minift.peft.methods",
    "label_accuracy": "minift.train.evaluate",
    "TrainConfig": "minift.train.loop",
    "fit": "minift.train.loop",
    "SFT": "minift.train.objectives",
}


def __getattr__(name: str) -> object:
    if name not in PUBLIC:
        raise AttributeError(f"module 'minift' has no attribute {name!r}")
    value = getattr(importlib.import_module(PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*PUBLIC, "__version__"])
