import hashlib
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from pathlib import Path

import pytest
from server import CERTIFICATE, Server
from users import as_nobody, needs_root

from rlpips.hub import digests, downloads

CONTENT = bytes(range(256)) * 1200  # 300 kB
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(downloads, "_BACK_OFF", 0.01)
    monkeypatch.setattr(downloads, "READ_TIMEOUT", 1.0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with Server(CONTENT) as running:
        yield running


@pytest.fixture
def target(tmp_path):
    return tmp_path / "file.pth"


def part_of(target):
    return target.with_name("file.pth.part")


@pytest.mark.parametrize(
    ("way", "requests"),
    [("good", 1), ("no-ranges", 1), ("cut", 3), ("busy", 3), ("stall", 2), ("unsized", 1)],
)
@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_the_file_arrives_whole(server, target, way, requests, size):
    downloads.fetch([server.url(way)], target, DIGEST, size)
    assert target.read_bytes() == CONTENT
    assert not part_of(target).exists()
    assert len(server.requests) == requests


def test_a_broken_transfer_is_continued_where_it_broke(server, target):
    downloads.fetch([server.url("cut")], target, DIGEST, len(CONTENT))
    first, second, third = (int((wanted or "bytes=0-")[6:-1]) for _, wanted in server.requests)
    assert first == 0
    assert len(CONTENT) // 2 - downloads._CHUNK < second <= len(CONTENT) // 2
    assert second < third


def test_the_part_of_an_earlier_call_is_continued(server, target):
    part_of(target).write_bytes(CONTENT[:100_000])
    downloads.fetch([server.url("good")], target, DIGEST, len(CONTENT))
    assert target.read_bytes() == CONTENT
    assert server.requests == [("/good/file.pth", "bytes=100000-")]


def test_a_whole_part_needs_no_transfer(server, target):
    part_of(target).write_bytes(CONTENT)
    downloads.fetch([server.url("good")], target, DIGEST, len(CONTENT))
    assert target.read_bytes() == CONTENT
    assert not server.requests
    target.unlink()
    part_of(target).write_bytes(CONTENT)
    downloads.fetch([server.url("good")], target, DIGEST)  # the server says that nothing is left
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("bogus", [b"x" * 1000, b"x" * len(CONTENT), b"x" * (len(CONTENT) + 5)])
@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_wrong_part_is_thrown_away(server, target, bogus, size):
    part_of(target).write_bytes(bogus)
    downloads.fetch([server.url("good")], target, DIGEST, size)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("way", "requests"), [("good", 1), ("no-ranges", 1), ("cut", 3), ("busy", 3), ("stall", 2)]
)
@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_without_a_digest_the_length_tells_that_the_file_is_whole(server, target, way, requests, size):
    downloads.fetch([server.url(way)], target, None, size)
    assert target.read_bytes() == CONTENT
    assert not part_of(target).exists()
    assert len(server.requests) == requests


@pytest.mark.parametrize("length", [100_000, len(CONTENT), len(CONTENT) + 5])
@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_without_a_digest_the_part_of_an_earlier_call_is_continued(server, target, length, size):
    part_of(target).write_bytes((CONTENT + b"later")[:length])
    downloads.fetch([server.url("good")], target, None, size)
    assert target.read_bytes() == CONTENT
    asked = {
        100_000: ["bytes=100000-"],
        len(CONTENT): [] if size else [f"bytes={length}-"],
        len(CONTENT) + 5: [None] if size else [f"bytes={length}-", None],
    }
    assert [wanted for _, wanted in server.requests] == asked[length]


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("always-cut", "IncompleteRead|ended after"),
        ("unsized", "does not say how long the file is, and no digest"),
        ("huge", "offers 1000000000000 bytes, expected at most 1073741824"),
        ("missing", "answered 404"),
    ],
)
def test_without_a_digest_no_half_of_a_file_is_kept(server, target, way, reason):
    with pytest.raises(downloads.DownloadError, match=reason):
        downloads.fetch([server.url(way)], target, None)
    assert not target.exists()


def test_without_a_digest_a_page_of_another_length_is_not_the_file(server, target):
    with pytest.raises(
        downloads.DownloadError, match="page/file.pth: the server offers 26 bytes, expected 307200"
    ):
        downloads.fetch([server.url("page")], target, None, len(CONTENT))
    assert not target.exists()
    downloads.fetch([server.url("page"), server.url("good")], target, None, len(CONTENT))
    assert target.read_bytes() == CONTENT


def test_the_largest_file_that_is_accepted_may_be_chosen(server, target):
    with pytest.raises(downloads.DownloadError, match="offers 307200 bytes, expected at most 1000"):
        downloads.fetch([server.url("good")], target, DIGEST, largest=1000)


@pytest.mark.parametrize("way", ["no-ranges", "other-range"])
def test_a_server_that_answers_another_range_spoils_nothing(server, target, way):
    part_of(target).write_bytes(CONTENT[:1000])
    downloads.fetch([server.url(way)], target, DIGEST, len(CONTENT))
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("way", "reason", "requests"),
    [
        ("page", "the file has sha256 .*, not", 1),
        ("missing", "answered 404", 1),
        ("always-busy", "answered 429", downloads.ATTEMPTS),
        ("always-cut", "IncompleteRead|ended after 1000 of 307200 bytes", downloads.ATTEMPTS),
        ("huge", "offers 1000000000000 bytes", 1),
        ("endless", "sends more than 307200 bytes", 1),
    ],
)
def test_what_is_not_the_file_is_never_kept(server, target, way, reason, requests):
    with pytest.raises(downloads.DownloadError, match=reason) as caught:
        downloads.fetch([server.url(way)], target, DIGEST, len(CONTENT))
    assert server.url(way) in str(caught.value)
    assert not target.exists()
    assert len(server.requests) == requests


def test_an_endless_file_of_unknown_size_is_stopped(server, target, monkeypatch):
    monkeypatch.setattr(downloads, "_LARGEST", 2**20)
    with pytest.raises(downloads.DownloadError, match="more than 1048576 bytes"):
        downloads.fetch([server.url("endless")], target, DIGEST)
    assert not part_of(target).exists() or part_of(target).stat().st_size == 0


def test_mirrors_are_tried_in_order(server, target):
    ways = ["missing", "page", "always-cut", "good", "mirror"]
    downloads.fetch([server.url(way) for way in ways], target, DIGEST, len(CONTENT))
    assert target.read_bytes() == CONTENT
    asked = list(dict.fromkeys(path.split("/")[1] for path, _ in server.requests))
    assert asked == ["missing", "page", "always-cut", "good"]


def test_a_dead_host_is_reported_with_its_url(target):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/file.pth"
    with pytest.raises(
        downloads.DownloadError, match=": ConnectionError: Failed to establish a new connection: .* refused"
    ) as caught:
        downloads.fetch([url], target, DIGEST)
    assert url in str(caught.value)
    with pytest.raises(downloads.DownloadError, match="InvalidURL|MissingSchema"):
        downloads.fetch(["not a url"], target, DIGEST)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, which Linux has")  # noqa: PTH110
def test_a_full_disk_is_reported_as_such(server, target, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: Path("/dev/full").write_text("x"))
    with pytest.raises(downloads.DownloadError, match=r"the disk is full: .*file.pth \(0 MB\).*RLPIPS_HOME"):
        downloads.fetch([server.url("good"), server.url("mirror")], target, DIGEST, len(CONTENT))
    assert not target.exists()
    assert len(server.requests) == 1


def test_proxies_come_from_the_environment(server, target, monkeypatch):
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    downloads.fetch(["http://weights.invalid/good/file.pth"], target, DIGEST)
    assert target.read_bytes() == CONTENT
    assert server.requests[0][0] == "http://weights.invalid/good/file.pth"


def test_the_progress_bar_keeps_silent_without_a_terminal(server, target, capfd):
    downloads.fetch([server.url("good")], target, DIGEST)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal, which Unix has")
def test_the_progress_bar_shows_on_a_terminal(server, target):
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    arguments = f"[{server.url('good')!r}], Path({str(target)!r}), {DIGEST!r}"
    code = f"from pathlib import Path; from rlpips.hub.downloads import fetch; fetch({arguments})"
    environment = {**os.environ, "PYTHONPATH": str(Path(downloads.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], stderr=theirs, check=True, env=environment)
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    assert "file.pth: 100%" in shown
    assert "300k/300k" in shown


def test_git_blob_digests_are_those_of_git(tmp_path):
    path = tmp_path / "blob"
    path.write_bytes(CONTENT)
    expected = subprocess.run(
        ["git", "hash-object", "--no-filters", path], capture_output=True, text=True, check=True
    )
    assert digests.file_digest(path, "git-blob-sha1") == expected.stdout.strip()
    assert digests.matches(path, f"git-blob-sha1:{expected.stdout.strip()}")
    assert not digests.matches(path, "git-blob-sha1:" + "0" * 40)


def clients():
    """Count the threads of requests that go on."""
    return sum("_run" in thread.name for thread in threading.enumerate())


@pytest.mark.parametrize("way", ["drip", "drip-headers"])
def test_a_server_that_sends_byte_by_byte_does_not_hold_up_for_ever(server, target, monkeypatch, way):
    monkeypatch.setattr(downloads, "PERIOD", 0.3)  # no byte comes later than READ_TIMEOUT
    start, before = time.monotonic(), clients()
    with pytest.raises(downloads.DownloadError, match=r"too slow: the server sent 0 bytes in 0.3 s"):
        downloads.fetch([server.url(way)], target, DIGEST)
    assert time.monotonic() - start < 5
    assert len(server.requests) == downloads.ATTEMPTS
    if way == "drip":  # the threads that waited for the rest have been woken
        deadline = time.monotonic() + 2
        while (waiting := clients() - before) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not waiting
    downloads.fetch([server.url(way), server.url("good")], target, DIGEST)
    assert target.read_bytes() == CONTENT


def test_a_missing_requests_is_an_error_at_once(server, target, monkeypatch):
    monkeypatch.setattr(downloads, "PERIOD", 0.1)
    monkeypatch.setitem(sys.modules, "requests", None)
    with pytest.raises(ImportError, match="requests"):
        downloads.fetch([server.url("good")], target, DIGEST)


def test_a_transfer_of_good_speed_may_take_long(server, target, monkeypatch):
    monkeypatch.setattr(downloads, "PERIOD", 0.3)
    start = time.monotonic()
    downloads.fetch([server.url("steady")], target, DIGEST)
    assert time.monotonic() - start > 3 * downloads.PERIOD
    assert target.read_bytes() == CONTENT
    assert len(server.requests) == 1


@pytest.mark.parametrize("size", [len(CONTENT), None])
@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\n" + CONTENT,
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n" + CONTENT,
        b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n" + CONTENT,
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n" + CONTENT,
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\n" + CONTENT,
        b"HTTP/1.1 206 Partial\r\nContent-Range: bytes x-y/z\r\n\r\n" + CONTENT,
        b"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:99999999/\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://\xff\xfe\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://" + b"a" * 300 + b"\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 70000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 404 \x1b[2J\x9b31mNot\x00Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 404 " + b"x" * 5000 + b"\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\n\xff\x00: \x00\r\n\r\n",
        b"\x16\x03\x01\x02",
        b"",
    ],
    ids=lambda raw: repr(raw[-75:] if len(raw) < 1000 else raw[:60]) if isinstance(raw, bytes) else None,
)  # fmt: skip
def test_a_malformed_answer_is_an_error_of_that_mirror(server, target, raw, size):
    server.raw = raw
    with pytest.raises(downloads.DownloadError) as caught:
        downloads.fetch([server.url("raw")], target, DIGEST, size)
    message = str(caught.value)
    assert message.startswith(server.url("raw"))
    assert message.isprintable()
    assert len(message) < 700
    assert not target.exists()
    downloads.fetch([server.url("raw"), server.url("good")], target, DIGEST, size)
    assert target.read_bytes() == CONTENT


def test_mutated_answers_are_right_or_an_error_of_that_mirror(server, target, monkeypatch):
    monkeypatch.setattr(downloads, "ATTEMPTS", 2)
    monkeypatch.setattr(downloads, "_BACK_OFF", 0.0)
    head = b"HTTP/1.1 %s\r\nContent-Length: 307200\r\nContent-Range: bytes 0-307199/307200\r\n"
    heads = [
        head % b"200 OK" + b"Transfer-Encoding: chunked\r\n\r\n4b000\r\n" + CONTENT + b"\r\n0\r\n\r\n",
        head % b"206 Partial Content" + b"\r\n" + CONTENT,
        head % b"302 Found" + b"Location: /good/file.pth\r\n\r\n",
    ]
    draw = random.Random(0)
    for _ in range(60):
        answer = bytearray(draw.choice(heads))
        end = min(len(answer), 170)
        for _ in range(draw.choice([1, 1, 3])):
            k = draw.randrange(end)
            answer[k : k + draw.choice([0, 1, 1, 9])] = draw.choice(
                [b"", b"\0", b"\xff", b"9", b"\r\n", b":", b"-"]
            )
        server.raw = bytes(answer)
        try:
            downloads.fetch([server.url("raw")], target, DIGEST)
        except downloads.DownloadError as error:
            assert str(error).isprintable()  # noqa: PT017
            assert not target.exists()
        else:
            assert target.read_bytes() == CONTENT
            target.unlink()
        part_of(target).unlink(missing_ok=True)


def test_a_range_of_a_longer_file_is_not_taken_for_the_whole(server, target):
    head = (
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-999/307200\r\nContent-Length: 1000\r\n\r\n"
    )
    server.raw = head + CONTENT[:1000]
    with pytest.raises(downloads.DownloadError):
        downloads.fetch([server.url("raw")], target, None)
    assert not target.exists()


def test_416_does_not_end_a_transfer_that_has_not_begun(server, target):
    with pytest.raises(downloads.DownloadError, match="answered 416"):
        downloads.fetch([server.url("nothing-left")], target, DIGEST)
    downloads.fetch([server.url("nothing-left"), server.url("good")], target, DIGEST)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_server_is_asked_again_when_it_says(server, target, form):
    server.retry_after = "2" if form == "seconds" else formatdate(time.time() + 3, usegmt=True)
    start = time.monotonic()
    downloads.fetch([server.url("later")], target, DIGEST)
    assert 1.9 < time.monotonic() - start < 10
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "value",
    ["1000000", "9" * 5000, "Fri, 31 Dec 9999 23:59:59 GMT", "soon", "-5", "1e9", "Fri, 99 Dec 9999 23:59:59",
     "Wed, 21 Oct 2015 07:28:00 GMT", "Fri, 31 Dec 9999 23:59:59 -9999", "", "\xb2"],
)  # fmt: skip
def test_a_server_cannot_ask_for_a_long_wait(server, target, monkeypatch, value):
    monkeypatch.setattr(downloads, "LONGEST_WAIT", 0.2)
    server.retry_after = value
    start = time.monotonic()
    downloads.fetch([server.url("later")], target, DIGEST)
    assert time.monotonic() - start < 5
    assert len(server.requests) == 2


def test_https_is_never_left_for_http(server, target, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(CERTIFICATE))
    with Server(CONTENT, secure=True) as secure:
        downloads.fetch([secure.url("good")], target, DIGEST)
        target.unlink()
        secure.location = "/good/file.pth"
        downloads.fetch([secure.url("elsewhere")], target, DIGEST)
        target.unlink()
        secure.location = server.url("good")
        with pytest.raises(downloads.DownloadError, match="redirects from https to http://127.0.0.1"):
            downloads.fetch([secure.url("elsewhere")], target, DIGEST)
        assert not server.requests
        server.location = secure.url("good")
        downloads.fetch([server.url("elsewhere")], target, DIGEST)
        assert target.read_bytes() == CONTENT


@pytest.mark.skipif(sys.platform == "win32", reason="needs links, which anyone may make on Unix")
def test_a_part_that_is_a_link_is_not_followed(server, target, tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    part_of(target).symlink_to(victim)
    downloads.fetch([server.url("good")], target, DIGEST)
    assert victim.read_bytes() == b"precious"
    assert not target.is_symlink()
    assert target.read_bytes() == CONTENT


@needs_root
@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_another_user_s_part_is_no_obstacle(server, open_folder, mode):
    downloads.fetch([server.url("good")], open_folder / "first.pth", DIGEST)  # imports all that it takes
    part = part_of(open_folder / "file.pth")
    part.write_bytes(CONTENT[:1000])
    part.chmod(mode)
    with as_nobody():
        downloads.fetch([server.url("good")], open_folder / "file.pth", DIGEST)
        assert (open_folder / "file.pth").read_bytes() == CONTENT
        part.parent.joinpath("closed").mkdir(mode=0o555)
        with pytest.raises(
            downloads.DownloadError, match="file.pth.part cannot be written: permission denied"
        ):
            downloads.fetch([server.url("good")], open_folder / "closed" / "file.pth", DIGEST)
