"""Uploading and downloading by xet: tokens from the Hub, and the store of chunks for which they are good."""

import re
import time
from uuid import uuid4

from tests.local_hub.downloads import ranged
from tests.local_hub.hub import Hub
from tests.local_hub.protocol import HubError, Request, Response, Routes
from tests.local_hub.xet_store import Segment, without_overlap


routes = Routes()

TOKEN_LIFETIME = 3600  # seconds


@routes("GET", r"{api}/xet-(?P<scope>read|write)-token/{revision}")
def token(hub: Hub, request: Request, kind: str, name: str, scope: str, revision: str) -> Response:
    """Where the store is, and a token for it."""
    (hub.writable if scope == "write" else hub.readable)(kind, name, request.token)
    access_token, expiration = f"xet_{uuid4().hex}", int(time.time()) + TOKEN_LIFETIME
    hub.xet_tokens[access_token] = scope
    url = f"{request.cdn}/xet"
    headers = {
        "X-Xet-Cas-Url": url,
        "X-Xet-Access-Token": access_token,
        "X-Xet-Token-Expiration": str(expiration),
    }
    return Response({"casUrl": url, "accessToken": access_token, "exp": expiration}, headers=headers)


def _authorize(hub: Hub, request: Request, scope: str) -> None:
    granted = hub.xet_tokens.get(request.token)
    if granted is None:
        raise HubError(401, "a request to the store of xet without one of its tokens")
    if granted not in (scope, "write"):
        raise HubError(403, f"expected a token to {scope}, got one to {granted}")


@routes("POST", "/xet/v1/xorbs/default/{oid}")
def upload_xorb(hub: Hub, request: Request, oid: str) -> Response:
    _authorize(hub, request, "write")
    return Response({"was_inserted": hub.xet.put_xorb(oid, request.body)})


@routes("POST", "/xet/v1/shards")
def upload_shard(hub: Hub, request: Request) -> Response:
    _authorize(hub, request, "write")
    hub.xet.put_shard(request.body)
    return Response({"result": 1})


@routes("GET", "/xet/v1/reconstructions/{oid}")
def reconstruction(hub: Hub, request: Request, oid: str) -> Response:
    """Which chunks a file, or a range of it, is, and where they can be had."""
    _authorize(hub, request, "read")
    if oid not in hub.xet.segments:
        raise HubError(404, f"no file of xet hash {oid}")
    size = hub.xet.size(oid)
    wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
    start, stop = (int(wanted[1]), min(int(wanted[2]) + 1, size)) if wanted else (0, size)
    if start >= max(stop, 1):
        raise HubError(416, "Range Not Satisfiable")
    segments, offset = hub.xet.covering(oid, start, stop)
    places: dict[str, list[dict]] = {}
    for segment in without_overlap(segments):
        places.setdefault(segment.xorb, []).append(_place(hub, request, segment))
    terms = [_term(hub, segment) for segment in segments]
    return Response({"offset_into_first_range": offset, "terms": terms, "fetch_info": places})


def _term(hub: Hub, segment: Segment) -> dict:
    size = sum(chunk.size for chunk in hub.xet.chunks(segment))
    return {"hash": segment.xorb, "unpacked_length": size, "range": {"start": segment.first, "end": segment.stop}}


def _place(hub: Hub, request: Request, segment: Segment) -> dict:
    chunks = hub.xet.chunks(segment)
    return {
        "range": {"start": segment.first, "end": segment.stop},
        "url": f"{request.cdn}/xet/data/{segment.xorb}",
        "url_range": {"start": chunks[0].start, "end": chunks[-1].stop - 1},  # its end is part of it
    }


@routes("GET", "/xet/data/{oid}")
def xorb(hub: Hub, request: Request, oid: str) -> Response:
    """Bytes of a xorb; whoever knows the address may read."""
    if request.token is not None:
        raise HubError(400, "a token was sent to where none is needed")
    return ranged(request, hub.xet.path(oid))
