"""The words of messages: durations, tables, the nearest name."""

from __future__ import annotations

import pytest

from distill.machine.words import duration, nearest, printable, text_table, wrap


def test_durations() -> None:
    seconds = (0.4, 9.94, 9.96, 59.4, 59.6, 125, 3725)
    assert [duration(value) for value in seconds] == [
        "0.4 s",
        "9.9 s",
        "10 s",
        "59 s",
        "1 min 00 s",
        "2 min 05 s",
        "1 h 02 min",
    ]


def test_a_table_has_words_to_the_left_and_numbers_to_the_right() -> None:
    rows = [("", "before", "after"), ("layer", "64", "8"), ("a", "128", "16")]
    assert text_table(rows) == ["       before  after", "layer  64      8", "a      128     16"]
    assert text_table(iter(rows), numbers=True) == [
        "       before  after",
        "layer      64      8",
        "a         128     16",
    ]


def test_the_nearest_name() -> None:
    assert nearest("sede", ["seed", "data"]) == ", did you mean 'seed'?"
    assert nearest("ratoi", ["ratio"], "prune.") == ", did you mean 'prune.ratio'?"
    assert nearest("xyz", ["seed"]) == ""


def test_what_steers_a_terminal_is_shown_escaped() -> None:
    assert printable("\x1b[31mred\x07\r\n\u202egnp\udc80") == "\\x1b[31mred\\x07\\r\\n\\u202egnp\\udc80"
    for ordinary in ("traffic light", "auto\u00a0bus", "\u0645\u06cc\u200c\u0634\u0648\u062f", "👩\u200d🚀", "\\n"):
        assert printable(ordinary) == ordinary
    assert printable("abcdef", 4) == "abcd…" and printable("abcd", 4) == "abcd" and printable(3) == "3"


@pytest.mark.parametrize(
    ("line", "pieces"),
    [
        ("short", ["short"]),
        ("one two three four five six", ["one two three", "  four five six"]),
        ("  one two three four five", ["  one two three", "    four five"]),
        ("loss: one two three four", ["loss: one two", "      three four"]),
        ("in: yolo val model=a b=1", ["in: yolo val \\", "      model=a \\", "      b=1"]),
        ("averylongword/that/stays/whole", ["averylongword/that/stays/whole"]),
        ("at:  averylongword/that/stays/whole", ["at:  averylongword/that/stays/whole"]),
    ],
)
def test_a_line_is_broken_between_words(line: str, pieces: list[str]) -> None:
    assert wrap(line, 16) == pieces


def test_the_last_column_of_a_table_is_wrapped() -> None:
    rows = [("a", "one two three"), ("bb", "four")]
    assert text_table(rows, width=12) == ["a   one two", "    three", "bb  four"]
    assert text_table(rows) == ["a   one two three", "bb  four"]
