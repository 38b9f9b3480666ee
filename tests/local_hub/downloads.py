"""Downloading: small files from the Hub itself, LFS files from its content network, whole or in ranges."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

from tests.local_hub.hub import Hub
from tests.local_hub.protocol import FileSlice, HubError, Request, Response, Routes


routes = Routes()


@routes("GET HEAD", "{repository}/resolve/{revision}/{path}")
def resolve(hub: Hub, request: Request, kind: str, name: str, revision: str, path: str) -> Response:
    commit = hub.readable(kind, name, request.token).resolve(revision)
    headers = {"X-Repo-Commit": commit.id}
    if path not in commit.files:
        raise HubError(404, "Entry not found", code="EntryNotFound", headers=headers)
    blob = commit.files[path]
    headers["ETag"] = f'"{blob.etag}"'
    if not blob.is_lfs:
        return ranged(request, hub.blobs.path(blob.sha256), headers)
    headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
    if blob.sha256 in hub.xet.hash_of:
        token_url = f"{request.endpoint}/api/{kind}/{name}/xet-read-token/{commit.id}"
        headers |= {"X-Xet-Hash": hub.xet.hash_of[blob.sha256], "Link": f'<{token_url}>; rel="xet-auth"'}
    return Response(status=302, headers={**headers, "Location": f"{request.cdn}/cdn/{blob.sha256}?path={quote(path)}"})


@routes("GET HEAD", "/cdn/{oid}")
def content_network(hub: Hub, request: Request, oid: str) -> Response:
    """Whoever knows the address may read; a token, which belongs to the Hub alone, must not come here."""
    if request.token is not None:
        raise HubError(400, "the Hub's token was sent to the content network")
    return ranged(request, hub.blobs.path(oid), {"ETag": f'"{oid}"'})


def ranged(request: Request, path: Path, headers: Mapping[str, str] = MappingProxyType({})) -> Response:
    """A file, or the part of it that the request wants."""
    size = path.stat().st_size
    headers = {**headers, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    if wanted is None or not any(wanted.groups()):
        return Response(FileSlice(path, 0, size), headers=headers)
    first, last = wanted.groups()
    start = int(first) if first else max(0, size - int(last))
    stop = min(int(last) + 1, size) if first and last else size
    if start >= stop:
        raise HubError(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return Response(FileSlice(path, start, stop - start), 206, headers)
