"""The command `rlpips weights`."""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpips.cli.output import aligned, tell

if TYPE_CHECKING:
    from rlpips.hub.registry import WeightsEntry


def add_weights(commands: Any) -> None:
    """Add the command to those of `rlpips`."""
    command = commands.add_parser(
        "weights",
        help="list, download, verify or import named weights",
        description="List, download, verify or import the weights that have a name.",
    )
    actions = command.add_subparsers(title="actions", required=True, metavar="ACTION")

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        action: argparse.ArgumentParser = actions.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + "."
        )
        action.set_defaults(run=run)
        return action

    action = add("list", _list, "list all names, and which of them are on this machine")
    action.add_argument("--json", action="store_true", help="print everything that is known of them as JSON")
    action = add("path", _path, "print the file on this machine that holds NAME")
    action.add_argument("name", metavar="NAME", help="a name from 'rlpips weights list'")
    action = add("download", _download, "download weights that are not on this machine")
    action.add_argument("names", metavar="NAME", nargs="+", help="names from 'rlpips weights list'")
    action = add("verify", _verify, "check the digests of files on this machine")
    action.add_argument(
        "names", metavar="NAME", nargs="*", help="names to check (default: all on this machine)"
    )
    action = add("import", _import, "copy weights from a file that you brought yourself")
    action.add_argument("name", metavar="NAME", help="the name that the file has in 'rlpips weights list'")
    action.add_argument("file", metavar="FILE", type=Path, help="the file")


def _list(options: argparse.Namespace) -> int:
    from rlpips.hub import registry

    if options.json:
        entries = [vars(entry) for entry in registry.list_weights().values()]
        print(json.dumps(entries, indent=2))
        return 0
    from rlpips.hub import store

    rows = [("name", "kind", "net", "on this machine", "trained")]
    for entry in registry.list_weights().values():
        path = store.path_of(entry)
        where = "no" if not path.exists() else str(path) if entry.urls else "ships with rlpips"
        rows.append((entry.name, entry.kind, entry.net, where, _trained(entry)))
    print("\n".join(aligned(rows)))
    return 0


def _trained(entry: "WeightsEntry") -> str:
    """Say in a few words what an entry was trained on."""
    recipe: dict[str, Any] = entry.recipe
    if recipe.get("mode") == "adversarial":
        what = {"heads": "heads", "all": "whole network"}[recipe["train"]]
        return f"{what}, adversarially, {recipe['attack']} on {recipe['perturb']}"
    return f"on {recipe['data']}"


def _path(options: argparse.Namespace) -> int:
    from rlpips.hub import store
    from rlpips.hub.registry import entry

    path = store.path_of(entry(options.name))
    if not path.exists():
        raise FileNotFoundError(
            f"{options.name} is not on this machine; its file would be {path}. "
            f"Download it with: rlpips weights download {options.name}"
        )
    print(path)
    return 0


def _download(options: argparse.Namespace) -> int:
    from rlpips.hub import store

    def download(entry: "WeightsEntry") -> str:
        path = store.ensure(entry)
        store.verify(entry)
        return str(path)

    return _for_each(options.names, download)


def _verify(options: argparse.Namespace) -> int:
    from rlpips.hub import registry, store

    def verify(entry: "WeightsEntry") -> str:
        store.verify(entry)
        return f"{entry.name}: OK"

    names = options.names or [
        name for name, entry in registry.list_weights().items() if store.path_of(entry).exists()
    ]
    return _for_each(names, verify)


def _import(options: argparse.Namespace) -> int:
    from rlpips.hub import store

    return _for_each([options.name], lambda entry: str(store.import_file(entry, options.file)))


def _for_each(names: Iterable[str], action: Callable[["WeightsEntry"], str]) -> int:
    """Print what `action` returns for each named checkpoint; if one fails, go on with the rest."""
    from rlpips.hub.registry import entry

    status = 0
    for found in [entry(name) for name in names]:
        try:
            done = action(found)
        except (OSError, ValueError, RuntimeError) as error:
            tell(f"error: {error}")
            status = 1
            continue
        print(done, flush=True)
    return status
