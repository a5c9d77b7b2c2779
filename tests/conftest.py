"""One thread, as small networks want it, and a check that no test moves torch's global state."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from funcexplain.networks import network

torch.set_num_threads(1)

# A white picture of one pixel.
BLANK = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c63f8ffffff7f0009fb03fd2a86e38a0000000049454e44ae426082"
)


@pytest.fixture(autouse=True)
def _global_state_is_kept() -> Iterator[None]:
    """Seed the global generator for the test, and refuse a changed grad mode, dtype or thread count."""
    torch.manual_seed(0)
    network._raise_until = 0.0  # of an interrupted search of the test before
    before = (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads())
    yield
    assert before == (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads())


@pytest.fixture
def rough_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blank pictures in the place of those that nobody looks at: matplotlib takes a second for each."""

    def save(figure: Any, file: Any, **settings: Any) -> None:
        del figure, settings
        file.write(BLANK)

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", save)
