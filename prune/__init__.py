"""Structural channel pruning of any torch module: exact surgery, output-aware importance, closed-form repair.

graph   = prune.trace(model, example_input)
scores  = prune.score(graph, "obs", batches=images)
plan    = prune.make_plan(graph, scores, flops=0.5, round_to=8)
student = prune.apply(model, plan)
diff    = prune.verify(model, student, plan, example_input)
prune.repair(student, model, plan, images)
prune.reconstruct(student, model, plan, images)
"""

from prune import sparsity
from prune.errors import PruneError
from prune.graph import ChannelGraph
from prune.plan import PrunePlan, check_budget, keep_all, make_plan
from prune.recentre import recentre
from prune.reconstruct import BlockRepair, reconstruct
from prune.repair import LayerRepair, repair
from prune.rounds import plan_in_rounds
from prune.score import IMPORTANCES, score
from prune.surgery import apply
from prune.trace import trace
from prune.verify import verify

__all__ = [
    "IMPORTANCES",
    "BlockRepair",
    "ChannelGraph",
    "LayerRepair",
    "PruneError",
    "PrunePlan",
    "apply",
    "check_budget",
    "keep_all",
    "make_plan",
    "plan_in_rounds",
    "recentre",
    "reconstruct",
    "repair",
    "score",
    "sparsity",
    "trace",
    "verify",
]
