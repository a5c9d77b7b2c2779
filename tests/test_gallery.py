"""Every script of the gallery runs, and draws a picture that is not blank."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

GALLERY = Path(__file__).parent.parent / "docs" / "gallery"
SCRIPTS = sorted(path.stem for path in GALLERY.glob("*.py") if path.stem != "setting")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_and_draws(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("matplotlib.image")
    if name == "bachelier":
        pytest.importorskip("deepdow")
    monkeypatch.syspath_prepend(str(GALLERY))
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    try:
        module = importlib.import_module(name)
        module.main(tmp_path, quick=True)
    finally:
        torch.set_num_threads(threads)
        for loaded in (name, "setting"):
            sys.modules.pop(loaded, None)
    assert torch.equal(state, torch.get_rng_state())
    pictures = list(tmp_path.glob("*.png"))
    assert pictures
    for picture in pictures:
        assert np.ptp(image.imread(picture)) > 0.5


def test_the_page_shows_what_the_scripts_hold() -> None:
    page = (GALLERY.parent / "gallery.md").read_text()
    for name in SCRIPTS:
        section = page[page.index(f"docs/gallery/{name}.py") :]
        heart = section.split("```py\n")[1].split("```")[0]
        script = {line.strip() for line in (GALLERY / f"{name}.py").read_text().splitlines()}
        assert {line.strip() for line in heart.splitlines()} <= script
        assert (GALLERY.parent / "images" / f"{name}.png").exists()
