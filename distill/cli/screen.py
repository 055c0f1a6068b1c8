"""What every command that computes has on the screen: a console as its flags say, and the report in a browser."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from distill.machine import parallel
from distill.machine.console import Console
from distill.machine.logs import shown_on


@contextmanager
def console_of(args: argparse.Namespace) -> Iterator[Console]:
    """What the user watches, and what gets all that the code says to `logging`. Flags: --quiet, -v."""
    quiet = args.quiet or not parallel.is_leader()
    with closing(Console(quiet=quiet, verbose=args.verbose)) as console, shown_on(console):
        yield console


def open_page(page: Path) -> None:
    """Show a page in the user's browser."""
    import webbrowser

    if parallel.is_leader() and not webbrowser.open(page.absolute().as_uri()):
        print(f"there is no browser here to open {page} with", file=sys.stderr)
