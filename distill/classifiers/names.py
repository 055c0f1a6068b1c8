"""Names of architectures: `timm/resnet18.a1_in1k`, `torchvision/resnet18`."""

from __future__ import annotations

from dataclasses import dataclass

from distill.classifiers import upstream
from distill.classifiers.files import LIBRARIES
from distill.classifiers.upstream import TIMM
from distill.errors import DistillError
from distill.machine.words import brief, nearest


@dataclass(frozen=True)
class Architecture:
    """A network of a library, by the names that it is known by there."""

    library: str
    name: str  # with the tag of its weights, if it was given

    def __str__(self) -> str:
        return f"{self.library}/{self.name}"

    @property
    def arch(self) -> str:
        """The name without the tag."""
        return self.name.partition(".")[0]


def named(text: str) -> bool:
    """Whether a recipe means an architecture of these libraries by this."""
    return text.startswith(tuple(f"{library}/" for library in LIBRARIES))


def find(text: str, key: str = "model") -> Architecture:
    """The architecture of a name.

    Args:
        text: `timm/...` or `torchvision/...`.
        key: of the recipe, that messages name.

    Raises:
        DistillError: there is none of this name; the message says the nearest.
    """
    library, _, name = text.partition("/")
    found = Architecture(library, name)
    known = upstream.architectures(library)
    if found.arch not in known:
        hint = nearest(found.arch, known) or f": `{library}` lists {len(known)}, such as {', '.join(known[:3])}"
        raise DistillError(f"{key}: {library} has no classifier '{brief(found.arch, 100)}'{hint}")
    if library == TIMM and found.name != found.arch:
        tags = upstream.tags(found.arch)
        if found.name not in tags:
            have = f": there are {', '.join(tags)}" if tags else f": give {library}/{found.arch}"
            raise DistillError(
                f"{key}: timm has no weights '{brief(found.name, 100)}'{nearest(found.name, tags) or have}"
            )
    elif name != found.arch:
        raise DistillError(f"{key}: torchvision's names have no '.': give {library}/{found.arch}")
    return found
