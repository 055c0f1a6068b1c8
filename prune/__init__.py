"""Structural channel pruning of any torch module: exact surgery, output-aware importance, closed-form repair.

    import prune, torch, torchvision

    model = torchvision.models.resnet18(weights="DEFAULT").eval()   # any module that torch.export can trace
    images = torch.rand(64, 3, 224, 224)                            # take real ones; no labels are needed

    graph = prune.trace(model, images[:1])                          # which channels belong together
    scores = prune.score(graph, "obs", batches=images)              # what it costs to lose each
    plan = prune.make_plan(graph, scores, flops=0.5, round_to=8)    # which go; print(plan)
    student = prune.apply(model, plan)                              # a copy without them; `model` stays as it is
    prune.verify(model, student, plan, images[:1])                  # the proof: largest difference, in float64
    prune.repair(student, model, plan, images)                      # in closed form, layer by layer
    prune.reconstruct(student, model, plan, images)                 # then by gradient descent, block by block

    prune.trace           model -> ChannelGraph: groups of channels, what is frozen, and why
    prune.score           graph -> Importance, by name (`prune.IMPORTANCES`) or your own function
    prune.make_plan       graph, scores, a budget -> PrunePlan, plain data
    prune.plan_in_rounds  the same for deep cuts: cut, repair and measure again
    prune.apply           model, plan -> the pruned copy
    prune.trace_outputs   model -> for every module, which channels its output carries; `.kept(plan)` those that stay
    prune.verify          what the cut has changed beside the cut channels
    prune.repair          closed-form repair of the pruned copy, in place
    prune.reconstruct     repair by gradient descent, in place
    prune.recentre        BatchNorm statistics to train with

What cannot be done is a `PruneError`, in a line. An `Adapter` tells what must be known about a family of models,
`prune.rules.register` how channels pass through an operator of your own; `help(prune.rules)` and `help(prune.per_group)` say
how. A YOLO from its checkpoint to a report: `help(distill)`. More in docs/api.md and docs/method.md.
"""

from prune.adapter import Adapter, adapter_for
from prune.cut.plan import PrunePlan, check_budget, keep_all, make_plan
from prune.cut.surgery import apply
from prune.cut.verify import verify
from prune.errors import PruneError, PruneWarning
from prune.graph import rules
from prune.graph.graph import ChannelGraph
from prune.graph.outputs import ModuleOutput, trace_outputs
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
    "ModuleOutput",
    "PruneError",
    "PrunePlan",
    "PruneWarning",
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
    "trace_outputs",
    "verify",
]
