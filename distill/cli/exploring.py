"""What the commands call that explore: the curve of `distill plan`."""

from __future__ import annotations

import argparse
from pathlib import Path

from distill.cli.screen import console_of, open_page
from distill.errors import DistillError, Interrupted
from distill.machine import parallel
from distill.machine.files import check_place
from distill.recipe.schema import Recipe

_OF_CURVE = {"budgets": "--budgets", "full_repair": "--full-repair", "out": "--out", "open": "--open"}


def wants_curve(args: argparse.Namespace) -> bool:
    """Whether `distill plan` shall measure a curve. Raises `DistillError` for an option of curves without one."""
    lonely = [option for name, option in _OF_CURVE.items() if getattr(args, name)]
    if lonely and not args.curve:
        raise DistillError(f"{lonely[0]} goes with --curve: distill plan RECIPE ... --curve")
    return bool(args.curve)


def curve(recipe: Recipe, args: argparse.Namespace) -> None:
    """Measure the curve of a recipe; a folder keeps each point as soon as it is measured."""
    budgets = _budgets(args.budgets) if args.budgets is not None else ()
    out = Path(args.out) if args.out else None
    if args.open and out is None:
        raise DistillError("--open needs --out DIR, where the page is")
    parallel.require_single("distill plan --curve")
    if out is not None and out.exists() and not out.is_dir():
        raise DistillError(f"--out {out} is a file: give a folder")
    if out is not None:
        check_place(out)
    from distill.engine import standalone
    from distill.engine.curve import CurveOptions

    with console_of(args) as console:
        try:
            standalone.curve(recipe, CurveOptions(budgets, args.full_repair), out, console)
        except KeyboardInterrupt:
            kept = f"the points in {out} are kept, give the same command again" if out else "with --out points are kept"
            raise Interrupted(f"interrupted; {kept}") from None
    if args.open and out is not None:
        open_page(out / "curve.html")


def _budgets(text: str) -> tuple[float, ...]:
    try:
        budgets = tuple(float(word) for word in text.split(","))
    except ValueError:
        budgets = ()
    if not budgets or not all(0 < budget < 1 for budget in budgets) or len(set(budgets)) < len(budgets):
        raise DistillError(f"--budgets: expected different shares between 0 and 1, as in 0.7,0.5, got '{text}'")
    return budgets
