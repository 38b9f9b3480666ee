"""Who may do what with which repository."""

from pathlib import Path
from threading import RLock

from tests.local_hub.protocol import HubError
from tests.local_hub.storage import GITATTRIBUTES, MAIN, BlobStore, Repository
from tests.local_hub.xet_store import XetStore


class Hub:
    """Users, organizations and repositories, the contents of which are files below `folder`.

    lfs_threshold: bytes from which on a file is LFS whatever its name.
    part_size: bytes beyond which LFS contents are uploaded in parts of that size; None: at once, always.
    page_size: how many entries of a list come at once.
    """

    def __init__(
        self, folder: Path, lfs_threshold: int = 10 * 2**20, part_size: int | None = None, page_size: int = 1000
    ):
        self.blobs = BlobStore(folder / "blobs")
        self.xet = XetStore(folder / "xorbs", self.blobs)
        self.xet_tokens: dict[str, str] = {}  # "read" or "write" by token
        self.parts = folder / "parts"
        self.parts.mkdir(parents=True)
        self.lfs_threshold = lfs_threshold
        self.part_size = part_size
        self.page_size = page_size
        self.lock = RLock()  # held by whoever changes something
        self.organizations: dict[str, set[str]] = {}  # name -> members
        self.expired_tokens: set[str] = set()
        self.read_only_tokens: set[str] = set()
        self._user_of: dict[str, str] = {}  # by token
        self._repositories: dict[tuple[str, str], Repository] = {}

    def add_user(self, name: str, token: str, organizations: tuple[str, ...] = ()) -> None:
        self._user_of[token] = name
        for organization in organizations:
            self.organizations.setdefault(organization, set()).add(name)

    def user(self, token: str | None) -> str | None:
        """Whose token it is; None without a token."""
        if token is None:
            return None
        if token in self.expired_tokens:
            raise HubError(401, f'User Access Token "{token}" is expired')
        if token not in self._user_of:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self._user_of[token]

    def signed_in_user(self, token: str | None) -> str:
        user = self.user(token)
        if user is None:
            raise HubError(401, "Invalid username or password.")
        return user

    def is_member(self, user: str | None, namespace: str) -> bool:
        return user is not None and (user == namespace or user in self.organizations.get(namespace, ()))

    def writer(self, token: str | None, namespace: str) -> str:
        """Whose token it is; HubError if it may not write in the namespace."""
        user = self.signed_in_user(token)
        if token in self.read_only_tokens or not self.is_member(user, namespace):
            raise HubError(403, f"Forbidden: expected a write token of a member of {namespace}")
        return user

    def create(self, kind: str, name: str, token: str | None, private: bool) -> Repository:
        repository = Repository(kind, name, private)
        user = self.writer(token, repository.namespace)
        with self.lock:
            if self._repositories.setdefault((kind, name), repository) is repository:
                files = {".gitattributes": self.blobs.regular(GITATTRIBUTES.encode())}
                repository.commit(MAIN, "initial commit", user, files)
                return repository
        url_path = self._repositories[kind, name].url_path
        raise HubError(409, f"You already created this {kind[:-1]} repo: {url_path}")

    def delete(self, repository: Repository) -> None:
        with self.lock:
            del self._repositories[repository.kind, repository.name]

    def repository(self, kind: str, name: str, token: str | None) -> Repository:
        """The repository, if the token may know of it."""
        user = self.user(token)
        repository = self._repositories.get((kind, name))
        if repository is None or not self._is_visible(repository, user):
            status, message = (404, "Repository not found") if user else (401, "Invalid username or password.")
            raise HubError(status, message, code="RepoNotFound")
        return repository

    def repositories(self, kind: str, token: str | None) -> list[Repository]:
        """All that the token may know of, newest first."""
        user = self.user(token)
        known = [repository for (its_kind, _), repository in self._repositories.items() if its_kind == kind]
        return [repository for repository in reversed(known) if self._is_visible(repository, user)]

    def _is_visible(self, repository: Repository, user: str | None) -> bool:
        return not repository.private or self.is_member(user, repository.namespace)

    def readable(self, kind: str, name: str, token: str | None) -> Repository:
        """The repository, if the token may read its files."""
        repository = self.repository(kind, name, token)
        user = self.user(token)
        is_allowed = self.is_member(user, repository.namespace) or user in repository.granted
        if repository.gated and not is_allowed:
            message = f"Access to {kind[:-1]} {name} is restricted. " + (
                f"Visit {name} to ask for access." if user else "You must have access to it and be authenticated."
            )
            raise HubError(403 if user else 401, message, code="GatedRepo")
        return repository

    def writable(self, kind: str, name: str, token: str | None) -> Repository:
        """The repository, if the token may change it."""
        repository = self.repository(kind, name, token)
        self.writer(token, repository.namespace)
        return repository
