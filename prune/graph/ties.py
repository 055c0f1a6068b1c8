"""Channels that must go together, beyond those that operators unite: parts of splits, and sizes that a forward shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from prune.graph.graph import Channels
from prune.graph.tracker import ChannelTracker

Key = tuple[frozenset, frozenset]


@dataclass(frozen=True)
class Known:
    """What is known of the atoms at a time.

    Attributes:
        roots: Root of every atom.
        keys: Per root, what tells its group: (labels, how often each layer reads it).
        frozen: Root -> why it may not be cut.
    """

    roots: list[int]
    keys: dict[int, Key]
    frozen: dict[int, str]


def known(tracker: ChannelTracker) -> Known:
    """What is known now."""
    roots = tracker.atoms.roots()
    labels: dict[int, list[tuple]] = {}
    for root, own in zip(roots, tracker.atoms.labels, strict=True):
        before = labels.setdefault(root, own)
        if before is not own and before != own:
            labels[root] = [*before, *(label for label in own if label not in before)]
    reads: dict[int, list[tuple[str, int]]] = {root: [] for root in labels}
    for name, layer in tracker.layers.items():
        for root, count in Counter(map(roots.__getitem__, layer.inputs)).items():
            reads[root].append((name, count))
    made: dict[tuple, Key] = {}  # most channels share theirs: one object serves all
    keys = {}
    for root, own in labels.items():
        parts = tuple(own), tuple(reads[root])
        if parts not in made:
            made[parts] = frozenset(parts[0]), frozenset(parts[1])
        keys[root] = made[parts]
    return Known(roots, keys, tracker.atoms.frozen(roots))


def settle(tracker: ChannelTracker) -> Known:
    """Unite and freeze until every split and every proportion holds whatever is cut: one may undo what another took as given."""
    for attribute in tracker.fixed & tracker.attributes.keys():
        for atoms in tracker.attributes[attribute]:
            tracker.atoms.freeze(atoms, f"'{attribute.name}' of '{attribute.path}' is used for another size too")
    checks: list[Callable[[Known], bool]] = [partial(_tie_in_proportion, tracker, each) for each in tracker.proportions]
    for attribute, vectors in tracker.attributes.items():
        checks.append(partial(_tie_in_proportion, tracker, tuple(vectors)))
        checks.append(partial(_keep_whole_numbers, tracker, attribute.value, vectors[0]))
    checks += [partial(_tie_split_parts, tracker, split.parts) for split in tracker.splits]
    while True:
        now = known(tracker)
        changes = [check(now) for check in checks]  # one that unites does not see what those before it have
        if not any(changes):
            return now


def _tie_split_parts(tracker: ChannelTracker, parts: tuple[Channels, ...], now: Known) -> bool:
    """Unite the parts of a split that must lose the same channels. Parts of one group each need only lose equally many.

    Args:
        tracker: Of the trace.
        parts: Atoms of the split's parts.
        now: What is known.

    Returns:
        Whether that ties channels that were free of each other.
    """
    roots = now.roots
    kinds = [{now.keys[roots[a]] for a in part} for part in parts]
    repeats = {len(part) // len({roots[a] for a in part}) for part in parts}  # how often a part holds a channel
    free = not any(roots[a] in now.frozen for part in parts for a in part)
    if len(repeats) == 1 and all(len(kind) == 1 for kind in kinds) and free:
        return False
    for part in parts[1:]:
        tracker.atoms.unite(parts[0], part)
    return tracker.atoms.roots() != roots


def _tie_in_proportion(tracker: ChannelTracker, vectors: tuple[list[int], ...], now: Known) -> bool:
    """Let tensors lose the same share of their channels: what is one channel of the one is as many of the other as it takes."""
    rooted = [[now.roots[atom] for atom in vector] for vector in vectors]
    reasons = [now.frozen[root] for roots in rooted for root in roots if root in now.frozen]
    counts = [Counter(roots) for roots in rooted]
    if reasons:
        return _freeze(tracker, rooted, now, f"as many stay as of what it is given the width of: {reasons[0]}")
    sizes = {count: len(roots) for count, roots in zip(map(id, counts), rooted, strict=True)}
    if all(
        counts[0][root] * sizes[id(count)] == count[root] * sizes[id(counts[0])]
        for count in counts
        for root in {**counts[0], **count}
    ):
        return False
    base = min(counts, key=len)
    even = all(len(set(count.values())) == 1 and len(count) % len(base) == 0 for count in counts)
    if not even:
        return _freeze(tracker, rooted, now, "its channels do not divide evenly among those of what has its width")
    for count in counts:
        own, times = list(count), len(count) // len(base)
        tracker.atoms.unite([root for root in base for _ in range(times)], own)
    return True


def _keep_whole_numbers(tracker: ChannelTracker, value: int, vector: list[int], now: Known) -> bool:
    """Freeze channels of which a stored number cannot keep the share."""
    counts = Counter(now.roots[atom] for atom in vector)
    broken = [root for root, count in counts.items() if count * value % len(vector)]
    return _freeze(tracker, [broken], now, "a number that its module stores would be a fraction")


def _freeze(tracker: ChannelTracker, rooted: list[list[int]], now: Known, reason: str) -> bool:
    """Whether that freezes any that were not."""
    fresh = [root for roots in rooted for root in roots if root not in now.frozen]
    tracker.atoms.freeze(fresh, reason)
    return bool(fresh)
