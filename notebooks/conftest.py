"""What the notebooks' kernels inherit when pytest runs them, and which notebooks must not run at the same time."""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# One writes converted/vit-7class, the other reads it.
_ONE_AFTER_THE_OTHER = {"convert.ipynb", "evaluate.ipynb"}


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep them in one worker under ``pytest -n auto --dist loadgroup``."""
    for item in items:
        if item.path.name in _ONE_AFTER_THE_OTHER:
            item.add_marker(pytest.mark.xdist_group("converted"))
