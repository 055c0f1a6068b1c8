"""What the report shows of a run's pictures, and the files it links to."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from distill.results.networks import STUDENT
from distill.results.quality import Picture, PictureGroup
from distill.results.results import Results

FOLDER = "pictures"  # in the run folder
MOST = 2_000_000  # bytes of the pictures inside the page; what is beyond is loaded from the folder
LEGEND = 24  # classes whose colours are explained


@dataclass(frozen=True)
class Panel:
    """One panel of a picture in the page."""

    title: str
    boxes: int
    source: str  # a data URI, or a file beside the page


@dataclass(frozen=True)
class Shown:
    """One picture in the page."""

    title: str  # the file name of the image
    words: str  # how teacher and student differ on it
    link: str  # the large picture
    panels: tuple[Panel, ...]


def gallery(results: Results, run_dir: Path) -> list[tuple[str, list[Shown]]]:
    """The pictures that are in the run folder, under a title for each reason; those that are gone are left out."""
    groups, room = [], MOST
    for group in results.pictures.groups if results.pictures else ():
        shown = []
        for picture in group.pictures:
            if not (run_dir / FOLDER / picture.file).is_file():
                continue
            panels = []
            for title, file in picture.small.items():
                path = run_dir / FOLDER / file
                if not path.is_file():
                    continue
                content = path.read_bytes()
                room -= len(content)
                inside = f"data:image/jpeg;base64,{b64encode(content).decode()}"
                panels.append(Panel(title, picture.boxes[title], inside if room >= 0 else quote(f"{FOLDER}/{file}")))
            shown.append(Shown(picture.image, words(picture), quote(f"{FOLDER}/{picture.file}"), tuple(panels)))
        if shown:
            groups.append((title_of(group), shown))
    return groups


def title_of(group: PictureGroup) -> str:
    """Why the images of a group were chosen."""
    if group.kind == "class":
        return f"The class that lost most: {group.of}"
    first = _first(group)
    return {"differ": f"Where {first} and student differ most", "typical": "Typical images"}[group.kind]


def _first(group: PictureGroup) -> str:
    """What the network is called that the student is compared with."""
    return next(iter(group.pictures[0].alone), "teacher") if group.pictures else "teacher"


def words(picture: Picture) -> str:
    """How teacher and student differ on an image."""
    parts = []
    for title, count in picture.alone.items():
        if count:
            parts.append(f"{count} {'box' if count == 1 else 'boxes'} of the {title} alone")
    return ", ".join(parts) or "both see the same objects"


def explained(results: Results) -> str:
    """What is drawn, and how images were chosen."""
    pictures = results.pictures
    if pictures is None or not pictures.groups:
        return ""
    same, first = not any(group.kind == "differ" for group in pictures.groups), _first(pictures.groups[0])
    return (
        f"Boxes with a score of {pictures.confidence:g} or more on some of the {pictures.images} val images. A thick box is "
        f"one that only one of {first} and student has; the colour is the class. Each picture opens large, with classes and "
        "scores." + (f" {first.capitalize()} and student see the same on every image." if same else "")
    )


def legend(results: Results) -> list[tuple[str, str]]:
    """Colour and name of the classes that are drawn; of many, how many more there are."""
    colours = results.pictures.colours if results.pictures else {}
    rest = len(colours) - LEGEND
    shown = [(colour, name) for name, colour in list(colours.items())[:LEGEND]]
    return shown + ([("transparent", f"and {rest} more")] if rest > 0 else [])


def files(results: Results, run_dir: Path, *, plots: bool) -> list[tuple[str, str]]:
    """Name of each file of the run that one may want to open, and its place beside the page; those that are there.

    `plots`: whether the report has some, which are written after the page.
    """
    names = [
        STUDENT.file,
        *([results.native.file] if results.native else []),
        *(export.file for export in results.exports),
    ]
    names += ["metrics.csv", "recipe.yaml", "results.json", "log.txt"]
    found = [(name, quote(name)) for name in names if (run_dir / name).exists()]
    found += [("plots", "plots/")] if plots else []
    return found + ([(FOLDER, f"{FOLDER}/")] if (run_dir / FOLDER).is_dir() else [])
