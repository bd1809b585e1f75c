"""An HTTP server that misbehaves on purpose, one way for each path."""

import contextlib
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


class QuietServer(ThreadingHTTPServer):
    """Says nothing of clients that hang up, which is what they are here to do."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        pass


CERTIFICATE = Path(__file__).with_name("localhost.pem")  # of 127.0.0.1, with its key, signed by itself


class Server:
    """Serves `content` at `/WAY/NAME`, in the way that the path names; counts and keeps the requests.

    Attributes:
        raw: the bytes that the way `raw` sends.
        location: where the way `elsewhere` redirects to.
        retry_after: when the way `later` asks to come again.
        released: an event that the way `held` waits for.
    """

    def __init__(self, content, *, secure=False):
        self.content = content
        self.raw, self.location, self.retry_after = b"", "", ""
        self.requests = []
        self.released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.requests.append((self.path, self.headers.get("Range")))
                way = urlsplit(self.path).path.split("/")[1]
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    getattr(self, way.replace("-", "_"))()

            def log_message(self, *arguments):
                pass

            def answer(self, status, body, **headers):
                self.send_response(status)
                headers.setdefault("Content_Length", str(len(body)))
                for key, value in headers.items():
                    if value is not None:
                        self.send_header(key.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(body)

            def hang_up(self):
                self.close_connection = True

            def good(self):
                start = int(self.headers.get("Range", "bytes=0-")[6:-1])
                if not start:
                    self.answer(200, outer.content)
                elif start >= len(outer.content):
                    self.answer(416, b"", Content_Range=f"bytes */{len(outer.content)}")
                else:
                    rest, total = outer.content[start:], len(outer.content)
                    self.answer(206, rest, Content_Range=f"bytes {start}-{total - 1}/{total}")

            def mirror(self):  # another good one
                self.good()

            def no_ranges(self):
                self.answer(200, outer.content)

            def cut(self):
                """Break off halfway through what was asked for, the first two times."""
                if len(outer.requests) > 2:
                    return self.good()
                start = int(self.headers.get("Range", "bytes=0-")[6:-1])
                rest, total = outer.content[start:], len(outer.content)
                self.answer(
                    206 if start else 200,
                    rest[: len(rest) // 2],
                    Content_Length=str(len(rest)),
                    Content_Range=f"bytes {start}-{total - 1}/{total}",
                )
                return self.hang_up()

            def always_cut(self):
                self.answer(200, outer.content[:1000], Content_Length=str(len(outer.content)))
                self.hang_up()

            def page(self):
                self.answer(200, b"<html>please log in</html>", Content_Type="text/html")

            def missing(self):
                self.answer(404, b"no such file")

            def busy(self):
                """Be overloaded the first two times."""
                self.answer(503, b"") if len(outer.requests) <= 2 else self.good()

            def always_busy(self):
                self.answer(429, b"")

            def stall(self):
                """Stop sending without closing, the first time."""
                if len(outer.requests) > 1:
                    return self.good()
                self.answer(200, outer.content[:1000], Content_Length=str(len(outer.content)))
                time.sleep(3)
                return self.hang_up()

            def endless(self):
                self.send_response(200)
                self.end_headers()
                for _ in range(10000):
                    self.wfile.write(b"\0" * 2**16)
                self.hang_up()

            def huge(self):
                self.answer(200, b"", Content_Length=str(10**12))
                self.hang_up()

            def other_range(self):
                if self.headers.get("Range"):
                    self.answer(206, outer.content[5:], Content_Range="bytes 5-9/10")
                else:
                    self.good()

            def unsized(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(outer.content)
                self.hang_up()

            def later(self):
                """Be overloaded the first time, and say until when."""
                if len(outer.requests) > 1:
                    return self.good()
                return self.answer(503, b"", Retry_After=outer.retry_after)

            def elsewhere(self):
                self.answer(302, b"", Location=outer.location)

            def nothing_left(self):
                self.answer(416, b"")

            def raw(self):
                self.wfile.write(outer.raw)
                self.hang_up()

            def drip(self):
                """Send a byte at a time, so that no wait for the next one is long."""
                self.answer(200, b"", Content_Length=str(len(outer.content)))
                self.drip_bytes(outer.content)

            def drip_headers(self):
                self.drip_bytes(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 1000)

            def drip_bytes(self, content):
                for k in range(100):
                    self.wfile.write(content[k : k + 1])
                    time.sleep(0.1)
                self.hang_up()

            def steady(self):
                """Take a second, at a good speed."""
                self.send_response(200)
                self.send_header("Content-Length", str(len(outer.content)))
                self.end_headers()
                step = len(outer.content) // 20 + 1
                for k in range(0, len(outer.content), step):
                    self.wfile.write(outer.content[k : k + step])
                    time.sleep(0.05)

            def held(self):
                """Answer once the test says so, or a second request shows that nothing holds others back."""
                if len(outer.requests) > 1:
                    outer.released.set()
                outer.released.wait(60)
                self.good()

            def slow(self):
                """Take long enough for other processes to arrive."""
                time.sleep(1)
                self.good()

        self.http = QuietServer(("127.0.0.1", 0), Handler)
        if secure:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(CERTIFICATE)
            self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        self.address = f"http{'s' if secure else ''}://127.0.0.1:{self.http.server_port}"

    def url(self, way, name="file.pth"):
        return f"{self.address}/{way}/{name}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.http.server_close()
