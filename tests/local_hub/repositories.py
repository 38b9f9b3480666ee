"""Accounts, repositories, and their branches and tags."""

import hashlib

import yaml

from tests.local_hub.hub import Hub
from tests.local_hub.protocol import HubError, Request, Response, Routes
from tests.local_hub.storage import MAIN, Blob, Commit, Repository


routes = Routes()


@routes("GET", "/api/whoami-v2")
def whoami(hub: Hub, request: Request) -> Response:
    user = hub.signed_in_user(request.token)
    organizations = [name for name, members in hub.organizations.items() if user in members]
    role = "read" if request.token in hub.read_only_tokens else "write"
    return Response(
        {
            "type": "user",
            "id": user,
            "name": user,
            "fullname": user,
            "isPro": False,
            "orgs": [{"type": "org", "name": name, "roleInOrg": "write"} for name in organizations],
            "auth": {"type": "access_token", "accessToken": {"displayName": "tests", "role": role}},
        }
    )


@routes("POST", "/api/validate-yaml")
def validate_card(hub: Hub, request: Request) -> Response:
    return Response({"errors": [], "warnings": []})


@routes("POST", "/api/repos/create")
def create(hub: Hub, request: Request) -> Response:
    wanted = request.json()
    user = hub.signed_in_user(request.token)
    kind, name = wanted.get("type", "model") + "s", f"{wanted.get('organization') or user}/{wanted['name']}"
    url = f"{request.endpoint}/{Repository(kind, name).url_path}"
    is_private = wanted.get("visibility") == "private" or wanted.get("private", False)
    try:
        hub.create(kind, name, request.token, is_private)
    except HubError as error:
        error.body["url"] = url  # read by clients to whom it is all right that the repository exists
        raise
    return Response({"url": url, "name": name, "id": name})


@routes("DELETE", "/api/repos/delete")
def delete(hub: Hub, request: Request) -> Response:
    wanted = request.json()
    namespace = wanted.get("organization") or hub.signed_in_user(request.token)
    kind, name = wanted.get("type", "model") + "s", f"{namespace}/{wanted['name']}"
    hub.delete(hub.writable(kind, name, request.token))
    return Response({})


@routes("PUT", "{api}/settings")
def change_settings(hub: Hub, request: Request, kind: str, name: str) -> Response:
    repository, wanted = hub.writable(kind, name, request.token), request.json()
    with hub.lock:
        if "visibility" in wanted:
            repository.private = wanted["visibility"] == "private"
        repository.private = wanted.get("private", repository.private)
        repository.gated = wanted.get("gated", repository.gated)
    return Response({"private": repository.private, "gated": repository.gated})


@routes("POST", "{api}/user-access-request/grant")
def grant_access(hub: Hub, request: Request, kind: str, name: str) -> Response:
    repository = hub.writable(kind, name, request.token)
    with hub.lock:
        repository.granted.add(request.json()["user"])
    return Response({})


@routes("GET", "{api}/auth-check")
def check_access(hub: Hub, request: Request, kind: str, name: str) -> Response:
    hub.readable(kind, name, request.token)
    return Response({})


@routes("GET", "{api}(?:/revision/{revision})?")
def info(hub: Hub, request: Request, kind: str, name: str, revision: str | None) -> Response:
    repository = hub.repository(kind, name, request.token)
    with_blobs = request.query.get("blobs", "").lower() == "true"
    return Response(describe(hub, repository, repository.resolve(revision or MAIN), with_blobs))


def describe(hub: Hub, repository: Repository, commit: Commit, with_blobs: bool) -> dict:
    card = _card_data(hub, commit)
    return {
        "_id": hashlib.md5(repository.name.encode()).hexdigest()[:24],
        "id": repository.name,
        "author": repository.namespace,
        "sha": commit.id,
        "createdAt": next(iter(repository.commits.values())).date,
        "lastModified": commit.date,
        "private": repository.private,
        "gated": repository.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": card.get("tags", []),
        "siblings": [_sibling(path, blob, with_blobs) for path, blob in sorted(commit.files.items())],
        "cardData": card,
        **{key: card[key] for key in ("pipeline_tag", "library_name") if key in card},
    }


def _card_data(hub: Hub, commit: Commit) -> dict:
    """The metadata between the two lines `---` with which a README.md begins."""
    if "README.md" not in commit.files:
        return {}
    parts = hub.blobs.read(commit.files["README.md"]).decode().split("---\n", maxsplit=2)
    return (yaml.safe_load(parts[1]) or {}) if len(parts) == 3 and not parts[0] else {}


def _sibling(path: str, blob: Blob, with_blobs: bool) -> dict:
    if not with_blobs:
        return {"rfilename": path}
    lfs = {"lfs": {"sha256": blob.sha256, "size": blob.size, "pointerSize": 134}} if blob.is_lfs else {}
    return {"rfilename": path, "size": blob.size, "blobId": blob.oid, **lfs}


@routes("GET", "{api}/refs")
def refs(hub: Hub, request: Request, kind: str, name: str) -> Response:
    repository = hub.repository(kind, name, request.token)

    def listed(targets: dict[str, str], folder: str) -> list[dict]:
        return [{"name": n, "ref": f"refs/{folder}/{n}", "targetCommit": sha} for n, sha in targets.items()]

    branches, tags = listed(repository.branches, "heads"), listed(repository.tags, "tags")
    return Response({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})


@routes("GET", "{api}/commits/{revision}")
def commits(hub: Hub, request: Request, kind: str, name: str, revision: str) -> Response:
    history = hub.repository(kind, name, request.token).history(revision)
    return Response(
        [
            {"id": c.id, "title": c.title, "message": "", "date": c.date, "authors": [{"user": c.author}]}
            for c in history
        ]
    )


@routes("POST", "{api}/branch/{revision}")
def create_branch(hub: Hub, request: Request, kind: str, name: str, revision: str) -> Response:
    repository = hub.writable(kind, name, request.token)
    return _point(hub, repository.branches, revision, repository.resolve(request.json().get("startingPoint", MAIN)))


@routes("POST", "{api}/tag/{revision}")
def create_tag(hub: Hub, request: Request, kind: str, name: str, revision: str) -> Response:
    repository = hub.writable(kind, name, request.token)
    return _point(hub, repository.tags, request.json()["tag"], repository.resolve(revision))


def _point(hub: Hub, targets: dict[str, str], name: str, commit: Commit) -> Response:
    with hub.lock:
        if name in targets:
            raise HubError(409, f"Reference already exists: {name}")
        targets[name] = commit.id
    return Response({})


@routes("DELETE", "{api}/(?P<what>branch|tag)/{revision}")
def delete_branch_or_tag(hub: Hub, request: Request, kind: str, name: str, what: str, revision: str) -> Response:
    repository = hub.writable(kind, name, request.token)
    targets = repository.branches if what == "branch" else repository.tags
    with hub.lock:
        if targets.pop(revision, None) is None:
            raise HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
    return Response({})
