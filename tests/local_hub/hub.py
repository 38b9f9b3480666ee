"""Who may do what with which repository."""

from pathlib import Path
from threading import RLock

from tests.local_hub.protocol import HubError
from tests.local_hub.storage import GITATTRIBUTES, MAIN, BlobStore, Repository


class Hub:
    """Users, organizations and repositories, the contents of which are files below `folder`.

    lfs_threshold: bytes from which on a file is LFS whatever its name.
    part_size: bytes beyond which LFS contents are uploaded in parts of that size; None: at once, always.
    """

    def __init__(self, folder: Path, lfs_threshold: int = 10 * 2**20, part_size: int | None = None):
        self.blobs = BlobStore(folder / "blobs")
        self.parts = folder / "parts"
        self.parts.mkdir(parents=True)
        self.lfs_threshold = lfs_threshold
        self.part_size = part_size
        self.lock = RLock()  # held by whoever changes something
        self.organizations: dict[str, set[str]] = {}  # name -> members
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

    def create(self, kind: str, name: str, user: str, private: bool) -> Repository:
        namespace = name.split("/")[0]
        if not self.is_member(user, namespace):
            raise HubError(403, f"You don't have the rights to create a {kind[:-1]} under the namespace {namespace!r}")
        repository = Repository(kind, name, private)
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
        """The repository, if the token may know of it.

        The real Hub answers a bare 401 where nobody is signed in, which clients take for RepoNotFound over https
        only: here it says so.
        """
        user = self.user(token)
        repository = self._repositories.get((kind, name))
        if repository is None or (repository.private and not self.is_member(user, repository.namespace)):
            status, message = (404, "Repository not found") if user else (401, "Invalid username or password.")
            raise HubError(status, message, code="RepoNotFound")
        return repository

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
        if not self.is_member(self.signed_in_user(token), repository.namespace):
            raise HubError(403, "Forbidden: you must use a write token to a repository of your own")
        return repository
