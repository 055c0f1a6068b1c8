"""What the documents say is so: commands, code, links, lines of errors, the layout, and every figure."""

from __future__ import annotations

import argparse
import ast
import configparser
import copy
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from ultralytics.nn.tasks import DetectionModel

import prune
from distill import losses
from distill.cli.commands import COMMANDS
from distill.comparison import arms
from distill.demo import dataset as shapes
from distill.losses.base import Networks, points_in
from distill.losses.context import LossContext, Outputs
from distill.losses.spec import LossSpec
from distill.recipe import load as recipe
from distill.report import summary
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.data import datafile
from distill.yolo.data import dataset as datasets
from distill.yolo.evaluation.evaluate import EvalSettings, detect
from tests.distill.contexts import context, leaves, outputs
from tests.distill.yolo.test_trainer import CFG

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/*.md"))
TEXTS = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in DOCUMENTS}
README = TEXTS["README.md"]
WRITTEN = re.compile(rf"{re.escape(summary.BEGIN)}.*?{re.escape(summary.END)}", re.DOTALL)
FIGURE = re.compile(r"\b0\.\d{3}\b|±|\d ?[x×] (?:faster|smaller)|[+−]\d")


def section(title: str, document: str = "README.md") -> str:
    return TEXTS[document].partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def commands() -> Iterator[str]:
    """Every line of a document that is a `distill` command in full."""
    for text in TEXTS.values():
        for line in re.findall(r"^ {4}(?:torchrun .* -m )?(distill \w.*)$", text, re.MULTILINE):
            words = line.partition("  ")[0]
            if not re.search(r"RECIPE|\||^distill report --results docs", words):
                yield words


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_the_loss_of_the_readme(tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", section("Your own loss"), re.DOTALL)[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    (tmp_path / "my_losses.py").write_text(code)
    (loss,) = losses.build([LossSpec(f"{tmp_path}/my_losses.py:my_kd", 0.5, {"temperature": 2})])
    logits = torch.randn(2, 21, 3, requires_grad=True)
    teacher = Outputs(neck=(), class_logits=torch.randn(2, 21, 3))
    images = torch.rand(2, 3, 32, 32)
    value = loss.call(LossContext(images, Outputs(neck=(), class_logits=logits), teacher))
    value.backward()
    assert value > 0 and logits.grad is not None and logits.grad.any()
    assert loss.call(LossContext(images, teacher, teacher)) == 0


@pytest.fixture
def api() -> list[str]:
    return re.findall(r"```python\n(.*?)```", TEXTS["docs/api.md"], re.DOTALL)


def run_code(blocks: list[str], word: str, **names: Any) -> dict[str, Any]:
    """The names after the one block of code with a word in it has run."""
    (code,) = (block for block in blocks if word in block)
    exec(code, names)  # noqa: S102 - of our own document
    return names


@pytest.fixture
def beginner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a reader: a checkpoint that knows nothing, a few images, and `half` with little to do."""
    torch.manual_seed(0)
    data = shapes.generate(tmp_path / "shapes", train=8, val=4, imgsz=64)
    names = datafile.read(data).names
    network = DetectionModel(copy.deepcopy(CFG) | {"nc": len(names)}, verbose=False).eval()
    network.names = names
    for sides, classes in zip(network.model[-1].cv2, network.model[-1].cv3, strict=True):  # small boxes, seen surely
        sides[-1].bias.data.view(4, -1)[:, 1] = 10.0
        classes[-1].bias.data.fill_(-3.0)
        classes[-1].weight.data *= 300
    checkpoint.save(network, tmp_path / "best.pt", names=names, imgsz=64)
    network = checkpoint.load(tmp_path / "best.pt").model
    for file, boxes in detect(network, datasets.load(data), EvalSettings(64)).items():  # the labels are what it sees
        rows = [f"{int(row[5])} {' '.join(map(str, row[:4].clip(0, 1)))}" for row in boxes[:5]]
        Path(file.replace("images", "labels")).with_suffix(".txt").write_text("\n".join(rows))
    (tmp_path / "data.yaml").write_text(data.read_text(encoding="utf-8").replace("images/", "shapes/images/"))
    (tmp_path / "half").write_text(
        "model: ???\ndata: ???\nbatch: 4\ndevice: cpu\nprune: {flops: 0.5, images: 4}\nrepair: {images: 8, steps: 0}\n"
        "distill: {epochs: 1, lr: 1e-4, balance: false}\nlatency: {runs: 1}\nexport: []\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_runs_of_the_api(api: list[str], beginner: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_code(api, "distill.check(")
    assert names["results"].student.map50_95 is not None and names["rows"][0]["network"] == "teacher"
    assert names["metrics"].teacher is not None and (beginner / names["exports"][0].file).is_file()
    assert "mAP50-95" in capsys.readouterr().out
    names = run_code(api, "on_epoch=rows.append", distill=names["distill"])
    assert [(row["stage"], row["epoch"]) for row in names["rows"]] == [("train", 1)]
    assert "evaluate: 0 of 4 images" in capsys.readouterr().out


class SlimResNet(torchvision.models.ResNet):
    """A ResNet with an eighth of the channels of ResNet-18, and half of its blocks."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
        self.fc = nn.Linear(64, num_classes)

    def _make_layer(self, block: Any, planes: int, *args: Any, **options: Any) -> nn.Sequential:
        return super()._make_layer(block, planes // 8, *args, **options)


@pytest.mark.parametrize("file", ["README.md", "docs/api.md"])
def test_the_script_for_any_torch_module(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, with a network that is smaller than the one it names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.models, "resnet18", SlimResNet)
    torch.manual_seed(0)
    names = run_code(re.findall(r"```python\n(.*?)```", TEXTS[file], re.DOTALL), "torchvision.models")
    teacher, student, images = names["teacher"], names["student"], names["images"]
    assert names["plan"].flops_after <= 0.5 * names["plan"].flops_before
    repaired, cut = student.eval(), prune.apply(teacher, names["plan"])
    with torch.no_grad():
        wanted, errors = teacher(images), []
        for network in (repaired, cut):
            errors.append((network(images) - wanted).square().mean())
    assert errors[0] < 0.5 * errors[1]
    if file == "docs/api.md":
        assert names["difference"] < 1e-8 and names["terms"]["kl"].isfinite()
        saved = torch.load("student.pt", weights_only=False)
        assert all(map(torch.equal, saved.parameters(), repaired.parameters()))


def test_the_pruning_of_the_api(api: list[str]) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1)]
    names = run_code(api, "prune.trace_outputs(", model=nn.Sequential(*layers).eval(), images=torch.rand(32, 3, 12, 12))
    assert names["difference"] < 1e-8
    spread = run_code(api, "def spread")["spread"]
    assert prune.make_plan(names["graph"], prune.score(names["graph"], spread), flops=0.5).flops_after > 0


def test_the_rule_of_the_api(api: list[str]) -> None:
    class Rolls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.roll(self.first(x), 1, 2))

    run_code(api, "prune.rules.register")
    try:
        assert [group.name for group in prune.trace(Rolls().eval(), torch.rand(1, 3, 16, 16)).groups] == ["first"]
    finally:
        prune.rules.unregister("roll")


def test_the_losses_of_the_api(api: list[str]) -> None:
    assert run_code(api, "feature_pkd(student")["student"].grad.any()
    ctx = context(outputs(leaves(0)), outputs(leaves(1)))
    assert run_code(api, "def my_kd")["my_kd"](ctx) > 0
    my_features = run_code(api, "def my_features")["my_features"]
    pairs = [replace(outputs(leaves(seed)), at={"model.4": leaves(seed)["near"]}) for seed in (0, 1)]
    assert my_features(context(*pairs)) > 0 == my_features(context(pairs[0], pairs[0]))
    assert points_in(my_features.reads) == ("model.4",)
    loss = run_code(api, "class Projected")["Projected"]()
    loss.setup(Networks(nn.Identity(), nn.Identity(), tuple(student.shape[1] for student, _ in ctx.features())))
    assert loss(ctx) > 0 and len(list(loss.parameters())) == 2 * len(ctx.features())
    for name in re.findall(r"^\| `\.?(\w+)", section("Your own loss", "docs/api.md"), re.MULTILINE):
        assert name == "ctx" or hasattr(ctx, name) or hasattr(ctx.student, name), name


def test_the_recipe_of_the_documents(tmp_path: Path) -> None:
    (code,) = re.findall(r"```yaml\n(.*?)```", TEXTS["docs/recipes.md"], re.DOTALL)
    (tmp_path / "mine.yaml").write_text(code)
    assert recipe.load(tmp_path / "mine.yaml").prune.flops == 0.5


def test_every_recipe_and_every_command_is_named() -> None:
    for name in recipe.shipped():
        assert f"| `{name}` |" in TEXTS["docs/recipes.md"], name
    for name in COMMANDS:
        assert f"    distill {name}" in section("Commands"), name


def test_every_arm_and_every_loss_is_named() -> None:
    for name in (*(arm.name for arm in arms.BUILTIN), arms.WITHOUT[0]):
        assert f"`{name}`" in TEXTS["docs/compare.md"], name
    for name in losses.BUILTIN:
        assert f"`{name}`" in TEXTS["docs/method.md"], name


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_commands_have_words_that_are_understood(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_losses.py").write_text("def my_kd(ctx, temperature=1.0): ...\n")
    monkeypatch.chdir(tmp_path)
    _, verb, *words = shlex.split(line)
    parser = argparse.ArgumentParser(exit_on_error=False)
    for name, options in COMMANDS[verb].arguments:
        parser.add_argument(name, **options)
    args = parser.parse_intermixed_args(words)
    if verb not in ("run", "plan", "check", "compare") or args.recipe not in recipe.shipped():
        return
    read = recipe.load(args.recipe, args.override)
    assert read.imgsz in (None, 64, 96, 320, 416, 640)
    if verb == "compare":
        assert arms.plan(read, args.arms, args.arm, args.seeds, args.lrs).arms


def test_words_in_backticks_are_keys() -> None:
    keys = {name for name, *_ in recipe.keys()}  # noqa: SIM118
    for name, text in TEXTS.items():
        for word in re.findall(r"`((?:prune|distill|teacher|sparsify|repair|accept)\.[\w.]+)[=:] ?", text):
            assert word in keys, f"{name}: {word}"


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        if link.startswith("https://"):
            continue
        file, _, heading = link.partition("#")
        target = (ROOT / name).parent / file if file else ROOT / name
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, link


@pytest.mark.parametrize("name", TEXTS)
def test_no_figure_is_typed_by_hand(name: str) -> None:
    if name not in ("docs/results.md", "docs/coverage.md", "CHANGELOG.md"):  # commands write the first two
        assert FIGURE.findall(WRITTEN.sub("", TEXTS[name])) == []


def test_results_are_what_the_command_writes(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs" / "results", tmp_path / "docs" / "results")
    shutil.copy(ROOT / "README.md", tmp_path)
    page = summary.write(tmp_path / "docs" / "results", tmp_path / "README.md")
    assert page.read_text(encoding="utf-8") == TEXTS["docs/results.md"], "run `make results`"
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == README, "run `make results`"


def test_no_path_of_a_machine_is_in_a_document() -> None:
    texts = TEXTS | {file.name: file.read_text(encoding="utf-8") for file in ROOT.glob("docs/results/*.json")}
    for name, text in texts.items():
        assert not re.findall(r"(?<![\w.])/(?:home|root|tmp|work|mnt|Users|content)/\S*", text), name


def messages() -> list[str]:
    """Every text in the product's code, with `...` for what is filled in."""
    texts = []
    for file in [*(ROOT / "distill").rglob("*.py"), *(ROOT / "prune").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values))  # type: ignore[misc]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def test_lines_of_errors_are_those_of_the_code() -> None:
    table = section("Lines and what to do", "docs/troubleshooting.md")
    rows = re.findall(r"^\| (`.*?) \| .* \|$", table, re.MULTILINE)
    assert len(rows) > 15
    texts = messages()
    for line in (line for row in rows for line in re.findall(r"`([^`]+)`", row)):
        pattern = re.compile(".*".join(map(re.escape, line.split("..."))), re.DOTALL)
        assert any(map(pattern.search, texts)), line


def test_the_layout_is_the_tree() -> None:
    lines = []
    for package in ("prune", "distill"):
        folders = sorted({file.parent for file in (ROOT / package).rglob("__init__.py")})
        for folder in folders:
            summary_line = (
                ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))) or ""
            ).splitlines()[0]
            depth = len(folder.relative_to(ROOT).parts)
            lines.append(f"{'  ' * (depth + 1)}{folder.name + '/':<{26 - 2 * depth}}{summary_line}")
    assert "\n".join(lines) in TEXTS["CONTRIBUTING.md"], "\n" + "\n".join(lines)


def test_every_dependency_has_its_reason() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    needed = re.findall(r"^([\w-]+)[<>=]", config["options"]["install_requires"], re.MULTILINE)
    rows = re.findall(r"^\| ([a-z][\w-]*) \| [^|]+ \|$", section("Dependencies", "CONTRIBUTING.md"), re.MULTILINE)
    assert sorted(needed) == sorted(set(rows) - {"package"})
