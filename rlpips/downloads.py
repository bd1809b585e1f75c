"""Fetching a file over HTTP: resumed, retried, verified, and never left half done under its own name."""

import errno
import hashlib
import logging
import os
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from rlpips.progress import progress

if TYPE_CHECKING:
    import requests

logger = logging.getLogger("rlpips")

CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 30.0
ATTEMPTS = 5  # for each URL
_BACK_OFF = 0.5  # seconds before the second attempt; doubles each time
_LARGEST = 2**30  # bytes accepted where the size is not known
_CHUNK = 2**16  # the most that a broken connection loses


class DownloadError(OSError):
    """A file could not be fetched from any of its URLs; the message gives each one's reason."""


class _Refused(Exception):  # noqa: N818
    """This URL will not serve the file, however often it is asked."""


class _Broken(Exception):  # noqa: N818
    """The transfer broke in a way that another attempt may mend."""


def file_digest(path: Path, algorithm: str) -> str:
    """Return the hexadecimal digest of a file.

    Args:
        path: the file.
        algorithm: 'sha256', or 'git-blob-sha1', git's object id: SHA-1 over 'blob SIZE', a zero byte and the
            content.
    """
    if algorithm == "git-blob-sha1":
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        digest = hashlib.new(algorithm)
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def matches(path: Path, digest: str) -> bool:
    """Tell whether a file has the digest 'ALGORITHM:HEX'."""
    algorithm, _, expected = digest.partition(":")
    return file_digest(path, algorithm) == expected


def fetch(
    urls: Sequence[str],
    target: Path,
    digest: str | None,
    size: int | None = None,
    largest: int | None = None,
) -> None:
    """Fetch a file from the first of `urls` that serves it whole.

    The bytes go to `target` with `.part` appended, are continued from there after a broken transfer or in a
    later call, and get the name `target` only when their digest is right. Proxies are taken from the
    environment. Progress is shown on a terminal.

    Args:
        urls: where the file is, in order of preference.
        target: the file to make; its folder exists.
        digest: 'ALGORITHM:HEX', as for `matches`. None, where no digest is known, makes sure only that all
            the bytes came which `size` or the server promised.
        size: the file's size in bytes, where it is known.
        largest: the most bytes accepted where `size` is not known, by default 1 GiB.

    Raises:
        DownloadError: no URL served the file, or the disk is full.
    """
    import requests

    part = target.with_name(target.name + ".part")
    reasons = []
    with requests.Session() as session:
        session.headers["Accept-Encoding"] = "identity"  # so that ranges count the file's own bytes
        for url in urls:
            try:
                _fetch_from(session, url, part, digest, size, size or largest or _LARGEST)
            except _Refused as reason:
                reasons.append(f"{url}: {reason}")
                logger.info("%s: %s", url, reason)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise DownloadError(
                        f"the disk is full: {target.parent} cannot hold {target.name}"
                        + (f" ({size / 1e6:.0f} MB)" if size else "")
                        + "; free some space, or choose a folder on another disk (for weights: RLPIPS_HOME)"
                    ) from error
                raise
            else:
                part.replace(target)
                return
    raise DownloadError("; ".join(reasons) or "it has no URL")


def _fetch_from(
    session: "requests.Session", url: str, part: Path, digest: str | None, size: int | None, limit: int
) -> None:
    """Complete `part` from one URL, attempt after attempt."""
    import requests

    reason = ""
    fresh = not part.exists()
    for attempt in range(ATTEMPTS):
        if attempt:
            logger.info("%s, attempt %d of %d: %s", url, attempt, ATTEMPTS, reason)
            time.sleep(_BACK_OFF * 2 ** (attempt - 1))
        try:
            _transfer(session, url, part, size, limit, trusting=digest is None)
        except _Broken as error:
            reason = str(error)
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            reason = _reason(error)
        except requests.RequestException as error:
            raise _Refused(_reason(error)) from error
        else:
            if digest is None or matches(part, digest):
                return
            algorithm, _, expected = digest.partition(":")
            reason = f"the file has {algorithm} {file_digest(part, algorithm)}, not {expected}"
            part.unlink()
            if fresh:
                break
            fresh = True  # what was continued may have been wrong: one clean transfer is owed
    raise _Refused(reason)


def _reason(error: Exception) -> str:
    """Say why a request failed, without the connections and pools that urllib3 wraps the reason in."""
    inner = getattr(error.args[0], "reason", None) if error.args else None
    text = re.sub(r"^(<[^>]*>|HTTPS?Connection(Pool)?\([^)]*\)): ", "", str(inner or error))
    return f"{type(error).__name__}: {text}"


def _transfer(
    session: "requests.Session", url: str, part: Path, size: int | None, limit: int, trusting: bool
) -> None:
    """Make one request for what `part` still lacks, and append the answer to it.

    Where `trusting`, no digest will be checked, so that the lengths alone must show that `part` is whole.
    """
    have = part.stat().st_size if part.exists() else 0
    if size is not None and have > size:
        part.unlink()
        have = 0
    if have and have == size:
        return
    headers = {"Range": f"bytes={have}-"} if have else {}
    with session.get(url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT)) as response:
        status = response.status_code
        if status == 416:  # nothing lies beyond what we have: it is whole, or not a part of this file
            if trusting and response.headers.get("Content-Range") != f"bytes */{have}":
                part.unlink()
                raise _Broken(f"the file has fewer than the {have} bytes of an earlier transfer")
            return
        if status == 429 or status >= 500:
            raise _Broken(f"the server answered {status} {response.reason}")
        if status not in (200, 206):
            raise _Refused(f"the server answered {status} {response.reason}")
        if status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink(missing_ok=True)
            raise _Broken("the server sent another range than was asked for")
        if status == 200:
            have = 0
        declared = response.headers.get("Content-Length", "")
        total = have + int(declared) if declared.isdigit() else size
        if total is not None and total > limit:
            raise _Refused(f"the server offers {total} bytes, expected {size or 'at most ' + str(limit)}")
        if total is None and trusting:
            raise _Refused("the server does not say how long the file is, and no digest is known")
        with part.open("ab" if have else "wb") as file:
            _copy(response.iter_content(_CHUNK), file, have, total, limit, label=part.stem)
    have = part.stat().st_size
    if total is not None and have < total:
        raise _Broken(f"the connection ended after {have} of {total} bytes")


def _copy(
    chunks: Iterable[bytes], file: IO[bytes], have: int, total: int | None, limit: int, label: str
) -> None:
    """Append chunks to a file that holds `have` bytes, and show the progress."""
    with progress(label, initial=have, total=total, unit="B", size=True) as bar:
        for chunk in chunks:
            have += len(chunk)
            if have > limit:
                file.truncate(0)
                raise _Refused(f"the server sends more than {limit} bytes")
            file.write(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
