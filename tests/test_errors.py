import pytest

from rlpips.errors import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, ünï 漢", "plain text, ünï 漢"),
        ("\x1b[2Jgone\r\n", r"\x1b[2Jgone\r\n"),
        ("\x9b31m \u202egpj \udc80", r"\x9b31m \u202egpj \udc80"),
        ("x" * 200, "x" * 200),
        ("x" * 201, "x" * 197 + "..."),
        ("\0" * 200, r"\x00" * 49 + r"\..."),
    ],
)
def test_foreign_text_is_shown_without_control_characters_and_cut(text, shown):
    assert printable(text) == shown
    assert printable(text).isprintable()
    assert printable(text).encode()
