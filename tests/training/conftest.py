import pytest
from accelerate.state import AcceleratorState, GradientState

from tests.training.processes import Trainings
from tests.training.tiny import write_tiny


@pytest.fixture(scope="session")
def processes(tmp_path_factory) -> Trainings:
    """Trainings by `tiny.yaml`, in a folder with its data."""
    folder = tmp_path_factory.mktemp("trainings")
    write_tiny(folder)
    return Trainings(folder)


@pytest.fixture
def in_process():
    """For trainings in this process, which accelerate lets have one mixed precision otherwise."""

    def reset() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    reset()
    yield reset
    reset()
