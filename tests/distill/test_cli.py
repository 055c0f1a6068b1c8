"""The command line: what the words call, what a mistake says, and the exit status."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import distill.engine
from distill.cli.commands import COMMANDS
from distill.cli.main import main
from distill.engine.folder import RunFolder
from distill.errors import DistillError, RunError
from distill.machine import env
from distill.machine.console import Console
from distill.recipe import load
from distill.recipe.schema import EvalOptions, ExportOptions, Recipe
from tests.distill.test_console import Terminal

GIVEN = ["model=best.pt", "data=data.yaml"]
FILES = ("a.pt", "best.pt", "d.yaml", "data.yaml")  # that are there, in the tests of this file


class Pipeline(ModuleType):
    """Stands in for pipeline and dryrun: remembers its calls, and fails where it is told to."""

    def __init__(self) -> None:
        super().__init__("distill.engine.pipeline")
        self.calls: list[tuple[Any, ...]] = []
        self.failure: BaseException | None = None

    def run(self, recipe: Recipe, folder: RunFolder, console: Console, on_epoch: Any = None) -> None:
        self.calls.append(("run", recipe, folder.path))
        console.line("working")
        folder.finish("score", {})
        if self.failure is not None:
            raise self.failure

    def plan(self, recipe: Recipe, console: Console) -> None:
        self.calls.append(("plan", recipe))

    def check(self, recipe: Recipe, console: Console) -> None:
        self.calls.append(("check", recipe))

    def evaluate(self, *args: Any) -> None:
        self.calls.append(("evaluate", *args[:-1]))

    def export(self, *args: Any) -> list[str]:
        self.calls.append(("export", *args[:-1]))
        return ["a.onnx"]


@pytest.fixture(autouse=True)
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    stub = Pipeline()
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        Path(name).touch()
    monkeypatch.setattr(env, "collect", dict)
    for name in ("pipeline", "standalone"):
        monkeypatch.setitem(sys.modules, f"distill.engine.{name}", stub)
        monkeypatch.setattr(distill.engine, name, stub, raising=False)
    return stub


@pytest.fixture
def says(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command: (exit status, stdout, stderr)."""

    def call(*words: str) -> tuple[int, str, str]:
        status = main(words)
        return (status, *capsys.readouterr())

    return call


def test_run_makes_a_numbered_folder(says: Any, pipeline: Pipeline) -> None:
    assert says("run", "half", *GIVEN, "--quiet", "distill.epochs=0") == (0, "", "")
    assert says("run", "half", *GIVEN)[2] == "working\n"
    (_, recipe, first), (_, _, second) = pipeline.calls
    assert recipe.distill.epochs == 0
    assert (first, second) == (Path("runs/half-1"), Path("runs/half-2"))
    assert Path("runs/half-1/log.txt").read_text() == "working\n"


def test_a_run_goes_on_by_its_folder_by_out_or_by_its_name(says: Any, pipeline: Pipeline) -> None:
    says("run", "demo")
    says("run", "demo", "seed=1", "--out", "mine")
    assert says("run", "--resume", "mine")[0] == 0
    assert says("run", "demo", "--resume")[0] == 0
    assert says("run", "demo", "seed=1", "--resume", "--out", "mine")[0] == 0
    assert [call[2] for call in pipeline.calls[2:]] == [Path("mine"), Path("runs/demo-1"), Path("mine")]
    assert pipeline.calls[2][1] == pipeline.calls[1][1]
    status, _, error = says("run", "--resume", "mine", "seed=2")
    assert (status, error.splitlines()[1:]) == (2, ["  -seed: 1", "  +seed: 2"])


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["rnu"], "no command 'rnu', did you mean 'run'?"),
        (["train"], f"no command 'train': there are {', '.join(COMMANDS)}"),
        (["run"], "the following arguments are required: RECIPE (distill run --help)"),
        (["run", "demo", "--resme"], "unrecognized arguments: --resme, did you mean '--resume'? (distill run --help)"),
        (
            ["run", "demo", "--epochs"],
            "unrecognized arguments: --epochs: a recipe's keys are given as key=value (distill run --help)",
        ),
        (["run", "deom"], "no recipe 'deom', did you mean 'demo'?"),
        (["run", "demo", "shapes"], "command line: 'shapes' is not key=value"),
        (["run", "demo", "\x1b[31mred"], "command line: '\\x1b[31mred' is not key=value"),
        (
            ["run", "demo", "\x1b[31m=1"],
            "command line: unknown key '\\x1b[31m': distill ls keys prints those there are",
        ),
        (["run", "demo", "a" * 5000], f"command line: '{'a' * 200}…' is not key=value"),
        (
            ["run", "demo", "--" + "a" * 300],
            f"unrecognized arguments: --{'a' * 98}…: a recipe's keys are given as key=value (distill run --help)",
        ),
        (
            ["run", "--resume", "demo"],
            "nothing to go on with: there is no runs/demo-1 here; --out names another folder",
        ),
        (["run", "--resume", "."], ". holds no run to go on with: there is no recipe.yaml"),
        (
            ["run", "--resume", ".", "--out", "x"],
            "--resume with the folder of a run takes no --out: the run stays in its folder",
        ),
        (["run", "demo", "--resume", "--out", "x"], "x holds no run to go on with: there is no x/recipe.yaml"),
        (["run", "demo", "--out", "."], ". is there already: choose another --out"),
        (["run", "demo", "prune.ratoi=1"], "command line: unknown key 'prune.ratoi', did you mean 'prune.ratio'?"),
        (["eval", "a.pt"], "command line: data is not set: give data=... (A data.yaml.)"),
        (["eval", "a.pt", "data=d.yaml", "imgs=3"], "command line: unknown key 'imgs', did you mean 'imgsz'?"),
        (
            ["eval", "a.pt", "data=d.yaml", "conf=0.1"],
            "command line: unknown key 'conf': there are data, teacher, pictures, imgsz, batch, device, trust, code",
        ),
        (["export", "a.pt", "imgsz=64"], "no format to export to: distill export best.pt onnx"),
        (["report", "nowhere"], "nowhere holds no results.json: give the folder of a finished run"),
        (["cp", "demo", "no/where.yaml"], "there is no folder no to copy the recipe into"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(words: list[str], error: str, says: Any, pipeline: Pipeline) -> None:
    assert says(*words) == (2, "", f"{error}\n")
    assert pipeline.calls == [] and {file.name for file in Path().iterdir()} == set(FILES)


@pytest.mark.parametrize("command", ["run", "plan", "check", "compare"])
def test_everything_that_is_missing_is_said_at_once(command: str, says: Any, pipeline: Pipeline) -> None:
    status, _, error = says(command, "half", "data=my.yaml", "prune.flop=0.5")
    assert status == 2 and [line.partition(": ")[2][:25] for line in error.splitlines()] == [
        "model is not set: give mo",
        "data: there is no my.yaml",
        "unknown key 'prune.flop',",
    ]
    assert pipeline.calls == [] and {file.name for file in Path().iterdir()} == set(FILES)


def test_what_eval_and_export_miss_is_said_at_once(says: Any) -> None:
    here = Path.cwd()
    assert says("eval", "bets.pt", "teacher=no/t.pt")[2].splitlines() == [
        f"command line: there is no bets.pt in {here}, did you mean 'best.pt'?",
        "command line: data is not set: give data=... (A data.yaml.)",
        f"command line: teacher: there is no no/t.pt in {here}",
    ]
    assert says("export", "x.pt", "onnx", "imgsz=1")[2].count("\n") == 2


def test_v_shows_what_was_decided_and_the_log_has_it_anyway(
    says: Any, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(recipe: Recipe, folder: RunFolder, console: Console, **_: Any) -> None:
        folder.open()
        logging.getLogger("prune.cut").debug("%d of %d channels", 3, 8)
        logging.getLogger("distill.yolo").warning("odd")

    monkeypatch.setattr(pipeline, "run", work)
    line = "debug: prune.cut: 3 of 8 channels\n"
    for words, shown in (["-v"], line), ([], ""), (["--quiet"], ""):
        assert says("run", "demo", *words)[2] == f"{shown}warning: odd\n"
    assert Path("runs/demo-3/log.txt").read_text() == f"{line}warning: odd\n"
    assert not logging.getLogger("prune").handlers and logging.getLogger("prune").propagate


@pytest.mark.parametrize(("command", "page"), [("run", "report.html"), ("compare", "compare.html")])
def test_open_shows_the_report(
    command: str, page: str, says: Any, monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or len(opened) == 1)
    monkeypatch.setitem(sys.modules, "distill.comparison.runner", pipeline)
    monkeypatch.setattr("distill.comparison.runner", pipeline, raising=False)
    monkeypatch.setattr(pipeline, "run", lambda *args, **options: None)
    assert says(command, "half", *GIVEN, "--out", "a b", "--open") == (0, "", "")
    assert opened == [(Path.cwd() / "a b" / page).as_uri()]
    assert says(command, "half", *GIVEN, "--out", "a b", "--open")[::2] == (
        0,
        f"there is no browser here to open {Path('a b') / page} with\n",
    )
    assert says(command, "half", *GIVEN, "--out", "a b")[0] == 0 and len(opened) == 2


def test_failures_say_how_to_go_on(says: Any, pipeline: Pipeline) -> None:
    go_on = "distill run --resume 'a run'"
    for failure, status, error in [
        (KeyboardInterrupt(), 130, f"interrupted; to resume: {go_on}"),
        (RunError("disk full"), 1, f"disk full; after fixing that, resume: {go_on}"),
        (DistillError("labels are wrong"), 2, "labels are wrong"),
        (
            OSError(errno.ENOSPC, "No space left on device", "best.pt"),
            1,
            f"cannot write best.pt: No space left on device; after fixing that, resume: {go_on}",
        ),
    ]:
        pipeline.failure = failure
        words = ("run", "--resume", "a run") if Path("a run").exists() else ("run", "demo", "--out", "a run")
        assert says(*words, "--quiet") == (status, "", f"{error}\n")
    assert "labels are wrong" in Path("a run/log.txt").read_text()


def test_a_bug_is_a_traceback_that_the_log_has_too(pipeline: Pipeline) -> None:
    pipeline.failure = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        main(["run", "demo", "--quiet"])
    assert "ZeroDivisionError: a bug" in Path("runs/demo-1/log.txt").read_text()


def test_errors_of_prune_are_the_users(says: Any, pipeline: Pipeline) -> None:
    from prune import PruneError

    pipeline.failure = PruneError("flops=0.01 cannot be met")
    assert says("run", "demo", "--quiet") == (2, "", "flops=0.01 cannot be met\n")


def test_the_other_commands_call_the_pipeline(says: Any, pipeline: Pipeline) -> None:
    assert says("plan", "half", *GIVEN, "prune.flops=0.3")[0] == 0
    assert says("check", "demo") == (0, "demo: recipe, model, data and losses are in order\n", "")
    assert says("eval", "a.pt", "data=d.yaml", "imgsz=320", "device=cpu")[0] == 0
    assert says("export", "a.pt", "onnx", "imgsz=64", "openvino")[0] == 0
    assert [call[0] for call in pipeline.calls[:2]] == ["plan", "check"] and pipeline.calls[0][1].prune.flops == 0.3
    assert pipeline.calls[2:] == [
        ("evaluate", "a.pt", EvalOptions(data=str(Path("d.yaml").absolute()), imgsz=320, device="cpu")),
        ("export", "a.pt", ("onnx", "openvino"), ExportOptions(imgsz=64)),
    ]


def test_ls(says: Any) -> None:
    status, keys, _ = says("ls", "keys")
    rows = [line for line in keys.splitlines() if line.startswith("  ")]
    assert status == 0 and keys.splitlines()[0] == "The run" and "\nprune: What to cut; null cuts nothing" in keys
    assert rows[4].split(maxsplit=1) == ["batch=16", "Images in a batch. (whole number >= 1)"]
    names = {row[0] for row in load.keys()}  # noqa: SIM118
    sections = {"prune", "repair", "sparsify", "teacher", "teacher.train", "unlabelled"}
    assert names - sections == {row.split("=")[0].strip() for row in rows if not row.startswith("   ")}
    shipped = ["classify", "demo-classify", "demo", "distill", "edge", "finetune", "half"]
    assert [line.split()[0] for line in says("ls", "recipes")[1].splitlines()] == shipped
    assert says("ls", "importances")[1].startswith("obs ")
    assert "feature_pkd" in says("ls", "losses")[1]
    assert says("ls", "key")[0] == 2


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("words", [["ls", "keys"], ["ls", "losses"], ["ls", "arms"], ["--help"], ["run", "--help"]])
def test_lists_fit_the_terminal(words: list[str], columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout", terminal := Terminal())
    assert main(words) == 0
    lines = terminal.getvalue().splitlines()
    assert max(map(len, lines)) <= columns
    monkeypatch.setattr("sys.stdout", pipe := io.StringIO())
    assert main(words) == 0
    assert [word for word in terminal.getvalue().split() if word != "\\"] == pipe.getvalue().split()


def test_the_schema_of_the_keys_is_for_editors(says: Any) -> None:
    status, text, _ = says("ls", "keys", "--json-schema")
    assert status == 0 and "prune" in json.loads(text)["properties"]
    assert says("ls", "arms", "--json-schema")[::2] == (
        2,
        "--json-schema describes keys, not arms: distill ls keys --json-schema\n",
    )


def test_ls_of_some_losses_or_importances_has_the_users_own(says: Any) -> None:
    Path("mine.py").write_text('def kd(ctx, width, temperature=2.0):\n    """Squares.\n\n    More."""\n')
    status, text, _ = says("ls", "losses", "mine.py:kd", "dfl_kl")
    assert status == 0 and [line.split("  ")[0] for line in text.splitlines()] == ["loss", "mine.py:kd", "dfl_kl"]
    assert text.splitlines()[1].split() == ["mine.py:kd", "width,", "temperature=2.0", "Squares."]
    assert says("ls", "losses", "mine.py:kdd")[::2] == (
        2,
        "loss 'mine.py:kdd': nothing named 'kdd' in mine.py, did you mean 'kd'?\n",
    )
    Path("mine.py").write_text('def spread(graph, context):\n    """Spread of the weights."""\n')
    assert says("ls", "importances", "mine.py:spread")[1].split(maxsplit=1) == [
        "mine.py:spread",
        "Spread of the weights.\n",
    ]
    status, _, error = says("ls", "importances", "obz")
    assert status == 2 and error.startswith("no importance 'obz', did you mean 'obs'") and "file.py:name" in error
    assert says("ls", "keys", "seed") == (2, "", "distill ls keys lists all there are and takes no name, got 'seed'\n")


def test_cp_never_overwrites(says: Any) -> None:
    assert says("cp", "demo") == (0, "demo.yaml: edit it, then: distill run demo.yaml\n", "")
    Path("demo.yaml").write_text("mine")
    assert says("cp", "demo")[::2] == (2, "demo.yaml exists and is not overwritten: name another file\n")
    assert Path("demo.yaml").read_text() == "mine"
    Path("sub").mkdir()
    assert says("cp", "half", "sub")[0] == 0 and says("plan", "sub/half.yaml", *GIVEN)[0] == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_that_is_understood(name: str, says: Any) -> None:
    status, text, _ = says(name, "--help")
    assert status == 0 and COMMANDS[name].example.splitlines()[0] in text and COMMANDS[name].help in text
    assert name in says("--help")[1]


def run_outside(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **options)


def test_help_and_recipes_need_no_torch() -> None:
    code = (
        "import sys; from distill.cli.main import main; main(['--help']); main(['run', 'demo', 'sede=1']); main(['ls', 'keys']);"
        "print([m for m in ('torch', 'ultralytics', 'numpy', 'timm', 'rich') if m in sys.modules])"
    )
    done = run_outside(code)
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr == "command line: unknown key 'sede', did you mean 'seed'?\n"


def test_a_stdout_that_is_not_utf8_gets_what_it_can_show() -> None:
    code = "import sys; from distill.cli.main import main; print('\u2264'); sys.exit(main(['ls', 'recipes']))"
    code = code.replace("print", "main([]); print")
    done = run_outside(code, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and "\n?\n" in done.stdout and "half" in done.stdout, done.stderr


@pytest.mark.skipif(os.name != "posix", reason="pipes break in another way there")
def test_a_closed_pipe_is_no_error() -> None:
    code = "import sys; from distill.cli.main import main; sys.exit(main(['ls', 'keys']))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_python_m_distill_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "distill", "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("distill ")


def test_a_comparison_in_several_processes_is_refused_before_they_take_each_others_folder(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["compare", "half", *GIVEN]) == 2
    assert capsys.readouterr().err.startswith("distill compare runs in one process: start it without torchrun")
    assert not pipeline.calls and {file.name for file in Path().iterdir()} == set(FILES)
