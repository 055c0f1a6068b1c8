"""Reading recipes: what is right is read exactly, what is wrong is said where it stands, all at once."""

from __future__ import annotations

import configparser
import subprocess
import sys
import textwrap
from dataclasses import FrozenInstanceError, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from distill import losses
from distill.errors import DistillError
from distill.losses.spec import LossSpec, Ramp
from distill.recipe import load as recipe
from distill.recipe import schema as recipe_keys
from distill.recipe.load import keys, load, to_yaml

ROOT = Path(__file__).resolve().parents[2]
REQUIRED = ["model=best.pt", "data=data.yaml"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str, name: str = "r.yaml") -> str:
    Path(name).write_text(textwrap.dedent(text))
    return name


def complaints(text: str, overrides: Any = ()) -> list[str]:
    with pytest.raises(DistillError) as caught:
        load(write(text), overrides)
    return str(caught.value).splitlines()


BASE = """\
model: best.pt
data: data.yaml
prune: {flops: 0.5}
"""


def test_a_recipe_is_read_into_frozen_dataclasses() -> None:
    read = load(write(BASE + "distill: {epochs: 3, losses: {score_bce: 1, dfl_kl: {weight: 2, temperature: 1e-1}}}"))
    assert (read.name, read.model, read.data, read.imgsz) == ("r", "best.pt", "data.yaml", None)
    assert (read.prune.flops, read.prune.params, read.prune.importance) == (0.5, None, "obs")
    assert read.distill.losses == (LossSpec("score_bce", 1.0), LossSpec("dfl_kl", 2.0, {"temperature": 0.1}))
    assert read.repair == recipe_keys.Repair(images=256) and read.sparsify is None and read.teacher.train is None


def test_all_errors_are_reported_at_once_with_their_places() -> None:
    built_in = "obs, fisher, bn_scale, l1, random"
    assert complaints("""\
        model: best.pt
        imgsz: big
        prune:
          ratoi: 0.5
          importance: l2
        sparsify: {epochs: 2.5}
        epochs: 3
        repair: [1]
        accept: {map_drop: -1}
        """) == [
        "r.yaml:1:1: data is not set: give data=... (A data.yaml, a folder of images, or shapes: a generated set.)",
        "r.yaml:2:8: imgsz: expected auto or a whole number >= 32 and a multiple of 32, got 'big'",
        "r.yaml:3:1: prune: give exactly one of flops, params, ratio; got none",
        "r.yaml:4:3: unknown key 'prune.ratoi', did you mean 'prune.ratio'?",
        f"r.yaml:5:15: prune.importance: unknown name 'l2': built in are {built_in}; your own is file.py:function",
        "r.yaml:6:20: sparsify.epochs: expected a whole number >= 1, got 2.5",
        "r.yaml:7:1: unknown key 'epochs', did you mean teacher.train.epochs or sparsify.epochs or distill.epochs?",
        "r.yaml:8:9: repair: expected a mapping of keys, or null, got a list",
        "r.yaml:9:20: accept.map_drop: expected a number >= 0 and <= 1, got -1",
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("imgsz: 64\nimgsz: 96\n", "r.yaml:5:1: key 'imgsz' is there twice, first at r.yaml:4:1"),
        ("seed: on\n", "r.yaml:4:7: seed: expected a whole number >= 0 and <= 1e+09, got 'on'"),
        ("trust: yes\n", "r.yaml:4:8: trust: expected true or false, got 'yes'"),
        ("trust: 1\n", "r.yaml:4:8: trust: expected true or false, got 1"),
        ("seed: 5000000000\n", "r.yaml:4:7: seed: expected a whole number >= 0 and <= 1e+09, got 5000000000"),
        ("seed: true\n", "r.yaml:4:7: seed: expected a whole number >= 0 and <= 1e+09, got true"),
        ("seed: 1:30\n", "r.yaml:4:7: seed: expected a whole number >= 0 and <= 1e+09, got '1:30'"),
        ("seed: .inf\n", "r.yaml:4:7: seed: expected a whole number >= 0 and <= 1e+09, got '.inf'"),
        ("distill: {lr: 1e999}\n", "r.yaml:4:15: '1e999' is no number that can be used"),
        ("distill: {lr: fast}\n", "r.yaml:4:15: distill.lr: expected auto or a number > 0, got 'fast'"),
        ("export: onnx\n", "r.yaml:4:9: export: expected a list such as [onnx], got 'onnx'"),
        ("seed: !!python/object:os.system 1\n", "r.yaml:4:7: tag 'tag:yaml.org,2002:python/object:os.system' "),
        ("shapes: &a {train: 1}\nlatency: *a\n", "r.yaml:5:10: bad YAML: aliases (*name) are not read here"),
        ("<<: {seed: 1}\n", "r.yaml:4:1: unknown key '<<': distill ls keys prints those there are"),
        ("name: a/b\n", "r.yaml:4:1: name: expected letters, digits, '-', '_' and '.', got 'a/b'"),
        ("export: [onnx\n", "r.yaml:5:1: bad YAML: expected ',' or ']', but got '<stream end>'"),
        ("\timgsz: 64\n", "r.yaml:4:1: bad YAML: found character '\\t' that cannot start any token"),
        ("teacher: {train: {}}\n", "r.yaml:1:1: model and teacher.train are both set"),
        ("distill: {labels: 0, losses: {}}\n", "r.yaml:4:1: distill has no losses and labels: 0"),
        (
            "distill: {losses: {score_bec: 1}}\n",
            "r.yaml:4:20: distill.losses.score_bec: unknown name 'score_bec', did you mean 'score_bce'?",
        ),
        ("distill: {losses: {score_bce: -1}}\n", "distill.losses.score_bce: expected a number >= 0, got -1"),
        ("distill: {losses: [score_bce]}\n", "distill.losses: expected a mapping of loss names to weights, got a list"),
        (
            "distill: {losses: {kl: {until: 2}}}\n",
            "r.yaml:4:32: distill.losses.kl.until: expected a number >= 0 and <= 1, got 2",
        ),
        (
            "distill: {losses: {kl: {warmup: a}}}\n",
            "r.yaml:4:33: distill.losses.kl.warmup: expected a number >= 0 and <= 1",
        ),
        ("distill: {losses: {kl: {fade: cosin}}}\n", "got 'cosin', did you mean 'cosine'?"),
        (
            "distill: {losses: {kl: {warmup: 0.5, until: 0.5}}}\n",
            "r.yaml:4:45: distill.losses.kl: until 0.5 leaves nothing after warmup 0.5: weight: 0 leaves a loss out",
        ),
        (
            "distill: {losses: {kl: {warmup: 1}}}\n",
            "r.yaml:4:33: distill.losses.kl: until 1 leaves nothing after warmup 1",
        ),
        (
            "distill: {losses: {kl: {until: 0}}}\n",
            "r.yaml:4:32: distill.losses.kl: until 0 leaves nothing after warmup 0",
        ),
        (
            "distill: {labels: 0, losses: {kl: {until: 0.5}}}\n",
            "r.yaml:4:1: distill has labels: 0 and every loss ends before the training does",
        ),
        (
            "distill: {losses: {distill.yolo.stock:Ultralytics: 1}}\n",
            "r.yaml:4:20: distill.losses.distill.yolo.stock:Ultralytics: this loss is called 'ultralytics' now",
        ),
        (
            "distill: {losses: {kl: {features: model.4}}}\n",
            "r.yaml:4:35: distill.losses.kl.features: expected a list such as [model.4], or null, got 'model.4'",
        ),
        (
            "distill: {losses: {kl: {features: [[a]]}}}\n",
            "r.yaml:4:36: distill.losses.kl.features[0]: expected a word, got a list",
        ),
        ("distill: {losses: {no.py:kd: 1}}\n", "r.yaml:4:20: distill.losses.no.py:kd: no file "),
    ],
)
def test_traps_and_mistakes(text: str, complaint: str) -> None:
    lines = complaints(BASE + text)
    assert complaint in lines[0], lines


def test_numbers_keep_their_meaning() -> None:
    read = load(write(BASE + "seed: 012\nsparsify: {strength: 1e-3}\naccept: {map_drop: 0}\ndevice: 0\n"))
    assert (read.seed, read.sparsify, read.accept.map_drop, read.device) == (12, recipe_keys.Sparsify(), 0.0, "0")
    assert isinstance(read.accept.map_drop, float)


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n", "word\n"])
def test_a_file_without_keys_is_refused(text: str) -> None:
    (line,) = complaints(text)
    assert "a recipe: expected a mapping of keys, got" in line


def test_a_file_that_is_no_text_is_refused() -> None:
    Path("r.yaml").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(DistillError, match=r"^r\.yaml: not readable as a recipe: "):
        load("r.yaml")


def test_files_that_are_not_there_are_named_with_all_else_that_is_wrong(here: Path) -> None:
    write("model: ???\ndata: dta.yaml\nprune: {flops: 0.5}\nsede: 3\n")
    Path("data.yaml").touch()
    with pytest.raises(DistillError) as caught:
        load("r.yaml", ["model=best.pt"], files=True)
    assert str(caught.value).splitlines() == [
        f"r.yaml:2:7: data: there is no dta.yaml in {here}, did you mean 'data.yaml'?",
        "r.yaml:4:1: unknown key 'sede', did you mean 'seed'?",
        f"command line: model: there is no best.pt in {here}",
    ]
    Path("best.pt").touch()
    assert load("half", REQUIRED, files=True).model == str(here / "best.pt")
    assert load("demo", files=True).data == "shapes"


def test_budgets_exclude_each_other() -> None:
    (line,) = complaints("model: a\ndata: b\nprune: {flops: 0.5, ratio: 0.3}\n")
    assert line == "r.yaml:3:21: prune: give exactly one of flops, params, ratio; got flops and ratio"
    for bad in ("0", "1", "1.5", "-0.1", "half"):
        (line,) = complaints(f"model: a\ndata: b\nprune: {{flops: {bad}}}\n")
        assert "prune.flops: expected a number > 0 and < 1, or null, got" in line


def test_required_values_can_come_from_the_command_line() -> None:
    lines = complaints("model: ???\ndata: ???\nprune: {flops: 0.5}\n")
    assert [line.partition(" is not set: give ")[0] for line in lines] == ["r.yaml:1:1: model", "r.yaml:2:7: data"]
    assert load("r.yaml", REQUIRED).data == "data.yaml"
    (line,) = complaints("model: ???\ndata: d\nprune: {flops: 0.5}\n")
    assert line.startswith("r.yaml:1:1: model is not set: give model=...")
    assert load("r.yaml", ["teacher.train={}"]).model is None
    (line,) = complaints(BASE + "sparsify: ???\n")
    assert line.startswith("r.yaml:4:11: sparsify is not set: give sparsify=...")


def test_overrides_replace_what_the_file_says() -> None:
    write(BASE + "sparsify: {epochs: 5}\nrepair: null\n")
    read = load("r.yaml", ["distill.epochs=0", "sparsify=null", "repair.images=32", "prune.ratio=0.3", "device=0"])
    assert (read.distill.epochs, read.sparsify, read.repair) == (0, None, recipe_keys.Repair(images=32))
    assert (read.prune.flops, read.prune.ratio, read.device) == (None, 0.3, "0")
    assert load("r.yaml", {"prune.flops": 0.25, "repair": None, "distill.lr": "1e-4"}).distill.lr == 1e-4
    assert load("r.yaml", ["distill.losses={score_bce: 2}"]).distill.losses == (LossSpec("score_bce", 2.0),)


def test_one_loss_can_be_changed_alone() -> None:
    write(BASE)
    kept = load("r.yaml", ["distill.losses.dfl_kl=0"]).distill.losses
    assert kept == tuple(loss for loss in recipe_keys.DEFAULT_LOSSES if loss.name != "dfl_kl")
    read = load("r.yaml", ["distill.losses.dfl_kl.temperature=3", "distill.losses.box_iou=0.5"]).distill.losses
    assert LossSpec("dfl_kl", 1.0, {"temperature": 3}) in read and LossSpec("box_iou", 0.5) in read


def test_a_loss_may_have_a_time_of_its_own() -> None:
    text = "distill: {losses: {kl: {warmup: 0.1, until: 0.8, fade: cosine, temperature: 2}, nkd: {weight: 3, fade: none}}}\n"
    first, second = load(write(BASE + text)).distill.losses
    assert first == LossSpec("kl", 1.0, {"temperature": 2}, Ramp(0.1, 0.8, "cosine"))
    assert second == LossSpec("nkd", 3.0) and second.ramp is not None
    (other,) = load("r.yaml", ["distill.losses.nkd=0", "distill.losses.kl.until=0.5"]).distill.losses
    assert other == LossSpec("kl", 1.0, {"temperature": 2}, Ramp(0.1, 0.5, "cosine"))
    text = to_yaml(load("r.yaml"))
    assert "kl: {weight: 1.0, warmup: 0.1, until: 0.8, fade: cosine, temperature: 2}" in text and "nkd: 3.0" in text


def test_a_loss_may_have_features_of_its_own() -> None:
    text = "distill: {features: [neck, model.4], losses: {kl: {features: [model.6, neck], temperature: 2}, nkd: {features: null}}}\n"
    read = load(write(BASE + text)).distill
    assert read.features == ("neck", "model.4")
    assert read.losses == (LossSpec("kl", 1.0, {"temperature": 2}, features=("model.6", "neck")), LossSpec("nkd"))
    assert load(write(to_yaml(load("r.yaml")))).distill == read
    assert load("r.yaml", ["distill.losses.kl.features=[model.2]"]).distill.losses[0].features == ("model.2",)


def test_a_path_on_the_command_line_is_taken_as_it_is(here: Path) -> None:
    (here / "a #1: [x].pt").touch()
    assert load(write(BASE), ["model=a #1: [x].pt"]).model == str(here / "a #1: [x].pt")


def test_paths_are_absolute_where_they_exist_and_shapes_is_a_word(here: Path) -> None:
    for name in ("shapes", "images"):
        (here / name).mkdir()
    assert load(write(BASE), ["data=images"]).data == str(here / "images")
    assert load(write(BASE), ["data=shapes"]).data == recipe_keys.SHAPES
    assert load(write(BASE)).model == "best.pt"


def test_errors_of_the_command_line_say_so() -> None:
    write(BASE)
    with pytest.raises(DistillError) as caught:
        load(
            "r.yaml",
            ["prune.ratoi=1", "imgsz=[1", "word", "seed=1", "seed=2", "batch=0", "prune.ratio=1", "prune.params=1"],
        )
    assert str(caught.value).splitlines() == [
        "command line: imgsz: bad YAML: expected ',' or ']', but got '<stream end>'",
        "command line: 'word' is not key=value",
        "command line: seed is given twice",
        "command line: batch: expected a whole number >= 1, got 0",
        "command line: unknown key 'prune.ratoi', did you mean 'prune.ratio'?",
        "command line: prune.params: expected a number > 0 and < 1, or null, got 1",
        "command line: prune.ratio: expected a number > 0 and < 1, or null, got 1",
        "command line: prune: give exactly one of flops, params, ratio; got ratio and params",
    ]


def test_files_of_losses_are_found_beside_the_recipe_then_here(here: Path) -> None:
    (here / "sub").mkdir()
    (here / "sub" / "mine.py").touch()
    (here / "other.py").touch()
    text = BASE + "distill: {losses: {mine.py:kd: 1, other.py:kd2: {t: 2}, some.module:kd3: 1}}\n"
    specs = load(write(text, "sub/r.yaml")).distill.losses
    names = (f"{here}/sub/mine.py:kd", f"{here}/other.py:kd2", "some.module:kd3")
    assert tuple(loss.name for loss in specs) == names
    assert [loss.label for loss in specs] == ["kd", "kd2", "kd3"] and specs[1].options == {"t": 2}
    with pytest.raises(DistillError, match="two losses are called 'kd'"):
        load("sub/r.yaml", ["distill.losses={mine.py:kd: 1, a.b:kd: 1}"])
    with pytest.raises(DistillError, match="'cls_loss' is the name of another term of the training: rename"):
        load("sub/r.yaml", ["distill.losses={a.b:cls_loss: 1}"])


def test_an_importance_of_the_users_own_is_named_like_a_loss(here: Path) -> None:
    (here / "sub").mkdir()
    (here / "sub" / "mine.py").touch()
    text = BASE.replace("0.5", "0.5, importance: mine.py:cost")
    first = load(write(text, "sub/r.yaml"))
    assert first.prune is not None and first.prune.importance == f"{here}/sub/mine.py:cost"
    assert load(write(to_yaml(first), "recipe.yaml")) == first
    read = load("sub/r.yaml", ["prune.importance=some.module:cost"])
    assert read.prune is not None and read.prune.importance == "some.module:cost"
    for bad, complaint in (
        ("no.py:cost", f"command line: prune.importance: no file {here}/sub/no.py or {here}/no.py"),
        ("fischer", "command line: prune.importance: unknown name 'fischer', did you mean 'fisher'?"),
        ("[1]", "command line: prune.importance: unknown name '[1]': built in are obs, fisher"),
    ):
        with pytest.raises(DistillError) as caught:
            load("sub/r.yaml", [f"prune.importance={bad}"])
        assert str(caught.value).startswith(complaint)
    (refusal,) = complaints(BASE.replace("0.5", "0.5, importance: [l1]"))
    assert refusal.startswith(
        "r.yaml:3:33: prune.importance: expected one of obs, fisher, bn_scale, l1, random, or file.py"
    )


@pytest.mark.parametrize(
    "overrides",
    [
        REQUIRED,
        [
            *REQUIRED,
            "device=0",
            "sparsify={}",
            "repair=null",
            "prune.params=0.3",
            "prune.protect=[model.0.*, '1e-3', 'null']",
        ],
        {
            "data": "'null'",
            "model": "a: #b",
            "distill.lr": 1e-05,
            "distill.losses.dfl_kl": {"weight": 1, "x": ["1e-3", 1e-3]},
            "distill.losses.box_iou": {"until": 0.3, "fade": "linear"},
        },
        {"teacher.train": {"model": "~", "epochs": 3}, "model": None, "data": "shapes", "export": [], "name": "12"},
    ],
)
def test_a_resolved_recipe_reads_back_equal(overrides: Any) -> None:
    first = load("half", overrides)
    assert load(write(to_yaml(first), "recipe.yaml")) == first
    assert to_yaml(load("recipe.yaml")) == to_yaml(first)


@pytest.mark.parametrize("name", ["demo", "distill", "edge", "finetune", "half"])
def test_shipped_recipes_are_in_order(name: str) -> None:
    given = {"demo": [], "demo-classify": [], "distill": [*REQUIRED, "teacher=big.pt"]}
    assert load(name, given.get(name, REQUIRED)).name == name
    assert recipe.find(f"{name}").read_text().startswith("# ")


def test_an_unknown_recipe_gets_the_nearest_name(here: Path) -> None:
    with pytest.raises(DistillError, match=r"^no recipe 'hlf', did you mean 'half'\?$"):
        load("hlf")
    names = "classify, demo-classify, demo, distill, edge, finetune, half"
    with pytest.raises(DistillError, match=rf"^no recipe 'x/y': give the path of a file or one of {names}; or, with"):
        load("x/y")
    (here / "run").mkdir()
    (here / "run" / "recipe.yaml").touch()
    with pytest.raises(DistillError, match="run is the folder of a run; to resume it: distill run --resume run"):
        load("run")


@pytest.mark.parametrize("name", sorted(recipe.RENAMED))
def test_an_old_name_of_a_recipe_works_and_says_the_new_one(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert load(name, REQUIRED) == load("half", REQUIRED)
    assert [record.message for record in caplog.records] == [
        f"the recipe '{name}' is called 'half' now, for every family of detectors"
    ]


def test_every_key_explains_itself_and_has_a_default_that_it_accepts() -> None:
    rows = {row[0]: row[1:] for row in keys()}
    assert rows["prune.round_to"] == ("whole number >= 1", "8", "Widths, in channels, are multiples of this.")
    assert rows["distill.losses"][1] == (
        "{score_bce: 1.0, objectness_bce: 1.0, box_iou: 2.0, dfl_kl: 1.0, feature_pkd: 1.0}"
    )
    assert all(help.endswith(".") for _, _, help in rows.values())
    write(BASE)
    for name, (_, default, _) in rows.items():
        if default not in ("(required)", "(as below)", "''", "null"):
            needs = {"teacher.train.": "model=null", "unlabelled.": "unlabelled.images=more"}
            load("r.yaml", [f"{name}={default}", *(word for start, word in needs.items() if name.startswith(start))])


def test_every_section_is_frozen() -> None:
    read = load("demo")
    sections = [read, *(getattr(read, each.name) for each in fields(read))]
    for each in filter(is_dataclass, sections):
        with pytest.raises(FrozenInstanceError):
            setattr(each, fields(each)[0].name, None)


def test_names_agree_with_the_code_they_stand_for() -> None:
    prune = pytest.importorskip("prune")
    assert tuple(recipe_keys.IMPORTANCES) == tuple(prune.IMPORTANCES)
    assert {loss.name for loss in recipe_keys.DEFAULT_LOSSES} <= set(losses.BUILTIN)


def test_setup_names_every_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    named = set(setup["options"]["packages"].split())
    folders = [file.parent for top in ("distill", "prune") for file in (ROOT / top).rglob("__init__.py")]
    assert named == {".".join(folder.relative_to(ROOT).parts) for folder in folders} | {"distill.recipes"}


def test_reading_a_recipe_imports_no_torch() -> None:
    code = (
        "import sys\nfrom distill.recipe.load import load\nfrom distill.recipe.json_schema import json_schema\n"
        "load('demo'), json_schema()\nprint({'torch', 'numpy', 'rich', 'jinja2', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "set()\n"), done.stderr
