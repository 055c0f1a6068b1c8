"""FLOPs of what no rule cuts: matrix products, attention, layers that surgery does not know."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from prune.graph.products import attention, matmul
from prune.graph.rules import RULES
from prune.graph.tracker import ChannelTracker
from prune.program.interpret import compute
from prune.program.operators import CUTTABLE, operator_name


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


# The counter knows the attention of CUDA alone; that of a CPU is the same product.
ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}


def flops_beside_layers(
    program: torch.export.ExportedProgram, tracker: ChannelTracker
) -> tuple[int, list[tuple[list[int], int]]]:
    """FLOPs per image of every operator that is no layer of `tracker`, as torch's counter has them.

    Returns:
        Those of what is never cut; and of every product of heads, its atoms and the FLOPs that each of them takes.
    """
    values: dict[Any, Any] = {node: node.meta.get("val") for node in program.graph.nodes}
    products = []
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        for node in program.graph.nodes:
            if node.op == "get_attr":
                values[node] = compute(node, values)
            elif node.op == "call_function" and _counts(node, tracker):
                before = counter.get_total_flops()
                compute(node, values)  # of the trace's fake tensors, which have shapes alone
                if atoms := tracker.products.get(node):
                    products.append((atoms, counter.get_total_flops() - before))
    whole = counter.get_total_flops() - sum(flops for _, flops in products)
    return whole // tracker.images, [(atoms, flops // tracker.images // len(atoms)) for atoms, flops in products]


def _counts(node: Any, tracker: ChannelTracker) -> bool:
    operator = operator_name(node)
    if operator not in CUTTABLE:
        return operator not in RULES or RULES[operator] in (matmul, attention)  # no other multiplies matrices
    name, obstacle = tracker.owners.layer(node, operator)
    return obstacle is not None or name not in tracker.layers and operator != "batch_norm"
