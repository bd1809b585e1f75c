"""Downloads over HTTP, which are resumed, retried and verified. Half a file never gets the file's name.

A server may be slow, wrong or hostile. Whatever it answers, the next URL is tried, or there is an error that
names the URL. A transfer is stopped if it brings less than 10 kB per second over a minute.
"""

import datetime
import email.utils
import errno
import logging
import os
import queue
import re
import socket
import stat
import threading
import time
import urllib.parse
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from rlpips.errors import DownloadError, printable
from rlpips.hub.digests import file_digest, matches
from rlpips.system import shared_folders
from rlpips.system.progress import progress

if TYPE_CHECKING:
    import requests

logger = logging.getLogger("rlpips")

CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 30.0
LEAST_SPEED = 10_000  # bytes per second, on average over each period
PERIOD = 60.0  # seconds
LONGEST_WAIT = 60.0  # seconds that a server's Retry-After may ask for
ATTEMPTS = 5  # for each URL
_BACK_OFF = 0.5  # seconds before the second attempt; doubles with each attempt
_LARGEST = 2**30  # bytes accepted if the size is not known
_CHUNK = 2**16  # bytes; a broken connection loses at most so many
_AHEAD = 16  # chunks that may wait to be written


def offline() -> bool:
    """Tell whether `RLPIPS_OFFLINE` forbids the network."""
    return os.environ.get("RLPIPS_OFFLINE", "").lower() not in ("", "0", "false", "no")


class _Refused(Exception):  # noqa: N818
    """This URL does not serve the file, and another attempt would not help."""


class _Broken(Exception):  # noqa: N818
    """The transfer broke. Another attempt may help, after at least `wait` seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def fetch(
    urls: Sequence[str],
    target: Path,
    digest: str | None,
    size: int | None = None,
    largest: int | None = None,
) -> None:
    """Download a file from the first of `urls` that serves it whole.

    The bytes are written to `target` with `.part` appended. After a broken transfer, and in a later call, the
    download continues from there. The file is called `target` when its digest is right. The environment
    names proxies. On a terminal, a bar shows the progress.

    Args:
        urls: where the file is, in order of preference.
        target: the file to write, in a folder that exists.
        digest: 'ALGORITHM:HEX', where ALGORITHM is 'sha256' or 'git-blob-sha1'. If it is None, the size alone
            is checked, against `size` or what the server promised.
        size: the file's size in bytes, if it is known.
        largest: how many bytes to accept if `size` is not known; by default 1 GiB.

    Raises:
        DownloadError: no URL served the file, or the disk is full.
    """
    part = target.with_name(target.name + ".part")
    reasons = []
    try:
        _claim(part)
        for url in urls:
            try:
                _fetch_from(url, part, digest, size, size or largest or _LARGEST)
            except _Refused as reason:
                reasons.append(f"{url}: {reason}")
                logger.info("%s: %s", url, reason)
            else:
                shared_folders.share_file(part)
                part.replace(target)
                return
    except PermissionError as error:
        raise DownloadError(
            f"{error.filename or part} cannot be written: permission denied"
            f"{shared_folders.owner_note(part)}; "
            "choose a folder of your own (for weights: RLPIPS_HOME)"
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DownloadError(
                f"the disk is full: {target.parent} cannot hold {target.name}"
                + (f" ({size / 1e6:.0f} MB)" if size else "")
                + "; free some space, or choose a folder on another disk (for weights: RLPIPS_HOME)"
            ) from error
        raise
    raise DownloadError("; ".join(reasons) or "it has no URL")


def _claim(part: Path) -> None:
    """Remove a part that a download cannot continue: a link, or a file of another user."""
    with suppress(FileNotFoundError):
        if not (stat.S_ISREG(part.lstat().st_mode) and os.access(part, os.R_OK | os.W_OK)):
            part.unlink()


def _fetch_from(url: str, part: Path, digest: str | None, size: int | None, limit: int) -> None:
    """Complete `part` from one URL, in several attempts."""
    reason, wait = "", 0.0
    fresh = not part.exists()
    for attempt in range(ATTEMPTS):
        if attempt:
            logger.info("%s, attempt %d of %d: %s", url, attempt, ATTEMPTS, reason)
            time.sleep(max(wait, _BACK_OFF * 2 ** (attempt - 1)))
        try:
            _transfer(url, part, size, limit, trusting=digest is None)
        except _Broken as error:
            reason, wait = str(error), error.wait
        else:
            if digest is None or matches(part, digest):
                return
            algorithm, _, expected = digest.partition(":")
            reason, wait = f"the file has {algorithm} {file_digest(part, algorithm)}, not {expected}", 0.0
            part.unlink()
            if fresh:
                break
            fresh = True  # the part of the earlier call may have been wrong: try once without it
    raise _Refused(reason)


def _reason(error: Exception) -> str:
    """Say why a request failed, without the connections and pools that urllib3 puts around the reason."""
    inner = getattr(error.args[0], "reason", None) if error.args else None
    text = re.sub(r"^(<[^>]*>|HTTPS?Connection(Pool)?\([^)]*\)): ", "", str(inner or error))
    return f"{type(error).__name__}: {printable(text, 500)}"


class _Request:
    """One request, made by a thread, so that there is a limit on how long a caller waits.

    A read time-out is no such limit, because it starts again with every byte.
    """

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self._received: queue.Queue[requests.Response | bytes | Exception] = queue.Queue(_AHEAD)
        self._closed = threading.Event()
        self._response: requests.Response | None = None
        self._start_period()
        threading.Thread(target=self._run, args=(_session(), url, headers), daemon=True).start()

    def answer(self) -> "requests.Response":
        """Return the answer, once its status and headers have arrived.

        Raises:
            _Broken: the connection broke, or is too slow.
            _Refused: what the server sends is not HTTP.
        """
        response = self._next()
        assert not isinstance(response, bytes)
        self._response = response
        self._start_period()
        return response

    def read(self) -> bytes:
        """Return the next bytes of the answer's body, or no bytes at its end.

        Raises:
            _Broken: the connection broke, or is too slow.
            _Refused: what the server sends is not HTTP.
        """
        chunk = self._next()
        assert isinstance(chunk, bytes)
        self._bytes += len(chunk)
        return chunk

    def close(self) -> None:
        """Close the connection, even in the middle of the answer."""
        if self._response is not None:
            with (
                suppress(OSError, ValueError, AttributeError),  # it is closed already
                socket.fromfd(self._response.raw.fileno(), socket.AF_INET, socket.SOCK_STREAM) as connection,
            ):
                connection.shutdown(socket.SHUT_RDWR)  # the thread may be waiting for bytes
        self._closed.set()

    def _start_period(self) -> None:
        self._bytes, self._until = 0, time.monotonic() + PERIOD

    def _next(self) -> "requests.Response | bytes":
        while True:
            try:
                found = self._received.get(timeout=max(0.0, self._until - time.monotonic()))
            except queue.Empty:
                if self._bytes < LEAST_SPEED * PERIOD:
                    reason = f"too slow: the server sent {self._bytes} bytes in {PERIOD:g} s"
                    raise _Broken(reason) from None
                self._start_period()
                continue
            if isinstance(found, Exception):
                raise found
            return found

    def _run(self, session: "requests.Session", url: str, headers: dict[str, str]) -> None:
        import requests

        last: bytes | Exception = b""
        try:
            with (
                session,
                session.get(
                    url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT)
                ) as response,
            ):
                self._put(response)
                for chunk in response.iter_content(_CHUNK):
                    if chunk and not self._put(chunk):
                        return
        except _Refused as error:
            last = error
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            last = _Broken(_reason(error))
        except Exception as error:  # malformed answers make the libraries raise almost anything
            last = _Refused(_reason(error))
        self._put(last)

    def _put(self, found: "requests.Response | bytes | Exception") -> bool:
        while not self._closed.is_set():
            with suppress(queue.Full):
                self._received.put(found, timeout=1)
                return True
        return False


def _session() -> "requests.Session":
    """Make a session that does not follow redirects from https to anything else."""
    import requests

    class Session(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> str | None:
            target = super().get_redirect_target(resp)
            if target and urllib.parse.urlsplit(resp.url).scheme == "https":
                there = urllib.parse.urljoin(resp.url, target)
                if urllib.parse.urlsplit(there).scheme != "https":
                    raise _Refused(f"it redirects from https to {printable(there)}")
            return target

    session = Session()
    session.headers["Accept-Encoding"] = "identity"  # ranges must count the bytes of the file
    return session


def _transfer(url: str, part: Path, size: int | None, limit: int, trusting: bool) -> None:
    """Make one request for the rest of `part`, and append the answer to it.

    If `trusting`, no digest will be checked, and the lengths alone must show that `part` is whole.
    """
    have = part.stat().st_size if part.exists() else 0
    if size is not None and have > size:
        part.unlink()
        have = 0
    if have and have == size:
        return
    with closing(_Request(url, {"Range": f"bytes={have}-"} if have else {})) as request:
        response = request.answer()
        status, headers = response.status_code, response.headers
        answer = f"the server answered {status} {printable(response.reason or '', 80)}".rstrip()
        if status == 416 and have:  # nothing comes after it: it is whole, or not a part of this file
            if trusting and headers.get("Content-Range") != f"bytes */{have}":
                part.unlink()
                raise _Broken(f"the file has fewer than the {have} bytes of an earlier transfer")
            return
        if status == 429 or status >= 500:
            raise _Broken(answer, _retry_after(headers.get("Retry-After", "")))
        if status not in (200, 206):
            raise _Refused(answer)
        total = size
        if (declared := headers.get("Content-Length")) is not None:
            total = (have if status == 206 else 0) + _length(declared)
        if status == 206:
            span = re.fullmatch(rf"bytes {have}-[0-9]+/([0-9]{{1,18}}|\*)", headers.get("Content-Range", ""))
            if not span:
                part.unlink(missing_ok=True)
                raise _Broken("the server sent another range than was asked for")
            if span[1] != "*":
                total = int(span[1])
        else:
            have = 0
        if total is not None and (total > limit or (trusting and size not in (None, total))):
            raise _Refused(f"the server offers {total} bytes, expected {size or 'at most ' + str(limit)}")
        if total is None and trusting:
            raise _Refused("the server does not say how long the file is, and no digest is known")
        flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if have else os.O_TRUNC)
        flags |= shared_folders.NO_FOLLOW | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(part, flags, 0o666), "ab" if have else "wb") as file:
            _copy(request, file, have, total, limit, label=part.stem)
    have = part.stat().st_size
    if total is not None and have < total:
        raise _Broken(f"the connection ended after {have} of {total} bytes")


def _length(declared: str) -> int:
    """Return the number in a Content-Length, which some servers send twice."""
    (first, *others) = {each.strip() for each in declared.split(",")}
    if others or not re.fullmatch("[0-9]{1,18}", first):
        raise _Refused(f"the server's Content-Length is {printable(declared, 80)!r}")
    return int(first)


def _retry_after(value: str) -> float:
    """Return the seconds to wait by a Retry-After, which is seconds or a date; 0 if it is malformed."""
    try:
        if re.fullmatch("[0-9]+", value):
            wait = float(value)
        else:
            date = email.utils.parsedate_to_datetime(value)
            date = date if date.tzinfo else date.replace(tzinfo=datetime.timezone.utc)
            wait = (date - datetime.datetime.now(datetime.timezone.utc)).total_seconds()
    except (ValueError, TypeError, OverflowError, IndexError):
        return 0.0
    return min(max(wait, 0.0), LONGEST_WAIT)


def _copy(request: _Request, file: IO[bytes], have: int, total: int | None, limit: int, label: str) -> None:
    """Append the answer to a file that holds `have` bytes, and show the progress."""
    with progress(label, initial=have, total=total, unit="B", size=True) as bar:
        while chunk := request.read():
            have += len(chunk)
            if have > limit:
                file.truncate(0)
                raise _Refused(f"the server sends more than {limit} bytes")
            file.write(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
