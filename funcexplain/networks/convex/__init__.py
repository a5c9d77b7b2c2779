"""Exact allocators: convex programs as last layers of networks, batched and differentiable in torch."""

from funcexplain.networks.convex.layers import CappedSoftmax as CappedSoftmax
from funcexplain.networks.convex.layers import Markowitz as Markowitz
from funcexplain.networks.convex.layers import RiskBudgeting as RiskBudgeting
from funcexplain.networks.convex.layers import Sparsemax as Sparsemax
from funcexplain.networks.convex.quadratic import markowitz as markowitz
from funcexplain.networks.convex.quadratic import risk_budgeting as risk_budgeting
from funcexplain.networks.convex.simplex import capped_softmax as capped_softmax
from funcexplain.networks.convex.simplex import sparsemax as sparsemax
