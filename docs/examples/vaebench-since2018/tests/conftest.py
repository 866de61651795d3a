from collections.abc import Iterator

import pytest
import torch

# The tensors are small: with more threads, the tests take several times as long.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    """Exact answers need float64; each test has the same noise at each call."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
