"""What can go wrong between a client and the Hub, on demand."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from threading import Event, Lock


@dataclass(frozen=True)
class Answer:
    """An answer of this status, in the place of the Hub's."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CutUpload:
    """The connection is lost when `after` bytes of the request's body have come."""

    after: int


@dataclass(frozen=True)
class CutDownload:
    """The connection is lost when `after` bytes of the response's body are sent.

    reset: the client is told that it is lost (RST); else all it sees is that no more comes (FIN).
    """

    after: int
    reset: bool = False


@dataclass
class Fault:
    """What goes wrong with the next `times` requests of a method and a path (regular expressions)."""

    method: str
    path: str
    kind: Answer | CutUpload | CutDownload
    times: int
    goes_away: bool
    happened: Event = field(default_factory=Event)  # for the first time

    def concerns(self, method: str, path: str) -> bool:
        is_meant = re.fullmatch(self.method, method) and re.fullmatch(self.path, path)
        return self.times > 0 and is_meant is not None


class Faults:
    """The faults that are still to come."""

    def __init__(self):
        self._faults: list[Fault] = []
        self._lock = Lock()

    def add(
        self, method: str, path: str, kind: Answer | CutUpload | CutDownload, times: int = 1, goes_away: bool = False
    ) -> Fault:
        """goes_away: with it, the Hub goes: connections are dropped, and new ones refused, until it comes back."""
        fault = Fault(method, path, kind, times, goes_away)
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def take(self, method: str, path: str) -> Fault | None:
        """The fault of this request, which is then spent."""
        with self._lock:
            for fault in self._faults:
                if fault.concerns(method, path):
                    fault.times -= 1
                    return fault
        return None


def cut(chunks: Iterator[bytes], after: int) -> Iterator[bytes]:
    """The first `after` bytes, and then ConnectionError."""
    for chunk in chunks:
        if len(chunk) >= after:
            yield chunk[:after]
            break
        after -= len(chunk)
        yield chunk
    raise ConnectionError("cut on demand")
