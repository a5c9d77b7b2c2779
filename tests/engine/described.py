"""Files of a user: pairs that differ in what matters, and changes that do not."""

from __future__ import annotations

NAMED = "from helpers import f\ndef forward(x): return f(x)"
BY_MODULE = "import helpers\ndef forward(x): return helpers.f(x)"
READS = "import helpers\ndef forward(x): return x * helpers.CONFIG.alpha"
ITEM = "from helpers import CONFIG\ndef forward(x): return x * CONFIG['alpha']"
LISTED = "from helpers import CONFIG\ndef forward(x): return CONFIG[0] * x"
NETWORK = """
from torch import nn
import helpers
class Network(nn.Module):
    def forward(self, x):
        return helpers.f(x)
forward = Network()
"""
# A file of the user's, and a second one in which all that changes is the number @.
CHANGES = {
    "function by its name": (NAMED, "def f(x): return @ * x"),
    "function of a module": (BY_MODULE, "def f(x): return @ * x"),
    "function that a network calls": (NETWORK, "def f(x): return @ * x"),
    "function two calls away": (NAMED, "def f(x): return g(x)\ndef g(x): return @ * x"),
    "functions that call each other": (
        NAMED,
        "def f(x, n=3): return g(x, n)\ndef g(x, n): return f(x, n - @) if n else x",
    ),
    "method": (
        "import helpers\ndef forward(x): return helpers.Scale().by(x)",
        "class Scale:\n    def by(self, x): return @ * x",
    ),
    "static method": (
        "from helpers import Scale\ndef forward(x): return Scale.by(x)",
        "class Scale:\n    %staticmethod\n    def by(x): return @ * x",
    ),
    "class method": (
        "from helpers import Scale\ndef forward(x): return Scale.by(x)",
        "class Scale:\n    by = classmethod(lambda cls, x: @ * x)",
    ),
    "property": (
        "from helpers import scale\ndef forward(x): return scale.factor * x",
        "class Scale:\n    factor = property(lambda self: @)\nscale = Scale()",
    ),
    "cached property": (
        "from helpers import scale\ndef forward(x): return scale.factor * x",
        "from functools import cached_property as c\n"
        "class Scale:\n    factor = c(lambda self: @)\nscale = Scale()",
    ),
    "base class": (
        "from helpers import Base\nclass Scale(Base): pass\ndef forward(x): return Scale().by(x)",
        "class Base:\n    def by(self, x): return @ * x",
    ),
    "method that a subclass extends": (
        "from helpers import Base\nclass Scale(Base):\n    def by(self, x): return super().by(x)\n"
        "def forward(x): return Scale().by(x)",
        "class Base:\n    def by(self, x): return @ * x",
    ),
    "attribute of a class": (READS, "class CONFIG:\n    alpha = @"),
    "list of a class": (
        "from helpers import CONFIG\ndef forward(x): return CONFIG.alphas[0] * x",
        "class CONFIG:\n    alphas = [@]",
    ),
    "attribute of an instance": (
        READS,
        "class Config:\n    def __init__(self): self.alpha = @\nCONFIG = Config()",
    ),
    "slot of an instance": (
        READS,
        "class Config:\n    __slots__ = ('alpha', 'other')\nCONFIG = Config()\nCONFIG.alpha = @",
    ),
    "namespace": (READS, "from types import SimpleNamespace\nCONFIG = SimpleNamespace(alpha=@)"),
    "dataclass": (
        READS,
        "from dataclasses import dataclass as d\nclass C:\n    alpha: int\nCONFIG = d(C)(@)",
    ),
    "named tuple": (READS, "from collections import namedtuple as n\nCONFIG = n('C', 'alpha')(@)"),
    "enum": (READS, "from enum import Enum\nclass E(Enum):\n    alpha = @\nCONFIG = E"),
    "module of constants": ("import helpers as h\ndef forward(x): return x * h.alpha", "alpha = @"),
    "dict": (ITEM, "CONFIG = {'alpha': @}"),
    "dict in a dict of a module": (
        "import helpers\ndef forward(x): return x * helpers.CONFIG['a']['b']",
        "CONFIG = {'a': {'b': @}}",
    ),
    "dict with a default": (
        ITEM,
        "from collections import defaultdict\nCONFIG = defaultdict(lambda: @)",
    ),
    "dict of functions": (
        "from helpers import CONFIG\ndef forward(x): return CONFIG['f'](x)",
        "CONFIG = {'f': lambda x: @ * x}",
    ),
    "a dict's order": (
        "from helpers import CONFIG\ndef forward(x): return [f(x) for f in CONFIG.values()]",
        "CONFIG = dict(sorted({'a': 1, 'b': 2}.items(), reverse=@ > 1))",
    ),
    "kind of a key": (ITEM, "CONFIG = {('1', 1)[@ - 1]: 0}"),
    "list": (LISTED, "CONFIG = [@]"),
    "tuple": (LISTED, "CONFIG = (@,)"),
    "deque": (LISTED, "from collections import deque\nCONFIG = deque([@])"),
    "array": (LISTED, "import numpy\nCONFIG = numpy.full(3, @)"),
    "array of objects": (LISTED, "import numpy\nCONFIG = numpy.array(['a', @], dtype=object)"),
    "tensor": (LISTED, "import torch\nCONFIG = torch.full((3,), @)"),
    "sparse tensor": (LISTED, "import torch\nCONFIG = torch.full((3,), @.0).to_sparse()"),
    "distribution": (
        "from helpers import CONFIG\ndef forward(x): return CONFIG.log_prob(x)",
        "import torch\nCONFIG = torch.distributions.Normal(0.0, @.0)",
    ),
    "generator": (LISTED, "import numpy\nCONFIG = numpy.random.default_rng(@)"),
    "generator that has drawn": (
        LISTED,
        "import numpy\nCONFIG = numpy.random.default_rng(0)\nCONFIG.random(@)",
    ),
    "generator of the standard library": (LISTED, "import random\nCONFIG = random.Random(@)"),
    "generator of torch": (LISTED, "import torch\nCONFIG = torch.Generator().manual_seed(@)"),
    "masked array": (LISTED, "import numpy\nCONFIG = numpy.ma.array([1, 2], mask=[@ > 1, False])"),
    "polynomial": (LISTED, "import numpy\nCONFIG = numpy.polynomial.Polynomial([1.0, @])"),
    "series": (LISTED, "import pandas\nCONFIG = pandas.Series([1.0, @], index=['a', 'b'])"),
    "index of a frame": (LISTED, "import pandas\nCONFIG = pandas.DataFrame({'a': [1]}, index=['@'])"),
    "fitted scaler": (
        "from helpers import CONFIG\ndef forward(x): return CONFIG.transform(x)",
        "import numpy\nfrom sklearn.preprocessing import StandardScaler\n"
        "CONFIG = StandardScaler().fit(numpy.full((2, 2), @))",
    ),
    "fitted scaler of a network": (
        "from torch import nn\nfrom helpers import s\nforward = nn.Tanh()\nforward.scaler = s",
        "from sklearn.preprocessing import MinMaxScaler as M\ns = M().fit([[0.0], [@.0]])",
    ),
    "sparse matrix of scipy": (LISTED, "import scipy.sparse as s\nCONFIG = s.diags([1.0, @]).tocsr()"),
    "spline": (
        LISTED,
        "from scipy.interpolate import CubicSpline as c\nCONFIG = c([0, 1, 2], [0, @, 3])",
    ),
    "the user's in an object of a package": (
        "from helpers import CONFIG\ndef forward(x): return CONFIG.transform(x)",
        "from sklearn.preprocessing import FunctionTransformer as F\nCONFIG = F(lambda x: @ * x)",
    ),
    "a module in a closure": (
        "import helpers\ndef make(m): return lambda x: m.f(x)\nforward = make(helpers)",
        "def f(x): return @ * x",
    ),
    "a module in a dict": (
        "import helpers\nM = {'a': helpers}\ndef forward(x): return M['a'].f(x)",
        "def f(x): return @ * x",
    ),
    "a module in an attribute": (
        "import helpers\nclass C:\n    def __init__(self): self.m = helpers\n"
        "    def __call__(self, x): return self.m.f(x)\nforward = C()",
        "def f(x): return @ * x",
    ),
    "set": ("from helpers import CONFIG\ndef forward(x): return len(CONFIG) * x", "CONFIG = {'a', @}"),
    "number": ("from helpers import CONFIG\ndef forward(x): return CONFIG * x", "CONFIG = @"),
    "text": ("from helpers import CONFIG\ndef forward(x): return x.norm(p=CONFIG)", "CONFIG = '@'"),
    "number of a class of one's own": (
        "from helpers import CONFIG\ndef forward(x): return CONFIG * x",
        "class Factor(float): pass\nCONFIG = Factor(@)",
    ),
    "partial": (NAMED, "from functools import partial\ndef g(a, x): return a * x\nf = partial(g, @)"),
    "function of a partial": (
        NAMED,
        "from functools import partial\nf = partial(lambda a, x: @ * x, 1)",
    ),
    "closure": (NAMED, "def make(a): return lambda x: a * x\nf = make(@)"),
    "function in a closure": (NAMED, "def make(g): return lambda x: g(x)\nf = make(lambda x: @ * x)"),
    "default": (NAMED, "def f(x, a=@): return a * x"),
    "keyword default": (NAMED, "def f(x, *, a=@): return a * x"),
    "attribute of a function": (NAMED, "def f(x): return f.a * x\nf.a = @"),
    "decorated function": (
        NAMED,
        "from functools import wraps\ndef d(g):\n    %wraps(g)\n    def h(*a): return g(*a)\n"
        "    return h\n%d\ndef f(x): return @ * x",
    ),
    "decorator": (
        NAMED,
        "from functools import wraps\ndef d(g): return wraps(g)(lambda x: @ * g(x))\n"
        "%d\ndef f(x): return x",
    ),
    "function behind torch's decorator": (
        NAMED,
        "import torch\n%torch.no_grad()\ndef f(x): return @ * x",
    ),
    "function behind a cache": (NAMED, "from functools import cache\n%cache\ndef f(x): return @ * x"),
    "script": (
        NAMED,
        "from torch import jit\nf = jit.CompilationUnit('def f(x):\\n return @*x\\n').f",
    ),
    "bound method": (
        NAMED,
        "class C:\n    def __init__(self, a): self.a = a\n    def by(self, x): return x\nf = C(@).by",
    ),
    "bound method of a built-in": (NAMED, "f = {0: @}.get"),
    "item getter": (NAMED, "from operator import itemgetter\nf = itemgetter(@)"),
    "nested function": (NAMED, "def f(x):\n    def g(y): return @ * y\n    return g(x)"),
    "nested class": (NAMED, "def f(x):\n    class C:\n        a = @\n    return C.a * x"),
    "comprehension": (NAMED, "A = @\ndef f(x): return [A * y for y in x]"),
    "constant set": (NAMED, "def f(x): return x in {'a', 'b', '@'}"),
    "names of arguments": (NAMED, "def f(x): return g(a=x, b=1)\ndef g(a%1, a%2): return 0"),
    "reraised errors": (
        NAMED,
        "def f(x):\n    try: return x\n    except (KeyError, OSError)[@ - 1]: pass",
    ),
    "import inside": (
        "def forward(x):\n    from helpers import f\n    return f(x)",
        "def f(x): return @",
    ),
    "module inside": (
        "def forward(x):\n    import helpers as h\n    return h.f(x)",
        "def f(x): return @",
    ),
    "star": ("from helpers import *\ndef forward(x): return f(x)", "def f(x): return @"),
    "which function has a name": (NAMED, "import torch\nf = (torch.sin, torch.cos)[@ - 1]"),
    "which module has a name": (
        "from helpers import lib\ndef forward(x): return lib.sin(x)",
        "import math, torch\nlib = (math, torch)[@ - 1]",
    ),
    "hook": (
        "from torch import nn\nimport helpers\nforward = nn.Tanh()\n"
        "forward.register_forward_hook(helpers.f)",
        "def f(m, i, o): return @ * o",
    ),
    "parametrization": (
        "from torch import nn\nfrom helpers import P\nfrom torch.nn.utils import parametrize\n"
        "from torch import manual_seed\nmanual_seed(0)\nforward = nn.Linear(2, 2)\n"
        "parametrize.register_parametrization(forward, 'weight', P())",
        "from torch import nn\nclass P(nn.Module):\n    def forward(self, w): return @ * w",
    ),
    "parametrized network": (
        "from torch import nn\nfrom helpers import N\nfrom torch.nn.utils import parametrize\n"
        "from torch import manual_seed\nmanual_seed(0)\nforward = N(2, 2)\n"
        "parametrize.register_parametrization(forward, 'weight', nn.Tanh())",
        "from torch import nn\nclass N(nn.Linear):\n    def forward(self, x): return @ * x",
    ),
    "order of layers": (
        "from torch import nn\nfrom helpers import f\nforward = nn.Sequential(f)",
        "from torch import nn\nl = [('a', nn.Tanh()), ('b', nn.Sigmoid())][::(1, -1)[@ - 1]]\n"
        "from collections import OrderedDict\nf = nn.Sequential(OrderedDict(l))",
    ),
    "layer that occurs twice": (
        "from torch import nn\nfrom helpers import f\nforward = nn.Sequential(f)",
        "from torch import nn\nl = nn.Tanh()\nf = nn.Sequential(*[l] * @)",
    ),
    "a long chain of calls": (
        NAMED,
        "\n".join(f"def f{n}(x): return f{n + 1}(x)" for n in range(200))
        + "\ndef f200(x): return @ * x\ndef f(x): return f0(x)",
    ),
}
SOURCE = """
from functools import partial
import torch
CONFIG = {'alpha': 1}
NAMES = {'a', 'b', 'c', g := (lambda x: 2 * x), h := (lambda x: 3 * x)}
STATE = 0
def f(x):
    global STATE
    STATE = 1
    class Inner:
        a = 1
    return part(x[None], None)(CONFIG['alpha'], NAMES, Inner)
def part(x, y):
    return x
"""
# Changes of that second file that the first one does not depend on.
IRRELEVANT = {
    "comment": ("    return x\n", "    # why\n    return x  # so\n"),
    "blank lines and spaces": ("def part(x, y):\n", "\n\n\ndef part( x,\n        y ):\n\n"),
    "docstring": ("def f(x):\n", 'def f(x):\n    """What it does."""\n'),
    "docstring of a class inside": ("class Inner:\n", 'class Inner:\n        """Inside."""\n'),
    "annotations": ("def part(x, y):\n", "def part(x: int, y: object) -> int:\n"),
    "function that is not called": ("STATE", "def other(x):\n    return x\nSTATE"),
    "constant that is not read": ("STATE", "OTHER = 3\nSTATE"),
    "import that is not used": ("import torch", "import torch, json"),
    "value that code writes itself": ("STATE = 0", "STATE = 7"),
    "order of definitions": (
        "CONFIG = {'alpha': 1}\n",
        "def part(x, y): return x\nCONFIG = {'alpha': 1}\n",
    ),
    "order of a set": ("'a', 'b', 'c'", "'c', 'b', 'a'"),
}
# What is not the same in two processes, and what is not the user's.
OF_PROCESS = {
    "lock": "import threading\nCONFIG = threading.Lock()",
    "pool": "from concurrent.futures import ThreadPoolExecutor as T\nCONFIG = T(1)",
    "numpy's own generator": "import numpy\nCONFIG = numpy.random.mtrand._rand\nCONFIG.random()",
    "random's own generator": "import random\nCONFIG = random.random\nrandom.random()",
    "torch's own generator": "import torch\nCONFIG = torch.default_generator\ntorch.rand(1)",
    "distribution of scipy": "import numpy\nfrom scipy.stats import norm as CONFIG\nnumpy.random.rand()",
    "variable of cvxpy": "import cvxpy\nCONFIG = cvxpy.Variable()",
    "class of a package": "from pandas import Series as CONFIG",
}
UNSAFE = """
class Config:
    def __getattr__(self, name): raise SystemError(name)
    def __getattribute__(self, name):
        if name != '__class__': raise SystemError(name)  # which isinstance reads
        return Config
    def __repr__(self): raise SystemError
    __str__ = __hash__ = __eq__ = __repr__
    __slots__ = ('alpha', 'never', '__dict__')
    beta = property(__repr__)
class Items(dict):
    def items(self): raise SystemError
    __iter__ = __getitem__ = keys = __len__ = items
class Numbers(list):
    def __iter__(self): raise SystemError
class Text(str):
    def __repr__(self): raise SystemError
CONFIG, ITEMS, NUMBERS, TEXT = Config(), Items(a=1), Numbers([1]), Text('a')
object.__setattr__(CONFIG, 'alpha', @)
def __getattr__(name):
    assert name == '__path__'  # which an import looks for
    raise AttributeError
def f(x): return CONFIG.alpha, CONFIG.beta, ITEMS, NUMBERS, TEXT, missing
"""


def source(text: str, number: int) -> str:
    """A file in which ``@`` is a number, and ``%`` begins a decorator."""
    text = text.replace("a%1, a%2", ("a, b", "b, a")[number - 1])
    return text.replace("@", str(number)).replace("%", "@")
