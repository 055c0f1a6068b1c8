"""What a shell completes when TAB is pressed, by argcomplete: commands, flags, recipes, keys and their values."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

from distill.errors import DistillError

SHELLS = ("bash", "zsh", "fish")
FORMATS = ("onnx", "torchscript", "openvino")  # the usual ones of many


def completion(args: argparse.Namespace) -> None:
    """Print what makes a shell complete commands, flags, recipes and keys.

    eval "$(distill completion bash)"
    distill completion fish > ~/.config/fish/completions/distill.fish
    """
    try:
        from argcomplete import shellcode
    except ImportError:
        raise DistillError("completion needs argcomplete: pip install argcomplete") from None
    print(shellcode(["distill"], shell=args.shell))


def complete(commands: Mapping[str, Iterable[tuple[str, dict[str, Any]]]]) -> None:
    """Answer the shell, which has its question in the environment, and end the process.

    `commands`: the arguments of each, as `argparse.ArgumentParser.add_argument` takes them.
    """
    import argcomplete

    parser = argparse.ArgumentParser(prog="distill")
    parsers = parser.add_subparsers()
    for name, arguments in commands.items():
        words = parsers.add_parser(name, allow_abbrev=False)
        for argument, options in arguments:
            action: Any = words.add_argument(argument, **options)
            if completer := _COMPLETERS.get(argument):
                action.completer = completer
    argcomplete.autocomplete(parser)


def _recipes(prefix: str, **_: Any) -> list[str]:
    from distill.recipe.load import shipped

    return [*shipped(), *_files(prefix)]


def _keys(prefix: str, **_: Any) -> list[str]:
    from distill.recipe.schema import Recipe

    return _pairs(Recipe, prefix)


def _eval_keys(prefix: str, **_: Any) -> list[str]:
    from distill.recipe.schema import EvalOptions

    return _pairs(EvalOptions, prefix)


def _export_words(prefix: str, **_: Any) -> list[str]:
    from distill.recipe.schema import ExportOptions

    return [*FORMATS, *_pairs(ExportOptions, prefix)]


def _names(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> Iterable[str]:
    from distill.losses.registry import BUILTIN
    from distill.recipe.schema import IMPORTANCES, FeatureOptions

    if parsed_args.what == "features":
        return _pairs(FeatureOptions, prefix)
    return {"losses": BUILTIN, "importances": IMPORTANCES}.get(parsed_args.what, ())


def _arms(prefix: str, **_: Any) -> list[str]:
    from distill.comparison.arms import BUILTIN

    before = prefix[: prefix.rfind(",") + 1]
    return [f"{before}{arm.name}" for arm in BUILTIN if arm.name not in before.split(",")]


def _pairs(cls: type, prefix: str) -> list[str]:
    """`key=` for every key of a section or, if the word has one already, `key=value` for each value that is known."""
    from distill.recipe.section import walk

    keys = dict(walk(cls))
    name, equals, value = prefix.partition("=")
    if not equals:
        return [f"{name}=" for name in keys]
    key = keys.get(name)
    if key is None:
        return []
    values = [*key.words, *((key.none,) if key.none else ()), *(("true", "false") if key.type is bool else ())]
    return [f"{name}={each}" for each in [*values, *(_files(value) if key.path else ())]]


def _files(prefix: str) -> list[str]:
    from argcomplete.completers import FilesCompleter

    return list(FilesCompleter()(prefix))


_COMPLETERS = {
    "recipe": _recipes,
    "override": _keys,
    "option": _eval_keys,
    "format": _export_words,
    "name": _names,
    "--arms": _arms,
}
