"""Operators of a trace: those that leave channels alone, and where in the user's model one ran."""

from __future__ import annotations

from typing import Any

# Operators through which every channel passes by itself: activations and copies, then those over space.
POINTWISE = frozenset(
    "silu relu relu6 leaky_relu hardswish hardsigmoid hardtanh sigmoid tanh gelu mish elu selu softplus clamp exp sqrt "  # noqa: SIM905
    "neg abs pow rsqrt dropout feature_dropout alpha_dropout clone contiguous detach to _to_copy alias".split()
)
SPATIAL = frozenset(
    "max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest2d upsample_bilinear2d "  # noqa: SIM905
    "upsample_bicubic2d _upsample_nearest_exact2d reflection_pad2d replication_pad2d".split()
)
# Operators that move values, or take them together, and make nothing else of zeros than zeros.
MOVING = frozenset("cat chunk split split_with_sizes slice view _unsafe_view reshape flatten mean sum amax".split())  # noqa: SIM905
PADDING = frozenset(("pad", "constant_pad_nd"))
# Operators of two tensors, or of one and a number, element by element.
ARITHMETIC = frozenset("add sub rsub mul div maximum minimum".split())  # noqa: SIM905


def module_path(node: Any) -> str:
    """Path of the module whose forward ran this node, in the user's model; empty for the model itself."""
    stack = node.meta.get("nn_module_stack")
    path = list(stack.values())[-1][0] if stack else ""
    return path.removeprefix("net").removeprefix(".")


def where(node: Any) -> str:
    """Where an operator stands, for messages."""
    return f"in '{path}'" if (path := module_path(node)) else "in the model's own forward"


def within(node: Any, owner: str) -> bool:
    """Whether the node ran in the forward of the module at `owner`, or of one inside it."""
    path = module_path(node)
    return not owner or path == owner or path.startswith(f"{owner}.")
