"""One thread, as small networks want it, and a check that no test moves torch's global state."""

from collections.abc import Iterator

import pytest
import torch

from funcexplain.networks import network

torch.set_num_threads(1)


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
    """Draw reports that nobody looks at in few pixels and without layout, to save their time."""
    monkeypatch.setattr("funcexplain.reports.page.PIXELS", 20)
    monkeypatch.setattr("matplotlib.figure.Figure.set_layout_engine", lambda *_, **__: None)
