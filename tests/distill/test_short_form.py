"""The short form of a section: one value in place of the mapping sets the key that the section names."""

# ruff: noqa: RUF009 - key() is dataclasses.field() with a help text and bounds
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from distill.errors import DistillError
from distill.recipe.json_schema import json_schema
from distill.recipe.keys import Key, key
from distill.recipe.section import bind, walk, write
from distill.recipe.yaml import dump, read, wrap
from tests.distill.test_json_schema import is_valid


@dataclass(frozen=True, kw_only=True)
class Coach:
    """Who teaches."""

    SHORT: ClassVar = "checkpoint"

    checkpoint: str | None = key("A checkpoint.", None, path=True)
    epochs: int = key("Epochs.", 3)


@dataclass(frozen=True, kw_only=True)
class More:
    """More images."""

    SHORT: ClassVar = "images"

    images: tuple[str, ...] = key("Folders of images.", path=True, given=True, example="[more, clip.mp4]")
    ratio: float | None = key("How many.", None, {"exclusiveMinimum": 0}, none="auto")


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A document."""

    coach: Coach = key(default=Coach)
    more: More | None = key(default=None)


def load(text: str, overrides: Any = (), *, files: bool = False) -> Whole:
    problems: list[str] = []
    item = read(text, "r.yaml", problems)
    assert item is not None and not problems
    return bind(Whole, wrap({}, "r.yaml") if item.value is None else item, overrides, files=files)


@pytest.mark.parametrize(
    ("text", "overrides", "coach", "more"),
    [
        ("coach: big.pt", (), Coach(checkpoint="big.pt"), None),
        ("more: a", (), Coach(), More(images=("a",))),
        ("more: [a, b]", (), Coach(), More(images=("a", "b"))),
        ("more: {images: a, ratio: 2}", (), Coach(), More(images=("a",), ratio=2)),
        ("more: 7", (), Coach(), More(images=("7",))),
        ("", ["coach=big.pt", "coach.epochs=5"], Coach(checkpoint="big.pt", epochs=5), None),
        ("", ["coach.epochs=5", "coach=big.pt"], Coach(checkpoint="big.pt", epochs=5), None),
        ("coach: big.pt", ["coach.epochs=5"], Coach(checkpoint="big.pt", epochs=5), None),
        ("coach: {epochs: 5}", ["coach=a #1: [x].pt"], Coach(checkpoint="a #1: [x].pt", epochs=5), None),
        ("coach: big.pt", ["coach={epochs: 4}"], Coach(epochs=4), None),
        ("", ["more=a: #1", "more.ratio=2"], Coach(), More(images=("a: #1",), ratio=2)),
        ("more: a", ["more.ratio=2"], Coach(), More(images=("a",), ratio=2)),
        ("more: {images: [a], ratio: 2}", ["more=[b, c]"], Coach(), More(images=("b", "c"), ratio=2)),
        ("more: {images: [a], ratio: 2}", ["more.images=b"], Coach(), More(images=("b",), ratio=2)),
        ("more: a", ["more=null"], Coach(), None),
        ("more: null", {"more": ["a", "b"]}, Coach(), More(images=("a", "b"))),
        ("more: a", {"more": None}, Coach(), None),
    ],
)
def test_a_value_in_place_of_the_mapping_sets_one_key(text: str, overrides: Any, coach: Coach, more: More) -> None:
    read_back = load(text, overrides)
    assert read_back == Whole(coach=coach, more=more)
    assert load(dump(write(Key(Whole), read_back))) == read_back  # as a run writes it


@pytest.mark.parametrize(
    ("text", "overrides", "complaint"),
    [
        (
            "coach: [a.pt]",
            (),
            "r.yaml:1:8: coach: expected a path or a mapping of keys, got a list",
        ),
        (
            "coach: null",
            (),
            "r.yaml:1:8: coach: expected a path or a mapping of keys, got nothing",
        ),
        (
            "more: {ratio: 2}",
            (),
            "r.yaml:1:7: more.images is not set: give more.images=[more, clip.mp4] (Folders of images.)",
        ),
        ("more: [a, [b]]", (), "r.yaml:1:11: more.images[1]: expected a path"),
        ("more: nowhere", (), "r.yaml:1:7: more.images[0]: there is no nowhere in "),
        ("more: []", (), "r.yaml:1:7: more.images is empty: give more.images=[more, clip.mp4] (Folders of images.)"),
        ("more: ???", (), "r.yaml:1:7: more is not set: give more=..."),
        ("", ["more.ratio=2"], "command line: more.images is not set: give more.images=[more, clip.mp4] ("),
        ("", ["more=[a"], "command line: more: bad YAML: "),
        ("more: a", ["more.ratoi=2"], "command line: unknown key 'more.ratoi', did you mean 'more.ratio'?"),
    ],
)
def test_what_is_wrong_with_one_is_said_where_it_stands(text: str, overrides: Any, complaint: str) -> None:
    with pytest.raises(DistillError) as caught:
        load(text, overrides, files=True)
    assert complaint in str(caught.value)


def test_it_is_in_the_lists_of_keys_and_in_the_schema() -> None:
    keys = dict(walk(Whole))
    assert list(keys) == ["coach", "coach.checkpoint", "coach.epochs", "more", "more.images", "more.ratio"]
    images = "a path or a list such as [more, clip.mp4]"
    assert (str(keys["coach"]), str(keys["more.images"])) == ("a path or a mapping of keys", images)
    assert str(keys["more"]) == f"{images} or a mapping of keys, or null"
    for name, good, bad in (
        ("coach", ["big.pt", {"epochs": 2}, {"checkpoint": "a"}], [["a"], None, {"x": 1}]),
        ("more", ["a", ["a", "b"], {"images": "a"}, {"images": ["a"], "ratio": 2}, None], [{"ratio": 2}, [["a"]], []]),
    ):
        schema = json_schema(Whole)["properties"][name]
        assert [value for value in good if not is_valid(value, schema)] == []
        assert [value for value in bad if is_valid(value, schema)] == []
