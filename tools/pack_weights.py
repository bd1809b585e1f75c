"""Put a metric that `rlpips train` made among the weights that ship: `python tools/pack_weights.py NAME RUN`.

NAME is an entry of weights/registry.json that ships: a whole metric becomes a file of half precision, heads
replace those of that name in the file that several share. The registry's sizes, digests and recipe follow.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from rlpips.backbones import ARCHITECTURES
from rlpips.hub import checkpoints
from rlpips.hub.tensorfiles import load_tensors, read_metadata
from rlpips.system.files import write_atomically

WEIGHTS = Path(__file__).parents[1] / "weights"


def recipe(metadata: dict[str, Any]) -> dict[str, Any]:
    """Say for the registry how a run on photos made its metric."""
    options, data = dict(metadata["recipe"]), dict(metadata["data"])
    count, teachers = data.pop("count"), ", ".join(metadata["teachers"])
    photos = data["photos"].partition(" ")[0]
    made = (
        f"{count} triplets of {photos} photos, {len(data['distortions'])} distortions, judged by {teachers}"
    )
    return {
        "data": made,
        **{key: options.pop(key) for key in ("train", "mode", "attack")},
        "perturb": ", ".join(options.pop("perturb")),
        "options": options,
        "triplets": data,
        "steps_taken": metadata["steps"],
        "rlpips": metadata["rlpips"],
        "torch": metadata["torch"],
    }


def main() -> None:
    """Write the file and the registry."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("run", type=Path)
    options = parser.parse_args()
    registry = json.loads((WEIGHTS / "registry.json").read_text())
    entry = registry["weights"][options.name]
    contents = checkpoints.read(options.run / "metric.safetensors", ARCHITECTURES[entry["net"]])
    metadata = contents.metadata
    entry["recipe"] = recipe(metadata)
    about = {key: metadata[key] for key in ("recipe", "data", "teachers", "steps", "scores")}
    file = WEIGHTS / entry["file"]
    heads = {f"lin{k}.model.1.weight": value for k, value in enumerate(contents.heads or [])}
    if entry["kind"] == "metric":
        floors = {} if contents.floors is None else {"floors": contents.floors}
        state = {**(contents.backbone or {}), **heads, **floors}
        state = {key: value.half() for key, value in state.items()}
        named = {"name": options.name, **{key: entry[key] for key in ("net", "version", "licence")}}
        checkpoints.save(file, state, {**named, **about})
    else:
        state, others = load_tensors(file), read_metadata(file)
        state |= {f"{options.name}.{key}": value for key, value in heads.items()}
        checkpoints.save(file, state, {**others, options.name: about})
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    for each in registry["weights"].values():
        if each["file"] == entry["file"]:
            each |= {"size": file.stat().st_size, "digest": f"sha256:{digest}"}
    write_atomically(WEIGHTS / "registry.json", (json.dumps(registry, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
