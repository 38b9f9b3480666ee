"""Uploads of a training's best model to the Hub; one that fails is told, and does not end the training."""

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.utils import disable_progress_bars

from offseg_hf.hub.push import push_model, writable_name
from offseg_hf.utils.hub_errors import explain, is_temporary
from offseg_hf.utils.texts import one_line


class PublicationError(OSError):
    """A training is done, and its best model is not on the Hub."""


class Publication:
    """Keep a repository on the Hub as the best model of a training is.

    An upload that fails is tried again with the next evaluation. Raises at once what will not pass by itself, such as
    a missing login: before the first iteration, that is no loss.

    Args:
        repository: as user/name.
        private: whether it is created as a private one.
        folder: the checkpoint of the best model, which may not be there yet.
        say: told what was uploaded, and what failed.
    """

    def __init__(self, repository: str, private: bool, folder: Path, say: Callable[[str], None]):
        self.private, self.folder, self._say = private, folder, say
        self.is_behind = folder.exists()  # of a training that goes on nobody knows what arrived
        self._failure: Exception | None = None
        disable_progress_bars()  # the training has one
        try:
            self.repository = writable_name(HfApi(), repository)
        except Exception as error:  # of the client and of the network below it
            if not is_temporary(error):
                raise
            self.repository = repository
            self._say(f"{repository} is out of reach: {_why(error)}; the training begins nevertheless")

    def push(self) -> None:
        """Send the best model with its card, as of now; tell a failure."""
        self.is_behind = True
        try:
            upload = push_model(self.folder, self.repository, private=self.private)
        except Exception as error:  # nothing that goes wrong here is worth a training
            self._failure = error
            self._say(f"not uploaded: {_why(error)}; the training goes on, and will try again")
            return
        self.is_behind, self._failure = False, None
        if not upload.changes.is_empty:
            self._say(f"uploaded: {upload.url}")

    def finish(self) -> None:
        """Send it once more, with the whole curve in its card; raises PublicationError if that fails."""
        self.push()
        if self._failure is not None:
            raise PublicationError(
                f"the training is done and {self.folder} holds its best model, but it is not on the Hub: "
                f"{_why(self._failure)}. `offseg push {self.folder} {self.repository}` sends it"
            ) from None


def _why(error: Exception) -> str:
    return explain(error) or one_line(error)
