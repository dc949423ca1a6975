"""Set before anything is imported: no test asks the network, and two tests side by side do not starve each other."""

import gc
import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # pytest-xdist starts a process a core
os.environ["COLUMNS"] = "120"  # tables look the same in every terminal, and without one
gc.set_threshold(100_000, 50, 50)  # torch and transformers are millions of objects, looked through at each collection


@pytest.fixture(scope="module", autouse=True)
def _only_what_the_tests_make_is_collected() -> None:
    """Every training ends in a collection, which takes most of a second where torch and transformers are looked
    through. What is there before a module's tests stays for good."""
    gc.collect()
    gc.freeze()
