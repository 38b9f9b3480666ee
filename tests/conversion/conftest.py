"""Checkpoints as the official code writes them, made from the names and shapes of the official models."""

import json
import lzma
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch


KEYS_FILE = Path(__file__).parent / "data" / "official_keys.json.xz"


@pytest.fixture(scope="session")
def official_keys() -> dict[str, dict[str, tuple[str, list[int]]]]:
    """Preset -> key -> (dtype, shape) of the official state dict, buffers included."""
    return json.loads(lzma.decompress(KEYS_FILE.read_bytes()))


@pytest.fixture(scope="session")
def official_state_dict(official_keys) -> Callable[[str], dict[str, torch.Tensor]]:
    """A function preset -> official state dict of random values; running variances are positive."""

    def build(preset: str) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        state_dict = OrderedDict()
        for key, (dtype, shape) in official_keys[preset].items():
            value = torch.randn(shape, generator=generator)
            if key.endswith("running_var"):
                value = 1 + value.abs()
            elif len(shape) > 1:
                value = value / value[0].numel() ** 0.5
            state_dict[key] = value.to(getattr(torch, dtype))
        return state_dict

    return build


@pytest.fixture
def mmengine_checkpoint(monkeypatch) -> Callable[..., Path]:
    """A function (state_dict, path) that writes a training checkpoint with all that mmengine's Runner puts into it.

    The classes of mmengine exist while it is pickled and are gone when it returns.
    """

    def build(state_dict: dict[str, torch.Tensor], path: Path, **save_kwargs) -> Path:
        with monkeypatch.context() as patch:
            history_buffer = type("HistoryBuffer", (), {"__module__": "mmengine.logging.history_buffer"})
            for name in ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer"):
                patch.setitem(sys.modules, name, ModuleType(name))
            sys.modules["mmengine.logging.history_buffer"].HistoryBuffer = history_buffer
            loss = history_buffer()
            loss.__dict__.update(
                _max_length=1000000, _log_history=np.linspace(3, 1, 50), _count_history=np.ones(50, dtype=np.int64)
            )
            parameter = torch.nn.Parameter(torch.ones(3, 4))
            optimizer = torch.optim.AdamW([parameter], lr=1e-4)
            parameter.sum().backward()
            optimizer.step()
            checkpoint = {
                "meta": {"epoch": 0, "iter": 160000, "cfg": "model = dict()", "dataset_meta": {"classes": ("wall",)}},
                "state_dict": state_dict,
                "message_hub": {
                    "log_scalars": {"train/loss": loss},
                    "runtime_info": {"iter": 159999, "loss": np.float64(1.0), "epochs": np.array([1, 2])},
                    "resumed_keys": {"train/loss": True},
                },
                "optimizer": optimizer.state_dict(),
                "param_schedulers": [{"base_values": [1e-4], "by_epoch": False}],
                "ema_state_dict": {"steps": torch.tensor(5)}
                | {f"module.{key}": torch.full_like(value, 7) for key, value in state_dict.items()},
            }
            torch.save(checkpoint, path, **save_kwargs)
        with pytest.raises((ModuleNotFoundError, pickle.UnpicklingError)):  # as the issue has it: no mmengine here
            torch.load(path, weights_only=False)
        return path

    return build
