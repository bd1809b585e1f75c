"""The recipe: everything that decides how a metric is trained, except the data.

This module does not import torch: `rlpips train --help` makes its options from the fields below.
"""

import dataclasses
import inspect
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from rlpips._choices import NETS

if TYPE_CHECKING:
    import numpy as np

    from rlpips.attacks.base import Attack

T = TypeVar("T")


def option(default: T, text: str, *, choices: tuple[str, ...] = (), least: float | None = None) -> T:
    """Define a field of a recipe.

    Args:
        default: its default value.
        text: what it means, for the command line and for the documentation.
        choices: all values that are allowed.
        least: the smallest value that is allowed; infinity is then refused, too.
    """
    metadata = {"text": text, "choices": choices, "least": least}
    field: T = dataclasses.field(default=default, metadata=metadata)
    return field


@dataclass(frozen=True)
class Recipe:
    """How a metric is trained. The defaults are LPIPS' published recipe (Zhang et al. 2018).

    Raises:
        ValueError: a value is out of range or contradicts another one.
    """

    net: str = option("alex", "the backbone", choices=NETS)
    weights: str = option(
        "imagenet",
        "where to start: 'imagenet' is an ImageNet backbone with random heads, as in LPIPS; else a name, a "
        "file or the folder of a run, as for rlpips.LPIPS",
    )
    mode: str = option(
        "natural",
        "'natural' trains on triplets as they are; 'adversarial' on attacked ones (R-LPIPS, Ghazanfari et "
        "al. 2023); 'contrastive' learns to tell a reference's attacked copy and its judged versions from "
        "other references (InfoNCE, van den Oord et al. 2018)",
        choices=("natural", "adversarial", "contrastive"),
    )
    train: str = option(
        "heads",
        "'heads' trains the heads; 'all' trains backbone and heads; 'scratch' trains both from random "
        "weights and ignores 'weights'",
        choices=("heads", "all", "scratch"),
    )
    dropout: bool = option(True, "dropout before the heads while they are trained")
    pixels: int = option(
        0,
        "how many layers of pixels the metric gets, at most 2: block transforms of the image, at one scale "
        "or at two, which are harder to fool than a backbone",
        least=0,
    )
    floors: float = option(
        0.0,
        "the floor of each layer, as a multiple of the mean length of its features: shorter features count "
        "less; 0 adds none",
        least=0,
    )
    perturb: tuple[str, ...] = option(
        ("x0",),
        "which images to attack: x0, x1, ref, x0+x1, or self, which pushes a reference away from itself; "
        "several of them share each batch equally",
    )
    attack: str = option(
        "linf", "the kind of attack: linf or l2 (both PGD), apgd-linf, apgd-l2, ssa or stadv"
    )
    eps: float = option(
        4 / 255,
        "the budget of the attack, on the [0, 1] scale, such as 4/255; for stadv, in pixels",
        least=0,
    )
    eps_range: tuple[float, float] = option(
        (1.0, 1.0), "each step draws its budget uniformly between these two multiples of eps", least=0
    )
    stadv: float = option(
        0.0,
        "the share of steps whose attack moves pixels instead, by StAdv, with a budget drawn uniformly "
        "between a quarter of a pixel and one pixel",
        least=0,
    )
    steps: int = option(10, "gradient steps of the attack", least=1)
    step_size: float | None = option(
        None, "how far each of these steps goes (by default, the attack's own choice)"
    )
    ranking: str = option(
        "network",
        "how two distances become a prediction of what people choose: 'network' learns it, as LPIPS does; "
        "'ratio' uses 4 times the logarithm of their ratio as the logit",
        choices=("network", "ratio"),
    )
    margin: float = option(
        0.0,
        "how much larger than needed the logit of the right answer must be: the ranking loss is computed "
        "from logits that are this much worse",
        least=0,
    )
    clean: float = option(
        0.0, "weight of the ranking loss on clean triplets, beside that on attacked triplets", least=0
    )
    distill: float = option(
        0.0, "weight of the mean squared difference from the first teacher's log distances", least=0
    )
    distill_attacked: float = option(0.0, "the same weight for attacked triplets", least=0)
    inflation: float = option(
        0.0,
        "weight of the distance from a reference to its attacked copy; 'self' in perturb needs one; the unit "
        "of distance is the first teacher's median distance, if there are teachers",
        least=0,
    )
    lr: float = option(1e-4, "the learning rate of AdamW")
    head_lr: float = option(1.0, "factor on the learning rate of the heads")
    bias_lr: float = option(1.0, "factor on the learning rate of the backbone's biases")
    beta1: float = option(0.5, "beta1 of AdamW")
    weight_decay: float = option(0.0, "weight decay of AdamW, which is decoupled from the gradient", least=0)
    clip: float = option(
        math.inf, "the largest norm of the gradient over all parameters; a longer gradient is scaled down"
    )
    schedule: str = option(
        "linear",
        "'linear' keeps the learning rate for 'epochs' and then lowers it once in each of 'decay_epochs'; "
        "'cosine' lowers it over all epochs",
        choices=("linear", "cosine"),
    )
    warmup: int = option(
        0, "steps in which the learning rate rises linearly at first, at most a fifth of the run", least=0
    )
    epochs: int = option(5, "passes over the data at the full learning rate", least=0)
    decay_epochs: int = option(5, "more passes, while the learning rate falls", least=0)
    minutes: float | None = option(
        None,
        "train for this many minutes instead of epochs; teachers and validation do not count. The learning "
        "rate then follows the clock, so two such runs differ in their last digits",
    )
    batch: int = option(50, "triplets in a step, over all processes", least=1)
    ema: float = option(
        0.0,
        "decay of a moving average of the weights, which is kept instead of the last weights; while the "
        "average is young its decay is smaller, so that it covers at most a ninth of the run so far; 0 keeps "
        "the last weights",
    )
    symmetries: bool = option(
        False,
        "turn and mirror each triplet at random; with teachers, always in the same way, which the teachers "
        "see, too",
    )
    precision: str = option(
        "float32",
        "precision of the backbone; sums and losses are always in float32",
        choices=("float32", "bfloat16"),
    )
    patience: int = option(
        0,
        "stop after this many epochs without a better validation score, and keep the best weights; 0 never "
        "stops early and keeps the last weights",
        least=0,
    )
    seed: int = option(0, "seed of everything that is random", least=0)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_field(field, getattr(self, field.name))
        for name in ("lr", "head_lr", "bias_lr", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        if self.stadv > 1:
            raise ValueError(f"stadv={self.stadv} must be at most 1")
        if self.pixels > 2:
            raise ValueError(f"pixels={self.pixels} must be at most 2")
        for name in ("beta1", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1)")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise ValueError(f"minutes={self.minutes} must be positive and finite")
        if self.eps_range[0] > self.eps_range[1]:
            raise ValueError(f"eps_range={self.eps_range} must rise")
        if self.epochs + self.decay_epochs < 1:
            raise ValueError("epochs and decay_epochs are both 0")
        self._check_attack()

    def _check_attack(self) -> None:
        from rlpips.attacks.objectives import PERTURB

        for target in self.perturb:
            if target not in (*PERTURB, "self"):
                raise ValueError(f"perturb={target!r} is unknown; choose {', '.join((*PERTURB, 'self'))}")
        if not self.perturb:
            raise ValueError("perturb is empty")
        if self.attack == "ssa" and not {"x0", "x1"} >= set(self.perturb):
            raise ValueError(f"ssa attacks x0 or x1, not {', '.join(self.perturb)}")
        if ("self" in self.perturb) != (self.inflation > 0):
            raise ValueError("'self' in perturb and a positive inflation need each other")
        if self.perturb == ("self",) and not self.clean:
            raise ValueError("perturb='self' alone needs a positive weight of clean triplets (clean)")
        if self.mode == "contrastive" and self.perturb != ("ref",):
            raise ValueError("mode='contrastive' attacks references: perturb must be 'ref'")
        self.make_attack(self.eps, 0)  # which checks attack, eps, steps and step_size

    @property
    def total_epochs(self) -> int:
        """The number of passes over the data."""
        return self.epochs + self.decay_epochs

    def draw_attack(self, rng: "np.random.Generator") -> "Attack":
        """Draw the budget and the seed of one step's attack, and make it."""
        eps, seed = self.eps * float(rng.uniform(*self.eps_range)), int(rng.integers(2**31))
        if self.stadv and rng.random() < self.stadv:
            from rlpips.attacks.stadv import StAdv

            return StAdv(float(rng.uniform(0.25, 1)), self.steps, seed=seed)
        return self.make_attack(eps, seed)

    def make_attack(self, eps: float, seed: int) -> "Attack":
        """Make an attack of the recipe's kind."""
        from rlpips.attacks.parse import parse_attack

        attack = parse_attack(f"{self.attack}:{eps!r}:{self.steps}", seed=seed)
        return attack if self.step_size is None else dataclasses.replace(attack, step_size=self.step_size)  # type: ignore[type-var]

    def to_json(self) -> dict[str, Any]:
        """Return the values for `json.dumps`; an infinite value becomes None."""
        values = dataclasses.asdict(self)
        return {
            k: None if v == math.inf else list(v) if isinstance(v, tuple) else v for k, v in values.items()
        }


def _check_field(field: "dataclasses.Field[Any]", value: Any) -> None:
    """Hold a value to the choices and to the least value of its field."""
    choices, least = field.metadata["choices"], field.metadata["least"]
    if choices and value not in choices:
        raise ValueError(f"{field.name}={value!r} is unknown; choose {', '.join(choices)}")
    if least is not None:
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(least <= number < math.inf for number in numbers):
            raise ValueError(f"{field.name}={value} must be at least {least} and finite")


if Recipe.__doc__:  # there is none under python -OO
    _fields = "\n".join(
        f"    {field.name}: {field.metadata['text']}." for field in dataclasses.fields(Recipe)
    )
    Recipe.__doc__ = f"{inspect.cleandoc(Recipe.__doc__)}\n\nAttributes:\n{_fields}"
