"""A folder with a small network, its weights, prices and a config, like a user's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from funcexplain.commands.config import parse_config
from funcexplain.commands.toml import to_toml
from funcexplain.networks.versions import loads_safely
from funcexplain.solutions.archive import write_archive

pickled = pytest.mark.skipif(not loads_safely(), reason="torch.load is not safe before 2.10")
ASSETS = ("GOLD", "OIL", "RICE")
NETWORKS = """
import multiprocessing
import os
import signal
import threading

import torch

def make(assets=3, channels=3, lookback=4):
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(channels * lookback * assets, assets), torch.nn.Softmax(-1)
    )

def sharp():
    network = make()
    with torch.no_grad():
        network[1].weight.mul_(20.0)
    return network

class Loud(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = make()
    def forward(self, x):
        print("forward!")
        return self.inner(x)

class Held(torch.nn.Module):
    "In a worker, waits until the test closes the pipe that it opened for writing."
    def __init__(self):
        super().__init__()
        self.inner = sharp()
    def forward(self, x):
        if multiprocessing.parent_process() is not None and os.path.exists("hold"):
            with open("hold") as pipe:
                pipe.read()
        return self.inner(x)

class Poisoned(torch.nn.Module):
    "Raises in a worker, here a thread, in the middle of its search."
    def __init__(self):
        super().__init__()
        self.inner = sharp()
    def forward(self, x):
        if threading.current_thread() is not threading.main_thread() and torch.is_grad_enabled():
            raise ZeroDivisionError("not here")
        return self.inner(x)

class Timid(torch.nn.Module):
    "Refuses windows that are far from today's."
    def __init__(self, limit=0.5):
        super().__init__()
        self.inner, self.limit = sharp(), limit
    def forward(self, x):
        if x.abs().max() > self.limit:
            raise ValueError("too far")
        return self.inner(x)

class Pressed(torch.nn.Module):
    "Presses Ctrl-C in the middle of its search."
    def __init__(self):
        super().__init__()
        self.inner, self.calls = sharp(), 0
    def forward(self, x):
        self.calls += 1
        if self.calls == 40:
            signal.raise_signal(signal.SIGINT)
        return self.inner(x)

class Rounded(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.one_hot(x.sum((1, 2)).argmax(-1), x.shape[-1]).to(x)

def fails():
    raise ZeroDivisionError("one line\\nand another")

def leaves():
    raise SystemExit(7)

def number():
    return 7
"""
_count = 0


def market(num_days: int = 60, seed: int = 0) -> list[str]:
    """Lines of a csv of three assets."""
    returns = np.random.default_rng(seed).normal(0.0, 0.01, size=(num_days, 3))
    days = np.datetime64("2024-01-01") + np.arange(num_days)
    rows = zip(days, 100.0 * np.exp(returns.cumsum(axis=0)), strict=True)
    body = [f"{day},{','.join(map(repr, map(float, row)))}" for day, row in rows]
    return [f"date,{','.join(ASSETS)}", *body]


def furnish(folder: Path) -> str:
    """Write networks, weights and prices into a folder; returns the name of the module of networks."""
    global _count
    _count += 1  # a process imports a module once, even from another folder
    module = f"networks_{_count}"
    (folder / f"{module}.py").write_text(NETWORKS)
    (folder / "market.csv").write_text("\n".join(market()))
    generator = torch.Generator().manual_seed(0)
    state = {
        "1.weight": 5.0 * torch.randn(3, 36, generator=generator),
        "1.bias": torch.zeros(3),
    }
    torch.save(state, folder / "w.pt")
    write_archive("save", folder / "w.safetensors", state, {})  # which every version of torch may read
    return module


TWICE: dict[str, Any] = {"starts": {"number": 2}}


def table(module: str, **parts: dict[str, Any]) -> dict[str, Any]:
    """A config as a table; ``parts`` override single entries."""
    whole: dict[str, dict[str, Any]] = {
        "network": {"factory": f"{module}:make", "weights": "w.safetensors"},
        "prices": {"file": "market.csv"},
        "features": {"lookback": 4, "span": 5},
        "question": {"target": {"OIL": 0.6}},
        "method": {"max_steps": 200, "atol": 0.01, "starts": {"number": 1}},
        "output": {"folder": "out", "picture": False, "report": False},
    }
    for name, entries in parts.items():
        kept = {**whole.get(name, {}), **entries}
        whole[name] = {key: value for key, value in kept.items() if value is not None}
    return whole


def write(folder: Path, whole: dict[str, Any]) -> str:
    """Write a table as a config file and return its path."""
    path = folder / "config.toml"
    path.write_text(to_toml(parse_config(whole)))
    return str(path)
