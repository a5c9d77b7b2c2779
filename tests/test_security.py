"""Files that others made: no writer replaces a device, no reader trusts a size, no name is an escape."""

import gzip
import json
import os
import socket
import struct
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import funcexplain as fe
from funcexplain.cli import main
from funcexplain.clusters.example import build
from funcexplain.commands.config import parse_toml, read_configs
from funcexplain.commands.network import read_weights
from funcexplain.markets import grids, prices
from funcexplain.solutions import archive, reading, tables
from funcexplain.solutions.archive import read_safetensors
from funcexplain.solutions.writing import printable
from tests.cli.workplace import furnish, market, table, write

NETWORK = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))


def small() -> tuple[fe.Problem, fe.Solution]:
    problem = fe.problem(NETWORK, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
    return problem, fe.solve(problem, max_steps=1)


def write_report(path: Path) -> None:
    problem, solution = small()
    fe.report(solution, problem, path)


def write_parquet(path: Path) -> None:
    columns = {"loss": np.array([0.5])}
    tables.write_parquet("save", path, columns, [columns])


WRITERS: dict[str, Callable[[Path], Any]] = {
    "save": lambda path: small()[1].save(path),
    "report": write_report,
    "parquet": write_parquet,
    "csv": lambda path: tables.write_csv("save", path, [{"loss": np.array([0.5])}]),
}


def device(path: Path) -> None:
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))
    except PermissionError:
        path.symlink_to("/dev/null")


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


KINDS: dict[str, Callable[[Path], Any]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "device": device,
    "link to a device": lambda path: path.symlink_to("/dev/null"),
    "socket": listening,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("writer", WRITERS)
def test_writers_replace_regular_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    KINDS[kind](tmp_path / "there")
    before = (tmp_path / "there").lstat()
    with pytest.raises(OSError, match=r"is not a regular file; name another|is a folder; name a file"):
        WRITERS[writer](tmp_path / "there")
    after = (tmp_path / "there").lstat()
    assert (before.st_mode, before.st_ino, before.st_rdev) == (
        after.st_mode,
        after.st_ino,
        after.st_rdev,
    )
    assert os.stat("/dev/null").st_rdev == os.makedev(1, 3)
    assert os.listdir(tmp_path) == ["there"]


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775])
@pytest.mark.parametrize("writer", WRITERS)
def test_links_are_not_followed_where_others_can_make_them(
    tmp_path: Path, writer: str, mode: int
) -> None:
    own, shared = tmp_path / "own", tmp_path / "shared"
    own.mkdir()
    shared.mkdir()
    (own / "file").write_text("kept")
    (shared / "link").symlink_to(own / "file")
    (shared / "folder").symlink_to(own)
    (own / "hop").symlink_to(shared / "link")
    shared.chmod(mode)
    for path in (shared / "link", shared / "folder" / "file", shared / "folder" / "new", own / "hop"):
        with pytest.raises(PermissionError, match="is a symbolic link in a folder that other users"):
            WRITERS[writer](path)
    assert (own / "file").read_text() == "kept"
    assert sorted(os.listdir(own)) == ["file", "hop"]
    if mode != 0o777:
        return
    shared.chmod(0o755)
    WRITERS[writer](own / "hop")
    assert (own / "hop").is_symlink()
    assert (own / "file").read_bytes() != b"kept"


def test_a_circle_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="too many symbolic links"):
        WRITERS["save"](tmp_path / "a")


@pytest.mark.parametrize("name", ["config.toml", "solution.safetensors", "weights.csv", "summary.json"])
def test_a_run_replaces_regular_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, table(furnish(tmp_path), method={"max_steps": 1}))
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / name)
    assert main(["run", path, "--quiet"]) == 2
    assert "is not a regular file; name another file" in capsys.readouterr().err
    assert (tmp_path / "out" / name).is_fifo()


def test_a_run_does_not_follow_a_link_to_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shared").mkdir()
    (tmp_path / "own").mkdir()
    (tmp_path / "shared" / "out").symlink_to(tmp_path / "own")
    (tmp_path / "shared").chmod(0o777)
    path = write(tmp_path, table(furnish(tmp_path), output={"folder": "shared/out"}))
    for command in ("check", "run"):
        assert main([command, path, "--quiet"]) == 2
        assert "output.folder: cannot write to" in capsys.readouterr().err
    assert not os.listdir(tmp_path / "own")


def test_the_folder_of_a_cluster_keeps_what_is_not_a_file(tmp_path: Path) -> None:
    few = (build, {"rows": 3})
    with ThreadPoolExecutor(1) as pool:
        run: dict[str, Any] = {"executor": pool, "directory": tmp_path, "max_steps": 1}
        fe.clusters.solve(few, **run)
        (chunk,) = tmp_path.glob("chunks/*/*.safetensors")
        chunk.unlink()
        os.mkfifo(chunk)
        os.mkfifo(chunk.with_suffix(".error"))  # neither is waited for
        with pytest.raises(OSError, match="is not a regular file"):
            str(fe.clusters.open(tmp_path).status)
        (tmp_path / "manifest.json").unlink()
        os.mkfifo(tmp_path / "manifest.json")
        for act in (lambda: fe.clusters.open(tmp_path), lambda: fe.clusters.solve(few, **run)):
            with pytest.raises(OSError, match="is not a regular file"):
                act()
    assert (tmp_path / "manifest.json").is_fifo()
    assert chunk.is_fifo()


# --- sizes that files claim ------------------------------------------------------------------------


@pytest.fixture
def few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of a MiB, which tests reach at once."""
    monkeypatch.setattr(archive, "_MAX_HEADER", reading.MIB)
    monkeypatch.setattr(grids, "_MAX_TEXT", reading.MIB)


@pytest.mark.parametrize("line", ["\n", " ", "2024-01-02,1.0\n", "1,", "\0", "a"], ids=range(6))
def test_a_compressed_csv_is_measured_before_it_is_read(
    tmp_path: Path, few_bytes: None, line: str
) -> None:
    path = tmp_path / "bomb.csv.gz"
    path.write_bytes(gzip.compress(b"date,A\n" + line.encode() * (reading.MIB // len(line) + 1)))
    assert path.stat().st_size < 10_000
    with pytest.raises(
        ValueError, match=r"must hold at most 1 MiB, got more; keep fewer days or assets"
    ):
        prices.load(path)
    (tmp_path / "plain.csv").write_bytes(gzip.decompress(path.read_bytes()))
    with pytest.raises(ValueError, match="must hold at most 1 MiB"):
        prices.load(tmp_path / "plain.csv")


def test_a_csv_of_many_assets_takes_linear_time(tmp_path: Path) -> None:
    path, count = tmp_path / "wide.csv", 50_000
    cells = ",".join(["1"] * count)
    names = ",".join(f"A{number}" for number in range(count))
    path.write_text(f"date,{names}\n2024-01-01,{cells}\n2024-01-02,{cells}\n")
    assert prices.load(path).values.shape == (2, count)


def test_a_parquet_is_measured_before_it_is_read(tmp_path: Path, few_bytes: None) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path, count = tmp_path / "bomb.parquet", 200_000
    parquet.write_table(arrow.table({"A": np.zeros(count)}), path)
    assert path.stat().st_size < 10_000
    with pytest.raises(ValueError, match="must hold at most 1 MiB"):
        prices.load(path)
    same = arrow.DictionaryArray.from_arrays(np.zeros(1000, dtype=np.int32), ["x" * 100_000])
    parquet.write_table(arrow.table({"date": ["2024-01-01"] * 1000, "A": same}), path)
    with pytest.raises(ValueError, match="a cell must have at most 100 characters"):
        prices.load(path)
    parquet.write_table(arrow.table({"date": ["2024-01-01"], "A": [[1.0]]}), path)
    with pytest.raises(ValueError, match="column 'A': expected dates or prices, got list"):
        prices.load(path)


def safetensors(path: Path, header: dict[str, Any], stored: int) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(stored))
    return path


@pytest.mark.parametrize(
    "spans",
    [
        [(0, 8), (0, 8)],
        [(0, 8), (4, 12)],
        [(0, 8)] * 1000,
        [(0, 8), (12, 20)],
        [(4, 12)],
        [(0, 8), (8, 16), (8, 16)],
    ],
    ids=range(6),
)
def test_tensors_in_a_file_follow_one_another(tmp_path: Path, spans: list[tuple[int, int]]) -> None:
    header = {
        str(number): {"dtype": "F32", "shape": [2], "data_offsets": span}
        for number, span in enumerate(spans)
    }
    path = safetensors(tmp_path / "w.safetensors", header, max(end for _, end in spans))
    with pytest.raises(ValueError, match=r"is not a safetensors file, or damaged \(its tensors overlap"):
        read_safetensors("load", path)


def test_tensors_in_a_file_may_be_in_any_order(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        "none": {"dtype": "F32", "shape": [0, 3], "data_offsets": [4, 4]},
        "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    }
    found = read_safetensors("load", safetensors(tmp_path / "w", header, 8))
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        "b": (1,),
        "none": (0, 3),
        "a": (1,),
    }


@pytest.mark.parametrize("shape", [[0, 10**30], [10**18], [-2, -1], [1], ["2"], [2.0], 2], ids=range(7))
def test_shapes_that_cannot_be_are_refused(tmp_path: Path, shape: list[Any]) -> None:
    header = {"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 8]}}
    with pytest.raises(ValueError, match="not a safetensors file, or damaged"):
        read_safetensors("load", safetensors(tmp_path / "w", header, 8))


def test_long_headers_are_refused_before_they_are_read(tmp_path: Path, few_bytes: None) -> None:
    path = safetensors(tmp_path / "w.safetensors", {"x" * reading.MIB: 0}, 0)
    for read in (lambda: read_safetensors("load", path), lambda: fe.load(path)):
        with pytest.raises(ValueError, match="must have a header of at most 1 MiB, got more"):
            read()
    with pytest.raises(ValueError, match="errors must take at most 1 MiB as JSON"):
        small()[1].save(tmp_path / "a", settings={"x": "y" * reading.MIB})
    assert not (tmp_path / "a").exists()


def test_a_compressed_pt_is_refused_before_it_is_read(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(100_000)}, tmp_path / "w.pt")
    read_weights(str(tmp_path / "w.pt"))
    bomb = tmp_path / "bomb.pt"
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as source,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in source.namelist():
            packed.writestr(name, source.read(name))
    assert bomb.stat().st_size < 10_000
    with pytest.raises(ValueError, match="must not hold more than its own size"):
        read_weights(str(bomb))


@pytest.mark.parametrize(
    "text",
    [
        "a." * 50_000 + "b = 1",
        "[" + "a." * 50_000 + "b]",
        "x = {" + "'a' . " * 50_000 + "b = 1}",
        '"\\"".' * 50_000 + "b = 1",
        "x = " + "[" * 50_000 + "]" * 50_000,
        "x = " + "{a = " * 50 + "1" + "}" * 50,
        "[network.arguments]\n" + ".".join("abcdefghijklmnopq") + " = 1",
    ],
    ids=range(7),
)
def test_keys_and_values_are_nested_a_little(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="must be nested at most 16 deep"):
        parse_toml(text)
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ValueError, match=r"c.toml: keys and values must be nested at most 16 deep"):
        read_configs(tmp_path / "c.toml")


REST = "network.factory = 'a:b'\nprices.file = 'ecb'\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = " + "'" + "y" * reading.MIB + "'", "must hold at most 1 MiB, got more; shorten its lists"),
        ("a" * 900_000 + " = 1", "unknown key"),
        (f"{REST}question = 0x" + "f" * 100_000, "expected a table, got a huge int"),
        (f"{REST}question.top = 'A'\nmethod.max_steps = 0x" + "f" * 100_000, "expected an integer"),
        (f"prices.assets = {json.dumps([f'A{number}' for number in range(50_000)])}", "missing"),
    ],
    ids=range(5),
)
def test_large_configs_are_one_short_line(
    tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.toml").write_text(text)
    assert main(["check", str(tmp_path / "c.toml")]) == 2
    err = capsys.readouterr().err
    assert len(err) < 2100
    assert err.count("\n") == 1
    assert message in err or len(err) > 2000


# --- names -----------------------------------------------------------------------------------------

EVIL = "GOLD\x1b[2J\x9b31m\u202e\u2028\x07"


def test_names_are_printed_without_control_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    module = furnish(tmp_path)
    lines = market()
    (tmp_path / "market.csv").write_text("\n".join([lines[0].replace("GOLD", EVIL), *lines[1:]]))
    asked = {"target": None, "at_least": {EVIL: 0.4}}
    output = {"folder": f"out{EVIL}", "title": EVIL}
    whole = table(module, question=asked, output=output, method={"max_steps": 2})
    path = write(tmp_path, whole)
    for argv in (["check", path], ["run", path], ["run", path, "--json"], ["report", f"out{EVIL}x"]):
        main(argv)
    bad = table(module, question={"target": {EVIL: 2.0}}, output=output)
    main(["check", write(tmp_path, bad)])
    main(["check", write(tmp_path, table(module, question={"target": {f"x{EVIL}": 0.2}}))])
    main(["check", write(tmp_path, table(module, prices={"file": f"{EVIL}.csv"}))])
    (tmp_path / f"{EVIL}.csv").write_text(f"date,{EVIL},B\n2024-01-01,{EVIL},1\n")
    main(["check", write(tmp_path, table(module, prices={"file": f"{EVIL}.csv"}))])
    main(["check", EVIL])
    main([EVIL])
    shown = "".join(capsys.readouterr())
    assert "GOLD\\x1b[2J" in shown
    assert all(letter == "\n" or letter == printable(letter) for letter in shown)


def test_reports_and_pictures_show_no_control_characters(tmp_path: Path) -> None:
    problem, solution = small()
    path = fe.report(solution, problem, tmp_path / "r.html", assets=[EVIL, "B\ud800"], title=EVIL)
    text = path.read_text()
    assert "GOLD\\x1b[2J" in text
    assert all(letter == "\n" or letter == printable(letter) for letter in text)
