import collections
import io
import pickle
import random
import zipfile

import pytest
import safetensors.torch
import torch

from offseg_hf.conversion import CheckpointError, read_checkpoint
from offseg_hf.conversion.checkpoint import open_checkpoint


FORMATS = {
    "zip": {},
    "zip of protocol 5": {"pickle_protocol": 5},
    "stream": {"_use_new_zipfile_serialization": False},
    "stream of protocol 4": {"_use_new_zipfile_serialization": False, "pickle_protocol": 4},
}
every_format = pytest.mark.parametrize("save_kwargs", FORMATS.values(), ids=FORMATS)


def assert_equal(actual: dict, expected: dict):
    assert list(actual) == list(expected)
    for key, value in expected.items():
        assert actual[key].dtype == value.dtype
        torch.testing.assert_close(actual[key], value.detach(), rtol=0, atol=0, msg=lambda text: f"{key}: {text}")


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    flat = torch.randn(100)
    return {
        "matrix": torch.randn(3, 4),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 5),
        "transposed": torch.randn(4, 5).t(),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "slice": flat[10:90:7],
        "same_storage": flat[50:].view(5, 10),
        "expanded": torch.randn(1, 3).expand(4, 3),
        "parameter": torch.nn.Parameter(torch.randn(2)),
        **{str(dtype): torch.randn(5).to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64)},
        **{str(dtype): torch.arange(5).to(dtype) for dtype in (torch.bool, torch.int8, torch.uint8, torch.int16)},
    }


@every_format
def test_tensors_come_back_bit_for_bit(tmp_path, weights, save_kwargs):
    torch.save(weights, tmp_path / "weights.pth", **save_kwargs)
    loaded = read_checkpoint(tmp_path / "weights.pth")
    assert_equal(loaded, weights)
    assert loaded["same_storage"].untyped_storage().data_ptr() == loaded["slice"].untyped_storage().data_ptr()


def test_safetensors(tmp_path, weights):
    weights = {key: value.detach().clone().contiguous() for key, value in weights.items()}
    safetensors.torch.save_file(weights, tmp_path / "weights.bin")  # by content, not by name
    assert_equal(dict(sorted(read_checkpoint(tmp_path / "weights.bin").items())), dict(sorted(weights.items())))


@every_format
def test_training_checkpoint_of_mmengine(tmp_path, weights, mmengine_checkpoint, save_kwargs):
    """`state_dict` is what the official evaluation loads, with or without a moving average beside it."""
    path = mmengine_checkpoint(weights, tmp_path / "iter_160000.pth", **save_kwargs)
    assert_equal(read_checkpoint(path), weights)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict"])
def test_wrappers_and_prefix(tmp_path, wrapper):
    module = torch.nn.BatchNorm2d(3)  # its state dict carries a version as an attribute
    parallel = collections.OrderedDict((f"module.{key}", value) for key, value in module.state_dict().items())
    torch.save({"epoch": 3, "args": slice(1), wrapper: parallel}, tmp_path / "weights.pth")
    assert_equal(read_checkpoint(tmp_path / "weights.pth"), module.state_dict())


def test_one_key_without_the_prefix_keeps_all_prefixes(tmp_path):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "weights.pth")
    assert list(read_checkpoint(tmp_path / "weights.pth")) == ["module.a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got an empty file"),
        (b"\n<!DOCTYPE html><html><body>Too many requests</body></html>", "got a web page of 59 bytes; use the link"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "got a Git LFS pointer"),
        (b"weights to follow\n", "got a text file of 18 bytes starting with b'weights to follo'"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "got bytes of another format of 108 bytes"),
        (pickle.dumps({"a": 1}), "got a pickle of something else"),
        (b"PK\x05\x06" + bytes(18), "got a zip archive without one data.pkl"),
        (b"PK\x03\x04" + bytes(100), "truncated or damaged"),
        (b"\x10\0\0\0\0\0\0\0{", "truncated or damaged"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    assert str(error.value).startswith(f"{path}: expected a PyTorch checkpoint (.pth) or a safetensors file, ")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(CheckpointError, match="got a directory; name the file in it"):
        read_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "missing.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(1), "expected a state dict, got TensorView"),
        ([torch.ones(1)], "expected a state dict, got list"),
        (torch.nn.Linear(1, 1), "got an object of 'torch.nn.modules.linear.Linear'; save model.state_dict"),
        ({}, "got an empty one"),
        ({"state_dict": {}}, "got an empty one"),
        ({"a": torch.ones(1), "epoch": 3, "n": {}}, r"got 2 other entries: 'epoch' \(int\), 'n' \(dict\)"),
        ({"a": torch.ones(1), 5: torch.ones(1)}, r"got 1 other entries: 5 \(TensorView\)"),
    ],
)
@every_format
def test_checkpoints_without_a_state_dict(tmp_path, content, message, save_kwargs):
    torch.save(content, tmp_path / "weights.pth", **save_kwargs)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "weights.pth")


def test_torchscript_is_named(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="got a TorchScript archive"):
        read_checkpoint(tmp_path / "weights.pth")


def test_compressed_archives_are_refused(tmp_path):
    """PyTorch does not compress; 50 MB of zeros in 50 kB would be a bomb."""
    torch.save({"a": torch.zeros(2**20)}, tmp_path / "weights.pth")
    with (
        zipfile.ZipFile(tmp_path / "weights.pth") as source,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in source.namelist():
            bomb.writestr(name, source.read(name))
    with pytest.raises(CheckpointError, match="got a compressed zip archive"):
        read_checkpoint(tmp_path / "bomb.pth")


STORAGE = object()


class StoredTensor:
    """Pickles as a vector of three on `STORAGE`."""

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (STORAGE, 0, (3,), (1,), False, {})


class Rebuilt:
    """Pickles as a tensor of any description on the storage of `tensor`."""

    def __init__(self, tensor: torch.Tensor, offset: object, size: object, stride: object):
        storage = torch.storage.TypedStorage(wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True)
        self.arguments = (storage, offset, size, stride, False, collections.OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (1, (3, 4), (4, 1)),
        (12, (1,), (1,)),
        (-1, (1,), (1,)),
        (0, (13,), (1,)),
        (0, (3, 4), (5, 1)),
        (0, (3,), (-1,)),
        (0, (-1,), (1,)),
        (0, (3, 4), (4,)),
        (2**62, (1,), (1,)),
        (0, (2, 2), (2**62, 2**62)),
        (0, (2**40, 2**40), (0, 0)),
        (0.0, (3,), (1,)),
        (None, (3,), (1,)),
        (0, ("3",), (1,)),
        (0, (3,) + (1,) * 100, (1,) * 101),
    ],
)
@every_format
def test_views_outside_of_their_storage_are_refused(tmp_path, offset, size, stride, save_kwargs):
    weights = {"good": torch.ones(1), "bad": Rebuilt(torch.ones(12), offset, size, stride)}
    torch.save(weights, tmp_path / "weights.pth", **save_kwargs)
    with pytest.raises(CheckpointError, match="'bad' does not fit into its storage of 12 elements"):
        read_checkpoint(tmp_path / "weights.pth")


@pytest.mark.parametrize("key", ["../../../../etc/passwd", "/etc/passwd", "", "1", "\0", "0/../0", 0, None])
def test_storages_are_members_of_the_archive_only(tmp_path, key):
    def write(key: object) -> None:
        pickled = io.BytesIO()
        pickler = pickle.Pickler(pickled, 2)
        pickler.persistent_id = lambda obj: ("storage", torch.FloatStorage, key, "cpu", 3) if obj is STORAGE else None
        pickler.dump({"a": StoredTensor()})
        with zipfile.ZipFile(tmp_path / "weights.pth", "w") as archive:
            archive.writestr("weights/data.pkl", pickled.getvalue())
            archive.writestr("weights/data/0", bytes(12))

    write("0")
    assert_equal(read_checkpoint(tmp_path / "weights.pth"), {"a": torch.zeros(3)})
    write(key)
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "weights.pth")


@every_format
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, weights, save_kwargs):
    path = tmp_path / "weights.pth"
    torch.save(weights, path, **save_kwargs)
    content = path.read_bytes()
    for size in {*range(1, 40), *range(40, len(content), 97), *range(len(content) - 40, len(content))}:
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError):
            read_checkpoint(path)


@every_format
def test_damage_never_escapes_as_another_error(tmp_path, weights, save_kwargs):
    """Random bytes overwritten: an archive notices (its members have checksums), a stream may give other numbers."""
    path = tmp_path / "weights.pth"
    torch.save(weights, path, **save_kwargs)
    content = path.read_bytes()
    randomness = random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(randomness.choice((1, 3, 30))):
            damaged[randomness.randrange(len(damaged))] = randomness.randrange(256)
        path.write_bytes(damaged)
        try:
            read_checkpoint(path)
        except CheckpointError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("start", [b"\x80", b"PK"])
def test_safetensors_whatever_their_length_begins_with(tmp_path, start):
    """The file begins with the length of its header, which may look like a pickle or a zip archive."""
    path, header = tmp_path / "model.safetensors", '{"weight":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    length = int.from_bytes(start.ljust(8, b"\0"), "little")
    path.write_bytes(length.to_bytes(8, "little") + header.ljust(length).encode() + torch.ones(2).numpy().tobytes())
    assert path.read_bytes().startswith(start)
    assert torch.equal(read_checkpoint(path)["weight"], torch.ones(2))


WEIGHTS = {"a.weight": torch.ones(2), "b.bias": torch.zeros(3)}
AVERAGE = {"a.weight": torch.full((2,), 7.0), "b.bias": torch.full((3,), 7.0)}


def prefixed(prefix: str, weights: dict) -> dict:
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


@pytest.mark.parametrize(
    ("content", "left_aside"),
    [
        ({"module": WEIGHTS, "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}}, "epoch": 3}, ()),
        ({"state_dict": WEIGHTS, "state_dict_ema": AVERAGE}, ("state_dict_ema",)),
        ({"ema_state_dict": prefixed("module.", AVERAGE), "state_dict": WEIGHTS}, ("ema_state_dict",)),
        ({"model": WEIGHTS, "ema": {"module": AVERAGE, "decay": 0.9}}, ("ema",)),
        ({"ema_state_dict": {"steps": torch.tensor(1)} | prefixed("module.", WEIGHTS)}, ()),  # all that there is
        ({"n_averaged": torch.tensor(9)} | prefixed("module.", WEIGHTS), ()),
        ({"segmentor": prefixed("_orig_mod.", WEIGHTS), "iteration": 5}, ()),
        (prefixed("module._orig_mod.module.", WEIGHTS), ()),
        ({"a._orig_mod.weight": WEIGHTS["a.weight"], "_fsdp_wrapped_module.b.bias": WEIGHTS["b.bias"]}, ()),
        ({"model": {"state_dict": prefixed("module.", WEIGHTS)}}, ()),
    ],
)
def test_wrappers_and_averages(tmp_path, content, left_aside):
    """The model's own weights under its own names; what is beside them is told."""
    torch.save(content, tmp_path / "file.pth")
    checkpoint = open_checkpoint(tmp_path / "file.pth")
    assert checkpoint.weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(checkpoint.weights[name], WEIGHTS[name]) for name in WEIGHTS)
    assert checkpoint.left_aside == left_aside


def test_weights_of_several_models(tmp_path):
    torch.save({"generator": WEIGHTS, "discriminator": WEIGHTS}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match="got those of several: generator, discriminator"):
        read_checkpoint(tmp_path / "file.pth")


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"dataset_meta": {"classes": ("sky", "road")}}, ("sky", "road")),
        ({"CLASSES": ["sky"], "PALETTE": None}, ("sky",)),
        ({"dataset_meta": None}, None),
        ({"dataset_meta": {"classes": None}}, None),
        (None, None),
    ],
)
def test_names_of_classes(tmp_path, meta, expected):
    torch.save({"state_dict": WEIGHTS, "meta": meta}, tmp_path / "file.pth")
    assert open_checkpoint(tmp_path / "file.pth").class_names == expected
