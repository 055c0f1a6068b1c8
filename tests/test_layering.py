"""Imports point down only. Read from the syntax tree, so that an import inside a function counts too."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the top to the bottom. A module may import its own layer and those below. A package stands for all in it.
LAYERS = (
    ("distill", "distill.cli", "distill.__main__"),
    ("distill.api",),
    ("distill.comparison",),
    ("distill.engine",),
    ("distill.yolo", "distill.classifiers", "distill.kinds", "distill.training", "distill.report", "distill.demo"),
    ("distill.recipe", "distill.results"),
    ("distill.losses",),
    ("prune", "distill.machine"),
    ("distill.errors",),  # anybody may use it
)
LEAVES = LAYERS[-1]
ONLY_IN = {
    "ultralytics": "distill.yolo",
    "timm": "distill.classifiers.upstream",
    "torchvision": "distill.classifiers.upstream",
}
DOORS = {"distill.yolo.kind", "distill.classifiers.kind", "distill.classifiers.files"}  # of kinds, to the engine
TORCH_FREE = (
    "distill.report",
    "distill.recipe",
    "distill.results",
    "distill.comparison.arms",
    "distill.engine.folder",
    "distill.machine.console",
    "distill.errors",
    "distill.demo",
)
LIGHT = (
    "distill.cli",
    "distill.recipe",
    "distill.results",
    "distill.comparison.arms",
    "distill.engine.folder",
    "distill.report",
    "distill.machine.console",
    "distill.errors",
)
HEAVY = ("torch", "ultralytics", "timm", "matplotlib", "cv2", "onnxruntime", "rich", "jinja2")


def modules() -> dict[str, Path]:
    """Every module of the product, by its dotted name."""
    files = {}
    for package in ("prune", "distill"):
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return files


MODULES = modules()


def imports(module: str) -> Iterator[str]:
    """Full names of everything that a module imports, a submodule rather than its package where one is meant."""
    file = MODULES[module]
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in MODULES else base


def belongs(module: str, part: str) -> bool:
    if part == "distill":
        return module == part
    return module == part or module.startswith(f"{part}.")


def layer(module: str) -> int:
    for number, parts in enumerate(LAYERS):
        if any(belongs(module, part) for part in parts):
            return number
    raise AssertionError(f"{module} has no layer yet: give it one in LAYERS, as low as it can stand")


def ours(module: str) -> list[str]:
    return [name for name in imports(module) if name.split(".")[0] in ("prune", "distill")]


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    # `import distill` for its version is harmless: what the package itself imports, it imports in functions.
    upward = [name for name in ours(module) if layer(name) < layer(module) and name != "distill"]
    assert upward == [], f"{module} reaches up"


def test_prune_stands_alone() -> None:
    allowed = {*sys.stdlib_module_names, "torch", "prune"}
    for module in filter(lambda name: belongs(name, "prune"), MODULES):
        assert {name.split(".")[0] for name in imports(module)} <= allowed, module


def test_leaves_import_only_the_standard_library_and_each_other() -> None:
    for module in filter(lambda name: any(belongs(name, leaf) for leaf in LEAVES), MODULES):
        foreign = [name for name in imports(module) if name.split(".")[0] not in sys.stdlib_module_names]
        assert all(layer(name) == len(LAYERS) - 1 for name in foreign), module


@pytest.mark.parametrize(("library", "home"), ONLY_IN.items())
def test_a_library_stays_in_its_folder(library: str, home: str) -> None:
    users = {name for name in MODULES if any(used.split(".")[0] == library for used in imports(name))}
    assert all(belongs(name, home) for name in users), users


def test_one_module_imports_ultralytics() -> None:
    """Beside its package, which decides how ultralytics behaves before it is imported: a port is one file."""
    users = {name for name in MODULES if any(used.split(".")[0] == "ultralytics" for used in imports(name))}
    assert users == {"distill.yolo", "distill.yolo.upstream"}


def test_the_engine_reaches_kinds_of_networks_by_one_file() -> None:
    for module in filter(lambda name: layer(name) <= layer("distill.engine"), MODULES):
        used = {name for name in ours(module) if belongs(name, "distill.yolo") or belongs(name, "distill.classifiers")}
        assert used <= (DOORS if module == "distill.engine.kinds" else set()), module


@pytest.mark.parametrize("part", TORCH_FREE)
def test_no_torch_in(part: str) -> None:
    for module in filter(lambda name: belongs(name, part), MODULES):
        assert not {name.split(".")[0] for name in imports(module)} & {"torch", "torchvision"}, module


def test_no_import_goes_in_a_circle() -> None:
    edges = {name: {used for used in ours(name) if used in MODULES and used != "distill"} for name in MODULES}
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in finished:
            for used in sorted(edges[module] - {module}):
                visit(used, (*path, module))
            finished.add(module)

    for module in MODULES:
        visit(module, ())


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False, timeout=120
    )


def test_nothing_is_printed_on_import() -> None:
    names = [name for name in MODULES if name != "distill.__main__"]  # importing that one runs the program
    done = run_python("import importlib\nfor name in " + repr(names) + ": importlib.import_module(name)")
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""


def test_the_command_line_starts_without_the_heavy_libraries() -> None:
    names = [name for name in LIGHT if name in MODULES]
    code = f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
    done = run_python(code + f"print([name for name in {HEAVY!r} if name in sys.modules])")
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_the_rules_can_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each kind of import is seen: absolute, relative, inside a function, for a type checker only."""
    file = tmp_path / "rules.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nfrom . import trace\nfrom .trace import trace\nimport numpy.linalg\n"
        "if TYPE_CHECKING:\n    from distill.training import task\ndef later():\n    from distill.yolo.data import labels\n"
    )
    monkeypatch.setitem(MODULES, "prune.graph.rules", file)
    seen = list(imports("prune.graph.rules"))
    ours = ["prune.graph.trace", "prune.graph.trace"]
    assert seen == ["typing", *ours, "numpy.linalg", "distill.training.task", "distill.yolo.data.labels"]
    with pytest.raises(AssertionError, match="reaches up"):
        test_imports_point_down("prune.graph.rules")
    with pytest.raises(AssertionError, match=r"prune\.graph\.rules"):
        test_prune_stands_alone()
