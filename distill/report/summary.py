"""The results of many runs on one page, and as one table inside another document: pure functions of kept JSON files."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from distill.errors import DistillError
from distill.machine.files import check_place, write_files
from distill.recipe import load as recipes
from distill.recipe.section import UNSET
from distill.report.compare_facts import (
    NOISE,
    OURS,
    base_name,
    differ_in_cost,
    network_text,
    standings,
    with_spread,
)
from distill.report.facts import comparison, headline_latency
from distill.report.format import digits, speed
from distill.report.kept import Comparison, read, shrink
from distill.results.comparison import ArmRun
from distill.results.results import Results

# What names a run and where it computes; the machine stands beside the figures.
_NO_PART = ("name", "device", "workers")
_WHOLE = ("losses", "teachers", "train", "sparsify")  # mappings that a word replaces as one
BEGIN, END = "<!-- results: written by `make results` -->", "<!-- /results -->"
# Arms that the table by budget shows, and what it calls them.
COLUMNS = {OURS: "labels and teacher", "ours-unlabelled": "teacher alone", "finetune": "labels alone"}


def collect(run_dirs: Iterable[Path], folder: Path) -> None:
    """Add finished runs and comparisons to a folder, each as a small JSON file of its folder's name.

    Raises:
        DistillError: a folder holds nothing finished.
        RunError: the disk is full, or not writable.
    """
    kept = {f"{path.resolve().name}.json": shrink(path) for path in run_dirs}
    if kept:
        check_place(folder)
        folder.mkdir(parents=True, exist_ok=True)
    write_files(folder, {name: (json.dumps(content, indent=1) + "\n").encode() for name, content in kept.items()})


def write(folder: Path, table_in: Path | None = None) -> Path:
    """Write and return the page of all results, beside the folder from `collect`: `docs/results.md` for `docs/results/`.

    The document `table_in`, if any, gets the table by budget between its lines BEGIN and END.

    Raises:
        DistillError: there are no such files, or the document lacks the two lines.
        RunError: the disk is full, or not writable.
    """
    kept = read(folder)
    page = folder.with_suffix(".md")
    text = table_in and _with_table(table_in.read_text(encoding="utf-8"), table(kept.values()), str(table_in))
    write_files(page.parent, {page.name: render(kept, folder.name).encode()})
    if table_in and text:
        write_files(table_in.parent, {table_in.name: text.encode()})
    return page


def render(kept: dict[str, Results | Comparison], folder: str) -> str:
    """The page, as Markdown, of what each file of a folder holds, with links into the folder."""
    sources = {id(one): f"Every figure: [{name}]({folder}/{name})." for name, one in kept.items()}
    source = f"Written by `make results` from the files in [{folder}/]({folder}/): do not edit."
    reading = "Figures are mAP50-95 on the val images; ± is the standard deviation over seeds."
    parts = ["# Results", f"{source} {reading}"]
    for title, group in sorted(_groups(kept.values()).items()):
        parts += [f"## {title}", _setting(group[0]), _by_budget(group), "The commands, row by row:"]
        parts.append("\n".join(f"    {_compare_command(one)}" for one in group))
        for one in group:
            parts += [f"### {_share(one):.0%} of the FLOPs", _arms(one), sources[id(one)]]
    for run in _runs(kept.values()):
        parts += [f"## One run: {_share(run):.0%} of the FLOPs, {_title(run)}", _setting(run), _networks(run)]
        parts += [f"    {_command('run', run.recipe_name, run.recipe)}", sources[id(run)]]
    return "\n\n".join(parts) + "\n"


def table(kept: Collection[Results | Comparison]) -> str:
    """The table by budget of the setting with most comparisons, and what single runs of it say of speed, as Markdown.

    Without a comparison it is the table of the least cut run.
    """
    groups, runs = _groups(kept), _runs(kept)
    if not groups:
        return f"{_title(runs[0])}. {_setting(runs[0])}\n\n{_networks(runs[0])}"
    title, group = max(groups.items(), key=lambda item: len(item[1]))
    parts = [f"{title}. {_setting(group[0])}", _by_budget(group)]
    for run in runs:
        if _title(run) == title:
            before, after, where = headline_latency(run)
            latency = f"{speed(before, after)} {where}".strip() + f", {digits(before)} ms → {digits(after)} ms"
            parts.append(f"One run at {_share(run):.0%}: {latency} ({run.device}, batch 1).")
    return "\n\n".join(parts)


def _with_table(document: str, content: str, name: str) -> str:
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise DistillError(
            f"{name}: give it a line '{BEGIN}' and a line '{END}' once each; the table goes between them"
        )
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{after}"


def _groups(kept: Iterable[Results | Comparison]) -> dict[str, list[Comparison]]:
    """Comparisons that differ in how much they cut, by the title that they share; the least cut first."""
    groups: dict[str, list[Comparison]] = {}
    for one in sorted((one for one in kept if isinstance(one, Comparison)), key=_share, reverse=True):
        groups.setdefault(_title(one), []).append(one)
    return groups


def _runs(kept: Iterable[Results | Comparison]) -> list[Results]:
    """The single runs, the least cut first."""
    return sorted((one for one in kept if isinstance(one, Results)), key=_share, reverse=True)


def _share(one: Results | Comparison) -> float:
    """How much of the FLOPs is left, 0 to 1."""
    if isinstance(one, Results):
        return one.student.gflops / one.teacher.gflops
    return one.about.pruned.gflops / one.about.teacher.gflops


def _title(one: Results | Comparison) -> str:
    recipe = one.recipe
    model = recipe["model"] or (recipe["teacher"]["train"] or {}).get("model")
    data = recipe["data"].removesuffix("/data.yaml")
    return f"{model} on {data}, {recipe['imgsz']} px, {recipe['distill']['epochs']} epochs"


def _setting(one: Results | Comparison) -> str:
    facts = one if isinstance(one, Results) else one.about
    before = facts.teacher
    versions = [f"{name} {facts.versions[name]}" for name in ("torch", "ultralytics") if name in facts.versions]
    beside = f", {facts.data.unlabelled_images} unlabelled" if facts.data.unlabelled_images else ""
    first = one.titles["teacher"] if isinstance(one, Results) else one.about.first
    others = one.teachers if isinstance(one, Results) else ()
    networks = [(first.capitalize(), before), *((f"Teacher {other.name}", other) for other in others)]
    return (
        f"{' '.join(_network(name, each) for name, each in networks)} "
        f"Data: {facts.data.train_images} train{beside} and {facts.data.val_images} val images. "
        f"Machine: {', '.join([facts.device, *versions])}."
    )


def _network(name: str, network: Any) -> str:
    quality = "" if network.map50_95 is None else f"mAP50-95 {network.map50_95:.3f}, "
    return f"{name}: {quality}{digits(network.params / 1e6)} M parameters, {digits(network.gflops)} GFLOPs."


def _by_budget(group: Sequence[Comparison]) -> str:
    arms = [{arm.name: arm for arm in standings(one)} for one in group]
    names = [name for name in COLUMNS if any(name in each for each in arms)]
    trained = [f"trained: {COLUMNS[name]}" for name in names]
    columns = ("FLOPs left", "parameters left", "cut alone", "repaired, no epoch, no label", *trained, "seeds")
    rows = []
    for one, each in zip(group, arms, strict=True):
        before, after = one.about.teacher, one.about.pruned
        start = next((_start(each[name].runs) for name in names if name in each), "")
        figures = [each[name].score if name in each else "" for name in names]
        left = (f"{_share(one):.0%}", f"{after.params / before.params:.0%}", f"{after.map50_95:.3f}")
        rows.append((*left, start, *figures, str(len(one.seeds))))
    return _table(columns, rows)


def _arms(one: Comparison) -> str:
    """A row for each arm, and what it differs from `ours` by, seed by seed."""
    arms, help_of = standings(one), {arm.name: arm.help for arm in one.arms}
    if differ_in_cost(arms):
        help_of |= {arm.name: f"{help_of[arm.name]} {network_text(arm)}" for arm in arms}
    rows = [
        (f"`{arm.name}`", _start(arm.runs), arm.score, arm.difference, NOISE[arm.within_noise], help_of[arm.name])
        for arm in arms
    ]
    return _table(("arm", "starts from", "mAP50-95", f"against {base_name(arms)}", "", "what it is"), rows)


def _networks(run: Results) -> str:
    """A column for each network of a run, as in its report."""
    table = comparison(run)
    return _table(table.columns, table.rows)


def _start(runs: Sequence[ArmRun]) -> str:
    values = [run.start for run in runs]
    return with_spread(f"{mean(values):.3f}", values)


def _compare_command(one: Comparison) -> str:
    words = [_command("compare", one.recipe_name, one.recipe), "--arms", ",".join(arm.name for arm in one.arms)]
    for arm in one.arms:
        if not isinstance(arm.overrides, dict):  # the user's own
            words += ["--arm", shlex.quote(f"{arm.name}={shlex.join(arm.overrides)}")]
    if len(one.lrs) > 1:
        words += ["--lrs", ",".join(f"{rate:g}" for rate in one.lrs)]
    return " ".join([*words, "--seeds", str(len(one.seeds))])


def _command(verb: str, name: str, recipe: Mapping[str, Any]) -> str:
    """A line for a shell: the words in which a resolved recipe differs from the shipped one of its name."""
    name = recipes.RENAMED.get(name, name)
    if name not in recipes.shipped():  # a file beside the user, with nothing to differ from
        return f"distill {verb} {shlex.quote(f'{name}.yaml')}"
    content = yaml.safe_load(recipes.find(name).read_text(encoding="utf-8"))
    unset = {key: UNSET for key, value in content.items() if value == UNSET}
    shipped = yaml.safe_load(recipes.to_yaml(recipes.load(name, dict.fromkeys(unset, "unset"))))
    changes = (f"{key}={_flow(value)}" for key, value in _changes(recipe, {**shipped, **unset}))
    return " ".join([f"distill {verb} {name}", *map(shlex.quote, changes)])


def _changes(recipe: Mapping[str, Any], base: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in recipe.items():
        before = base.get(key)
        if value == before or prefix + key in _NO_PART:
            continue
        if isinstance(value, Mapping) and isinstance(before, Mapping) and key not in _WHOLE:
            yield from _changes(value, before, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _flow(value: Any) -> str:
    """A value on one line, as YAML reads it."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(columns) - 1)]
    cells = [[re.sub(r"([|<\[])", r"\\\1", cell) for cell in row] for row in (columns, *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (cells[0], rule, *cells[1:]))
