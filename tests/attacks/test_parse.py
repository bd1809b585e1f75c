import dataclasses

import pytest

from rlpips.attacks import APGD, PGD, SSA, StAdv, parse_attack


@pytest.mark.parametrize(
    ("text", "attack"),
    [
        ("linf:4/255:50", PGD("linf", 4 / 255, 50)),
        ("l2:1.0:7", PGD("l2", 1.0, 7)),
        ("linf:0.1:30:2", PGD("linf", 0.1, 30, restarts=2)),
        ("apgd-linf:8/255:10", APGD("linf", 8 / 255, 10)),
        ("apgd-l2:2:10:3", APGD("l2", 2.0, 10, restarts=3)),
        ("ssa:4/255:5", SSA("linf", 4 / 255, 5)),
        ("stadv:0.5:20", StAdv(0.5, 20)),
    ],
)
def test_attacks_are_read_from_text(text, attack):
    assert parse_attack(text) == attack
    assert type(parse_attack(text)) is type(attack)
    assert parse_attack(text, seed=3) == dataclasses.replace(attack, seed=3)


@pytest.mark.parametrize(
    "text",
    ["", "linf", "linf:4/255", "linf:x:5", "linf:1/0:5", "linf:1:2:3:4", "l1:1:5", "stadv:1:5:2", "linf:1:0",
     "linf:1e999:3", "linf:1e99999999:3", "linf:nan:3", "linf:-1:3", "linf:inf/inf:3", "linf:1/:3", "linf:1/2/3:3",
     "linf:1e38:3", "linf:1:9999999", "linf:1:3:9999999", f"linf:1:{'9' * 5000}", "linf\n:1:3"],
)  # fmt: skip
def test_text_that_is_no_attack_is_refused(text):
    with pytest.raises(ValueError, match="is not an attack|is no attack|must be at least 1") as raised:
        parse_attack(text)
    assert len(str(raised.value)) < 200
    assert "\n" not in str(raised.value)
