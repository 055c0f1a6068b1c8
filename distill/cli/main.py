"""The command line: words in, one call out. No import here takes time before it is known to be needed."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from distill.cli.commands import COMMANDS, Command
from distill.errors import DistillError, Interrupted
from distill.machine.console import fitted, replace_unencodable, width_of
from distill.machine.signals import interrupted_by_signals
from distill.machine.words import brief, nearest, text_table, visible

PIPE_CLOSED = 141  # what a shell reports for SIGPIPE


class Parser(argparse.ArgumentParser):
    """Complains in one line and suggests the nearest option."""

    def error(self, message: str) -> NoReturn:
        """Raise the message as a `DistillError`."""
        message = message.replace(", key=value", "")  # optional, but argparse calls it required in intermixed words
        message, unknown, words = message.partition("unrecognized arguments: ")
        message += unknown + " ".join(brief(word, 100) for word in words.split())
        for word in words.split():
            keys = ": a recipe's keys are given as key=value" if word.startswith("--") else ""
            message += nearest(word, self._option_string_actions) or keys
        raise DistillError(f"{message} ({self.prog} --help)")

    def format_help(self) -> str:
        """The help, with examples as wide as the terminal."""
        return fitted(super().format_help(), sys.stdout)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 1 the machine's fault, 2 the user's, 130 interrupted."""
    if "_ARGCOMPLETE" in os.environ:  # TAB was pressed
        from distill.cli.completion import complete

        complete({name: command.arguments for name, command in COMMANDS.items()})
    _open_closed_streams()
    replace_unencodable(sys.stdout, sys.stderr)
    try:
        with interrupted_by_signals():
            _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return 0
    except DistillError as error:
        return _complain(error, error.exit_status)
    except KeyboardInterrupt:
        return _complain("interrupted", Interrupted.exit_status)
    except BrokenPipeError:
        # The reader has gone (`distill ls keys | head`): keep Python from complaining about it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        from distill.machine.faults import machine_fault

        prune = sys.modules.get("prune.errors")  # a module that was not imported has raised nothing
        if prune is not None and isinstance(error, prune.PruneError):
            return _complain(error, DistillError.exit_status)
        if fault := machine_fault(error):
            return _complain(fault, fault.exit_status)
        raise


def _open_closed_streams() -> None:
    """Open the standard streams that are closed (`distill run ... >&-`): the next file would take the place of one."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115  it stays open


def _dispatch(words: list[str]) -> None:
    name = words[0] if words else "help"
    if name in ("-h", "--help", "help"):
        print(fitted(_overview(), sys.stdout))
    elif name in ("-V", "--version"):
        from distill.machine.env import versions

        print("distill", versions().get("distill-prune", "(not installed)"))
    elif name not in COMMANDS:
        hint = nearest(name, COMMANDS) or f": there are {', '.join(COMMANDS)}"
        raise DistillError(f"no command '{name}'{hint}")
    else:
        try:
            # Intermixed: `distill run demo --quiet seed=1` in any order.
            args = _parser(name, COMMANDS[name]).parse_intermixed_args(words[1:])
        except SystemExit:  # --help
            return
        COMMANDS[name].call(args)


def _parser(name: str, command: Command) -> Parser:
    parser = Parser(
        prog=f"distill {name}",
        description=command.help,
        epilog=f"example:\n{textwrap.indent(command.example, '  ')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for argument, options in command.arguments:
        parser.add_argument(argument, **options)
    return parser


def _overview() -> str:
    rows, width = ((name, command.help) for name, command in COMMANDS.items()), width_of(sys.stdout)
    commands = textwrap.indent("\n".join(text_table(rows, width=width and width - 2)), "  ")
    return (
        "usage: distill COMMAND ...\n\n"
        "Make a trained YOLO smaller: prune it, repair it, distill it from the original.\n\n"
        f"{commands}\n\nexample:\n  {COMMANDS['run'].example.splitlines()[0]}\n\ndistill COMMAND --help says more."
    )


def _complain(text: object, status: int) -> int:
    print(fitted(visible(str(text)), sys.stderr), file=sys.stderr)
    return status
