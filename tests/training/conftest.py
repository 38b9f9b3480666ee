import pytest

from tests.training.processes import Trainings, trainings
from tests.training.tiny import write_tiny


@pytest.fixture(scope="session")
def processes(tmp_path_factory) -> Trainings:
    """Trainings by `tiny.yaml`, in a folder with its data; for all tests, as it takes seconds to be ready."""
    folder = tmp_path_factory.mktemp("trainings")
    write_tiny(folder)
    with trainings(folder) as processes:
        yield processes
