"""Structural channel pruning of any torch module: exact surgery, output-aware importance, closed-form repair.

graph   = prune.trace(model, example_input)
scores  = prune.score(graph, "obs", batches=images)
plan    = prune.make_plan(graph, scores, flops=0.5, round_to=8)
student = prune.apply(model, plan)
diff    = prune.verify(model, student, plan, example_input)
prune.repair(student, model, plan, images)
prune.reconstruct(student, model, plan, images)
"""

from prune.cut.plan import PrunePlan, check_budget, keep_all, make_plan
from prune.cut.surgery import apply
from prune.cut.verify import verify
from prune.errors import PruneError
from prune.graph.graph import ChannelGraph
from prune.graph.trace import trace
from prune.importance import sparsity
from prune.importance.score import IMPORTANCES, score
from prune.recovery.recentre import recentre
from prune.recovery.reconstruct import BlockRepair, reconstruct
from prune.recovery.repair import LayerRepair, repair
from prune.rounds import plan_in_rounds

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
