"""The networks of a run: how each is called, drawn and explained, in the order they come about."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Network:
    """One network of a run folder."""

    name: str  # in files, records and tables: `pruned` is in pruned.pt
    title: str  # in a sentence
    color: str  # of its marks in plots, on a light page
    dark: str  # the same on a dark page
    legend: str  # what it is, for who reads a table first
    folder: str = ""  # that its file is in, if it is not the run folder itself

    @property
    def file(self) -> str:
        """Its file in the run folder."""
        return f"{self.folder}{self.name}.pt"


TEACHER = Network("teacher", "the teacher", "#5b6670", "#a9b4be", "the network that was given")
SPARSE = Network("sparse", "the sparse network", "#7a5ba6", "#ad91d8", "the teacher after sparsity training")
PRUNED = Network("pruned", "the pruned network", "#c2554b", "#e0837a", "its channels cut, and nothing else")
REPAIRED = Network(
    "repaired",
    "the repaired network",
    "#c98a1b",
    "#dfae54",
    "its layers fitted to the teacher's, without labels and without an epoch",
)
TRAINED = Network("trained", "the trained network", "#2563a8", "#6ea8e6", "trained from the network before it")
AVERAGED = Network(
    "averaged", "the averaged network", "#2a8a80", "#5fbdb2", "the mean of the weights before and after training"
)
STUDENT = Network(
    "student", "the student", "#2563a8", "#6ea8e6", "the best of the trained, averaged and repaired networks"
)

START = "start"  # what `teacher` is called if it teaches nothing and nothing was cut

NETWORKS = (TEACHER, SPARSE, PRUNED, REPAIRED, TRAINED, AVERAGED, STUDENT)


def network_of(name: str) -> Network:
    """The network of a name. Raises `KeyError` for a name that no network has."""
    return {network.name: network for network in NETWORKS}[name]


def foreign(name: str) -> Network:
    """A teacher that is not the network of `model`, by its name: a copy of its checkpoint."""
    return replace(TEACHER, name=name, title=f"the teacher {name}", legend="a teacher", folder="teachers/")
