"""What a family of models has to tell `prune` about itself: an `Adapter`, passed to `prune.trace` and its companions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Adapter:
    """Knowledge of one family of models. The defaults are right for a plain module.

    An adapter that fits no part of a model changes nothing, so one may be passed with any model.

        heads_in_train_mode = prune.Adapter(expose=lambda model: setattr(model.head, "training", True))
        graph = prune.trace(model, images, adapter=heads_in_train_mode)

    Attributes:
        expose: Called with a model in eval mode; lets it return its raw outputs, which must stay exact, in place of
            decoded ones. It may set `training` flags only: callers restore them.
        outputs: Selects what counts as output of all that the model returns. What it drops may change its channels.
        widths: Names of attributes in which a block stores the width of the parts of its own chunk or split. A split at
            a stored width can be cut, and surgery updates the attribute.
        shares: Called with a model; gives by module path the share of its FLOPs that counts, for it and all inside it: 0.5
            for each of two heads if only one of them is deployed.
        rules: Operator -> rule, as in `prune.rules.register`, for models of this family alone.
    """

    expose: Callable[[nn.Module], None] = lambda model: None
    outputs: Callable[[Any], Any] = lambda outputs: outputs
    widths: tuple[str, ...] = ()
    rules: Mapping[Any, Callable[..., Any]] = field(default_factory=dict)
    shares: Callable[[nn.Module], Mapping[str, float]] = lambda model: {}

    def width_attribute(self, module: nn.Module) -> str | None:
        """Name of the attribute in which `module` stores a width; None if it has none."""
        return next((name for name in self.widths if type(vars(module).get(name)) is int), None)

    def stores(self, module: nn.Module, width: int) -> bool:
        """Whether `module` stores this width."""
        name = self.width_attribute(module)
        return name is not None and getattr(module, name) == width

    def reads_width(self, module: nn.Module) -> bool:
        """Whether the module's forward reads a stored width. A number written there would not change with the parts."""
        code: Any = getattr(module.forward, "__code__", None)
        return not set(self.widths).isdisjoint(getattr(code, "co_names", ()))


PLAIN = Adapter()


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter that is used if none is passed.

    An installed distribution can offer one in the entry-point group `prune.adapters`, under the name of the package
    that defines the model's class. Without an offer, the model is taken as a plain module.
    """
    package = type(model).__module__.partition(".")[0]
    return next((offer.load() for offer in entry_points(group="prune.adapters", name=package)), PLAIN)
