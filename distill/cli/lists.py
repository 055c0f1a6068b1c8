"""What `distill ls` and `distill env` print."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from distill.errors import DistillError
from distill.machine.words import text_table

LISTS = ("recipes", "keys", "losses", "importances", "arms")


def ls(args: argparse.Namespace) -> None:
    """List the shipped recipes, the keys of a recipe, losses, importances, or arms of a comparison.

    distill ls keys
    distill ls losses my_losses.py:my_kd
    distill ls keys --json-schema > recipe.schema.json
    """
    if args.name and args.what not in ("losses", "importances"):
        raise DistillError(f"distill ls {args.what} lists all there are and takes no name, got '{args.name[0]}'")
    if args.json_schema and args.what != "keys":
        raise DistillError(f"--json-schema describes keys, not {args.what}: distill ls keys --json-schema")
    if args.json_schema:
        import json

        from distill.recipe.json_schema import json_schema

        print(json.dumps(json_schema(), indent=2))
    else:
        print("\n".join(text_table(_rows(args.what, args.name))))


def _rows(what: str, names: Sequence[str]) -> Iterable[Sequence[str]]:
    from distill.recipe import load, schema

    if what == "recipes":  # the comment in its first line says what a recipe is for
        files = load.shipped().items()
        return [(name, file.read_text("utf-8").partition("\n")[0].lstrip("# ")) for name, file in files]
    if what == "keys":
        return [("key", "type", "default", "help"), *load.keys()]
    if what == "importances":
        from distill.machine import plugins

        helps = schema.IMPORTANCES
        return [
            (name, helps.get(name) or plugins.summary(plugins.load("importance", name, helps)))
            for name in names or helps
        ]
    if what == "arms":
        from distill.comparison import arms

        return [*((arm.name, arm.help) for arm in arms.BUILTIN), arms.WITHOUT]
    from distill import losses

    rows = [("loss", "options", "help")]
    for loss in losses.describe(names or losses.BUILTIN):
        options = [*loss.required, *(f"{name}={value}" for name, value in loss.options.items())]
        rows.append((loss.name, ", ".join(options), loss.help))
    return rows


def env(_: argparse.Namespace) -> None:
    """Print this machine and the installed versions, for bug reports.

    distill env
    """
    from distill.machine.env import collect

    machine = collect()
    versions = machine.pop("versions")
    lists = {name: ", ".join(value) for name, value in machine.items() if isinstance(value, list)}
    rows = (machine | lists | versions).items()
    print("\n".join(text_table((name, "none" if value in (None, "") else str(value)) for name, value in rows)))
