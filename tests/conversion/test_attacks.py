"""Hostile checkpoints: whatever a pickle asks for, nothing happens."""

import copyreg
import functools
import importlib
import io
import json
import operator
import os
import pathlib
import pickle
import pickletools
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch

from offseg_hf.conversion import read_checkpoint
from tests.processes import run_python


class Call:
    """Pickles as the call `function(*arguments)`, and optionally as what may follow one: a state, items, pairs."""

    def __init__(self, function, *arguments, state=None, items=None, pairs=None):
        self.reduced = (function, arguments, state, items and iter(items), pairs and iter(pairs))

    def __reduce__(self):
        return self.reduced

    def __call__(self):
        """Only so that pickle takes the result of one call as the function of another."""
        raise NotImplementedError


def module(name: str) -> Call:
    return Call(importlib.import_module, name)


def touch(marker: str) -> str:
    return f"__import__('pathlib').Path({marker!r}).touch()"


def calls(marker: str) -> dict[str, object]:
    """Objects whose unpickling would create the file `marker`, or change the process."""
    array = np.zeros(3)
    modules = Call(getattr, module("sys"), "modules")
    return {
        "os.system": Call(os.system, f"touch {marker}"),
        "subprocess": Call(subprocess.Popen, ["touch", marker]),
        "eval": Call(eval, touch(marker)),
        "exec": Call(exec, touch(marker)),
        "open": Call(open, marker, "w"),
        "import": Call(__import__, "antigravity"),
        "getattr": Call(Call(getattr, pathlib.Path(marker), "touch")),
        "partial": Call(functools.partial(os.system, f"touch {marker}")),
        "reduce": Call(functools.reduce, os.system, [f"touch {marker}"]),
        "methodcaller": Call(operator.methodcaller("touch"), pathlib.Path(marker)),
        "map": Call(list, Call(map, os.system, [f"touch {marker}"])),
        "copyreg.add_extension": Call(copyreg.add_extension, "os", "system", 240),
        "copyreg._reconstructor": Call(copyreg._reconstructor, pathlib.Path, object, None),
        "type with a constructor": Call(Call(type, "T", (object,), {"__init__": os.system}), f"touch {marker}"),
        "type with items": Call(Call(type, "T", (dict,), {"__setitem__": os.system}), pairs=[(f"touch {marker}", 1)]),
        "append of another's": Call(Call(type, "T", (), {"append": os.system}), items=[f"touch {marker}"]),
        "state of a class": Call(getattr, module("pathlib"), "Path", state=(None, {"touch": os.system})),
        "sys.modules": Call(dict, modules, pairs=[("json", None)]),
        "environment": Call(os.putenv, "OFFSEG_ATTACKED", "1"),
        "numpy.save": Call(np.save, marker, array),
        "numpy.load": Call(np.load, marker),
        "torch.save": Call(torch.save, 1, marker),
        "torch.load": Call(torch.load, marker),
        "torch.hub": Call(torch.hub.download_url_to_file, "http://localhost:9/", marker),
        "torch.jit": Call(torch.jit.load, marker),
        "torch.package": Call(torch.package.PackageImporter, marker),
        "pickle.loads": Call(pickle.loads, pickle.dumps(Call(os.system, f"touch {marker}"))),
    }


def opcodes(marker: str) -> dict[str, bytes]:
    """What no pickler writes, as bytes of a pickle that leaves one object."""
    command = f"touch {marker}".encode()
    text = b"X" + struct.pack("<I", len(command)) + command
    return {
        "INST": b"(S'%s'\nios\nsystem\n" % command,
        "OBJ": b"(cos\nsystem\n" + text + b"o",
        "NEWOBJ": b"cos\nsystem\n" + text + b"\x85\x81",
        "NEWOBJ_EX": b"csubprocess\nPopen\n" + text + b"\x85}X\x05\x00\x00\x00shell\x88s\x92",
        "a dotted name": b"\x8c\x02os\x8c\x0cpath.os.exec\x93" + text + b"\x85R",
        "STACK_GLOBAL": b"\x8c\x02os\x8c\x06system\x93" + text + b"\x85R",
        "a space in a module": b"cos path\nsystem\n" + text + b"\x85R",
        "a global of a builder's module": b"ctorch._utils\n_import_dotted_name\n" + text + b"\x85R",
        "state of a builder": b"ctorch._utils\n_rebuild_tensor_v2\n(N}X\x0c\x00\x00\x00__defaults__)stb",
        "state of OrderedDict": b"ccollections\nOrderedDict\n(N}X\x08\x00\x00\x00__init__cos\nsystem\nstb",
    }


def write(path: pathlib.Path, hostile: object | bytes, stream: bool) -> None:
    """A checkpoint at `path` whose weights are harmless and whose meta data are `hostile`, an object or opcodes."""
    weights = {"weight": torch.arange(6.0).view(2, 3)}
    kwargs = {"pickle_protocol": 2, "_use_new_zipfile_serialization": not stream}
    if not isinstance(hostile, bytes):
        torch.save({"meta": hostile, "state_dict": weights, "message_hub": [hostile]}, path, **kwargs)
        return
    placeholder = "a placeholder of the opcodes"
    torch.save({"meta": placeholder, "state_dict": weights}, path, **kwargs)
    pickled = b"X" + struct.pack("<I", len(placeholder)) + placeholder.encode()
    content = path.read_bytes()
    assert content.count(pickled) == 1
    if stream:
        path.write_bytes(content.replace(pickled, hostile))
        return
    reader = torch._C.PyTorchFileReader(str(path))
    records = {name: reader.get_record(name) for name in reader.get_all_records()}
    writer = torch._C.PyTorchFileWriter(str(path))
    for name, record in records.items():
        if not name.startswith(".") and name not in ("version", "byteorder"):
            record = record.replace(pickled, hostile)
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()


READ_UNDER_WATCH = """
import json, os, sys
import torch
from offseg_hf.conversion import CheckpointError, read_checkpoint

events = []
read_checkpoint(sys.argv[1])  # a harmless one: what is imported late is imported now

def watch(event, arguments):
    if event not in ("open", "mmap.__new__", "os.listdir", "os.scandir") or "w" in str(arguments[1:2]):
        events.append([event, str(arguments)[:200]])

before = set(sys.modules), dict(os.environ)
sys.addaudithook(watch)
weights = {}
for path in sys.argv[2:]:
    try:
        weights[path] = read_checkpoint(path)["weight"].tolist()
    except CheckpointError as error:
        weights[path] = str(error)
changed = (set(sys.modules), dict(os.environ)) != before
seen = len(events)
exec("")  # which the hook must see
print(json.dumps({"weights": weights, "events": events[:seen], "changed": changed, "is_watching": len(events) > seen}))
"""


@pytest.mark.parametrize("stream", [False, True], ids=["zip", "stream"])
def test_attacks_change_nothing(tmp_path, stream):
    """In a process whose audit hook sees every import, execution, spawn, write and lookup, there is nothing to see."""
    marker = tmp_path / "attacked"
    write(tmp_path / "harmless.pth", "meta", stream)
    paths = [tmp_path / "harmless.pth"]
    for name, hostile in {**calls(str(marker)), **opcodes(str(marker))}.items():
        paths.append(tmp_path / f"{name}.pth")
        write(paths[-1], hostile, stream)
    result = json.loads(run_python(READ_UNDER_WATCH, *paths).stdout)

    assert result["weights"] == {str(path): [[0, 1, 2], [3, 4, 5]] for path in paths[1:]}
    assert result["events"] == [] and result["is_watching"]
    assert not result["changed"]
    assert not marker.exists()


@pytest.mark.parametrize("name", ["os.system", "eval", "getattr", "partial", "pickle.loads", "numpy.save"])
def test_the_attacks_are_real(tmp_path, name):
    """The same objects do their work when the standard library reads them."""
    marker = tmp_path / "attacked.npy"
    (tmp_path / "attack.pkl").write_bytes(pickle.dumps(calls(str(marker))[name]))
    script = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "attack.pkl")], check=False, capture_output=True)
    assert marker.exists()


@pytest.mark.parametrize("name", opcodes("marker"))
def test_the_opcodes_are_a_whole_pickle(name):
    """Else the attack would fail for another reason than ours."""
    pickletools.dis(b"\x80\x04" + opcodes("marker")[name] + b".", out=io.StringIO())


@pytest.mark.parametrize("stream", [False, True], ids=["zip", "stream"])
def test_an_attack_in_place_of_the_weights_is_named_not_run(tmp_path, stream):
    marker = tmp_path / "attacked"
    kwargs = {"_use_new_zipfile_serialization": not stream}
    torch.save(Call(os.system, f"touch {marker}"), tmp_path / "whole.pth", **kwargs)
    torch.save({"weight": Call(os.system, f"touch {marker}")}, tmp_path / "entry.pth", **kwargs)
    for name in ("whole", "entry"):
        with pytest.raises(ValueError, match=r"an object of 'posix\.system'"):
            read_checkpoint(tmp_path / f"{name}.pth")
    assert not marker.exists()
