"""The command ``check``: tries everything that a config names, without a search."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

import funcexplain as fe
from funcexplain.commands import outputs
from funcexplain.commands.checking import describe_inputs, find_warnings, today_lines
from funcexplain.commands.comparing import ask_each
from funcexplain.commands.config import Config
from funcexplain.commands.environment import torch_threads
from funcexplain.commands.folder import check_writable
from funcexplain.commands.inputs import Inputs, hash_inputs, make_loader
from funcexplain.commands.printing import PrintLine, fault_lines, print_plain
from funcexplain.commands.reading import read_all, require_plots
from funcexplain.markets.sanity import find_faults
from funcexplain.reports.wording import met


def check_config(
    path: str | Path,
    *,
    settings: Iterable[str] = (),
    trust_model: bool = False,
    print_line: PrintLine = print_plain,
) -> dict:
    """Check everything that a config names without solving, and the gradient of the first search.

    It prints today's weights, and the range of the features in the last window and in history.
    """
    load = make_loader(trust_model=trust_model, say=print_line)
    found = ask_each(
        read_all(path, settings), lambda config: _check(config, load, print_line), print_line
    )
    code = max(question["exit_code"] for question in found.values())
    if code == 0:
        print_line(f"{path} is valid; funcexplain run {path} solves it")
    return found.get(None, {"exit_code": code, "questions": found})


def _check(config: Config, load: Callable[[Config], Inputs], print_line: PrintLine) -> dict[str, Any]:
    """Check one question."""
    require_plots(config)
    check_writable(Path(config.output.folder))
    with torch_threads(config.method.threads):
        inputs = load(config)
        describe_inputs(inputs, print_line)
        faults = find_faults(inputs.history.prices)
        for line in fault_lines(faults):
            print_line(line)
        assert inputs.network is not None
        query, problem = inputs.query, inputs.query.problem
        first = problem[(0,) * len(problem.dims)] if problem.dims else problem
        checked = fe.check_gradient(first, rtol=0.05)
        verdict, flat = checked.verdict, all(slope.gradient == 0.0 for slope in checked.slopes)
        if flat and float(first.criterion.error(query.held[0], first.args["target"])) == 0.0:
            verdict = met(query.ahead)
        elif flat or not checked.ok:
            raise ValueError(f"network: {verdict} A search by gradients needs differentiable layers")
        for line in today_lines(inputs):
            print_line(line)
        print_line(verdict)
    today = dict(zip(query.names, query.today[-1].tolist(), strict=True))
    return {
        "exit_code": 0,
        "question": query.sentence,
        "searches": int(torch.Size(problem.shape).numel()),
        "gradient": verdict,
        "today": outputs.as_json(today),
        "faults": [fault._asdict() for fault in faults],
        "sum": outputs.as_json(float(query.today[-1].sum())),
        "parameters": sum(parameter.numel() for parameter in inputs.network.parameters()),
        "digest": hash_inputs(inputs),
        "warnings": list(find_warnings(inputs)),
    }
