"""The order of the tests: what takes longest comes first, so that no process is left with it at the end.

Python's search for cycles leaves out what is there before the first test, a million objects of torch and transformers.
"""

import gc

import pytest


gc.disable()  # while modules are imported

LONGEST = (
    "hub/test_loading",
    "parity/test_goldens",
    "training/test_resume",
    "hub/test_publish",
    "training/test_loop",
    "export/",
    "training/test_two_processes",
    "adaptation/test_smp",
    "hub/test_faults",
    "data/test_hub_parts",
    "training/",
    "conversion/",
    "parity/",
    "hub/",
    "models/",
    "evaluation/",
    "cli/",
)


def pytest_collection_modifyitems(items: list) -> None:
    items.sort(key=lambda item: next((i for i, part in enumerate(LONGEST) if f"tests/{part}" in item.nodeid), 99))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    gc.freeze()
    gc.enable()
