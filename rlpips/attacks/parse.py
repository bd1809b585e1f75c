"""Attacks as text, for command lines and recipes."""

from rlpips.attacks.apgd import APGD
from rlpips.attacks.base import Attack
from rlpips.attacks.pgd import PGD
from rlpips.attacks.ssa import SSA
from rlpips.attacks.stadv import StAdv

_LARGEST = 1e6  # of EPS, STEPS and RESTARTS; a larger number is a typing error


def parse_attack(text: str, *, seed: int = 0) -> Attack:
    """Read an attack from text, `NAME:EPS:STEPS` or `NAME:EPS:STEPS:RESTARTS`.

    Args:
        text: NAME is 'linf' or 'l2' (PGD), 'apgd-linf', 'apgd-l2', 'ssa' (in l-inf) or 'stadv' (which takes
            no RESTARTS). EPS is a number or a fraction, on the [0, 1] scale, or in pixels for 'stadv'. EPS,
            STEPS and RESTARTS are at most 1e6.
        seed: the attack's seed.

    Raises:
        ValueError: the text is not an attack.

    >>> parse_attack("linf:4/255:50").steps
    50
    """
    name, *numbers = text.split(":")
    shown = repr(text if len(text) <= 60 else f"{text[:57]}...")
    try:
        numerator, _, denominator = numbers[0].partition("/")
        eps, steps = float(numerator) / float(denominator or 1), int(numbers[1])
        restarts = int(numbers[2]) if len(numbers) > 2 else 1
    except (ValueError, IndexError, ZeroDivisionError):
        eps, steps, restarts = 0.0, 0, 0
    if not steps or len(numbers) > (2 if name == "stadv" else 3) or numbers[0].endswith("/"):
        raise ValueError(f"{shown} is not an attack; write NAME:EPS:STEPS[:RESTARTS], such as linf:4/255:50")
    if not (0 <= eps <= _LARGEST and steps <= _LARGEST and restarts <= _LARGEST):
        raise ValueError(
            f"{shown} is not an attack; EPS must lie in 0 ... 1e6, STEPS and RESTARTS must be at most 1e6"
        )
    if name == "linf":
        return PGD("linf", eps, steps, restarts=restarts, seed=seed)
    if name == "l2":
        return PGD("l2", eps, steps, restarts=restarts, seed=seed)
    if name == "apgd-linf":
        return APGD("linf", eps, steps, restarts=restarts, seed=seed)
    if name == "apgd-l2":
        return APGD("l2", eps, steps, restarts=restarts, seed=seed)
    if name == "ssa":
        return SSA("linf", eps, steps, restarts=restarts, seed=seed)
    if name == "stadv":
        return StAdv(eps, steps, seed=seed)
    raise ValueError(f"{shown} is not an attack; NAME must be linf, l2, apgd-linf, apgd-l2, ssa or stadv")
