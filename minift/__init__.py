"""minift: fine-tune open language models with four dependencies and code you can read.

The public interface and nothing else. Importing it imports nothing: each name is found when it is
first used, so that a program that only asks for help or downloads a file never waits for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from minift.checkpoints.hub.assets import download as download
    from minift.checkpoints.labels import with_labels as with_labels
    from minift.checkpoints.open import load as load
    from minift.checkpoints.save import save as save
    from minift.data.read import open_records as open_records
    from minift.errors import ConfigError as ConfigError
    from minift.errors import DataError as DataError
    from minift.errors import FormatError as FormatError
    from minift.errors import Notice as Notice
    from minift.generation.decode import generate as generate
    from minift.generation.sampling import Sampling as Sampling
    from minift.interop.adapter_files import load_adapter as load_adapter
    from minift.interop.adapter_files import save_adapter as save_adapter
    from minift.interop.export import export as export
    from minift.peft.adapters import activated as activated
    from minift.peft.adapters import detach as detach
    from minift.peft.adapters import disabled as disabled
    from minift.peft.adapters import rows as rows
    from minift.peft.adapters import use as use
    from minift.peft.bitfit import BitFit as BitFit
    from minift.peft.bottleneck import Bottleneck as Bottleneck
    from minift.peft.ia3 import IA3 as IA3
    from minift.peft.lora import LoRA as LoRA
    from minift.peft.merge import combine as combine
    from minift.peft.merge import merge as merge
    from minift.peft.merge import merge_error as merge_error
    from minift.peft.methods import attach as attach
    from minift.peft.prefix import Prefix as Prefix
    from minift.peft.prompt import Prompt as Prompt
    from minift.peft.ptuning import PTuning as PTuning
    from minift.train.config import TrainConfig as TrainConfig
    from minift.train.evaluation.labels import class_accuracy as class_accuracy
    from minift.train.evaluation.labels import label_accuracy as label_accuracy
    from minift.train.loop import fit as fit
    from minift.train.objectives.classification import Classification as Classification
    from minift.train.objectives.sft import SFT as SFT

PUBLIC = {
    "download": "minift.checkpoints.hub.assets",
    "with_labels": "minift.checkpoints.labels",
    "load": "minift.checkpoints.open",
    "save": "minift.checkpoints.save",
    "open_records": "minift.data.read",
    "ConfigError": "minift.errors",
    "DataError": "minift.errors",
    "FormatError": "minift.errors",
    "Notice": "minift.errors",
    "generate": "minift.generation.decode",
    "Sampling": "minift.generation.sampling",
    "detach": "minift.peft.adapters",
    "activated": "minift.peft.adapters",
    "disabled": "minift.peft.adapters",
    "rows": "minift.peft.adapters",
    "use": "minift.peft.adapters",
    "BitFit": "minift.peft.bitfit",
    "Bottleneck": "minift.peft.bottleneck",
    "export": "minift.interop.export",
    "load_adapter": "minift.interop.adapter_files",
    "save_adapter": "minift.interop.adapter_files",
    "IA3": "minift.peft.ia3",
    "LoRA": "minift.peft.lora",
    "combine": "minift.peft.merge",
    "merge": "minift.peft.merge",
    "merge_error": "minift.peft.merge",
    "attach": "minift.peft.methods",
    "Prefix": "minift.peft.prefix",
    "Prompt": "minift.peft.prompt",
    "PTuning": "minift.peft.ptuning",
    "Classification": "minift.train.objectives.classification",
    "class_accuracy": "minift.train.evaluation.labels",
    "label_accuracy": "minift.train.evaluation.labels",
    "TrainConfig": "minift.train.config",
    "fit": "minift.train.loop",
    "SFT": "minift.train.objectives.sft",
}


def __getattr__(name: str) -> object:
    if name not in PUBLIC:
        raise AttributeError(f"module 'minift' has no attribute {name!r}")
    value = getattr(importlib.import_module(PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*PUBLIC, "__version__"])
