"""What `distill ls` and `distill env` print."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence

from distill.errors import DistillError
from distill.machine.console import width_of
from distill.machine.words import text_table, wrap

KEY_COLUMNS = 28  # of `key=default`; what is longer has a line of its own
LISTS = ("recipes", "keys", "losses", "importances", "arms", "features")


def ls(args: argparse.Namespace) -> None:
    """List the shipped recipes, the keys of a recipe, losses, importances, arms of a comparison, or a network's features.

    distill ls keys
    distill ls losses my_losses.py:my_kd
    distill ls features model=best.pt plan=runs/half-1
    distill ls keys --json-schema > recipe.schema.json
    """
    if args.name and args.what not in ("losses", "importances", "features"):
        raise DistillError(f"distill ls {args.what} lists all there are and takes no name, got '{args.name[0]}'")
    if args.json_schema and args.what != "keys":
        raise DistillError(f"--json-schema describes keys, not {args.what}: distill ls keys --json-schema")
    if args.json_schema:
        import json

        from distill.recipe.json_schema import json_schema

        print(json.dumps(json_schema(), indent=2))
    elif args.what == "keys":
        print(_keys(width_of(sys.stdout)))
    else:
        print("\n".join(text_table(_rows(args.what, args.name), width=width_of(sys.stdout))))


def _keys(width: int | None) -> str:
    """Every key of a recipe by section: `key=default`, what it means and what it may be."""
    from distill.recipe import load

    lines: list[str] = []
    for title, rows in load.key_groups():
        lines += ["", *([title] if width is None else wrap(title, width, 2))]
        for path, kind, default, text in rows:
            word, line = f"  {path}={default}", f"{text} ({kind})"
            if len(word) > KEY_COLUMNS:
                lines += [word] if width is None else wrap(word, width, 6)
                word = ""
            line = f"{word:{KEY_COLUMNS}}  {line}"
            lines += [line] if width is None else wrap(line, width, KEY_COLUMNS + 2)
    return "\n".join(lines[1:])


def _rows(what: str, names: Sequence[str]) -> Iterable[Sequence[str]]:
    from distill.recipe import load, schema

    if what == "recipes":  # the comment in its first line says what a recipe is for
        files = load.shipped().items()
        return [(name, file.read_text("utf-8").partition("\n")[0].lstrip("# ")) for name, file in files]
    if what == "importances":
        from distill.machine import plugins

        helps = schema.IMPORTANCES
        return [
            (name, helps.get(name) or plugins.summary(plugins.load("importance", name, helps)))
            for name in names or helps
        ]
    if what == "features":
        from distill.recipe.schema import FeatureOptions
        from distill.recipe.section import bind
        from distill.recipe.yaml import wrap

        options = bind(FeatureOptions, wrap({}, "command line"), names, files=True)
        from distill.engine.features import features

        return features(options).rows()
    if what == "arms":
        from distill.comparison import arms

        return [*((arm.name, arm.help) for arm in arms.BUILTIN), arms.WITHOUT]
    from distill import losses

    rows = [("loss", "options", "help")]
    for loss in losses.describe(names or losses.BUILTIN):
        options = [*loss.required, *(f"{name}={value}" for name, value in loss.options.items())]
        reads = f" Reads {', '.join(loss.reads)}." if loss.reads else ""
        rows.append((loss.name, ", ".join(options), loss.help + reads))
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
    table = ((name, "none" if value in (None, "") else str(value)) for name, value in rows)
    print("\n".join(text_table(table, width=width_of(sys.stdout))))
