"""Ways in which the bytes of a file are damaged."""

import random
import struct


def flip(data: bytes, rng: random.Random) -> bytes:
    """Change some bits."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8, 64))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def flip_head(data: bytes, rng: random.Random) -> bytes:
    """Change some bytes of the first kilobyte, where formats keep their structure."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 2, 4))):
        out[rng.randrange(min(1024, len(out)))] = rng.randrange(256)
    return bytes(out)


def cut(data: bytes, rng: random.Random) -> bytes:
    """Lose the end."""
    return data[: rng.randrange(len(data))]


def remove(data: bytes, rng: random.Random) -> bytes:
    """Lose a part."""
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.choice((1, 4, 64, 4096)) :]


def insert(data: bytes, rng: random.Random) -> bytes:
    """Gain a part."""
    start = rng.randrange(len(data))
    return data[:start] + rng.randbytes(rng.choice((1, 4, 64, 4096))) + data[start:]


def blank(data: bytes, rng: random.Random) -> bytes:
    """Lose a block to zeros, as a disk does."""
    start = rng.randrange(len(data))
    size = min(len(data) - start, rng.choice((16, 512, 4096)))
    return data[:start] + bytes(size) + data[start + size :]


def number(data: bytes, rng: random.Random) -> bytes:
    """Put a number where it is too large, negative or zero."""
    start = rng.randrange(max(1, len(data) - 8))
    value = rng.choice((0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**63 - 1))
    form = rng.choice(["<H", ">H", "<I", ">I", "<Q", ">Q"])
    raw = struct.pack(form, value & (2 ** (8 * struct.calcsize(form)) - 1))
    return data[:start] + raw + data[start + len(raw) :]


def splice(data: bytes, rng: random.Random) -> bytes:
    """Repeat a part of the file elsewhere in it."""
    start, other = rng.randrange(len(data)), rng.randrange(len(data))
    size = rng.choice((4, 64, 1024))
    return data[:start] + data[other : other + size] + data[start + size :]


WAYS = (flip, flip_head, cut, remove, insert, blank, number, splice)


def damage(data: bytes, rng: random.Random) -> bytes:
    """Damage a file in one way, now and then in two."""
    for _ in range(rng.choice((1, 1, 1, 2))):
        data = rng.choice(WAYS)(data, rng) or b"\0"
    return data
