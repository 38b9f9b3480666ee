"""A folder that is being replaced is whole at every moment, by killing its writer at every one of them."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from offseg_hf.training.checkpoint import exclusive, find_resumable, load_state
from offseg_hf.utils.files import finish_replacing, replacing


def write(folder: Path, iteration: int) -> None:
    with replacing(folder) as partial:
        (partial / "model.safetensors").write_bytes(bytes([iteration]) * 1000)
        torch.save({"progress": {"iteration": iteration}}, partial / "training_state.pt")


def iteration_of(folder: Path) -> int:
    """Of a whole checkpoint; fails the test if it is not whole."""
    iteration = load_state(folder)["progress"]["iteration"]
    assert (folder / "model.safetensors").read_bytes() == bytes([iteration]) * 1000
    return iteration


def in_child(function) -> int:
    """The exit code, -9 for SIGKILL, of a process that calls `function`."""
    pid = os.fork()
    if not pid:
        try:
            function()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(moment: int, function) -> bool:
    """Call `function` in a process that is killed before it does its `moment`-th thing to a file; whether it was."""
    events = 0

    def watch(event: str, _) -> None:
        nonlocal events
        if event == "open" or event.startswith(("os.", "shutil.")):
            events += 1
            if events == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        sys.addaudithook(watch)
        function()

    return in_child(run) == -signal.SIGKILL


@pytest.mark.parametrize("is_first", [True, False], ids=["first", "replacement"])
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint_or_none(tmp_path, is_first):
    moment, seen = 1, set()
    while True:
        output = tmp_path / str(moment)
        output.mkdir()
        if not is_first:
            write(output / "last", 1)
        was_killed = killed_at(moment, lambda: write(output / "last", 2))
        if (output / "last").exists():
            iteration_of(output / "last")  # also before anything is put in order
        # What puts it in order may be killed as well.
        killed_at(moment % 7 + 1, lambda: finish_replacing(output / "last"))
        found = find_resumable(output, "auto")
        seen.add(found and iteration_of(found))
        assert {path.name for path in output.iterdir()} <= {"last"}
        write(output / "last", 3)
        assert iteration_of(output / "last") == 3
        if not was_killed:
            break
        moment += 1
    assert moment > 10
    assert seen == {None if is_first else 1, 2}


def test_what_cannot_be_written_leaves_the_one_before(tmp_path):
    write(tmp_path / "last", 1)
    with pytest.raises(OSError, match="disk"), replacing(tmp_path / "last") as partial:
        (partial / "model.safetensors").write_bytes(b"half of")
        raise OSError("the disk is full")
    assert iteration_of(tmp_path / "last") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_the_newest_is_found(tmp_path):
    assert find_resumable(tmp_path, "auto") is None
    write(tmp_path / "best", 4)
    assert find_resumable(tmp_path, "auto") == tmp_path / "best"
    write(tmp_path / "last", 4)
    assert find_resumable(tmp_path, "auto") == tmp_path / "last"
    write(tmp_path / "best", 5)
    assert find_resumable(tmp_path, "auto") == tmp_path / "best"
    assert find_resumable(tmp_path, tmp_path / "last") == tmp_path / "last"
    assert find_resumable(tmp_path / "new", tmp_path) == tmp_path / "best"


def test_what_cannot_be_resumed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing: expected a checkpoint"):
        find_resumable(tmp_path, tmp_path / "nothing")
    write(tmp_path / "last", 4)
    with pytest.raises(FileExistsError, match=r"got one with last/.*--resume auto"):
        find_resumable(tmp_path, None)
    write(tmp_path / "other" / "last", 4)
    with pytest.raises(FileExistsError, match=r"expected to go on from its own last/"):
        find_resumable(tmp_path, tmp_path / "other")
    (tmp_path / "last" / "training_state.pt").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"training_state.pt: expected the state of a training"):
        load_state(find_resumable(tmp_path, "auto"))
    write(tmp_path / "best", 4)
    with pytest.raises(ValueError, match=r"training_state.pt: expected the state of a training"):
        find_resumable(tmp_path, "auto")


def test_one_process_at_a_time_has_a_folder(tmp_path):
    def has_it() -> bool:
        def take() -> None:
            with exclusive(tmp_path):
                os.kill(os.getpid(), signal.SIGKILL)

        return in_child(take) != -signal.SIGKILL

    with exclusive(tmp_path):
        assert has_it()
    assert not has_it()  # and what is killed with it leaves it
    assert not has_it()
