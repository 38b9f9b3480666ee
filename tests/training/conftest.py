import pytest
from accelerate.state import AcceleratorState, GradientState

from tests.training.processes import Trainings, trainings
from tests.training.tiny import write_tiny


@pytest.fixture(scope="session")
def processes(tmp_path_factory) -> Trainings:
    """Trainings by `tiny.yaml`, in a folder with its data; for all tests, as it takes seconds to be ready."""
    folder = tmp_path_factory.mktemp("trainings")
    write_tiny(folder)
    with trainings(folder) as processes:
        yield processes


@pytest.fixture
def in_process():
    """For trainings in this process, which accelerate lets have one mixed precision otherwise."""

    def reset() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    reset()
    yield reset
    reset()
