"""Structural channel pruning of any torch module: exact surgery, output-aware importance, closed-form repair.

graph   = prune.trace(model, example_input)
scores  = prune.score(graph, "obs", batches=images)
plan    = prune.make_plan(graph, scores, flops=0.5, round_to=8)
student = prune.apply(model, plan)
diff    = prune.verify(model, student, plan, example_input)
prune.repair(student, model, plan, images)
prune.reconstruct(student, model, plan, images)

An `Adapter` tells it what it must know about a family of models, `prune.rules.register` how channels pass through an
operator of your own, and `prune.score` takes an importance of your own. Each module says how, in ten lines.
"""

from prune.adapter import Adapter, adapter_for
from prune.cut.plan import PrunePlan, check_budget, keep_all, make_plan
from prune.cut.surgery import apply
from prune.cut.verify import verify
from prune.errors import PruneError
from prune.graph import rules
from prune.graph.graph import ChannelGraph
from prune.graph.trace import trace
from prune.importance import sparsity
from prune.importance.base import Context, Importance, per_group
from prune.importance.score import IMPORTANCES, score
from prune.importance.statistics import Weights
from prune.recovery.recentre import recentre
from prune.recovery.reconstruct import BlockRepair, reconstruct
from prune.recovery.repair import LayerRepair, repair, repair_weights
from prune.rounds import plan_in_rounds

__all__ = [
    "IMPORTANCES",
    "Adapter",
    "BlockRepair",
    "ChannelGraph",
    "Context",
    "Importance",
    "LayerRepair",
    "PruneError",
    "PrunePlan",
    "Weights",
    "adapter_for",
    "apply",
    "check_budget",
    "keep_all",
    "make_plan",
    "per_group",
    "plan_in_rounds",
    "recentre",
    "reconstruct",
    "repair",
    "repair_weights",
    "rules",
    "score",
    "sparsity",
    "trace",
    "verify",
]
