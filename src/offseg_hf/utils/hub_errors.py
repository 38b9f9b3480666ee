"""What went wrong between here and the Hub, in a line that says what to do.

huggingface_hub, transformers and datasets wrap each other's errors; `explain` finds the one that knows the reason.
Nothing heavy is imported before there is an error.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote


if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

# Of httpx, by name: which of its versions the client brings is the client's own business.
NOT_CONNECTED = {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError"}
CONNECTION_LOST = {"TransportError", "XetDownloadError", "ChunkedEncodingError"}
# Of hf_xet, whose errors are plain ConnectionErrors and RuntimeErrors, and tell all by their texts.
XET_ERROR = "CAS Client Error"
XET_STATUS = re.compile(r"HTTP status \w+ error \((\d+)")
FULL_DISK = re.compile("no space left on device|storagefull", re.IGNORECASE)
AGAIN = "run the same command again, it goes on where it was"
LISTED = 8
LISTED_LINES = 12

REPOSITORY_URL = re.compile(
    r"/(?:(?:api/)?(?P<kind>model|dataset|space)s/)?(?P<name>(?!api/)[^/]+/[^/]+?)"
    r"(?:\.git/.*|/(?:resolve|tree|revision|commit|preupload|paths-info)/(?P<revision>[^/]+)(?:/(?P<path>.+))?|/.*)?"
)


@dataclass(frozen=True)
class Explanation:
    """`is_temporary`: the same may well work in a while, with nothing changed here."""

    text: str
    is_temporary: bool = False


@dataclass(frozen=True)
class Place:
    """What a request was about, as far as its address tells; `page` is where a person sees it."""

    kind: str = "repository"
    name: str | None = None
    revision: str | None = None
    path: str | None = None
    page: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" if self.name else "repository"


def explain(error: BaseException) -> str | None:
    """The reason and what to do, in one line; None if the error is none of the Hub, its clients or the disk.

    Goes along `__cause__`: an error of ours that says it all itself is raised `from None`.
    """
    found = _explanation(error)
    return found and found.text


def reason(error: BaseException) -> str:
    """What `explain` says, else what the error says itself, or its name if it says nothing."""
    return explain(error) or one_line(error)


def one_line(error: BaseException) -> str:
    """All that an error says, in one line; of a list without end its beginning."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:LISTED_LINES]) or type(error).__name__
    return text if len(lines) <= LISTED_LINES else f"{text} ... and {len(lines) - LISTED_LINES} lines more"


def is_temporary(error: BaseException) -> bool:
    """Whether it is the connection or the Hub that fails, and not what was asked of it."""
    found = _explanation(error)
    return found is not None and found.is_temporary


def _explanation(error: BaseException) -> Explanation | None:
    chain = list(_chain(error))
    # "Not in the cache" is what the client says last: what kept it from downloading tells more.
    for rule in (_from_client, _from_connection, _from_libraries, _from_disk, _from_cache):
        for link in chain:
            if found := rule(link):
                return found
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _from_client(error: BaseException) -> Explanation | None:
    """Of huggingface_hub: what the Hub has answered, and what was not even asked."""
    from huggingface_hub import constants, errors

    match error:
        case errors.LocalTokenNotFoundError():
            return Explanation(f"not logged in to the Hub: {_how_to_log_in(constants.ENDPOINT)}")
        case errors.OfflineModeIsEnabled():
            return _offline()
        case errors.HFValidationError():
            return Explanation(
                f"{_first_line(error)}; expected an existing folder, or the name of a repository as user/name"
            )
        case errors.HfHubHTTPError() if getattr(error, "response", None) is not None:
            return _from_answer(error, constants.ENDPOINT)
    return None


def _from_answer(error: HfHubHTTPError, endpoint: str) -> Explanation:
    from huggingface_hub import errors

    place, status = _place(error, endpoint), error.response.status_code
    said = _first_line(error.server_message or error.response.headers.get("X-Error-Message") or "")
    is_anonymous = "authorization" not in error.response.request.headers
    if status == 401 and not is_anonymous:  # which the client may take for a missing repository
        which = (
            "HF_TOKEN, which comes before a login," if os.environ.get("HF_TOKEN") else "what you are logged in with"
        )
        reason = f" ({said})" if said else ""
        return Explanation(
            f"the Hub refuses the token{reason}: {which} is expired or mistyped; take another from "
            f"{endpoint}/settings/tokens"
        )
    match error:
        case errors.GatedRepoError():
            log_in = f" and {_how_to_log_in(endpoint)}" if is_anonymous else " with the account that is logged in"
            return Explanation(f"the {place} is gated: accept its terms at {place.page}{log_in}")
        case errors.RepositoryNotFoundError():
            who = "without a login" if is_anonymous else "for this account"
            private = _how_to_log_in(endpoint) if is_anonymous else "log in with an account that may read it"
            return Explanation(f"there is no {place} {who}: check the name; if it is private, {private}")
        case errors.RevisionNotFoundError():
            return Explanation(f"the {place} has no revision {place.revision!r}{_known_revisions(place)}")
        case errors.RemoteEntryNotFoundError():
            files = f"{place.page}/tree/{place.revision or 'main'}"
            return Explanation(f"the {place} has no {place.path or 'such file'}: see {files}")
        case errors.DisabledRepoError():
            return Explanation(f"the Hub has disabled the {place}: see {place.page}")
    retry_after = error.response.headers.get("Retry-After")
    return _from_status(status, place, said or _first_line(error), retry_after, endpoint)


def _from_status(status: int, place: Place, said: str, retry_after: str | None, endpoint: str) -> Explanation:
    if status == 401:
        return Explanation(f"not logged in to the Hub: {_how_to_log_in(endpoint)}")
    if status == 403:
        return Explanation(
            f"no rights for this at the {place} ({said or 'forbidden'}): take a token that may write, from "
            f"{endpoint}/settings/tokens, of an account that is a member there"
        )
    if status == 412:
        return Explanation(f"the {place} was changed by someone else meanwhile ({said}): {AGAIN}", is_temporary=True)
    if status == 429:
        wait = f"wait {retry_after} seconds" if retry_after else "wait some minutes"
        return Explanation(f"too many requests to the Hub: {wait}, and {AGAIN}", is_temporary=True)
    if status >= 500:
        return Explanation(
            f"the Hub has a problem of its own ({f'{status} {said}'.strip()}): wait a while, and {AGAIN}",
            is_temporary=True,
        )
    return Explanation(f"the Hub answers {status} for the {place}: {said}")


def _from_connection(error: BaseException) -> Explanation | None:
    """Of the network below the client."""
    names = {kind.__name__ for kind in type(error).__mro__}
    is_of_xet = type(error) is RuntimeError and XET_ERROR in str(error)
    is_plain = type(error) is ConnectionError or is_of_xet  # of hf_xet and datasets
    if names & NOT_CONNECTED or (is_plain and "Couldn't reach" in str(error)):
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            return _offline()
        return Explanation(
            f"no connection to {constants.ENDPOINT} ({_first_line(error)}): check the network (behind a proxy, "
            f"HTTPS_PROXY), then {AGAIN}",
            is_temporary=True,
        )
    if is_plain and (status := XET_STATUS.search(str(error))):
        from huggingface_hub import constants

        return _from_status(int(status[1]), Place(), "", None, constants.ENDPOINT)
    if names & CONNECTION_LOST or is_plain:
        return Explanation(f"the connection to the Hub was lost ({_first_line(error)}): {AGAIN}", is_temporary=True)
    return None


def _from_libraries(error: BaseException) -> Explanation | None:
    """Of transformers and datasets, which tell kinds of errors by their texts alone."""
    text = " ".join(str(error).split())
    if type(error).__name__ == "DatasetNotFoundError":
        return Explanation(
            f"{text.rstrip('.')}: check the name; if it is private or gated, accept its terms on its page and log in "
            "(`hf auth login`, or HF_TOKEN)"
        )
    if not isinstance(error, ValueError):
        return None
    if "Please pass the argument `trust_remote_code=True`" in text:
        name = re.search(r"repository (\S+) ", text)
        return Explanation(
            f"{name[1] if name else 'the model'} brings code of its own, which the commands do not run: of a newer "
            "model of offseg_hf, `pip install -U offseg-hf`; else load it in Python with trust_remote_code=True, if "
            "you trust it"
        )
    if "does not recognize this architecture" in text:
        kind = re.search(r"model type `([^`]+)`", text)
        return Explanation(
            f"nothing installed here knows the model type {kind[1] if kind else 'of this model'}: "
            "`pip install -U offseg-hf transformers`, or see the model's card"
        )
    return None


def _from_disk(error: BaseException) -> Explanation | None:
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or FULL_DISK.search(str(error)):
        from huggingface_hub import constants

        where = f" at {error.filename}" if isinstance(error, OSError) and error.filename else ""
        return Explanation(
            f"no space left on the disk{where}: free some (downloads are in {constants.HF_HUB_CACHE}: `hf cache ls`, "
            f"`hf cache rm`), then {AGAIN}"
        )
    return None


def _from_cache(error: BaseException) -> Explanation | None:
    from huggingface_hub import constants, errors

    if not isinstance(error, errors.LocalEntryNotFoundError):
        return None
    if constants.HF_HUB_OFFLINE:
        return _offline()
    return Explanation(
        f"no answer from {constants.ENDPOINT}, and nothing in the cache: check the network, then {AGAIN}",
        is_temporary=True,
    )


def _offline() -> Explanation:
    return Explanation(
        "offline mode is on (HF_HUB_OFFLINE), and this was not downloaded before: unset HF_HUB_OFFLINE to download it"
    )


def _how_to_log_in(endpoint: str) -> str:
    return f"log in (`hf auth login`, or HF_TOKEN; tokens are at {endpoint}/settings/tokens)"


def _place(error: HfHubHTTPError, endpoint: str) -> Place:
    """The repository, revision and file of the request, which was redirected perhaps."""
    first = error.response.history[0] if error.response.history else error.response
    match = REPOSITORY_URL.fullmatch(first.request.url.raw_path.decode().partition("?")[0])
    if match is None:
        return Place()
    kind, name = match["kind"] or "model", match["name"]
    page = f"{endpoint}/{name}" if kind == "model" else f"{endpoint}/{kind}s/{name}"
    kind = "data set" if kind == "dataset" else kind
    revision, path = (value and unquote(value) for value in match.group("revision", "path"))
    return Place(kind, name, revision, path, page)


def _known_revisions(place: Place) -> str:
    """What there is instead, if the Hub tells."""
    with suppress(Exception):
        from huggingface_hub import HfApi

        kind = "dataset" if place.kind == "data set" else place.kind
        refs = HfApi().list_repo_refs(place.name, repo_type=kind)
        names = [ref.name for ref in (*refs.branches, *refs.tags)]
        return f": it has {', '.join(names[:LISTED])}{', ...' if len(names) > LISTED else ''}, and commits"
    return f": see {place.page}/commits"


def _first_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0] if not isinstance(error, str) else (lines or [""])[0]
