"""Putting a model's files into a repository of the Hub: in one commit, only what changed, nobody's work lost.

What this package has written it knows again by the titles of its commits. Whatever else is in a repository is someone
else's: files of other names stay, a card that someone has changed stays, and a model file that someone has changed is
a reason to stop (`overwrite` replaces both).
"""

import hashlib
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from offseg_hf import __version__


MAIN = "main"
SIGNATURE = " with offseg-hf "  # in the titles of our commits
CARD = "README.md"
# Of files that go with a model of before.
MODEL_SUFFIXES = (".py", ".safetensors", ".safetensors.index.json", "/adapter_config.json")
CHUNK = 2**20


class RepositoryError(ValueError):
    """A repository that cannot be written, or not without losing what is there."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as the Hub lists it: `oid` is git's SHA-1 of what is stored in git, `sha256` that of an LFS content."""

    oid: str
    sha256: str | None
    size: int


@dataclass(frozen=True)
class RemoteState:
    """What is in a repository, of the kind model or space; `head` is None if there is no repository."""

    name: str
    kind: str = "model"
    head: str | None = None
    private: bool = False
    files: Mapping[str, RemoteFile] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)  # name -> commit

    @property
    def place(self) -> str:
        """Return the path of its page on the Hub."""
        return self.name if self.kind == "model" else f"{self.kind}s/{self.name}"


@dataclass(frozen=True)
class Changes:
    """What a commit would do. `kept`: the card, if someone has changed it."""

    add: Mapping[str, Path | bytes]
    delete: list[str]
    kept: list[str]
    size: int  # of what is added, in bytes

    @property
    def is_empty(self) -> bool:
        """Return whether the repository has everything already."""
        return not (self.add or self.delete)


def require_writer(api: HfApi, namespace: str | None) -> str:
    """Return the namespace to write into, by default the user's own; asks the Hub once.

    Raises:
        RepositoryError: If the user may not write there; besides, what huggingface_hub raises for a refused token.
    """
    user = api.whoami()
    namespace = namespace or user["name"]
    token = user.get("auth", {}).get("accessToken", {})
    where_to_get = f"take one of the role write from {api.endpoint}/settings/tokens, and `hf auth login` with it"
    if token.get("role") == "read":
        raise RepositoryError(f"expected a token that may write, got one that may read only: {where_to_get}")
    roles = {user["name"]: "admin"} | {org["name"]: org.get("roleInOrg", "write") for org in user.get("orgs", ())}
    if namespace not in roles:
        raise RepositoryError(
            f"expected a member of {namespace}, got {user['name']}, who is one of {', '.join(roles)}: ask to be "
            f"invited at {api.endpoint}/{namespace}, or log in as a member (`hf auth login`)"
        )
    if roles[namespace] == "read":
        raise RepositoryError(
            f"expected rights to write in {namespace}, got {user['name']}, who may read there only: ask its admins "
            "for the role write or contributor"
        )
    return namespace


def read_state(api: HfApi, name: str, kind: str = "model") -> RemoteState:
    """Return what the Hub has under `name` now, as a repository of a kind."""
    try:
        info = api.repo_info(name, repo_type=kind)
    except GatedRepoError:  # there is one, which this account may not see
        raise
    except RepositoryNotFoundError:
        return RemoteState(name, kind)
    tags = {ref.name: ref.target_commit for ref in api.list_repo_refs(name, repo_type=kind).tags}
    return RemoteState(name, kind, info.sha, bool(info.private), _files(api, name, kind, info.sha), tags)


def find_changes(
    api: HfApi,
    state: RemoteState,
    files: Mapping[str, Path | bytes],
    *,
    private: bool = False,
    overwrite: bool = False,
) -> Changes:
    """Return what turns the repository into one that holds `files`, beside what others have put there.

    Args:
        api: The client.
        state: What the Hub has now.
        files: Path in the repository -> a file, or its content.
        private: Whether the repository should be private.
        overwrite: Replace what others have changed.

    Raises:
        RepositoryError: If a repository that should be private is not, or someone has changed files of the model.
    """
    if state.head is None:
        return Changes(files, [], [], _size(files))
    if private and not state.private:
        raise RepositoryError(
            f"expected a private repository, got {state.name}, which is public: change that in its settings "
            f"({api.endpoint}/{state.place}/settings), or leave out --private"
        )
    changed = {path: file for path, file in files.items() if not _is_same(file, state.files.get(path))}
    gone = {path for path in state.files.keys() - files.keys() if path.endswith(MODEL_SUFFIXES)}
    ours = _ours(api, state, (changed.keys() & state.files.keys()) | gone)
    foreign = [] if overwrite else sorted((changed.keys() & state.files.keys()) - ours)
    kept = [path for path in foreign if path == CARD]
    lost = [path for path in foreign if path != CARD]
    if lost:
        raise RepositoryError(
            f"expected {state.name} as offseg-hf left it, got other contents of {', '.join(lost)}: see "
            f"{api.endpoint}/{state.place}/commits/{MAIN}; --overwrite replaces them"
        )
    add = {path: file for path, file in changed.items() if path not in kept}
    return Changes(add, sorted(gone & ours), kept, _size(add))


def commit(api: HfApi, state: RemoteState, changes: Changes, what: str, *, private: bool = False) -> str:
    """Make the repository, if there is none, and `changes` in one commit; returns its id.

    It holds all of the files or there is none. Contents that an interrupted upload has brought there are not sent
    again. Raises what huggingface_hub raises; among it a conflict, if the repository is no longer as in `state`.
    """
    if state.head is None:
        sdk = "gradio" if state.kind == "space" else None
        api.create_repo(state.name, private=private, exist_ok=True, repo_type=state.kind, space_sdk=sdk)
    operations: list[CommitOperationAdd | CommitOperationDelete]
    operations = [CommitOperationDelete(path) for path in changes.delete]
    operations += [CommitOperationAdd(path, file) for path, file in changes.add.items()]
    info = api.create_commit(
        state.name,
        operations,
        commit_message=f"{what}{SIGNATURE}{__version__}",
        parent_commit=state.head,
        repo_type=state.kind,
    )
    return info.oid


def tag_version(api: HfApi, name: str) -> str | None:
    """Tag our newest commit with the version of this package; what was done, or why not, if it was not there already.

    A version that people may have loaded is never moved.
    """
    tag, state = f"v{__version__}", read_state(api, name)
    history = api.list_repo_commits(name, revision=state.head)
    target = next((entry.commit_id for entry in history if SIGNATURE in entry.title), state.head)
    if tag not in state.tags:
        api.create_tag(name, tag=tag, revision=target)
        return f"tagged {tag}"
    if state.tags[tag] != target:
        return f"{tag} stays at {state.tags[tag][:7]}, which has other files: a new version gets a new tag"
    return None


def _ours(api: HfApi, state: RemoteState, paths: Set[str]) -> set[str]:
    """Those of `paths` that a commit of ours was the last to change."""
    undecided, ours = set(paths), set()
    history = api.list_repo_commits(state.name, revision=state.head, repo_type=state.kind) if paths else []
    for number, entry in enumerate(history, start=1):
        before = _files(api, state.name, state.kind, history[number].commit_id) if number < len(history) else {}
        changed = {path for path in undecided if before.get(path) != state.files[path]}
        ours |= changed if SIGNATURE in entry.title else set()
        undecided -= changed
        if not undecided:
            break
    return ours


def _files(api: HfApi, name: str, kind: str, revision: str | None) -> dict[str, RemoteFile]:
    entries = api.list_repo_tree(name, revision=revision, recursive=True, repo_type=kind)
    return {
        entry.path: RemoteFile(entry.blob_id, entry.lfs.sha256 if entry.lfs else None, entry.size)
        for entry in entries
        if isinstance(entry, RepoFile)
    }


def _is_same(file: Path | bytes, remote: RemoteFile | None) -> bool:
    if remote is None:
        return False
    size = len(file) if isinstance(file, bytes) else file.stat().st_size
    if size != remote.size:
        return False
    if remote.sha256 is not None:
        return _digest(file, hashlib.sha256()) == remote.sha256
    return _digest(file, hashlib.sha1(b"blob %d\0" % size)) == remote.oid


def _digest(file: Path | bytes, digest) -> str:
    if isinstance(file, bytes):
        digest.update(file)
    else:
        with file.open("rb") as content:
            while chunk := content.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def _size(files: Mapping[str, Path | bytes]) -> int:
    return sum(len(file) if isinstance(file, bytes) else file.stat().st_size for file in files.values())
