"""What a Hub keeps: contents by their hash, and repositories as histories of immutable commits."""

import hashlib
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from tests.local_hub.protocol import HubError


MAIN = "main"
MIN_COMMIT_PREFIX = 7
# The patterns that the Hub writes into every new repository.
LFS_PATTERNS = (
    "*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy *.npz *.onnx "
    "*.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors *.tar *.tar.* *.tflite *.tgz *.wasm *.xz *.zip "
    "*.zst *tfevents*"
).split()
GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS)


@dataclass(frozen=True)
class Blob:
    """A file's content: `sha256` finds it in the store, `oid` is its name in git (that of the pointer, if LFS)."""

    sha256: str
    oid: str
    size: int
    is_lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.oid


class BlobStore:
    """Contents as files of one folder, named by their SHA-256."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __contains__(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    def path(self, sha256: str) -> Path:
        return self.folder / sha256

    def put(self, chunks: Iterable[bytes], sha256: str | None = None) -> str:
        """Store what `chunks` hold together and return its SHA-256; HubError 400 if that is not the announced one."""
        digest = hashlib.sha256()
        temporary = self.folder / f"{uuid.uuid4()}.incomplete"
        try:
            with temporary.open("wb") as file:
                for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
            if sha256 not in (None, digest.hexdigest()):
                raise HubError(400, f"expected content of SHA-256 {sha256}, got {digest.hexdigest()}")
            temporary.replace(self.path(digest.hexdigest()))
        finally:
            temporary.unlink(missing_ok=True)
        return digest.hexdigest()

    def regular(self, content: bytes) -> Blob:
        return Blob(self.put([content]), _git_oid(content), len(content), is_lfs=False)

    def lfs(self, sha256: str) -> Blob:
        """The blob of a content that was uploaded before; HubError 400 if it was not."""
        if sha256 not in self:
            raise HubError(400, f"LFS object {sha256} was never uploaded")
        size = self.path(sha256).stat().st_size
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return Blob(sha256, _git_oid(pointer.encode()), size, is_lfs=True)

    def read(self, blob: Blob) -> bytes:
        return self.path(blob.sha256).read_bytes()


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class Commit:
    id: str
    parent: str | None
    title: str
    author: str
    date: str
    files: Mapping[str, Blob]  # by path


@dataclass
class Repository:
    """A history of commits with branches and tags; `granted` are the users let in where it is `gated`."""

    kind: str  # models, datasets or spaces
    name: str  # with its namespace
    private: bool = False
    gated: str | bool = False
    granted: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return self.name.split("/")[0]

    @property
    def url_path(self) -> str:
        return self.name if self.kind == "models" else f"{self.kind}/{self.name}"

    def commit(self, branch: str, title: str, author: str, files: Mapping[str, Blob]) -> Commit:
        """Put a commit that holds exactly `files` on top of `branch`."""
        parent = self.branches.get(branch)
        identity = repr((self.kind, self.name, len(self.commits), title, sorted(files.items(), key=str)))
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        sha = hashlib.sha1(identity.encode()).hexdigest()
        commit = Commit(sha, parent, title, author, date, MappingProxyType(dict(files)))
        self.commits[sha] = commit
        self.branches[branch] = sha
        return commit

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, a tag or the beginning of an id names; HubError RevisionNotFound if none."""
        name = re.sub(r"^refs/(heads|tags)/", "", revision)
        sha = self.branches.get(name) or self.tags.get(name)
        if sha is None and len(name) >= MIN_COMMIT_PREFIX:
            sha = next((sha for sha in self.commits if sha.startswith(name)), None)
        if sha is None:
            raise HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        return self.commits[sha]

    def history(self, revision: str) -> Iterable[Commit]:
        """Newest first."""
        commit = self.resolve(revision)
        while commit is not None:
            yield commit
            commit = self.commits.get(commit.parent)
