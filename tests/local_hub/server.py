"""The Hub on a port of loopback."""

from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qsl, urlsplit

from tests.local_hub import downloads, repositories, uploads
from tests.local_hub.hub import Hub
from tests.local_hub.protocol import FileSlice, HubError, Request, Response


TABLES = (repositories.routes, uploads.routes, downloads.routes)
CHUNK = 2**20


@dataclass(frozen=True)
class LogEntry:
    method: str
    path: str  # percent-encoded, without the query
    headers: dict[str, str]
    status: int


class HubServer:
    """Serves a Hub from threads of this process while the context is open.

    Its content network is the same server under another name, so that clients take it for another origin.
    """

    def __init__(self, hub: Hub):
        self.hub = hub
        self.log: list[LogEntry] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub_server": self}))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.cdn = f"http://localhost:{self._server.server_port}"

    def __enter__(self) -> "HubServer":
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: Request) -> Response:
        try:
            for routes in TABLES:
                response = routes.answer(self.hub, request)
                if response is not None:
                    return response
            raise HubError(404, f"nothing here: {request.method} {request.path}")
        except HubError as error:
            return Response(error.body, error.status, error.headers)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open
    hub_server: HubServer

    def handle_request(self) -> None:
        server, url, chunks = self.hub_server, urlsplit(self.path), self._read_body()
        query = dict(parse_qsl(url.query))
        request = Request(self.command, url.path, query, self.headers, chunks, server.endpoint, server.cdn)
        try:
            response = server.answer(request)
            for _ in chunks:  # what nobody read, or the next request would begin with it
                pass
            # Logged before it is sent: whoever has the response finds it in the log.
            server.log.append(LogEntry(self.command, url.path, dict(self.headers.items()), response.status))
            self._send(response)
        except ConnectionError:  # the client has gone
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def log_message(self, *arguments) -> None:
        """Nothing on stderr: `HubServer.log` has it."""

    def _read_body(self) -> Iterator[bytes]:
        left = int(self.headers.get("Content-Length", 0))
        while left > 0:
            chunk = self.rfile.read(min(left, CHUNK))
            if not chunk:
                raise ConnectionError("the client has gone in the middle of a body")
            left -= len(chunk)
            yield chunk

    def _send(self, response: Response) -> None:
        body = response.body()
        self.send_response(response.status)
        length = body.length if isinstance(body, FileSlice) else len(body)
        for name, value in {"Content-Type": "application/json", "Content-Length": length, **response.headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        if isinstance(body, bytes):
            self.wfile.write(body)
            return
        with body.path.open("rb") as file:
            file.seek(body.start)
            for start in range(0, length, CHUNK):
                self.wfile.write(file.read(min(CHUNK, length - start)))
