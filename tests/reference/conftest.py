from collections.abc import Iterator

import pytest
import torch

from accelerator.reference import ReferenceEngine, load


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """At these sizes threads only wait for each other, and for whatever else the machine does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny() -> ReferenceEngine:
    """Shared and never changed; a test that changes weights loads its own."""
    return load("tiny")
