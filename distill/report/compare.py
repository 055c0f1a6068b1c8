"""compare.json → compare.md, compare.html and plots/: which way of training ends higher, and by more than noise."""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from distill.errors import DistillError
from distill.report import compare_facts as facts
from distill.report import plain, plain_table, write_files
from distill.report.compare_facts import Content
from distill.report.document import Block, Code, Document, Figure, Terms, Text, fold, section
from distill.report.format import digits, value_text

WIDTH = 100  # columns of the last screen, about those of its table


def summary(content: Content, folder: Path) -> str:
    """The last screen. Plain ASCII."""
    made = facts.table(content)
    lines = [*plain_table(made), ""] if made else []
    lines += [line for note in facts.notes(content) for line in textwrap.wrap(note, WIDTH)]
    lines += ["", f"{'. '.join(filter(None, (facts.gain(content), facts.judgement(content))))}."]
    lines += [f"warning: {finding}" for finding in facts.findings(content)]
    lines.append(f"{folder / 'compare.html'}")
    return plain("\n".join(lines))


def write(folder: Path) -> None:
    """Write compare.md, compare.html and plots/*.png of what compare.json in the same folder holds.

    Raises:
        DistillError: there is no compare.json, or it is not one of ours.
        RunError: the disk is full, or not writable.
    """
    from distill.report.compare_plots import draw
    from distill.report.markdown import render_markdown
    from distill.report.page import render_html

    content = read(folder)
    plots = draw(facts.standings(content))
    document = compose(content, folder, plots)
    files = {f"plots/{name}.png": plot.png for name, plot in plots.items()}
    files["compare.md"] = render_markdown(document, plots).encode()
    files["compare.html"] = render_html(document, plots).encode()
    write_files(folder, files)


def read(folder: Path) -> Content:
    """What compare.json holds."""
    file = folder / "compare.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] == 1:
            return dict(content)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise DistillError(f"{file} was not written by this version or is damaged: start a new comparison")


def compose(content: Content, folder: Path, figures: Collection[str]) -> Document:
    """The report, before it becomes Markdown or HTML."""
    drawn = [Figure(name) for name in figures]
    sections = (
        section("Arms", [facts.table(content), *(Text(note, quiet=True) for note in facts.notes(content)), *drawn]),
        section("Learning rates", [facts.search(content)]),
        section("What each arm is", [_terms(_arms(content))]),
        section("Every run", [fold("All runs", facts.every_run(content))]),
        section("Go on with it", _more(folder)),
        section("Where it ran", [_terms(_environment(content))]),
    )
    return Document(
        name=f"{content['recipe_name']}: comparison",
        about=_about(content),
        gain=facts.gain(content),
        judgement=facts.judgement(content),
        accepted=None,
        warnings=tuple(facts.findings(content)),
        sections=tuple(part for part in sections if part is not None),
    )


def _more(folder: Path) -> list[Block]:
    return [
        Text("With more seeds, arms or learning rates; runs that are finished stay as they are:"),
        Code((f"distill compare --resume {shlex.quote(str(folder))} --seeds 5",)),
    ]


def _about(content: Content) -> str:
    about = content["about"]
    if not about:
        return ""
    data, before, after = about["data"], about["teacher"], about["pruned"]
    parts = [
        about["model"],
        data["path"],
        f"{data['train_images']} + {data['val_images']} images",
        f"{about['imgsz']} px",
        f"{digits(after['gflops'])} of {digits(before['gflops'])} GFLOPs",
        f"teacher {before['map50_95']:.3f}",
        about["device"],
    ]
    return " · ".join(filter(None, parts))


def _arms(content: Content) -> dict[str, str]:
    """Each arm in words, and the keys that make it, which are all that it differs in."""
    return {arm["name"]: " ".join(filter(None, [arm["help"], _keys(arm["overrides"])])) for arm in content["arms"]}


def _keys(overrides: Mapping[str, Any] | list[str]) -> str:
    if isinstance(overrides, list):
        return ""  # the user's own: its help is what was typed
    return " ".join(f"{key}={_value(value)}" for key, value in overrides.items())


def _value(value: Any) -> str:
    """As on the command line."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_value(inner)}' for key, inner in value.items())}}}"
    return "null" if value is None else value_text(value)


def _environment(content: Content) -> dict[str, Any]:
    about = content["about"]
    course = content["runs"][0]["schedule"] if content["runs"] else {}
    training = f"{course['epochs']} epochs, {course['steps']} steps of {course['batch']} images" if course else None
    return {"training": training, "device": about.get("device"), **(about.get("versions") or {})}


def _terms(values: Mapping[str, Any]) -> Terms | None:
    pairs = tuple((name, value_text(value)) for name, value in values.items() if value is not None)
    return Terms(pairs) if pairs else None
