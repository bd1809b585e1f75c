"""The command `rlpips train`."""

import argparse
import dataclasses
import logging
import sys
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from rlpips.cli.metrics import load_metric
from rlpips.cli.options import add_device_option, positive
from rlpips.cli.output import tell
from rlpips.training.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from rlpips.attacks.metrics import Metric

_MOST_ASIDE = 200  # triplets to validate on, from photos


def add_train(commands: Any) -> None:
    """Add the command to those of `rlpips`."""
    command = commands.add_parser(
        "train",
        help="train a metric on triplets",
        description="Train a metric on triplets that people or other metrics have judged, with or without an "
        "attacker. The run's folder OUT keeps the recipe, a log and the scores. The result is "
        "OUT/metric.safetensors, for --weights of all other commands. To go on with a run that was "
        "interrupted, give the same command again.",
        epilog="Options that are not given have the recipe's value. 'torchrun -m rlpips train ...' shares "
        "the work among processes or GPUs.",
    )
    group = command.add_argument_group("data")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--data", type=Path, metavar="DIR", help="a data set in BAPPS' layout: a folder that holds 2afc/"
    )
    source.add_argument(
        "--photos",
        type=Path,
        metavar="DIR",
        help="a folder of photos to make triplets from; needs --teachers",
    )
    group.add_argument(
        "--subsets", nargs="+", metavar="SUBSET", help="subsets of --data to train on (all under train)"
    )
    group.add_argument(
        "--count",
        type=positive,
        default=12000,
        metavar="N",
        help="how many triplets to make from --photos (12000)",
    )
    group.add_argument(
        "--size", type=positive, default=64, metavar="N", help="pixels of a side of these triplets (64)"
    )
    group.add_argument("--distortions", nargs="+", metavar="NAME", help="distortions of these triplets (all)")
    group.add_argument(
        "--validation",
        type=Path,
        metavar="DIR",
        help="a data set to validate on (by default, that of --data); with --photos also a folder of photos "
        "(by default, every tenth photo is kept aside for validation)",
    )
    group.add_argument(
        "--validation-subsets",
        nargs="+",
        metavar="SUBSET",
        help="subsets to validate on (all under val, if there are any)",
    )
    group.add_argument(
        "--validation-limit",
        type=positive,
        default=500,
        metavar="N",
        help="the most triplets to validate on (500)",
    )
    group.add_argument(
        "--teachers",
        nargs="+",
        default=[],
        metavar="METRIC",
        help="metrics to learn from, as for 'evaluate --weights', or names of 'triplets --panel': the first "
        "sets the distances, and all together judge the triplets that nobody has judged",
    )
    group.add_argument("--out", type=Path, required=True, metavar="OUT", help="the run's folder")

    recipe = command.add_argument_group("recipe")
    recipe.add_argument(
        "--recipe",
        default="lpips",
        metavar="NAME",
        help="lpips (the default), r-lpips, or robust; the options below change it",
    )
    _add_recipe_options(recipe)

    group = command.add_argument_group("machine")
    add_device_option(group)
    group.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read data (0)")
    group.add_argument(
        "--parts",
        type=positive,
        default=1,
        metavar="N",
        help="compute a batch in this many parts, to save memory (1)",
    )
    group.add_argument("--tensorboard", action="store_true", help="also write a log for TensorBoard")
    command.set_defaults(run=_train)


def _add_recipe_options(group: Any) -> None:
    """Add an option for each field of a recipe."""
    types = get_type_hints(Recipe)
    for field in dataclasses.fields(Recipe):
        group.add_argument(
            "--" + field.name.replace("_", "-"),
            dest=f"recipe_{field.name}",
            default=None,
            help=field.metadata["text"],
            **_option_arguments(types[field.name], field),
        )


def _option_arguments(kind: Any, field: "dataclasses.Field[Any]") -> dict[str, Any]:
    """Return how argparse reads a value of a field's type."""
    if field.metadata["choices"]:
        return {"choices": field.metadata["choices"]}
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if kind is int:
        return {"type": positive if field.metadata["least"] == 1 else int, "metavar": "N"}
    if kind in (float, float | None):
        return {"type": _number, "metavar": "X"}
    if kind == tuple[float, float]:
        return {"type": _number, "metavar": "X", "nargs": 2}
    arguments = {"metavar": field.name.upper()}
    return {**arguments, "nargs": "+"} if kind == tuple[str, ...] else arguments


def _number(text: str) -> float:
    """Read a number, or a fraction such as 4/255."""
    return float(Fraction(text))


_number.__name__ = "number"  # which argparse names in its complaint


def _train(options: argparse.Namespace) -> int:
    from rlpips.training.named_recipes import RECIPES

    if options.recipe not in RECIPES:
        raise ValueError(f"there is no recipe {options.recipe!r}; the recipes are {', '.join(RECIPES)}")
    names = [field.name for field in dataclasses.fields(Recipe)]
    given = {name: getattr(options, f"recipe_{name}") for name in names}
    changes: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if v is not None
    }
    recipe = dataclasses.replace(RECIPES[options.recipe], **changes)
    logger = logging.getLogger("rlpips.training")
    level = logger.level
    logger.setLevel(logging.INFO)  # to show how long the run takes, and the scores before and after
    try:
        return _run(options, recipe)
    except KeyboardInterrupt:
        tell("interrupted; run the same command to go on")
        raise
    finally:
        logger.setLevel(level)


def _run(options: argparse.Namespace, recipe: Recipe) -> int:
    from rlpips.system.processes import torchrun_group
    from rlpips.training.loop import train
    from rlpips.training.settings import Settings

    data, description = _data(options, recipe.seed)
    validation = _validation(options, recipe.seed)
    with torchrun_group(options.device) as (processes, device):
        settings = Settings(
            device=device,
            workers=options.workers,
            parts=options.parts,
            validation_limit=options.validation_limit,
            tensorboard=options.tensorboard,
        )
        path = train(
            recipe,
            data,
            options.out,
            validation=validation,
            teachers={text: _load_teacher(text, device) for text in options.teachers},
            settings=settings,
            description=description,
        )
    if processes.rank == 0:
        sys.stdout.write(f"{path}\n")
    return 0


def _load_teacher(text: str, device: "torch.device") -> "Metric":
    """Build a metric of images in [-1, 1] from a panel's name, or from what 'rlpips evaluate' takes."""
    from rlpips.data.panel import METRICS

    if text not in METRICS:
        return load_metric(text, device)
    metric = METRICS[text]()
    return lambda a, b: metric((a + 1) / 2, (b + 1) / 2)


def _data(options: argparse.Namespace, seed: int) -> tuple[Any, dict[str, Any]]:
    """Return the triplets to train on, and a description of them for the run's metadata."""
    if options.photos is not None:
        from rlpips.data.triplets import PhotoTriplets

        if not options.teachers:
            raise ValueError(
                "nobody has judged triplets made from --photos; name metrics that do with --teachers"
            )
        photos = PhotoTriplets(
            options.photos,
            options.count,
            size=options.size,
            seed=seed,
            distortions=options.distortions,
            aside=None if options.validation or options.validation_subsets else False,
        )
        return photos, dict(photos.description)
    from rlpips.data.judgements import TwoAFC

    subsets = options.subsets
    if subsets is None:
        folder = options.data / "2afc" / "train"
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder}: there is no such folder")
        subsets = sorted(f"train/{path.name}" for path in folder.glob("[!.]*") if path.is_dir())
        if not subsets:
            raise ValueError(f"{folder} holds no subsets; name others with --subsets")
    dataset = TwoAFC(options.data, subsets)
    return dataset, {"folder": str(options.data.resolve()), "subsets": list(dataset.subsets)}


def _validation(options: argparse.Namespace, seed: int) -> Any:
    from rlpips.data.judgements import TwoAFC

    own = not options.validation and not options.validation_subsets
    if options.photos and (own or (options.validation and not (options.validation / "2afc").is_dir())):
        from rlpips.data.triplets import PhotoTriplets

        return PhotoTriplets(
            options.photos if own else options.validation,
            min(options.validation_limit, _MOST_ASIDE),
            size=options.size,
            seed=seed,
            distortions=options.distortions,
            aside=True if own else None,
        )
    root = options.validation or options.data
    given = options.validation or options.validation_subsets
    if root is None or not (given or (root / "2afc" / "val").is_dir()):
        return None
    return TwoAFC(root, options.validation_subsets)
