"""The commands ``run``, ``check`` and ``report``, each readable from top to bottom."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.commands import outputs
from funcexplain.commands.config import Config, Method, read_config
from funcexplain.commands.history import History, load_history
from funcexplain.commands.network import load_network
from funcexplain.commands.outputs import has_returns
from funcexplain.commands.question import Asked, ask, pinned
from funcexplain.commands.toml import plain, to_toml
from funcexplain.demo import writable
from funcexplain.solutions.drawing import require_matplotlib
from funcexplain.solutions.files import describe

HIT, NOT_REACHED = 0, 1

Say = Callable[[str], object]

# Losses that are kept of a search: enough for its curve, also where there are thousands of them.
_KEPT_LOSSES = 250


@dataclass(frozen=True, eq=False)
class Ready:
    """Everything that a config names, loaded and checked.

    Attributes:
        config: the config, with its days written out.
        network: the network.
        history: the windows.
        asked: the question.
    """

    config: Config
    network: nn.Module
    history: History
    asked: Asked


def run(path: str | Path, *, trust_model: bool = False, quiet: bool = False, say: Say = print) -> dict:
    """Solve what a config asks, and write the answer to its folder.

    Args:
        path: the config file.
        trust_model: whether a ``.pt2`` file may run its code.
        quiet: whether no progress is shown.
        say: called with each line for people.

    Returns:
        What was found, as JSON has it; under ``"exit_code"`` 0 if every date was hit from some start,
        else 1.

    Raises:
        ValueError, TypeError, OSError, ImportError: the input is bad; the message says what to do.
    """
    config = read_config(path)
    if config.output.picture or config.output.report:
        require_matplotlib()
    with _threads(config.method):
        ready = load(config, trust_model=trust_model)
        folder = writable(Path(config.output.folder))
        _tell(ready, say)
        began = time.monotonic()
        solution = _solve(ready, quiet)
        seconds = time.monotonic() - began
        settings = {"config": outputs.as_json(plain(ready.config)), "digest": digest(ready)}
        settings["dates"] = ready.asked.dates
        (folder / outputs.CONFIG).write_text(to_toml(ready.config), encoding="utf-8")
        outputs.save(folder, solution, ready.asked, ready.history, settings)
        metrics = _measured(ready, solution)
        answer = outputs.answer_of(solution, metrics, ready.asked)
        files = outputs.write_tables(folder, answer, ready.asked, ready.history.prices.assets)
        if config.output.picture:
            files.append(outputs.write_picture(folder, answer, ready.asked, ready.history))
        if config.output.report:
            files.append(write_report(folder, ready, solution))
    found = outputs.summary(answer, ready.asked, ready.history.prices.assets)
    found |= {"seconds": round(seconds, 3), "folder": str(folder)}
    found["files"] = [outputs.CONFIG, outputs.SOLUTION, *files, outputs.SUMMARY]
    found["exit_code"] = HIT if found["dates_hit"] == found["dates"] else NOT_REACHED
    outputs.write_json(folder / outputs.SUMMARY, found)
    for line in outputs.told(answer, ready.asked, ready.history.prices.assets):
        say(line)
    say(f"{folder}: {', '.join(found['files'])}")
    return found


def check(path: str | Path, *, trust_model: bool = False, say: Say = print) -> dict:
    """Try everything that a config names without solving, the gradient of the first search included.

    Args:
        path: the config file.
        trust_model: whether a ``.pt2`` file may run its code.
        say: called with each line for people.

    Returns:
        What was found, as JSON has it.

    Raises:
        ValueError, TypeError, OSError, ImportError: the input is bad; the message says what to do.
    """
    config = read_config(path)
    if config.output.picture or config.output.report:
        require_matplotlib()
    _would_be_writable(Path(config.output.folder))
    with _threads(config.method):
        ready = load(config, trust_model=trust_model)
        _tell(ready, say)
        problem = ready.asked.problem
        found = fe.check_gradient(
            problem[(0,) * len(problem.dims)] if problem.dims else problem, rtol=0.05
        )
        if not found.ok or all(slope.gradient == 0.0 for slope in found.slopes):
            raise ValueError(
                f"network: {found.verdict} A search by gradients needs every layer differentiable"
            )
        say(found.verdict)
    say(f"{path} is fine; funcexplain run {path} solves it")
    today = dict(zip(ready.history.prices.assets, ready.asked.today[-1].tolist(), strict=True))
    searches = int(torch.Size(problem.shape).numel())
    checked = {"question": ready.asked.sentence, "searches": searches, "gradient": found.verdict}
    return {"exit_code": HIT, **checked, "today": outputs.as_json(today)}


def report(folder: str | Path, *, trust_model: bool = False, say: Say = print) -> dict:
    """Write the report of a folder again, from what `run` wrote there.

    Args:
        folder: the folder of a run; the command runs where the run did, so that paths lead to the same.
        trust_model: whether a ``.pt2`` file may run its code.
        say: called with each line for people.

    Returns:
        What was written, as JSON has it.

    Raises:
        ValueError, TypeError, OSError, ImportError: the folder is none of a run, or what it was run on
            has changed since.
    """
    folder = Path(folder)
    if not (folder / outputs.CONFIG).is_file() or not (folder / outputs.SOLUTION).is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} is no folder of a run, which holds {outputs.CONFIG} and "
            f"{outputs.SOLUTION}; funcexplain run CONFIG.toml makes one"
        )
    config, solution = read_config(folder / outputs.CONFIG), fe.load(folder / outputs.SOLUTION)
    with _threads(config.method):
        ready = load(config, trust_model=trust_model)
        then, now = describe(folder / outputs.SOLUTION)["settings"].get("digest", {}), digest(ready)
        changed = [name for name in now if now[name] != then.get(name)]
        if changed or solution.shape != ready.asked.problem.shape:
            raise ValueError(
                f"{str(folder)!r}: the {' and the '.join(changed) or 'config'} changed since the run; "
                "run again, or put back what was there"
            )
        name = write_report(writable(folder), ready, solution)
    say(f"{folder / name}")
    return {"exit_code": HIT, "folder": str(folder), "files": [name]}


def load(config: Config, *, trust_model: bool = False) -> Ready:
    """Load what a config names.

    Args:
        config: the config.
        trust_model: whether a ``.pt2`` file may run its code.

    Returns:
        The network, the windows, the question, and the config with its days written out.

    Raises:
        ValueError, TypeError, OSError, ImportError: the input is bad; the message says what to do.
    """
    _method(config.method)
    network = load_network(config.network, trust_model=trust_model)
    floats = [p.dtype for p in network.parameters() if p.is_floating_point()]
    history = load_history(config.prices, config.features, floats[0] if floats else torch.float32)
    return Ready(pinned(config, history), network, history, ask(config, network, history))


def digest(ready: Ready) -> dict[str, str]:
    """Short hashes of the network's numbers and of the prices, by which a change is noticed."""

    def of(*tensors: Tensor) -> str:
        whole = hashlib.sha256()
        for tensor in tensors:
            whole.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        return whole.hexdigest()[:16]

    return {
        # What it holds today stands for the code, which is not in the numbers.
        "network": of(*ready.network.state_dict().values(), ready.asked.today),
        "prices": of(torch.as_tensor(ready.history.prices.values)),
    }


def write_report(folder: Path, ready: Ready, solution: fe.Solution) -> str:
    """Write the report of a solution, and return the name of its file."""
    history, asked, output = ready.history, ready.asked, ready.config.output
    solution.report(
        folder / outputs.REPORT,
        asked.problem,
        history=history.days.to(history.windows.dtype) if has_returns(history) else None,
        assets=history.prices.assets,
        channels=history.channels,
        dates=history.window_days(asked.places[0]) if len(asked.places) == 1 else None,
        scale=history.std,
        title=output.title or asked.sentence,
        settings=outputs.as_json(plain(ready.config)),
        prices=_paths(ready, solution),
    )
    return outputs.REPORT


def _solve(ready: Ready, quiet: bool) -> fe.Solution:
    method, problem = ready.config.method, ready.asked.problem
    return fe.solve(
        problem,
        _method(method),
        max_steps=method.max_steps,
        atol=method.atol,
        keep="best",
        patience=method.patience,
        history=max(1, -(-method.max_steps // _KEPT_LOSSES)),
        callback=None if quiet else fe.progress(),
    )


def _paths(ready: Ready, solution: fe.Solution) -> tuple[Tensor, Tensor] | None:
    """Prices over the window's days, actual and as its returns make them; None where there are none."""
    history, asked = ready.history, ready.asked
    if not has_returns(history) or not bool(solution.x.isfinite().all()):
        return None
    last = history.last_days[asked.places]
    days = last[:, None] + torch.arange(-history.lookback, 1)
    actual = torch.as_tensor(history.prices.values)[days]  # (dates, L + 1, A)
    rows = solution.x[..., 0, :, :].double().reshape(len(last), len(asked.seeds), *solution.x.shape[-2:])
    scenario = torch.func.vmap(torch.func.vmap(fe.scenarios.prices_of, (0, None)))(rows, actual[:, 0])
    actual = actual[:, None].expand_as(scenario)
    shape = (*solution.shape, *actual.shape[-2:])
    return actual.reshape(shape), scenario.reshape(shape)


def _method(method: Method) -> Any:
    """The method with its settings, which it checks itself."""
    try:
        return getattr(fe, method.name)(**method.settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"method: {error}") from None


def _measured(ready: Ready, solution: fe.Solution) -> Any:
    history = ready.history
    days = history.days.to(history.windows.dtype)
    return fe.evaluate(
        solution,
        ready.asked.problem,
        days if has_returns(history) and days.shape[1] > history.lookback else None,
        scale=history.std,
        atol=ready.config.method.atol,
    )


def _tell(ready: Ready, say: Say) -> None:
    prices, problem, method = ready.history.prices, ready.asked.problem, ready.config.method
    count = sum(parameter.numel() for parameter in ready.network.parameters())
    say(
        f"{len(prices.assets)} assets, {len(prices.dates)} days, {prices.dates[0]} to "
        f"{prices.dates[-1]}: {prices.source}"
    )
    dtype = str(ready.history.windows.dtype).removeprefix("torch.")
    say(f"Network: {type(ready.network).__name__} of {count} parameters, {dtype}")
    say(ready.asked.sentence)
    dims = " x ".join(f"{dim.size} {dim.name}s" for dim in problem.dims) or "1 search"
    say(f"Search: {dims}, {method.name}, at most {method.max_steps} steps, atol {method.atol:g}")


@contextmanager
def _threads(method: Method) -> Iterator[None]:
    """As many threads as the config says: small networks are fastest with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(method.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _would_be_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to, and leave nothing behind."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write to the folder {str(folder)!r}: {error.strerror}; choose another one"
        ) from error
