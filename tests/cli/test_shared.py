"""Runs whose searches workers share: the same answers, and a folder that resumes."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import funcexplain as fe
from funcexplain.cli import main
from tests.cli.workplace import furnish, table, write

ROOT = Path(__file__).parents[2]
# Workers import for longer than they solve small networks: start few of them.
SHARED: dict[str, Any] = {
    "question": {"date": {"every": 20}},
    "method": {"name": "levenberg_marquardt", "atol": 0.01, "max_steps": 50, "starts": {"number": 3}},
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """The current folder, and the module of its networks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path, furnish(tmp_path)


def config(folder: Path, module: str, network: str = "sharp", **parts: Any) -> str:
    maker = {"factory": f"{module}:{network}", "weights": None}
    return write(folder, table(module, network=maker, **{**SHARED, **parts}))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def assert_answers(got: Path, wanted: Path) -> None:
    """Compare two folders: the tables to rounding, and the answers in the summaries."""
    for name in ("weights.csv", "metrics.csv"):
        for one, other in zip(rows(got / name), rows(wanted / name), strict=True):
            assert one.keys() == other.keys()
            for key, value in one.items():
                if re.fullmatch(r"-?[0-9.]+(e-?[0-9]+)?", value):
                    assert float(value) == pytest.approx(float(other[key]), rel=1e-4, abs=1e-6)
                else:
                    assert value == other[key]
    one, other = (json.loads((folder / "summary.json").read_text()) for folder in (got, wanted))
    for key in ("question", "searches", "hits", "dates", "dates_hit", "digest", "failed"):
        assert one[key] == other[key]


@pytest.fixture
def _in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a thread of this process be the worker: another process imports for longer than it solves."""
    monkeypatch.setattr(fe.clusters, "processes", lambda workers: lambda: ThreadPoolExecutor(workers))


@pytest.mark.cluster
@pytest.mark.usefixtures("rough_pictures")
def test_workers_find_and_keep_the_same_answers(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    assert main(["run", config(folder, module), "--quiet"]) == 0
    os.rename(folder / "out", folder / "alone")
    path = config(folder, module, output={"report": True, "picture": True})
    assert main(["run", path, "--workers", "1"]) == 0
    assert "9 of 9 searches done, hit 100%, 1 workers" in capsys.readouterr().err
    out = folder / "out"
    assert_answers(out, folder / "alone")
    found = json.loads((out / "summary.json").read_text())
    assert {file.name for file in out.iterdir()} == set(found["files"])
    assert fe.clusters.open(out / "answers").hit.shape == (3, 3)
    # The report is rewritten from the answers, which the next call reuses.
    pages = [(out / "report.html").read_bytes()]
    assert main(["report", "out", "--trust-config"]) == 0
    pages.append((out / "report.html").read_bytes())
    times = [file.stat().st_mtime_ns for file in (out / "answers" / "chunks").rglob("*.*")]
    assert main(["run", path, "--workers", "2"]) == 0
    pages.append((out / "report.html").read_bytes())
    assert len({re.sub(rb"\d{4}-\d\d-\d\dT[\d:]+\+00:00", b"", page) for page in pages}) == 1  # of runs
    assert times == [file.stat().st_mtime_ns for file in (out / "answers" / "chunks").rglob("*.*")]


@pytest.mark.cluster
def test_stdout_is_json_even_if_a_worker_prints(
    place: tuple[Path, str], capfd: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    main(["run", config(folder, module, "Loud"), "--json", "--workers", "1"])
    shown = capfd.readouterr()
    assert json.loads(shown.out)["searches"] == 9
    assert "forward!" in shown.err


@pytest.mark.cluster
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_in_a_terminal(
    place: tuple[Path, str], times: int, request: pytest.FixtureRequest
) -> None:
    folder, module = place
    path = config(folder, module, "Held", method={**SHARED["method"], "starts": {"number": 50}})
    os.mkfifo(folder / "hold")
    command = [sys.executable, "-m", "funcexplain", "run", path, "--workers", "1"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as coordinator:
        assert coordinator.stderr is not None
        with (folder / "hold").open("w"):  # from here on, the worker is solving
            os.unlink(folder / "hold")
            os.killpg(coordinator.pid, signal.SIGINT)  # a terminal sends it to all processes
            for line in coordinator.stderr:
                if line.startswith("interrupted"):
                    break
            if times == 2:
                os.killpg(coordinator.pid, signal.SIGINT)
                assert coordinator.wait(60) == 130  # although the worker would never end
        rest = coordinator.stderr.read()
        assert coordinator.wait(60) == 130
    assert "Traceback" not in rest
    assert rest.splitlines()[-1].startswith("funcexplain: interrupted")
    answered = int(fe.clusters.open(folder / "out" / "answers").hit.sum())
    assert answered in ([64, 128] if times == 1 else [0])  # the chunks in flight, of 150
    assert f"{answered} of 150 searches are answered" in rest or times == 2
    assert not (folder / "out" / "summary.json").exists()
    assert main(["report", "out"]) == 2
    if times == 1:
        request.getfixturevalue("_in_a_thread")
        assert main(["run", path, "--workers", "1", "--quiet"]) == 0


@pytest.mark.usefixtures("rough_pictures", "_in_a_thread")
def test_failed_searches_are_reported_and_the_rest_is_written(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    path = config(folder, module, "Poisoned", output={"report": True, "picture": True})
    assert main(["run", path, "--workers", "1"]) == 1
    shown = capsys.readouterr()
    assert "Searches 0 to 8 failed: ValueError: clusters.solve: build must make the same" in shown.out
    summary = json.loads((folder / "out" / "summary.json").read_text())
    (failed,) = summary["failed"]
    assert (failed["first"], failed["last"]) == (0, 8)
    assert {row["status"] for row in rows(folder / "out" / "weights.csv")} == {"FAILED"}
    assert "FAILED" in (folder / "out" / "report.html").read_text()


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")  # of distributed's own parts
def test_workers_of_dask(place: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    distributed = pytest.importorskip("distributed")
    folder, module = place
    path = config(folder, module)
    assert main(["run", path, "--quiet"]) == 0
    os.rename(folder / "out", folder / "alone")
    # Workers need not start in the folder of the run.
    settings = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**settings) as cluster:
        assert main(["run", path, "--dask", cluster.scheduler_address]) == 0
    assert "9 of 9 searches done, hit 100%, 1 workers" in capsys.readouterr().err
    assert_answers(folder / "out", folder / "alone")


def test_another_question_raises(place: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, module = place
    (folder / "out" / "answers").mkdir(parents=True)
    (folder / "out" / "answers" / "mine.txt").touch()
    assert main(["run", config(folder, module), "--workers", "1"]) == 2
    assert "must be new, empty, or that of a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "0"], "--workers: expected an integer of at least 1, got '0'"),
        (["--workers", "two"], "--workers: expected an integer of at least 1, got 'two'"),
        (["--dask", "nowhere"], "--dask: expected an address such as tcp://127.0.0.1:8786"),
        (["--dask", "tcp://127.0.0.1:1", "--workers", "2"], "not allowed with"),
        (
            ["--timeout", "60"],
            "--timeout: only searches that are shared have it; add --workers or --dask",
        ),
        (["--accept", "loss"], "--accept: only searches that are shared have it"),
        (["--workers", "1", "--accept", "args.x0"], "accept must name parts of the code"),
        *(
            (["--workers", "1", "--timeout", text], f"a number of seconds > 0, got '{text}'")
            for text in ("0", "nan", "inf", "soon")
        ),
    ],
    ids=" ".join,
)
def test_bad_executors(
    place: tuple[Path, str], words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    assert main(["run", config(folder, module), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.usefixtures("_in_a_thread")
def test_a_change_that_is_accepted(
    place: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    words = ["run", config(folder, module), "--quiet", "--workers", "1"]
    assert main(words) == 0
    monkeypatch.setattr(fe, "__version__", "0.0.9")
    assert main(words) == 2
    remedy = "if its answers remain valid, --accept versions.funcexplain goes on with them"
    assert remedy in capsys.readouterr().err
    assert main([*words, "--accept", "question.date"]) == 2
    assert main([*words, "--accept", "versions.funcexplain,loss"]) == 0
    (record,) = fe.clusters.open(folder / "out" / "answers").accepted
    assert record.changes == {"versions.funcexplain": ("0.1.0", "0.0.9")}


@pytest.mark.usefixtures("_in_a_thread")
def test_a_chunk_may_take_so_long(place: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, module = place
    path, given, solve = config(folder, module), list[Any](), fe.clusters.solve

    def recorded(*args: Any, **settings: Any) -> Any:
        given.append(settings["timeout"])
        return solve(*args, **settings)

    monkeypatch.setattr(fe.clusters, "solve", recorded)
    assert main(["run", path, "--quiet", "--workers", "1", "--timeout", "90"]) == 0
    assert main(["run", path, "--quiet", "--workers", "1"]) == 0
    assert given == [90.0, None]


def test_dask_that_is_not_installed(
    place: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["run", config(folder, module), "--dask", "tcp://127.0.0.1:1"]) == 2
    assert 'pip install "funcexplain[dask]"' in capsys.readouterr().err


@pytest.mark.usefixtures("_in_a_thread")
def test_answers_to_another_question_are_named_by_it(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    few = {"max_steps": 2, "starts": {"number": 2}}
    assert main(["run", write(folder, table(module, method=few)), "--quiet", "--workers", "1"]) in (0, 1)
    whole = table(module, method=few, question={"target": {"GOLD": 0.6}})
    path = write(folder, whole)
    assert main(["run", path, "--quiet", "--workers", "1"]) == 2
    message = capsys.readouterr().err
    assert "holds answers to another question (What would" in message
    assert "hold 60% OIL?)" in message
    assert "name another output.folder" in message
    assert main(["run", path]) in (0, 1)  # alone, which leaves them
    assert "answers has answers of an earlier run with workers" in capsys.readouterr().out
