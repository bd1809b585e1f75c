import hashlib
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from server import Server

from rlpips import downloads

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
def test_a_full_disk_is_reported_as_such(server, target):
    part_of(target).symlink_to("/dev/full")
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
    code = f"from pathlib import Path; from rlpips.downloads import fetch; fetch({arguments})"
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
    assert downloads.file_digest(path, "git-blob-sha1") == expected.stdout.strip()
    assert downloads.matches(path, f"git-blob-sha1:{expected.stdout.strip()}")
    assert not downloads.matches(path, "git-blob-sha1:" + "0" * 40)
