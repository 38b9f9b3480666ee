import io
import os
import pickle
import struct
import time
from collections import OrderedDict
from contextlib import suppress

import pytest

from offseg_hf.conversion.inert_pickle import BrokenPickleError, Global, InertUnpickler, Opaque


def load(data: bytes) -> object:
    return InertUnpickler({"collections.OrderedDict": dict}, lambda pid: ("stored", pid)).load(io.BytesIO(data))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_is_read_as_pickle_reads_it(protocol):
    shared = [1, 2]
    data = {
        "numbers": (0, 1, -1, 255, 256, 65536, 2**31, -(2**70), 2**3000, 1.5, -0.0, float("inf"), True, False, None),
        "texts": ["", "a b\nc", "ä€😀", "x" * 300, b"\x00\xff" * 200 if protocol >= 3 else ""],
        "nested": [[], {}, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {"a": {"b": [{}] * 3}}],
        1: "one",
        None: shared,
        "again": shared,
        "ordered": OrderedDict([("b", 1), ("a", 2)]),
    }
    loaded = load(pickle.dumps(data, protocol))
    assert loaded == data
    assert list(loaded["ordered"]) == ["b", "a"]
    assert loaded["again"] is loaded[None]


def test_unknown_objects_are_opaque_and_hold_nothing():
    loaded = load(pickle.dumps({"when": time.gmtime(0), "function": os.getcwd, "set": {1, 2}, ("tuple",): 1, "x": 1}))
    assert isinstance(loaded["when"], Opaque) and loaded["when"].name == "time.struct_time"
    assert loaded["function"] == Global("posix.getcwd")
    assert sorted(loaded["set"]) == [1, 2]
    assert ("tuple",) not in loaded and loaded["x"] == 1


def test_the_stream_is_left_behind_the_pickle():
    stream = io.BytesIO(pickle.dumps([1], 2) + pickle.dumps([2], 4) + b"rest")
    unpickler = InertUnpickler({}, None)
    assert (unpickler.load(stream), InertUnpickler({}, None).load(stream), stream.read()) == ([1], [2], b"rest")


@pytest.mark.parametrize(
    ("opcode", "data"),
    [
        ("PERSID", b"P1\n."),
        ("EXT1", b"\x82\x01."),
        ("EXT2", b"\x83\x01\x00."),
        ("EXT4", b"\x84\x01\x00\x00\x00."),
        ("NEXT_BUFFER", b"\x97."),
        ("READONLY_BUFFER", b"N\x98."),
    ],
)
def test_opcodes_that_ask_the_process_for_something_are_refused(opcode, data):
    with pytest.raises(BrokenPickleError, match=f"{opcode} has no place in a checkpoint"):
        load(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"]",
        b"\x80\x02",
        b"0.",  # pop of nothing
        b"h\x05.",  # from an empty memo
        b"]a.",  # append to nothing
        b"]]]s.",  # setitem on a list
        b"K\x01)R.",  # calls an integer
        b"K\x01K\x02\x93.",  # a global named by integers
        b"}K\x01s.",  # one item for a pair
        b"X\xff\xff\xff\x7fabc.",  # text longer than the file
        b"\x8d" + b"\xff" * 7 + b"\x7fabc.",
        b"\x8e" + b"\xff" * 7 + b"\x7fabc.",
        b"I" + b"1" * 10000 + b"\n.",  # more digits than Python converts
        b"cos\n",
        b"\xff.",
    ],
)
def test_broken_pickles_are_refused(data):
    with pytest.raises(BrokenPickleError):
        load(data)


def tuple_bomb() -> bytes:
    """A tuple of two tuples of two tuples ...: a line each in the file, 2 ** 100 to whoever hashes or prints it."""
    return b"K\x01" + b"2\x86" * 100


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"}" + tuple_bomb() + b"K\x01s.", id="as a key"),
        pytest.param(b"}(K\x01q\x00" + b"h\x00h\x00\x86q\x00" * 100 + b"tK\x01s.", id="as a key, by the memo"),
        pytest.param(b"\x8f(" + tuple_bomb() + b"\x90.", id="in a set"),
        pytest.param(tuple_bomb() + b"\x8c\x01x\x93.", id="as a module's name"),
        pytest.param(b"N" + b"r" + struct.pack("<I", 2**32 - 1) + b".", id="far away in the memo"),
        pytest.param(b"]" * 200_000 + b"a" * 199_999 + b".", id="nested lists"),
        pytest.param(b")" + b"\x85" * 200_000 + b".", id="nested tuples"),
        pytest.param(b"(" * 200_000 + b"l" * 200_000 + b".", id="nested marks"),
        pytest.param(
            b"X" + struct.pack("<I", 10**6) + b"x" * 10**6 + b"q\x00" + b"h\x00\x93" * 2000 + b".", id="long names"
        ),
    ],
)
def test_bombs_cost_no_more_than_their_bytes(data):
    start = time.process_time()
    with suppress(BrokenPickleError):
        load(data)
    assert time.process_time() - start < 10
