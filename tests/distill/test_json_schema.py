"""The JSON schema of a recipe: it accepts what reading accepts, refuses what an editor should underline, and has every key."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

from distill.cli.main import main
from distill.errors import DistillError
from distill.losses.registry import BUILTIN
from distill.recipe import load as recipes
from distill.recipe.json_schema import json_schema
from distill.recipe.yaml import read

TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "number": (int, float)}
BOUNDS = {
    "minimum": lambda value, bound: value >= bound,
    "maximum": lambda value, bound: value <= bound,
    "exclusiveMinimum": lambda value, bound: value > bound,
    "exclusiveMaximum": lambda value, bound: value < bound,
    "multipleOf": lambda value, bound: value % bound == 0,
}
USED = {
    *BOUNDS,
    "$schema",
    "$defs",
    "$ref",
    "title",
    "description",
    "default",
    "type",
    "enum",
    "const",
    "anyOf",
    "oneOf",
    "not",
}
USED |= {
    "properties",
    "patternProperties",
    "additionalProperties",
    "required",
    "items",
    "pattern",
    "minLength",
    "minItems",
}
REQUIRED = ["model=best.pt", "data=data.yaml"]


def has_type(data: Any, name: str) -> bool:
    if name == "integer":
        return isinstance(data, int) and not isinstance(data, bool)
    return isinstance(data, TYPES[name]) and (name == "boolean" or not isinstance(data, bool))


def is_valid(data: Any, schema: dict[str, Any]) -> bool:
    """The part of JSON Schema 2020-12 that is used here; a word that is not understood is an error."""
    assert schema.keys() <= USED, schema.keys() - USED
    if "$ref" in schema:
        return is_valid(data, json_schema()["$defs"][schema["$ref"].removeprefix("#/$defs/")])
    types = schema.get("type", [])
    number = has_type(data, "number")
    checks = [
        not types or any(has_type(data, name) for name in ([types] if isinstance(types, str) else types)),
        "enum" not in schema or data in schema["enum"],
        "const" not in schema or data == schema["const"],
        "anyOf" not in schema or any(is_valid(data, one) for one in schema["anyOf"]),
        "oneOf" not in schema or sum(is_valid(data, one) for one in schema["oneOf"]) == 1,
        "not" not in schema or not is_valid(data, schema["not"]),
        not number or all(test(data, schema[name]) for name, test in BOUNDS.items() if name in schema),
        not isinstance(data, str) or re.search(schema.get("pattern", ""), data) is not None,
        not isinstance(data, str) or len(data) >= schema.get("minLength", 0),
        not isinstance(data, list) or all(is_valid(one, schema.get("items", {})) for one in data),
        not isinstance(data, list) or len(data) >= schema.get("minItems", 0),
        not isinstance(data, dict) or all(name in data for name in schema.get("required", [])),
        not isinstance(data, dict) or all(is_valid_property(name, one, schema) for name, one in data.items()),
    ]
    return all(checks)


def is_valid_property(name: str, data: Any, schema: dict[str, Any]) -> bool:
    schemas = [one for key, one in schema.get("properties", {}).items() if key == name]
    schemas += [one for pattern, one in schema.get("patternProperties", {}).items() if re.search(pattern, name)]
    if not schemas:
        return schema.get("additionalProperties", True) is not False
    return all(is_valid(data, one) for one in schemas)


def parse(text: str) -> Any:
    problems: list[str] = []
    item = read(text, "r.yaml", problems)
    assert item is not None and not problems
    return item.plain()


BASE = "model: best.pt\ndata: data.yaml\n"


@pytest.mark.parametrize("name", recipes.shipped())
def test_shipped_recipes_are_valid_as_they_stand_and_as_a_run_writes_them(name: str) -> None:
    assert is_valid(parse(recipes.find(name).read_text()), json_schema())
    given = {"demo": [], "demo-classify": [], "distill": [*REQUIRED, "teacher=big.pt"]}
    recipe = recipes.load(name, given.get(name, REQUIRED))
    assert is_valid(parse(recipes.to_yaml(recipe)), json_schema())


@pytest.mark.parametrize(
    "text",
    [
        "prune: {flops: 0.5, importance: l1}\ndevice: 0\nname: 12\n",
        "prune: {params: 0.5, flops: null, importance: mine.py:importance}\nworkers: auto\nrepair: null\n",
        "prune: ???\nbatch: 8\ndistill: {lr: 1e-4, losses: {}}\n",
        "prune:\n  ratio: ???\nteacher: {train: {width: 0.25, epochs: 3}}\nexport: []\n",
        "teachers: {original: 1, big.pt: {weight: 0.5, losses: {kl: 0, my.py:kd: {weight: 1, size: 3}}}, 7.pt: 2}\nprune: ???\n",
        "prune: null\ndistill: {losses: {kl: 0, a.b:kd2: 2, my.py:kd: {weight: 1, until: 0.5, fade: linear, size: 3}}}\n",
    ],
)
def test_recipes_that_are_right_are_valid(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").touch()
    Path("my.py").touch()
    Path("r.yaml").write_text(BASE.replace("model", "trust: false\nmodel") + text)
    assert is_valid(parse(Path("r.yaml").read_text()), json_schema())
    if "???" not in text:
        overrides = ["model=null"] if "teacher" in text else []
        assert recipes.load("r.yaml", overrides).data == "data.yaml"


@pytest.mark.parametrize(
    "text",
    [
        "prune: {flops: 0.5}\nmodl: x\n",
        "prune: {flops: 0.5, ratoi: 0.5}\n",
        "prune: {flops: 0.5, ratio: 0.5}\n",
        "prune: {round_to: 8}\n",
        "prune: {flops: 1}\n",
        "prune: {flops: half}\n",
        "prune: {flops: 0.5, importance: l2}\n",
        "prune: {flops: 0.5, protect: model.0}\n",
        "prune: {flops: 0.5}\nimgsz: 100\n",
        "prune: {flops: 0.5}\nimgsz: 0\n",
        "prune: {flops: 0.5}\nseed: 1.5\n",
        "prune: {flops: 0.5}\ntrust: 1\n",
        "prune: {flops: 0.5}\nworkers: many\n",
        "prune: {flops: 0.5}\nname: ''\n",
        "prune: {flops: 0.5}\nshapes: null\n",
        "prune: {flops: 0.5}\nsparsify: ???\n",
        "prune: {flops: 0.5}\naccept: {map_drop: 2}\n",
        "prune: {flops: 0.5}\ndistill: {losses: [kl]}\n",
        "prune: {flops: 0.5}\ndistill: {losses: {score_bec: 1}}\n",
        "prune: {flops: 0.5}\ndistill: {losses: {kl: -1}}\n",
        "prune: {flops: 0.5}\ndistill: {losses: {kl: {fade: cosin}}}\n",
        "imgsz: 64\n",
    ],
)
def test_recipes_that_are_wrong_are_not(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(BASE + textwrap.dedent(text))
    with pytest.raises(DistillError):
        recipes.load("r.yaml")
    assert not is_valid(parse(BASE + text), json_schema())


def test_every_key_is_in_it_with_its_help_and_default() -> None:
    rows = recipes.keys()
    for path, _, default, help in rows:
        schema = json_schema()
        for name in path.split("."):
            section = next((one for one in schema.get("anyOf", []) if one.get("type") == "object"), schema)
            assert section["additionalProperties"] is False
            schema = section["properties"][name]
        assert schema["description"] == help
        # The name of a recipe comes from its file.
        assert ("default" in schema) == (default not in ("(required)", "(as below)") and path != "name"), path
        assert "default" not in schema or parse(default) == schema["default"]
        assert "default" not in schema or is_valid(schema["default"], schema)


def test_losses_complete_by_name() -> None:
    losses = json_schema()["properties"]["distill"]["properties"]["losses"]
    assert set(losses["properties"]) == set(BUILTIN) and list(losses["patternProperties"]) == [".*:.*"]


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "keys", "--json-schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(json_schema()))
    assert printed["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert main(["ls", "losses", "--json-schema"]) == 2
    assert "distill ls keys --json-schema" in capsys.readouterr().err
