"""SIGINT and SIGTERM end a training at a moment of its own choice."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingInterrupted(KeyboardInterrupt):
    """A signal ended the training; it says when, and how to go on. `exit_code` is that of shells, 128 + the signal."""

    def __init__(self, number: int, when: str):
        super().__init__(f"stopped by {signal.Signals(number).name} {when}")
        self.exit_code = 128 + number


class Interruption:
    """While it is entered, remembers the first SIGINT or SIGTERM in `signal` (0: none) instead of being killed by it.

    Later ones are ignored: a launcher passes on what the terminal has sent already. SIGQUIT and SIGKILL end a training
    at once.
    """

    def __init__(self):
        self.signal = 0
        self._is_breakable = False

    def __enter__(self) -> "Interruption":
        is_main = threading.current_thread() is threading.main_thread()  # signals are for the main thread only
        self._handlers = {number: signal.signal(number, self._handle) for number in SIGNALS if is_main}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @contextmanager
    def breakable(self, when: str) -> Iterator[None]:
        """Enter a part that leaves nothing to save: a signal raises TrainingInterrupted in the midst of it."""
        self._when = when
        self._is_breakable = True
        try:
            self._raise_if_signalled()
            yield
        except Exception:
            self._raise_if_signalled()  # others get the signal too: what failed are workers, or other processes
            raise
        finally:
            self._is_breakable = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first = not self.signal
        self.signal = self.signal or number
        if first and self._is_breakable:
            self._raise_if_signalled()

    def _raise_if_signalled(self) -> None:
        if self.signal:
            raise TrainingInterrupted(self.signal, self._when)


def ignore_signals(worker: int) -> None:
    """Let workers that load data ignore signals: what interrupts them is the process that they work for."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
