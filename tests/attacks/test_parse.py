import dataclasses

import pytest

from rlpips.attacks import APGD, PGD, SSA, StAdv, parse_attack, parse_attacks
from rlpips.attacks.parse import with_equal_budgets


@pytest.mark.parametrize(
    ("text", "attack"),
    [
        ("linf:4/255:50", PGD("linf", 4 / 255, 50)),
        ("l2:1.0:7", PGD("l2", 1.0, 7)),
        ("linf:0.1:30x2", PGD("linf", 0.1, 30, restarts=2)),
        ("apgd-linf:8/255:10", APGD("linf", 8 / 255, 10)),
        ("apgd-l2:2:10x3", APGD("l2", 2.0, 10, restarts=3)),
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
    ["", "linf", "linf:4/255", "linf:x:5", "linf:1/0:5", "linf:1:2:3:4", "l1:1:5", "stadv:1:5x2", "linf:1:0",
     "linf:1e999:3", "linf:1e99999999:3", "linf:nan:3", "linf:-1:3", "linf:inf/inf:3", "linf:1/:3", "linf:1/2/3:3",
     "linf:1e38:3", "linf:1:9999999", "linf:1:3x9999999", f"linf:1:{'9' * 5000}", "linf\n:1:3",
     "linf:1:3:2", "linf:1:3x", "linf:1:x2", "linf:1:3x0", "linf:1:3x2x2", "linf:1,2:3"],
)  # fmt: skip
def test_text_that_is_no_attack_is_refused(text):
    with pytest.raises(ValueError, match="is not an attack|is no attack|must be at least 1") as raised:
        parse_attack(text)
    assert len(str(raised.value)) < 200
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "advice"),
    [("linf:4/255:30:2", "write 30 steps and 2 restarts as 30x2"), ("stadv:1:5x2", "stadv takes no restarts"),
     ("linf:4/255", "such as linf:4/255:50"), ("l1:1:5", "NAME must be linf, l2,")],
)  # fmt: skip
def test_a_wrong_attack_is_told_what_to_write(text, advice):
    with pytest.raises(ValueError, match=f"'{text}' is not an attack.*{advice}"):
        parse_attacks(text)


def test_several_budgets_are_several_attacks():
    assert parse_attacks("apgd-l2:1,0.5:10x3", seed=2) == {
        "apgd-l2:1:10x3": APGD("l2", 1.0, 10, restarts=3, seed=2),
        "apgd-l2:0.5:10x3": APGD("l2", 0.5, 10, restarts=3, seed=2),
    }
    assert parse_attacks("stadv:0.5:20") == {"stadv:0.5:20": StAdv(0.5, 20)}
    assert list(parse_attacks("linf:4/255,4/255:1")) == ["linf:4/255:1"]
    for text in ("linf:4/255,:1", "linf:,:1", "linf:4/255,x:1", "linf:1,2", ""):
        with pytest.raises(ValueError, match="is not an attack"):
            parse_attacks(text)


def test_attacks_are_grouped_by_norm_and_eps():
    texts = ["linf:4/255,8/255:3", "apgd-linf:8/510,8/255:3x2", "ssa:4/255:3", "l2:4/255:3", "stadv:1,2:3",
             "l2:1:3", "apgd-l2:1.0:3"]  # fmt: skip
    attacks = {name: attack for text in texts for name, attack in parse_attacks(text).items()}
    assert with_equal_budgets(attacks) == {
        "linf:4/255": ["linf:4/255:3", "apgd-linf:8/510:3x2", "ssa:4/255:3"],
        "linf:8/255": ["linf:8/255:3", "apgd-linf:8/255:3x2"],
        "l2:1": ["l2:1:3", "apgd-l2:1.0:3"],
    }
