"""Requests, responses, errors and routes of a Hub, without sockets."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote


class HubError(Exception):
    """An answer other than success, told in the headers by which clients know it."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        **body: str,
    ):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self.body = {"error": message, **body}


@dataclass
class Request:
    """`endpoint` and `cdn` are the origins under which the client reaches the Hub and its content network."""

    method: str
    path: str  # percent-encoded
    query: Mapping[str, str]
    headers: Mapping[str, str]
    chunks: Iterable[bytes]  # the body; can be read once
    endpoint: str
    cdn: str

    @cached_property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    def json(self) -> dict:
        return json.loads(self.body or b"{}")

    @property
    def token(self) -> str | None:
        authorization = self.headers.get("Authorization")
        return authorization and authorization.removeprefix("Bearer ")


@dataclass(frozen=True)
class FileSlice:
    path: Path
    start: int
    length: int


@dataclass
class Response:
    content: bytes | FileSlice | dict | list = b""  # what is neither bytes nor a file goes out as JSON
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> bytes | FileSlice:
        return json.dumps(self.content).encode() if isinstance(self.content, dict | list) else self.content


# What patterns of routes may hold in braces.
PARAMETERS = {
    "api": r"/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)",
    "repository": r"/(?:(?P<kind>datasets|spaces)/)?(?P<name>[^/]+/[^/]+?)",
    "revision": r"(?P<revision>[^/]+)",
    "oid": r"(?P<oid>[0-9a-f]{64})",
    "path": r"(?P<path>.+)",
}


class Routes:
    """A table of methods and patterns of paths, and the functions that answer them."""

    def __init__(self):
        self._rows: list[tuple[list[str], re.Pattern, Callable[..., Response]]] = []

    def __call__(self, methods: str, pattern: str) -> Callable:
        """Register the decorated function (hub, request, *, the pattern's groups) for `methods`, split at blanks."""
        expression = re.sub(r"\{(\w+)\}", lambda parameter: PARAMETERS[parameter[1]], pattern)

        def register(function: Callable[..., Response]) -> Callable[..., Response]:
            self._rows.append((methods.split(), re.compile(expression), function))
            return function

        return register

    def answer(self, hub, request: Request) -> Response | None:
        """The response, or None if no route leads there; the functions raise HubError."""
        for methods, pattern, function in self._rows:
            match = pattern.fullmatch(request.path) if request.method in methods else None
            if match:
                groups = {key: value and unquote(value) for key, value in match.groupdict().items()}
                if "kind" in groups:
                    groups["kind"] = groups["kind"] or "models"
                return function(hub, request, **groups)
        return None
