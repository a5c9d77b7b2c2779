"""funcexplain: what would the market have to look like for my network to hold this portfolio?

Re-exports the public names. They are loaded on first access, so that ``funcexplain --help`` answers
before torch is imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from funcexplain import clusters as clusters
    from funcexplain.compat import gradient_wrt_input as gradient_wrt_input
    from funcexplain.engine.closest import closest as closest
    from funcexplain.engine.draws import sample as sample
    from funcexplain.engine.probability import probability as probability
    from funcexplain.engine.progress import Progress as Progress
    from funcexplain.engine.progress import progress as progress
    from funcexplain.engine.prune import prune as prune
    from funcexplain.engine.reach import Reach as Reach
    from funcexplain.engine.reach import reach as reach
    from funcexplain.engine.sensitivity import Sensitivity as Sensitivity
    from funcexplain.engine.sensitivity import sensitivity as sensitivity
    from funcexplain.engine.shadow import shadow_prices as shadow_prices
    from funcexplain.engine.solve import explain as explain
    from funcexplain.engine.solve import solve as solve
    from funcexplain.markets import channels as channels
    from funcexplain.markets import models as models
    from funcexplain.markets import scenarios as scenarios
    from funcexplain.measures.agreement import agreement as agreement
    from funcexplain.measures.alternatives import alternatives as alternatives
    from funcexplain.measures.attribution import Attribution as Attribution
    from funcexplain.measures.attribution import attribute as attribute
    from funcexplain.measures.draws import bands as bands
    from funcexplain.measures.draws import drivers as drivers
    from funcexplain.measures.draws import moves as moves
    from funcexplain.measures.evaluate import evaluate as evaluate
    from funcexplain.measures.rarity import rarity as rarity
    from funcexplain.measures.stories import stories as stories
    from funcexplain.networks.adapt import adapt as adapt
    from funcexplain.networks.functional import functionalize as functionalize
    from funcexplain.networks.functional import stack as stack
    from funcexplain.networks.opaque import opaque as opaque
    from funcexplain.networks.prepare import register_rule as register_rule
    from funcexplain.problems import losses as losses
    from funcexplain.problems import penalties as penalties
    from funcexplain.problems import targets as targets
    from funcexplain.problems.consensus import consensus as consensus
    from funcexplain.problems.coordinates import box as box
    from funcexplain.problems.coordinates import clip as clip
    from funcexplain.problems.coordinates import reparametrize as reparametrize
    from funcexplain.problems.coordinates import standardize as standardize
    from funcexplain.problems.difference import difference as difference
    from funcexplain.problems.mapping import vmap as vmap
    from funcexplain.problems.pipe import pipe as pipe
    from funcexplain.problems.problem import Problem as Problem
    from funcexplain.problems.problem import problem as problem
    from funcexplain.problems.smoothing import robust as robust
    from funcexplain.problems.smoothing import smooth as smooth
    from funcexplain.problems.sparsity import sparsify as sparsify
    from funcexplain.problems.stacks import asset_masks as asset_masks
    from funcexplain.problems.stacks import one_hot_targets as one_hot_targets
    from funcexplain.problems.stacks import starts as starts
    from funcexplain.problems.stacks import windows as windows
    from funcexplain.problems.transforms import cast as cast
    from funcexplain.problems.transforms import freeze as freeze
    from funcexplain.problems.transforms import jitter as jitter
    from funcexplain.problems.transforms import penalize as penalize
    from funcexplain.problems.transforms import zero_masked as zero_masked
    from funcexplain.problems.tying import tie as tie
    from funcexplain.reports.plotting import plot as plot
    from funcexplain.reports.report import report as report
    from funcexplain.solutions.files import load as load
    from funcexplain.solutions.probability import Probability as Probability
    from funcexplain.solutions.solution import Solution as Solution
    from funcexplain.solutions.status import Status as Status
    from funcexplain.solvers.check import GradientCheck as GradientCheck
    from funcexplain.solvers.check import check_gradient as check_gradient
    from funcexplain.solvers.gauss_newton import levenberg_marquardt as levenberg_marquardt
    from funcexplain.solvers.loop import run as run
    from funcexplain.solvers.optimizers import Optimizer as Optimizer
    from funcexplain.solvers.optimizers import adam as adam
    from funcexplain.solvers.optimizers import as_optimizer as as_optimizer
    from funcexplain.solvers.optimizers import sgd as sgd
    from funcexplain.solvers.state import Info as Info
    from funcexplain.solvers.state import State as State
    from funcexplain.solvers.step import make_step as make_step

_NAMES = {
    "compat": ("gradient_wrt_input",),
    "networks.adapt": ("adapt",),
    "networks.functional": ("functionalize", "stack"),
    "networks.opaque": ("opaque",),
    "networks.prepare": ("register_rule",),
    "problems.coordinates": ("box", "clip", "reparametrize", "standardize"),
    "problems.consensus": ("consensus",),
    "problems.difference": ("difference",),
    "problems.mapping": ("vmap",),
    "problems.pipe": ("pipe",),
    "problems.problem": ("Problem", "problem"),
    "problems.smoothing": ("robust", "smooth"),
    "problems.sparsity": ("sparsify",),
    "problems.stacks": ("asset_masks", "one_hot_targets", "starts", "windows"),
    "problems.transforms": ("cast", "freeze", "jitter", "penalize", "zero_masked"),
    "problems.tying": ("tie",),
    "measures.agreement": ("agreement",),
    "measures.alternatives": ("alternatives",),
    "measures.attribution": ("Attribution", "attribute"),
    "measures.draws": ("bands", "drivers", "moves"),
    "measures.evaluate": ("evaluate",),
    "measures.rarity": ("rarity",),
    "measures.stories": ("stories",),
    "reports.plotting": ("plot",),
    "reports.report": ("report",),
    "solutions.files": ("load",),
    "solutions.probability": ("Probability",),
    "solutions.solution": ("Solution",),
    "solutions.status": ("Status",),
    "solvers.check": ("GradientCheck", "check_gradient"),
    "engine.closest": ("closest",),
    "solvers.gauss_newton": ("levenberg_marquardt",),
    "solvers.loop": ("run",),
    "solvers.optimizers": ("Optimizer", "adam", "as_optimizer", "sgd"),
    "engine.draws": ("sample",),
    "engine.probability": ("probability",),
    "engine.progress": ("Progress", "progress"),
    "engine.prune": ("prune",),
    "engine.reach": ("Reach", "reach"),
    "engine.sensitivity": ("Sensitivity", "sensitivity"),
    "engine.shadow": ("shadow_prices",),
    "engine.solve": ("explain", "solve"),
    "solvers.state": ("Info", "State"),
    "solvers.step": ("make_step",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
_MODULES = {
    "channels": "markets.channels",
    "clusters": "clusters",
    "losses": "problems.losses",
    "models": "markets.models",
    "penalties": "problems.penalties",
    "scenarios": "markets.scenarios",
    "targets": "problems.targets",
}

__all__ = sorted(_HOME.keys() | _MODULES.keys())


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value: Any = import_module(f"{__name__}.{_MODULES[name]}")
    elif name in _HOME:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
