"""Lists of repositories and of what is in them, page by page."""

import hashlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from urllib.parse import parse_qs, urlencode

from tests.local_hub.hub import Hub
from tests.local_hub.protocol import HubError, Request, Response, Routes
from tests.local_hub.repositories import describe
from tests.local_hub.storage import MAIN, Commit, Repository


routes = Routes()


def _page(hub: Hub, request: Request, entries: list[dict]) -> Response:
    """The page that the cursor asks for, with the address of the next."""
    start = int(request.query.get("cursor", 0))
    stop = start + min(hub.page_size, int(request.query.get("limit", hub.page_size)))
    query = urlencode({**request.query, "cursor": stop})
    headers = {"Link": f'<{request.endpoint}{request.path}?{query}>; rel="next"'} if stop < len(entries) else {}
    return Response(entries[start:stop], headers=headers)


@routes("GET", "/api/(?P<kind>models|datasets|spaces)")
def repositories(hub: Hub, request: Request, kind: str) -> Response:
    """All repositories of an author, with words in their names, or with a tag."""
    found = [repository for repository in hub.repositories(kind, request.token) if _is_meant(repository, request)]
    entries = [describe(hub, repository, repository.resolve(MAIN), with_blobs=False) for repository in found]
    tag = request.query.get("pipeline_tag") or request.query.get("filter")
    wanted = [entry for entry in entries if tag is None or tag in (entry.get("pipeline_tag"), *entry["tags"])]
    return _page(hub, request, wanted)


def _is_meant(repository: Repository, request: Request) -> bool:
    author, words = request.query.get("author"), request.query.get("search", "").lower()
    return author in (None, repository.namespace) and words in repository.name.lower()


@routes("GET", "{api}/tree/{revision}(?:/{path})?")
def tree(hub: Hub, request: Request, kind: str, name: str, revision: str, path: str | None) -> Response:
    commit = hub.repository(kind, name, request.token).resolve(revision)
    root = PurePosixPath(path or "")
    is_recursive = request.query.get("recursive", "").lower() == "true"
    entries = [
        entry
        for place, entry in sorted(_entries(hub, commit), key=lambda item: (item[1]["type"], item[0]))
        if place != root and (root in place.parents if is_recursive else root == place.parent)
    ]
    if path and not entries:
        raise HubError(404, f'{path} does not exist on "{revision}"', code="EntryNotFound")
    return _page(hub, request, entries)


@routes("POST", "{api}/paths-info/{revision}")
def paths_info(hub: Hub, request: Request, kind: str, name: str, revision: str) -> Response:
    commit = hub.repository(kind, name, request.token).resolve(revision)
    wanted = {path.rstrip("/") for path in parse_qs(request.body.decode())["paths"]}  # clients send a form
    return Response([entry for path, entry in _entries(hub, commit) if str(path) in wanted])


def _entries(hub: Hub, commit: Commit) -> Iterator[tuple[PurePosixPath, dict]]:
    """All files and folders of a commit."""
    folders = set()
    for name, blob in commit.files.items():
        path = PurePosixPath(name)
        folders.update(path.parents)
        entry = {"type": "file", "oid": blob.oid, "size": blob.size, "path": name}
        if blob.is_lfs:
            entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 134}
            if blob.sha256 in hub.xet.hash_of:
                entry["xetHash"] = hub.xet.hash_of[blob.sha256]
        yield path, entry
    for path in folders - {PurePosixPath()}:
        oid = hashlib.sha1(f"{commit.id} {path}".encode()).hexdigest()
        yield path, {"type": "directory", "oid": oid, "size": 0, "path": str(path)}
