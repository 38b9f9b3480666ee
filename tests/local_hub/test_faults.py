"""What is to go wrong with the Hub of the tests does, as often as it is to, and nothing else."""

from http.client import HTTPConnection, IncompleteRead, RemoteDisconnected
from urllib.parse import urlsplit

import pytest

from tests.local_hub.faults import Answer, CutDownload, CutUpload


pytest_plugins = ["tests.local_hub.fixtures"]

CONTENT = bytes(range(256)) * 10_000


@pytest.fixture(autouse=True)
def no_faults(local_hub):
    yield
    local_hub.faults.clear()
    local_hub.come_back()


@pytest.fixture(scope="module")
def file(local_hub) -> str:
    """The path of a file on the content network."""
    return f"/cdn/{local_hub.hub.blobs.put([CONTENT])}"


@pytest.fixture
def connection(local_hub):
    connection = HTTPConnection(urlsplit(local_hub.endpoint).netloc)
    yield connection
    connection.close()


def get(connection: HTTPConnection, path: str) -> bytes:
    connection.request("GET", path)
    return connection.getresponse().read()


def test_answers(local_hub, connection, file):
    """Only to requests that are meant, and only so often."""
    fault = local_hub.faults.add("GET|HEAD", "/cdn/.*", Answer(429, {"Retry-After": "7"}), times=2)
    seen = []
    for method, path in (("GET", "/api/whoami-v2"), ("HEAD", file), ("GET", file), ("GET", file)):
        # It is said after the answer, which is here already: what did not happen is not waited for.
        assert fault.happened.wait(5 if len(seen) > 1 else 0) == (len(seen) > 1)
        connection.request(method, path)
        response = connection.getresponse()
        seen.append((response.status, response.headers["Retry-After"]))
        response.read()
    assert seen == [(401, None), (429, "7"), (429, "7"), (200, None)]


def test_download_is_cut(local_hub, connection, file):
    local_hub.faults.add("GET", file, CutDownload(after=1_234_567))
    with pytest.raises(IncompleteRead) as error:
        get(connection, file)
    assert error.value.partial == CONTENT[:1_234_567]
    connection.close()
    assert get(connection, file) == CONTENT


def test_download_is_reset(local_hub, connection, file):
    local_hub.faults.add("GET", file, CutDownload(after=1_234_567, reset=True))
    with pytest.raises(ConnectionResetError):
        get(connection, file)
    connection.close()
    assert get(connection, file) == CONTENT


def test_upload_is_cut(local_hub, connection):
    """Of the half that came nothing is kept."""
    before = sorted(local_hub.hub.blobs.folder.iterdir())
    local_hub.log.clear()
    fault = local_hub.faults.add("PUT", "/lfs/.*", CutUpload(after=1_234_567))
    with pytest.raises((RemoteDisconnected, ConnectionError)):
        connection.request("PUT", f"/lfs/{'0' * 64}", CONTENT)
        connection.getresponse()
    assert fault.happened.wait(10)
    assert [entry.status for entry in local_hub.log] == [0]
    assert sorted(local_hub.hub.blobs.folder.iterdir()) == before


def test_goes_away_and_comes_back(local_hub, connection, file):
    """With all connections, and at the same port."""
    other = HTTPConnection(urlsplit(local_hub.endpoint).netloc)
    assert get(other, file) == CONTENT
    fault = local_hub.faults.add("GET", file, CutDownload(after=10), goes_away=True)
    with pytest.raises(IncompleteRead):
        get(connection, file)
    assert fault.happened.wait(10)
    with pytest.raises(ConnectionError):
        get(other, file)
    for client in (connection, other):
        client.close()
        with pytest.raises(ConnectionRefusedError):
            client.connect()
    local_hub.come_back()
    assert get(connection, file) == get(other, file) == CONTENT
    other.close()
