"""Attacks as text, for command lines and recipes."""

from collections.abc import Mapping

from rlpips.attacks.apgd import APGD
from rlpips.attacks.base import Attack
from rlpips.attacks.pgd import PGD
from rlpips.attacks.ssa import SSA
from rlpips.attacks.stadv import StAdv

_LARGEST = 1e6  # of EPS, STEPS and RESTARTS; a larger number is a typing error


def parse_attack(text: str, *, seed: int = 0) -> Attack:
    """Read an attack from text, `NAME:EPS:STEPS` or `NAME:EPS:STEPSxRESTARTS`.

    Args:
        text: NAME is 'linf' or 'l2' (PGD), 'apgd-linf', 'apgd-l2', 'ssa' (in l-inf) or 'stadv' (which takes
            no RESTARTS). EPS is a number or a fraction, on the [0, 1] scale, or in pixels for 'stadv'. EPS,
            STEPS and RESTARTS are at most 1e6.
        seed: the attack's seed.

    Raises:
        ValueError: the text is not an attack.

    >>> parse_attack("linf:4/255:30x2").restarts
    2
    """
    name, *numbers = text.split(":")
    shown = repr(text if len(text) <= 60 else f"{text[:57]}...")
    if len(numbers) == 3:
        raise ValueError(f"{shown} is not an attack; write 30 steps and 2 restarts as 30x2")
    try:
        numerator, slash, denominator = numbers[0].partition("/")
        eps = float(numerator) / float(denominator if slash else 1)
        first, x, second = numbers[1].partition("x")
        steps, restarts = int(first), int(second) if x else 1
    except (ValueError, IndexError, ZeroDivisionError):
        eps, steps, restarts = 0.0, 0, 0
    if not steps or len(numbers) != 2:
        raise ValueError(
            f"{shown} is not an attack; write NAME:EPS:STEPS or NAME:EPS:STEPSxRESTARTS, "
            "such as linf:4/255:50"
        )
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
    if name == "stadv" and not x:
        return StAdv(eps, steps, seed=seed)
    if name == "stadv":
        raise ValueError(f"{shown} is not an attack; stadv takes no restarts")
    raise ValueError(f"{shown} is not an attack; NAME must be linf, l2, apgd-linf, apgd-l2, ssa or stadv")


def parse_attacks(text: str, *, seed: int = 0) -> dict[str, Attack]:
    """Read an attack with one or several budgets from text, such as `linf:4/255,8/255:30x2`.

    Args:
        text: as for `parse_attack`, but EPS may be several, separated by commas.
        seed: the seed of each attack.

    Returns:
        For each budget the text of the attack with this budget alone, and the attack.

    Raises:
        ValueError: the text is not an attack.

    >>> list(parse_attacks("linf:4/255,8/255:30x2"))
    ['linf:4/255:30x2', 'linf:8/255:30x2']
    """
    name, colon, rest = text.partition(":")
    budgets, second_colon, steps = rest.partition(":")
    texts = [f"{name}{colon}{eps}{second_colon}{steps}" for eps in budgets.split(",")]
    return {each: parse_attack(each, seed=seed) for each in texts}


def with_equal_budgets(attacks: Mapping[str, Attack]) -> dict[str, list[str]]:
    """Group attacks that have the same norm and the same EPS.

    Args:
        attacks: attacks by their text, as `parse_attacks` returns them.

    Returns:
        For each budget that several attacks share, such as 'linf:4/255', the texts of these attacks.

    >>> with_equal_budgets({**parse_attacks("linf:4/255,8/255:9"), **parse_attacks("apgd-linf:4/255:9")})
    {'linf:4/255': ['linf:4/255:9', 'apgd-linf:4/255:9']}
    """
    groups: dict[tuple[str, float], list[str]] = {}
    for text, attack in attacks.items():
        norm = attack.norm if isinstance(attack, PGD) else text.partition(":")[0]
        groups.setdefault((norm, attack.eps), []).append(text)
    return {
        f"{norm}:{texts[0].split(':')[1]}": texts for (norm, _), texts in groups.items() if len(texts) > 1
    }
