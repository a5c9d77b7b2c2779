"""Any TOML ends in exit code 0, 1 or 2; an error is one line, never a traceback."""

import copy
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from funcexplain.cli import main
from funcexplain.commands.config import FeaturesConfig, NetworkConfig, QuestionConfig
from funcexplain.commands.method import MethodConfig
from funcexplain.commands.prices import PricesConfig
from funcexplain.commands.toml import format_toml
from tests.cli.workplace import ASSETS, furnish, table

fuzzed = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=80,
    # The folder and the captured streams are the same for all examples, and are read after each.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

# Numbers are small or far out of bounds: a search of a million steps is valid.
NUMBERS = st.one_of(
    st.integers(-3, 6),
    st.sampled_from([0.0, -0.0, 0.2, 0.5, 1.0, 1e-300, 1e300, -1e300, 10**30, -(10**400)]),
    st.sampled_from([float("nan"), float("inf"), -float("inf")]),
)
WORDS = st.sampled_from(
    [
        *ASSETS,
        "",
        " ",
        "last",
        "all",
        "features",
        "scenario",
        "return",
        "volatility",
        "kl",
        "mse",
        "adam",
        "sgd",
        "levenberg_marquardt",
        "market.csv",
        "w.pt",
        "w.safetensors",
        "w.pt2",
        ".",
        "\\",
        "out",
        "2024-02-01",
        "torch:zeros",
        "torch.nn:ReLU",
        "torch.nn:Linear",
        "json:loads",
        "n l (c a)",
        "n a l c",
        "(n a) l c",
        "...",
        "mean",
        "softmax",
        "weights",
        "40%",
        "rsi(3)",
        "zscore(momentum(3), 4)",
        "é☃",
        "\t",
    ]
)
DAYS = st.dates().filter(lambda day: day.year >= 1000)
VALUES = st.recursive(
    NUMBERS | WORDS | st.booleans() | DAYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
KEYS = {
    "network": [field.name for field in fields(NetworkConfig)],
    "prices": [field.name for field in fields(PricesConfig)],
    "features": [field.name for field in fields(FeaturesConfig)],
    "groups": ["file"],
    "question": [field.name for field in fields(QuestionConfig)],
    "method": [field.name for field in fields(MethodConfig)]
    + ["lr", "betas", "eps", "momentum", "damping"],
    "output": ["folder", "report", "picture", "title"],
}
PLACES = [(name, key) for name, keys in KEYS.items() for key in keys] + [("question", "lr")]


def as_text(whole: dict[str, Any]) -> str:
    """TOML of any table; values that are not tables come first."""
    lines = [f"{json.dumps(key)} = {format_toml(value)}" for key, value in whole.items()]
    return "\n".join(lines)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    monkeypatch.chdir(tmp_path)
    return tmp_path, furnish(tmp_path)


def assert_clean_exit(text: str, capsys: pytest.CaptureFixture[str]) -> int:
    """Run a config, and check exit code and output."""
    Path("config.toml").write_text(text)
    capsys.readouterr()
    code = main(["run", "config.toml", "--quiet"])
    out, err = capsys.readouterr()
    assert code in (0, 1, 2), text
    assert out == ""
    assert err.count("\n") == (code == 2), (text, err)
    assert ("funcexplain: error: " in err) == (code == 2)
    # An unexpected error comes with a hint to --debug: here it would be a bug.
    assert "--debug shows the traceback" not in err, (text, err)
    return code


@given(whole=st.dictionaries(st.sampled_from([*KEYS, "x"]), VALUES, max_size=6))
@fuzzed
def test_any_table(
    place: tuple[Path, str], whole: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert assert_clean_exit(as_text(whole), capsys) == 2


@given(text=st.text(max_size=60))
@fuzzed
def test_any_text(place: tuple[Path, str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert assert_clean_exit(text.encode("utf-8", "replace").decode(), capsys) == 2


CHANGES = st.lists(
    st.tuples(st.sampled_from(PLACES), VALUES | st.none()),
    min_size=1,
    max_size=3,
)


@given(changes=CHANGES)
@settings(fuzzed, max_examples=60)
def test_valid_configs_with_some_entries_changed(
    place: tuple[Path, str],
    changes: list[tuple[tuple[str, str], Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, module = place
    whole = copy.deepcopy(table(module, method={"max_steps": 3}))
    for (name, key), value in changes:
        if value is None:
            whole.get(name, {}).pop(key, None)
        else:
            whole.setdefault(name, {})[key] = value
    assert_clean_exit(as_text(whole), capsys)


FITTING = {
    "question": {
        "target": st.dictionaries(st.sampled_from(ASSETS), st.floats(-0.1, 1.1), min_size=1),
        "at_least": st.dictionaries(st.sampled_from(ASSETS), st.floats(0, 1), min_size=1),
        "at_most": st.dictionaries(st.sampled_from(ASSETS), st.floats(0, 1), min_size=1),
        "top": st.sampled_from(ASSETS),
        "exit": st.sampled_from(ASSETS),
        "shift": st.dictionaries(st.sampled_from(ASSETS), st.floats(-1, 1), min_size=1, max_size=1),
        "turnover": st.floats(0, 2),
        "concentration": st.floats(0, 1),
        "move": st.dictionaries(st.sampled_from(ASSETS), st.floats(-1, 1), min_size=1),
        "benchmark": st.sampled_from([{"GOLD": 1.0}, {"OIL": 0.5, "RICE": "50%"}, {"OIL": 0.5}]),
        "loss": st.sampled_from(["auto", "kl", "mse", "js", "mae", "cosine_distance", "cross_entropy"]),
        "date": st.sampled_from(["last", {"every": 15}, {"every": 25, "start": "2024-01-20"}]),
        "search": st.sampled_from(["features", "scenario"]),
        "covariance": st.sampled_from(["sample", "exponential"]),
        "free": st.fixed_dictionaries({}, optional={"last_days": st.integers(1, 9)}),
        "frozen": st.fixed_dictionaries(
            {}, optional={"assets": st.lists(st.sampled_from(ASSETS), min_size=1, unique=True)}
        ),
    },
    "method": {
        "name": st.sampled_from(["adam", "sgd", "levenberg_marquardt"]),
        "atol": st.sampled_from([0.0, 0.01, 0.5]),
        "patience": st.integers(1, 3),
        "starts": st.fixed_dictionaries(
            {}, optional={"number": st.integers(1, 3), "jitter": st.sampled_from([0.0, 1.0, 1e300])}
        ),
    },
}


@given(data=st.data())
@settings(fuzzed, max_examples=30)
def test_fitting_entries_in_any_combination(
    place: tuple[Path, str], data: st.DataObject, capsys: pytest.CaptureFixture[str]
) -> None:
    _, module = place
    whole = table(module, method={"max_steps": 3}, question={"target": None})
    for name, entries in FITTING.items():
        keys = data.draw(st.lists(st.sampled_from(sorted(entries)), unique=True, max_size=4))
        whole[name] |= {key: data.draw(entries[key]) for key in keys}
    assert_clean_exit(as_text(whole), capsys)
