"""The Hub on a port of loopback."""

import re
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from urllib.parse import parse_qsl, urlsplit

from tests.local_hub import downloads, listings, repositories, uploads, xet
from tests.local_hub.faults import Answer, CutDownload, CutUpload, Fault, Faults, cut
from tests.local_hub.hub import Hub
from tests.local_hub.protocol import FileSlice, HubError, Request, Response


TABLES = (repositories.routes, listings.routes, uploads.routes, downloads.routes, xet.routes)
CHUNK = 2**20
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # of SO_LINGER


@dataclass(frozen=True)
class LogEntry:
    method: str
    path: str  # percent-encoded, without the query
    headers: dict[str, str]  # names in lower case
    status: int  # 0: the connection was lost before there was an answer


class HubServer:
    """Serves a Hub from threads of this process while the context is open, but for what `faults` are to come.

    Its content network is the same server under another name, so that clients take it for another origin.
    """

    def __init__(self, hub: Hub, port: int = 0):
        self.hub = hub
        self.log: list[LogEntry] = []
        self.faults = Faults()
        self.is_away = True
        self._coming_and_going = Lock()
        self._listener = Listener(self, port)
        self.endpoint = f"http://127.0.0.1:{self._listener.server_port}"
        self.cdn = f"http://localhost:{self._listener.server_port}"

    def __enter__(self) -> "HubServer":
        self.come_back()
        return self

    def __exit__(self, *exception) -> None:
        self.go_away()
        self._listener.server_close()

    def go_away(self) -> None:
        """Drop all connections and refuse new ones; nothing if it is away."""
        with self._coming_and_going:
            if self.is_away:
                return
            gone = self._listener
            gone.shutdown()
            gone.server_close()
            self._listener = Listener(self, gone.server_port)
            gone.drop_connections()
            self.is_away = True

    def come_back(self) -> None:
        """At the same port; nothing if it is there."""
        with self._coming_and_going:
            if self.is_away:
                self._listener.server_activate()
                Thread(target=self._listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
                self.is_away = False

    def answer(self, request: Request) -> Response:
        try:
            for routes in TABLES:
                response = routes.answer(self.hub, request)
                if response is not None:
                    return response
            raise HubError(404, f"nothing here: {request.method} {request.path}")
        except HubError as error:
            return Response(error.body, error.status, error.headers | _as_over_https(request, error))

    def follow(self, fault: Fault) -> None:
        """What comes after what went wrong."""
        if fault.goes_away:
            self.go_away()
        fault.happened.set()


def _as_over_https(request: Request, error: HubError) -> dict[str, str]:
    """What clients make of a bare 401 themselves where the Hub's address begins with https, and not with http."""
    is_of_repository = re.match(r"/api/(models|datasets|spaces)/.|/.+/resolve/.", request.path)
    is_credentials = str(error) == "Invalid credentials in Authorization header"
    if error.status == 401 and is_of_repository and not is_credentials and "X-Error-Code" not in error.headers:
        return {"X-Error-Code": "RepoNotFound"}
    return {}


class Listener(ThreadingHTTPServer):
    """Holds a port, at which connections are refused until it is activated."""

    daemon_threads = True

    def __init__(self, hub_server: HubServer, port: int):
        super().__init__(("127.0.0.1", port), Handler, bind_and_activate=False)
        self.hub_server = hub_server
        self.connections: set[socket.socket] = set()
        self.server_bind()

    def process_request(self, request: socket.socket, client_address) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def drop_connections(self) -> None:
        for connection in list(self.connections):
            with suppress(OSError):  # the client was faster
                connection.shutdown(socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open
    server: Listener

    def handle_request(self) -> None:
        fault = self.server.hub_server.faults.take(self.command, urlsplit(self.path).path)
        kind = fault.kind if fault else None
        try:
            response = self._respond(kind)
            self._send(response, kind)
        except ConnectionError:  # the client has gone, or the connection is to be lost
            self.close_connection = True
        finally:
            if fault:
                self.server.hub_server.follow(fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def log_message(self, *arguments) -> None:
        """Nothing on stderr: `HubServer.log` has it."""

    def _respond(self, fault: Answer | CutUpload | CutDownload | None) -> Response:
        """The response, which is logged before it is sent: whoever has it finds it in the log."""
        hub_server, url, chunks = self.server.hub_server, urlsplit(self.path), self._read_body()
        if isinstance(fault, CutUpload):
            chunks = cut(chunks, fault.after)
        query = dict(parse_qsl(url.query))
        request = Request(self.command, url.path, query, self.headers, chunks, hub_server.endpoint, hub_server.cdn)
        status = 0
        try:
            if isinstance(fault, Answer):
                response = Response({"error": "on demand"}, fault.status, dict(fault.headers))
            else:
                response = hub_server.answer(request)
            for _ in chunks:  # what nobody read, or the next request would begin with it
                pass
            status = response.status
        finally:
            headers = {name.lower(): value for name, value in self.headers.items()}
            hub_server.log.append(LogEntry(self.command, url.path, headers, status))
        return response

    def _read_body(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            yield from self._read_chunked()
        left = int(self.headers.get("Content-Length", 0))
        while left > 0:
            chunk = self.rfile.read1(min(left, CHUNK))
            if not chunk:
                raise ConnectionError("the client has gone in the middle of a body")
            left -= len(chunk)
            yield chunk

    def _read_chunked(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().partition(b";")[0] or b"0", 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _send(self, response: Response, fault: Answer | CutUpload | CutDownload | None) -> None:
        body = response.body()
        self.send_response(response.status)
        length = body.length if isinstance(body, FileSlice) else len(body)
        for name, value in {"Content-Type": "application/json", "Content-Length": length, **response.headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        chunks = iter(()) if self.command == "HEAD" else _read(body)
        if isinstance(fault, CutDownload):
            chunks = cut(chunks, fault.after)
        try:
            for chunk in chunks:
                self.wfile.write(chunk)
        except ConnectionError:
            if isinstance(fault, CutDownload) and fault.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                self.connection.close()
            raise


def _read(body: bytes | FileSlice) -> Iterator[bytes]:
    if isinstance(body, bytes):
        yield body
        return
    with body.path.open("rb") as file:
        file.seek(body.start)
        for start in range(0, body.length, CHUNK):
            yield file.read(min(CHUNK, body.length - start))
