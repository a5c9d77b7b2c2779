"""Configs: what is read, what is refused with the nearest known key, and the way back to text."""

import tomllib
from dataclasses import fields
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funcexplain.commands.config import (
    DateRange,
    FeaturesConfig,
    GroupConfig,
    NetworkConfig,
    OutputConfig,
    PricesConfig,
    QuestionConfig,
    WindowPart,
    parse_config,
    read_configs,
)
from funcexplain.commands.method import METHODS
from funcexplain.commands.toml import to_plain, to_toml

LEAST: dict[str, Any] = {
    "network": {"factory": "mine:make"},
    "prices": {"file": "ecb"},
    "question": {"top": "EUR"},
}


def with_entry(table: str, **entries: Any) -> dict[str, Any]:
    return {**LEAST, table: {**LEAST.get(table, {}), **entries}}


def test_defaults_are_those_of_the_demo() -> None:
    config = parse_config(LEAST)
    assert config.method.name == "levenberg_marquardt"
    assert (config.method.answer, config.question.search) == ("closest", "scenario")
    assert config.method.settings == {"residual": "auto", "damping": 10.0}
    assert (config.features.lookback, config.features.span, config.method.atol) == (20, 20, 1e-3)
    assert config.question.date == "last"


@pytest.mark.parametrize(
    ("table", "entries", "message"),
    [
        ("netwrk", {}, "netwrk: unknown key; did you mean 'network'?"),
        ("network", {"factroy": "a:b"}, "network.factroy: unknown key; did you mean 'factory'?"),
        ("network", {"factory": "mine.make"}, "text such as \"package.module:make\", got 'mine.make'"),
        ("network", {"factory": "mine:make()"}, "got 'mine:make()'"),
        ("network", {"arguments": 3}, "a table of keyword arguments"),
        ("prices", {"fil": "a"}, "prices.fil: unknown key; did you mean 'file'?"),
        ("prices", {"file": ""}, "prices.file: expected text in quotes, got ''"),
        ("prices", {"start": "soon"}, "a date such as 2024-01-31, got 'soon'"),
        ("prices", {"assets": ["EUR", "EUR"]}, "'EUR' appears twice"),
        ("features", {"lookback": 0}, "features.lookback: expected an integer in 1 ..."),
        ("features", {"lookback": True}, "got True"),
        ("question", {"targets": {"EUR": 0.4}}, "did you mean 'target'?"),
        ("question", {"target": 0.4}, "a table of numbers by asset, such as {EUR = 0.4}, got 0.4"),
        (
            "question",
            {"target": {"EUR": "40"}},
            "question.target.EUR: expected a number such as 0.4",
        ),
        ("question", {"target": {"EUR": "4O%"}}, "text such as \"40%\", got '4O%'"),
        ("question", {"at_least": {"EUR": 40}}, 'got 40; 40 percent is "40%"'),
        ("question", {"group": {"assets": ["EUR"], "at_least": 40}}, 'got 40; 40 percent is "40%"'),
        ("question", {"turnover": "-1%"}, "question.turnover: expected a number >= 0"),
        ("question", {"target": {"EUR": float("nan")}}, "expected a number, got nan"),
        ("question", {"target": {"EUR": 10**400}}, "expected a number, got 1000"),
        ("question", {"search": "scenarios"}, "unknown value 'scenarios'; did you mean 'scenario'?"),
        ("question", {"date": "yesterday"}, "question.date: expected a date such as 2024-01-31"),
        ("question", {"date": {"evry": 2}}, "question.date.evry: unknown key; did you mean 'every'?"),
        ("question", {"date": []}, "a list of dates, none twice"),
        ("question", {"group": {"assets": ["EUR"]}}, "give either weight, or at_least and at_most"),
        ("question", {"leverage": 0}, "question.leverage: expected a number > 0, or inf, got 0"),
        ("question", {"leverage": float("nan")}, "question.leverage: expected a number >= 0, got nan"),
        (
            "question",
            {"shift": {"EUR": 0.1, "JPY": 0.1}},
            "question.shift: expected one asset, funded by all others, got 2",
        ),
        (
            "question",
            {"search": "scenario", "frozen": {"channels": ["return"]}},
            "channels cannot be frozen",
        ),
        ("method", {"name": "adm"}, "unknown value 'adm'; did you mean 'adam'?"),
        (
            "method",
            {"learning_rate": 0.1},
            "method.learning_rate: unknown setting of levenberg_marquardt; choose",
        ),
        ("method", {"name": "sgd", "betas": [0.9, 0.9]}, "method.betas: unknown setting of sgd"),
        ("method", {"starts": {"number": 0}}, "method.starts.number: expected an integer in 1"),
        ("method", {"starts": 3}, "method.starts: expected a table, got 3"),
        ("output", {"picture": "yes"}, "output.picture: expected true or false, got 'yes'"),
    ],
)
def test_what_is_wrong_is_named(table: str, entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (held to the message below)
        parse_config(with_entry(table, **entries))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        (("network",), "network: missing"),
        (("network", "factory"), "network.factory: missing"),
        (("prices", "file"), "prices.file: missing"),
        (("question", "top"), "question: no goal is given; give at least one of target, at_least"),
    ],
)
def test_what_is_missing_is_named(removed: tuple[str, ...], message: str) -> None:
    table = {name: dict(entries) for name, entries in LEAST.items()}
    place: Any = table
    for name in removed[:-1]:
        place = place[name]
    del place[removed[-1]]
    with pytest.raises(ValueError, match=message):
        parse_config(table)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('"last"', "last"),
        ('"all"', DateRange()),
        ("2024-01-31", (date(2024, 1, 31),)),
        ('"2024-01-31"', (date(2024, 1, 31),)),
        ("[2024-01-31, 2024-02-01]", (date(2024, 1, 31), date(2024, 2, 1))),
        ("{every = 5, end = 2024-01-31}", DateRange(None, date(2024, 1, 31), 5)),
    ],
)
def test_dates_are_read(written: str, read: Any) -> None:
    table = tomllib.loads(f"date = {written}")
    assert parse_config(with_entry("question", **table)).question.date == read


def test_folders_and_invalid_toml_raise(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a folder; name a config file"):
        read_configs(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no config file"):
        read_configs(tmp_path / "none.toml")
    path = tmp_path / "config.toml"
    for content in (b"\xff\xfe", b"a = [" * 10_000, b"no toml", b"a = 1\na = 2"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a TOML file"):
            read_configs(path)


def test_the_docs_name_every_entry() -> None:
    reference = (Path(__file__).parents[2] / "docs" / "config.md").read_text()
    parts = (
        NetworkConfig,
        PricesConfig,
        FeaturesConfig,
        QuestionConfig,
        OutputConfig,
        WindowPart,
        DateRange,
        GroupConfig,
    )
    names = {field.name for part in parts for field in fields(part)} - {"settings"}
    names = names.union(*METHODS.values())  # which stand in place of it
    assert {name for name in names if name not in reference} == set()


NAMES = st.text(min_size=1, max_size=8).filter(lambda text: text.strip() and "\0" not in text)
NUMBERS = st.floats(-10, 10)
DAYS = st.dates(date(1990, 1, 1), date(2030, 1, 1))
TABLES = st.fixed_dictionaries(
    {
        "network": st.fixed_dictionaries(
            {"factory": st.just("mine:make")},
            optional={
                "weights": NAMES.map(lambda name: f"{name}.pt"),
                "arguments": st.dictionaries(NAMES, NUMBERS | NAMES | st.booleans() | st.lists(NAMES)),
            },
        ),
        "prices": st.fixed_dictionaries({"file": NAMES}, optional={"start": DAYS, "end": DAYS}),
        "question": st.fixed_dictionaries(
            {"top": NAMES},
            optional={
                "target": st.dictionaries(NAMES, NUMBERS, min_size=1),
                "exit": st.lists(NAMES, min_size=1, unique=True),
                "date": st.lists(DAYS, min_size=1, unique=True)
                | st.fixed_dictionaries({}, optional={"start": DAYS, "every": st.integers(1, 9)}),
                "group": st.fixed_dictionaries(
                    {"assets": st.lists(NAMES, min_size=1, unique=True), "at_least": NUMBERS}
                ),
                "frozen": st.fixed_dictionaries({}, optional={"last_days": st.integers(1, 9)}),
            },
        ),
        "method": st.sampled_from(sorted(METHODS)).map(lambda name: {"name": name}),
    }
)


@given(TABLES)
@settings(max_examples=60, deadline=None)
def test_a_config_reads_back_from_its_text(table: dict[str, Any]) -> None:
    config = parse_config(table)
    text = to_toml(config)
    assert parse_config(tomllib.loads(text)) == config, text
    assert tomllib.loads(text) == {
        name: {key: value for key, value in entries.items() if value != {}}
        for name, entries in to_plain(config).items()
    }
