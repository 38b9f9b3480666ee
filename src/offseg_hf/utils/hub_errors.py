"""Why something failed between here and the Hub, and what to do, for whoever reads one line of it.

Errors are told apart by type and status; hf_xet and safetensors have neither, see `XET` and `FULL_DISK`.
"""

import errno
import os
import re
from typing import NamedTuple

from huggingface_hub import constants, errors
from huggingface_hub.utils import httpx  # whichever version of it the client brings


AGAIN = "run the same command again, it continues"
LOG_IN = f"log in (`hf auth login`, or HF_TOKEN; tokens are at {constants.ENDPOINT}/settings/tokens)"
NO_CONNECTION = httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError
# Of hf_xet, whose errors are plain RuntimeErrors and ConnectionErrors: with the status of an answer, or without one.
XET = re.compile(r"(?:CAS Client Error|Network error|(?=HTTP status))(?:.*?HTTP status \w+ error \((\d+))?", re.DOTALL)
FULL_DISK = os.strerror(errno.ENOSPC)  # the system's text, which safetensors' errors have


class _Reason(NamedTuple):
    text: str
    is_temporary: bool = False


def explain(error: BaseException) -> str | None:
    """Return why something failed and what to do, in one line; None if neither the Hub nor a full disk is the reason.

    The reason is looked for along `__cause__`; what `error` says itself, as which file was asked for, comes before it.
    """
    found = _innermost(error)
    return found and found.text


def is_temporary(error: BaseException) -> bool:
    """Return whether the connection or the Hub fails, and not what was asked of it: trying again may help."""
    found = _innermost(error)
    return found is not None and found.is_temporary


def _innermost(error: BaseException) -> _Reason | None:
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    for link in reversed(chain):
        if found := _reason(link):
            is_all = link is error or type(error).__module__.startswith("huggingface_hub")
            text = found.text if is_all else f"{_first_line(error).rstrip('.')}: {found.text}"
            return _Reason(text, found.is_temporary)
    return None


def _reason(error: BaseException) -> _Reason | None:
    of_xet = XET.search(str(error)) if type(error) in (RuntimeError, ConnectionError) else None
    if getattr(error, "errno", None) == errno.ENOSPC or FULL_DISK in str(error):
        where = getattr(error, "filename", None)
        cache = f"downloads are in {constants.HF_HUB_CACHE}: `hf cache ls`, `hf cache rm`"
        return _Reason(f"no space left on the disk{f' at {where}' if where else ''}: free some ({cache}), {AGAIN}")
    if type(error).__name__ == "DatasetNotFoundError":  # of datasets, which is not imported for this
        return _Reason(f"check the name; if it is private or gated, accept its terms on its page and {LOG_IN}")
    if isinstance(error, errors.LocalTokenNotFoundError):
        return _Reason(f"not logged in to the Hub: {LOG_IN}")
    if isinstance(error, errors.HFValidationError):
        return _Reason(f"{_first_line(error)}; expected an existing folder, or the name of a repository as user/name")
    if isinstance(error, errors.HfHubHTTPError):
        return _from_answer(error)
    if of_xet and of_xet[1]:
        return _from_status(int(of_xet[1]), "", None)
    is_away = isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError | NO_CONNECTION)
    is_away |= type(error) is ConnectionError and not of_xet  # of datasets
    if not (is_away or of_xet or isinstance(error, httpx.TransportError | errors.XetDownloadError)):
        return None
    if constants.HF_HUB_OFFLINE:
        return _Reason("offline mode is on (HF_HUB_OFFLINE), and this was not downloaded before: unset it")
    what = f"no connection to {constants.ENDPOINT}" if is_away else "the connection to the Hub was lost"
    return _Reason(f"{what} ({_first_line(error)}): check network and proxy (HTTPS_PROXY), then {AGAIN}", True)


def _from_answer(error: errors.HfHubHTTPError) -> _Reason:
    said = _first_line(error.server_message or error.response.headers.get("X-Error-Message") or error)
    is_anonymous = "authorization" not in error.response.request.headers
    status = error.response.status_code
    if status == 401 and not is_anonymous:  # which the client may take for a missing repository
        return _Reason(f"the Hub refuses the token ({said}): HF_TOKEN, or else the login, is expired; {LOG_IN}")
    kind, name = getattr(error, "repo_type", None) or "model", getattr(error, "repo_id", None)
    page = f"{constants.ENDPOINT}/{'' if kind == 'model' else f'{kind}s/'}{name}"
    place = f"{'data set' if kind == 'dataset' else kind} {name}" if name else "repository"
    log_in = LOG_IN if is_anonymous else "log in with an account that may read it"
    match error:
        case errors.GatedRepoError():
            return _Reason(f"the {place} is gated: accept its terms at {page}, and {log_in}")
        case errors.RepositoryNotFoundError():
            who = "without a login" if is_anonymous else "for this account"
            return _Reason(f"there is no {place} {who}: check the name; if it is private, {log_in}")
        case errors.RevisionNotFoundError():
            return _Reason(f"the {place} has no such revision ({error.response.request.url}): see {page}/commits")
        case errors.RemoteEntryNotFoundError():
            return _Reason(f"the {place} has no such file ({error.response.request.url}): see {page}/tree/main")
    return _from_status(status, said, error.response.headers.get("Retry-After"))


def _from_status(status: int, said: str, retry_after: str | None) -> _Reason:
    if status == 401:
        return _Reason(f"not logged in to the Hub: {LOG_IN}")
    if status == 403:
        token = f"take a token that may write, of a member there, from {constants.ENDPOINT}/settings/tokens"
        return _Reason(f"no rights for this at the repository ({said or 'forbidden'}): {token}")
    if status == 412:
        return _Reason(f"the repository was changed by someone else meanwhile ({said}): {AGAIN}", True)
    if status == 429:
        return _Reason(f"too many requests to the Hub: wait {retry_after or 'some 60'} seconds, and {AGAIN}", True)
    if status >= 500:
        return _Reason(f"the Hub has a problem of its own ({status}): wait a while, and {AGAIN}", True)
    return _Reason(f"the Hub answers {status}: {said}")


def _first_line(text: object) -> str:
    return next((line.strip() for line in str(text).splitlines() if line.strip()), type(text).__name__)
