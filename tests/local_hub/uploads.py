"""Uploading: which files are LFS, their contents, and the commit that names them all."""

import base64
import json
import re
from fnmatch import fnmatch
from hashlib import md5
from pathlib import PurePosixPath

from tests.local_hub.hub import Hub
from tests.local_hub.protocol import HubError, Request, Response, Routes
from tests.local_hub.storage import Blob, Commit


routes = Routes()


@routes("POST", "{api}/preupload/{revision}")
def preupload(hub: Hub, request: Request, kind: str, name: str, revision: str) -> Response:
    """How each file is to be uploaded, and the id of what is there already."""
    existing = hub.writable(kind, name, request.token).resolve(revision).files
    wanted = request.json()
    attributes = hub.blobs.read(existing[".gitattributes"]).decode() if ".gitattributes" in existing else ""
    lfs_patterns = re.findall(r"^(\S+) filter=lfs", attributes, re.MULTILINE)
    ignored = [line for line in wanted.get("gitIgnore", "").splitlines() if line and not line.startswith("#")]
    files = []
    for file in wanted["files"]:
        path = file["path"]
        is_binary = b"\0" in base64.b64decode(file["sample"])
        is_lfs = is_binary or file["size"] >= hub.lfs_threshold or _matches(path, lfs_patterns)
        files.append(
            {
                "path": path,
                "uploadMode": "lfs" if is_lfs else "regular",
                "shouldIgnore": _matches(path, ignored),
                **({"oid": existing[path].etag} if path in existing else {}),
            }
        )
    return Response({"files": files})


def _matches(path: str, patterns: list[str]) -> bool:
    return any(fnmatch(path, pattern) or fnmatch(PurePosixPath(path).name, pattern) for pattern in patterns)


@routes("POST", r"{repository}\.git/info/lfs/objects/batch")
def lfs_batch(hub: Hub, request: Request, kind: str, name: str) -> Response:
    """Where to upload each content: nowhere if it is known, else at once or in parts."""
    hub.writable(kind, name, request.token)
    wanted = request.json()
    in_parts = hub.part_size is not None and "multipart" in wanted["transfers"]
    objects = []
    for file in wanted["objects"]:
        oid, size = file["oid"], file["size"]
        answer = {"oid": oid, "size": size, "authenticated": True}
        if oid not in hub.blobs:
            href = f"{request.endpoint}/lfs/{oid}"
            header = {}
            if in_parts and size > hub.part_size:
                numbers = range(1, -(-size // hub.part_size) + 1)
                header = {"chunk_size": str(hub.part_size)} | {f"{i:05d}": f"{href}/{i}" for i in numbers}
            verify = {"href": f"{request.endpoint}/lfs-verify", "header": {}}
            answer["actions"] = {"upload": {"href": href, "header": header}, "verify": verify}
        objects.append(answer)
    headers = {"Content-Type": "application/vnd.git-lfs+json"}
    return Response({"transfer": "multipart" if in_parts else "basic", "objects": objects}, headers=headers)


@routes("PUT", "/lfs/{oid}")
def upload(hub: Hub, request: Request, oid: str) -> Response:
    hub.blobs.put(request.chunks, oid)
    return Response()


@routes("PUT", r"/lfs/{oid}/(?P<number>\d+)")
def upload_part(hub: Hub, request: Request, oid: str, number: str) -> Response:
    (hub.parts / f"{oid}.{number}").write_bytes(request.body)
    return Response(headers={"ETag": f'"{md5(request.body).hexdigest()}"'})


@routes("POST", "/lfs/{oid}")
def complete_parts(hub: Hub, request: Request, oid: str) -> Response:
    parts = [hub.parts / f"{oid}.{part['partNumber']}" for part in request.json()["parts"]]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise HubError(400, f"parts that were never uploaded: {', '.join(missing)}")
    hub.blobs.put((part.read_bytes() for part in parts), oid)
    for part in parts:
        part.unlink()
    return Response({})


@routes("POST", "/lfs-verify")
def verify(hub: Hub, request: Request) -> Response:
    wanted = request.json()
    if hub.blobs.lfs(wanted["oid"]).size != wanted["size"]:
        raise HubError(400, f"LFS object {wanted['oid']} is not of {wanted['size']} bytes")
    return Response({})


@routes("POST", "{api}/commit/{revision}")
def commit(hub: Hub, request: Request, kind: str, name: str, revision: str) -> Response:
    """Apply one operation per line to the newest files of a branch."""
    repository = hub.writable(kind, name, request.token)
    if "create_pr" in request.query:
        raise HubError(400, "there are no pull requests here")
    operations = [json.loads(line) for line in request.body.splitlines()]
    header = next(operation["value"] for operation in operations if operation["key"] == "header")
    with hub.lock:
        base = repository.resolve(revision)
        if revision not in repository.branches:
            raise HubError(404, f"Invalid rev id: {revision} is not a branch", code="RevisionNotFound")
        if header.get("parentCommit") not in (None, base.id):
            raise HubError(412, f"A commit has happened since {header['parentCommit']}")
        files = _changed(hub, base, operations)
        done = repository.commit(revision, header["summary"], hub.signed_in_user(request.token), files)
    url = f"{request.endpoint}/{repository.url_path}/commit/{done.id}"
    return Response({"success": True, "commitOid": done.id, "commitUrl": url, "hookOutput": ""})


def _changed(hub: Hub, base: Commit, operations: list[dict]) -> dict[str, Blob]:
    files = dict(base.files)
    for operation in operations:
        kind, value = operation["key"], operation["value"]
        if kind == "file":
            files[value["path"]] = hub.blobs.regular(base64.b64decode(value["content"]))
        elif kind == "lfsFile":
            files[value["path"]] = hub.blobs.lfs(value["oid"])
        elif kind in ("deletedFile", "deletedFolder"):
            path = value["path"].rstrip("/")
            gone = [
                file for file in files if file == path or (kind == "deletedFolder" and file.startswith(f"{path}/"))
            ]
            if not gone:
                raise HubError(404, f"{path} does not exist", code="EntryNotFound")
            for file in gone:
                del files[file]
        elif kind != "header":
            raise HubError(400, f"unknown operation of a commit: {kind}")
    return files
