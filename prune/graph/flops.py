"""FLOPs of what no rule cuts: matrix products, attention, layers that surgery does not know."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from prune.graph.rules import RULES
from prune.graph.tracker import ChannelTracker
from prune.program.interpret import compute
from prune.program.operators import CUTTABLE, operator_name


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


# The counter knows the attention of CUDA alone; that of a CPU is the same product.
ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}


def whole_flops(program: torch.export.ExportedProgram, tracker: ChannelTracker) -> int:
    """FLOPs per image of every operator that is no layer of `tracker`, as torch's counter has them."""
    values: dict[Any, Any] = {node: node.meta.get("val") for node in program.graph.nodes}
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        for node in program.graph.nodes:
            if node.op == "get_attr":
                values[node] = compute(node, values)
            elif node.op == "call_function" and _counts(node, tracker):
                compute(node, values)  # of the trace's fake tensors, which have shapes alone
    return counter.get_total_flops() // tracker.images


def _counts(node: Any, tracker: ChannelTracker) -> bool:
    operator = operator_name(node)
    if operator not in CUTTABLE:
        return operator not in RULES  # what has a rule multiplies no matrices
    name, obstacle = tracker.owners.layer(node, operator)
    return obstacle is not None or name not in tracker.layers and operator != "batch_norm"
