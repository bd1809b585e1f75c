"""Servers that misbehave in what they answer, and how: the file arrives, or one error tells of every mirror."""

import gzip
import hashlib
import os
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import StreamRequestHandler
from unittest import mock

from server import QuietServer

from fuzz.checks import Example, on_time, readable
from fuzz.damage import damage
from rlpips.hub import downloads

CONTENT = random.Random(0).randbytes(12_000)
SIZE = len(CONTENT)
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
HASTE = {  # settings of the downloader, that little is waited for and parts are met
    "CONNECT_TIMEOUT": 1.0,
    "READ_TIMEOUT": 2.0,
    "LONGEST_WAIT": 0.01,
    "ATTEMPTS": 3,
    "_BACK_OFF": 0.0,
    "_LARGEST": 2 * SIZE,
    "_CHUNK": 1000,
}
STATUS = (
    "200 OK", "206 Partial Content", "301 Moved", "302 Found", "304 Not Modified", "204 No Content", "404 Not Found",
    "100 Continue", "416 Range Not Satisfiable", "429 Too Many Requests", "503 Busy", "404 \x1b[2J\x9b31mNot\0Found",
    "500 " + "x" * 5000, "1000 x", "-1 x", "abc", "", "200", "206 \r\n",
)  # fmt: skip
HEADERS = {
    "Content-Length": ("0", "5", "-5", "+5", "abc", "\xb2", "5, 5", "5, 7", "9" * 30, "9" * 5000, "", " ", "0x10",
                       str(SIZE), str(SIZE + 7), str(SIZE - 7), str(2 * SIZE + 1)),
    "Content-Range": ("bytes x-y/z", "bytes 0-9/10", f"bytes 0-{SIZE - 1}/{SIZE}", f"bytes 0-{SIZE - 1}/*", "",
                      f"bytes 5-{SIZE - 1}/{SIZE}", "bytes */5", f"bytes */{SIZE}", f"bytes 0-9/{'9' * 30}", "lines 1-2/3",
                      f"bytes {SIZE - 1}-0/{SIZE}"),
    "Location": ("/good/file.pth", "/0/file.pth", "/1/file.pth", "http://[::1", "file:///etc/passwd", "//", "", "?",
                 "http://127.0.0.1:1/x", "http://127.0.0.1:99999999/", "http://\xff\xfe", "https://{address}/0/file.pth",
                 "http://{address}/good/file.pth", "/\x1b[2J", "x" * 5000, "ftp://127.0.0.1/"),
    "Transfer-Encoding": ("chunked", "gzip", "identity", "chunked, chunked", "\xff"),
    "Content-Encoding": ("gzip", "deflate", "br", "zstd", "identity", "x", "gzip, gzip"),
    "Retry-After": ("0", "-1", "soon", "9" * 5000, "1e9", "Fri, 31 Dec 9999 23:59:59 GMT", "Fri, 99 Dec 9999", "\xb2"),
    "Set-Cookie": ("a=b", "a=b; expires=never; domain=\x1b", "=" * 100),
    "X\xff\0": ("\0", "y"),
    "Content-Type": ("text/html; charset=\xff", "multipart/byteranges; boundary=x"),
}  # fmt: skip


@dataclass
class Answer:
    """What is sent to one request, and how the connection ends: 'close', 'reset' or 'stall'."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes
    ends: str = "close"
    head: Callable[[bytes], bytes] = field(default=lambda head: head)


def sound(start: int) -> Answer:
    if not start:
        return Answer("200 OK", [("Content-Length", str(SIZE))], CONTENT)
    if start >= SIZE:
        return Answer("416 Range Not Satisfiable", [("Content-Range", f"bytes */{SIZE}")], b"")
    span = f"bytes {start}-{SIZE - 1}/{SIZE}"
    headers = [("Content-Range", span), ("Content-Length", str(SIZE - start))]
    return Answer("206 Partial Content", headers, CONTENT[start:])


def other_status(answer: Answer, rng: random.Random) -> None:
    answer.status = rng.choice(STATUS)
    if answer.status[:3] in ("301", "302"):
        answer.headers.append(("Location", rng.choice(HEADERS["Location"])))
    elif answer.status[:3] in ("429", "503"):
        answer.headers.append(("Retry-After", rng.choice(HEADERS["Retry-After"])))


def other_header(answer: Answer, rng: random.Random) -> None:
    """Say something else than is so, instead of the truth or beside it."""
    name = rng.choice(list(HEADERS))
    if rng.random() < 0.7:
        answer.headers = [each for each in answer.headers if each[0] != name]
    answer.headers.insert(rng.randint(0, len(answer.headers)), (name, rng.choice(HEADERS[name])))


def no_header(answer: Answer, rng: random.Random) -> None:
    if answer.headers:
        answer.headers.pop(rng.randrange(len(answer.headers)))


def many_headers(answer: Answer, rng: random.Random) -> None:
    answer.headers += [("X", "y" * rng.choice((1, 1000)))] * 300


def other_body(answer: Answer, rng: random.Random) -> None:
    body = answer.body
    answer.body = rng.choice(
        (
            b"",
            b"<html>please log in</html>",
            rng.randbytes(len(body)),
            rng.randbytes(rng.randrange(3 * SIZE)),
            body[: rng.randint(0, len(body))],
            body + b"more",
            body * 4,
            damage(body or b"x", rng),
        )
    )
    if rng.random() < 0.5:
        answer.headers = [each for each in answer.headers if each[0] != "Content-Length"]
        answer.headers.append(("Content-Length", str(len(answer.body))))


def chunks(answer: Answer, rng: random.Random) -> None:
    """Send the body in chunks, whose frame may be wrong."""
    sizes = {
        "": 20,
        "zz": 1,
        "-5": 1,
        "f" * 70_000: 1,
        "ffffffffffffffffff": 1,
        " ": 1,
        "0x10": 1,
        "5;x=\x1b": 1,
    }
    out, rest = b"", answer.body
    while rest:
        step = rng.choice((1, 500, 5000))
        size = rng.choices(list(sizes), list(sizes.values()))[0] or f"{len(rest[:step]):x}"
        out += size.encode() + rng.choice((b"\r\n",) * 20 + (b"\n", b"")) + rest[:step] + b"\r\n"
        rest = rest[step:]
    answer.body = out + rng.choice(
        (b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\n\r\n", b"", b"0\r\n", b"0\r\nX: y\r\n\r\nmore")
    )
    answer.headers = [each for each in answer.headers if each[0] != "Content-Length" or rng.random() < 0.1]
    answer.headers.append(("Transfer-Encoding", "chunked"))


def compressed(answer: Answer, rng: random.Random) -> None:
    answer.body = gzip.compress(answer.body)
    if rng.random() < 0.3:
        answer.body = damage(answer.body, rng)
    answer.headers.append(("Content-Encoding", "gzip"))


def other_head(answer: Answer, rng: random.Random) -> None:
    answer.head = lambda head: damage(head, rng)


def other_end(answer: Answer, rng: random.Random) -> None:
    answer.body = answer.body[: rng.randint(0, len(answer.body))]
    answer.ends = rng.choice(("close", "reset", "reset"))


def no_http(answer: Answer, rng: random.Random) -> None:
    answer.body = rng.choice((b"", b"\x16\x03\x01\x02", b"HTTP", rng.randbytes(300), CONTENT))
    answer.head = lambda _: b""


def stall(answer: Answer, rng: random.Random) -> None:
    if rng.random() < 0.05:  # each takes a read time-out
        answer.body, answer.ends = answer.body[: len(answer.body) // 2], "stall"


WAYS = (
    other_status, other_header, other_header, other_header, no_header, many_headers, other_body, other_body, chunks,
    compressed, other_head, other_head, other_end, no_http, stall,
)  # fmt: skip


@contextmanager
def running(seed: int) -> Iterator[str]:
    """Serve `/good/NAME` soundly and `/K/NAME` otherwise, each K in its own way, and some each time in another."""
    counts: Counter[str] = Counter()

    class Handler(StreamRequestHandler):
        timeout = 5

        def handle(self) -> None:
            mirror = self.rfile.readline().split(b"/")[1].decode()
            start = 0
            while (line := self.rfile.readline()).strip():
                if line.lower().startswith(b"range: bytes="):
                    start = int(line[13:].strip(b"-\r\n "))
            answer = sound(start)
            if mirror != "good":
                counts[mirror] += 1
                rng = random.Random(f"{seed} {mirror}")
                if rng.random() < 0.4:  # it does not do the same each time
                    rng = random.Random(f"{seed} {mirror} {counts[mirror]}")
                for _ in range(rng.choice((1, 2, 2, 3, 3))):
                    rng.choice(WAYS)(answer, rng)
            self.send(answer)

        def send(self, answer: Answer) -> None:
            lines = [
                f"HTTP/1.1 {answer.status}",
                *(f"{name}: {value}" for name, value in answer.headers),
                "",
                "",
            ]
            head = "\r\n".join(lines).replace("{address}", address).encode("latin-1", "replace")
            with suppress(OSError):  # the client hangs up when it likes
                self.wfile.write(answer.head(head) + answer.body)
                if answer.ends == "stall":
                    self.rfile.read()
                if answer.ends == "reset":
                    self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with QuietServer(("127.0.0.1", 0), Handler) as server:
        address = f"127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.005,), daemon=True).start()
        try:
            yield f"http://{address}"
        finally:
            server.shutdown()


def servers(folder: Path) -> Iterator[Example]:
    """Mirrors whose answers are malformed, broken off, of other content, or sound."""
    target = folder / "file.pth"
    part = folder / "file.pth.part"

    def example(rng: random.Random) -> bool:
        with (
            running(rng.getrandbits(32)) as address,
            mock.patch.multiple(downloads, **HASTE),
            mock.patch.dict(os.environ, {"no_proxy": "*"}),
        ):
            digest, size = rng.choice((DIGEST, DIGEST, DIGEST, None)), rng.choice((SIZE, None))
            names = [str(k) for k in range(rng.choice((1, 1, 2, 3)))]
            if rng.random() < 0.3:
                names.insert(rng.randint(0, len(names)), "good")
            urls = [f"{address}/{name}/file.pth" for name in names]
            earlier = rng.choice(
                (None, None, None, CONTENT[:5000], CONTENT, rng.randbytes(700), CONTENT + b"x")
            )
            if earlier is not None:
                part.write_bytes(earlier)
            try:
                with on_time():
                    downloads.fetch(urls, target, digest, size)
            except downloads.DownloadError as error:
                for url in urls:
                    readable(error, url, limit=1000 * len(urls))
                arrived, told = False, str(error)
            else:
                arrived, told = True, ""
            assert arrived or digest is None or "good" not in names, f"a sound mirror was of no use: {told}"
            left = {path.name for path in folder.iterdir()}
            assert left <= ({target.name} if arrived else {part.name}), f"left behind: {left}"
            if not arrived and digest:
                with on_time():  # what is left may be wrong, and costs a transfer at most
                    downloads.fetch([f"{address}/good/file.pth"], target, digest, size)
            if digest:
                assert target.read_bytes() == CONTENT, "another file was kept"
            elif arrived:
                assert target.stat().st_size == size or size is None, "a part of a file was kept"
            for path in (target, part):
                path.unlink(missing_ok=True)
            going = sum("(_run)" in thread.name for thread in threading.enumerate())
            assert going < 50, f"{going} requests go on"
            return arrived

    yield example
