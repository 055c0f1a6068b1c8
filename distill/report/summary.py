"""The results of many runs on one page, and as one table inside another document: pure functions of kept JSON files."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean

from distill.errors import DistillError
from distill.report import write_files
from distill.report.command import command
from distill.report.compare_facts import NOISE, OURS, base_name, standings, with_spread
from distill.report.facts import comparison
from distill.report.format import digits, speed
from distill.report.kept import Comparison, read, shrink
from distill.results.comparison import ArmRun
from distill.results.results import Results

BEGIN, END = "<!-- results: written by `make results` -->", "<!-- /results -->"
# Arms that the table by budget shows, and what it calls them.
COLUMNS = {OURS: "labels and teacher", "ours-unlabelled": "teacher alone", "finetune": "labels alone"}
SETTING = ("model", "data", "imgsz")  # what the rows of a table have in common


def collect(run_dirs: Iterable[Path], folder: Path) -> None:
    """Add finished runs and comparisons to a folder, each as a small JSON file of its folder's name.

    Raises:
        DistillError: a folder holds nothing finished.
        RunError: the disk is full, or not writable.
    """
    kept = {f"{path.resolve().name}.json": shrink(path) for path in run_dirs}
    write_files(folder, {name: (json.dumps(content, indent=1) + "\n").encode() for name, content in kept.items()})


def write(folder: Path, table_in: Path | None = None) -> Path:
    """Write the page of all results beside the folder that holds them, `docs/results.md` for `docs/results/`.

    Args:
        folder: small JSON files, from `collect`.
        table_in: a document that gets the table by budget, between the lines BEGIN and END; none by default.

    Returns:
        The page.

    Raises:
        DistillError: there are no such files, or the document lacks the two lines.
        RunError: the disk is full, or not writable.
    """
    kept = read(folder)
    page = folder.with_suffix(".md")
    text = table_in and with_table(table_in.read_text(encoding="utf-8"), table(kept.values()), str(table_in))
    write_files(page.parent, {page.name: render(kept, folder.name).encode()})
    if table_in and text:
        write_files(table_in.parent, {table_in.name: text.encode()})
    return page


def render(kept: dict[str, Results | Comparison], folder: str) -> str:
    """The page, as Markdown.

    Args:
        kept: file name -> what it holds.
        folder: the name of the files' folder, for links.
    """
    files = {id(one): name for name, one in kept.items()}
    source = f"Written by `make results` from the files in [{folder}/]({folder}/): do not edit."
    reading = "Figures are mAP50-95 on the val images; ± is the standard deviation over seeds."
    parts = ["# Results", f"{source} {reading}"]
    for group in _groups(kept.values()):
        parts += [f"## {_title(group[0])}", _setting(group[0]), _by_budget(group), "The commands, row by row:"]
        parts.append(_code(_compare_command(one) for one in group))
        for one in group:
            parts += [f"### {_share(one):.0%} of the FLOPs", _arms(one), _source(files[id(one)], folder)]
    for run in _runs(kept.values()):
        parts += [f"## One run: {_share(run):.0%} of the FLOPs, {_title(run)}", _setting(run), _networks(run)]
        parts += [_code([command("run", run.recipe_name, run.recipe)]), _source(files[id(run)], folder)]
    return "\n\n".join(parts) + "\n"


def table(kept: Iterable[Results | Comparison]) -> str:
    """The table by budget of the setting with most comparisons, and what single runs of it say of speed, as Markdown.

    Without a comparison it is the table of the least cut run.
    """
    kept = list(kept)
    groups = _groups(kept)
    if not groups:
        run = _runs(kept)[0]
        return "\n\n".join((f"{_title(run)}. {_setting(run)}", _networks(run)))
    group = max(groups, key=len)
    same = [one for one in _runs(kept) if _key(one) == _key(group[0])]
    parts = [f"{_title(group[0])}. {_setting(group[0])}", _by_budget(group)]
    parts += [f"One run at {_share(one):.0%}: {_speed(one)} ({one.device}, batch 1)." for one in same]
    return "\n\n".join(parts)


def with_table(document: str, content: str, name: str) -> str:
    """A document with other content between its lines BEGIN and END.

    Raises:
        DistillError: it does not have each of the two lines once, in this order.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise DistillError(
            f"{name}: give it a line '{BEGIN}' and a line '{END}' once each; the table goes between them"
        )
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{after}"


def _groups(kept: Iterable[Results | Comparison]) -> list[list[Comparison]]:
    """Comparisons that differ in how much they cut, and in nothing else that a table must say; the least cut first."""
    groups: dict[tuple[object, ...], list[Comparison]] = {}
    for one in sorted((one for one in kept if isinstance(one, Comparison)), key=_share, reverse=True):
        groups.setdefault((*_key(one), one.recipe["distill"]["epochs"]), []).append(one)
    return [groups[key] for key in sorted(groups, key=str)]


def _runs(kept: Iterable[Results | Comparison]) -> list[Results]:
    """The single runs, the least cut first."""
    return sorted((one for one in kept if isinstance(one, Results)), key=_share, reverse=True)


def _share(one: Results | Comparison) -> float:
    """How much of the FLOPs is left, 0 to 1."""
    if isinstance(one, Results):
        return one.student.gflops / one.teacher.gflops
    return one.about.pruned.gflops / one.about.teacher.gflops


def _key(one: Results | Comparison) -> tuple[object, ...]:
    return tuple(one.recipe[key] for key in SETTING)


def _title(one: Results | Comparison) -> str:
    model = one.recipe["model"] or (one.recipe["teacher"]["train"] or {}).get("model")
    return f"{model} on {_data(one)}, {one.recipe['imgsz']} px, {one.recipe['distill']['epochs']} epochs"


def _data(one: Results | Comparison) -> str:
    """The folder of a data.yaml, which all are called so."""
    path = Path(one.recipe["data"])
    return path.parent.name if path.suffix and path.parent.name else path.name


def _setting(one: Results | Comparison) -> str:
    facts = one if isinstance(one, Results) else one.about
    before = facts.teacher
    versions = [f"{name} {facts.versions[name]}" for name in ("torch", "ultralytics") if name in facts.versions]
    quality = "" if before.map50_95 is None else f"mAP50-95 {before.map50_95:.3f}, "
    return (
        f"Teacher: {quality}{digits(before.params / 1e6)} M parameters, {digits(before.gflops)} GFLOPs. "
        f"Data: {facts.data.train_images} train and {facts.data.val_images} val images. "
        f"Machine: {', '.join([facts.device, *versions])}."
    )


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


def _speed(run: Results) -> str:
    first, last = run.teacher.latency_ms.median, run.student.latency_ms.median
    return f"{speed(first, last)}, {digits(first)} ms → {digits(last)} ms"


def _compare_command(one: Comparison) -> str:
    words = [command("compare", one.recipe_name, one.recipe), "--arms", ",".join(arm.name for arm in one.arms)]
    for arm in one.arms:
        if not isinstance(arm.overrides, dict):  # the user's own
            words += ["--arm", shlex.quote(f"{arm.name}={shlex.join(arm.overrides)}")]
    if len(one.lrs) > 1:
        words += ["--lrs", ",".join(f"{rate:g}" for rate in one.lrs)]
    return " ".join([*words, "--seeds", str(len(one.seeds))])


def _source(file: str, folder: str) -> str:
    return f"Every figure: [{file}]({folder}/{file})."


def _code(lines: Iterable[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(columns) - 1)]
    cells = [[re.sub(r"([|<\[])", r"\\\1", cell) for cell in row] for row in (columns, *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (cells[0], rule, *cells[1:]))
