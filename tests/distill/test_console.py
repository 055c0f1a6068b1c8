"""What a person sees of a run: on a terminal, in a pipe and in the log."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from distill.machine import progress as module
from distill.machine.console import Console


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """The lines that are left on a terminal after all that was written, as far as rich's codes go."""
        lines, row, column = [""], 0, 0
        for code, count, kind, text in re.findall(
            r"(\x1b\[\??([0-9;]*)([A-Za-z]))|(\r|\n|[^\x1b\r\n]+)", self.getvalue()
        ):
            if code:
                row -= int(count or 1) if kind == "A" else 0
                lines[row] = "" if kind == "K" else lines[row]
                assert kind in "AKmhl", code
            elif text == "\n":
                row, column = row + 1, 0
                lines += [""] * (row + 1 - len(lines))
            elif text == "\r":
                column = 0
            else:
                lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
                column += len(text)
        lines = [line.rstrip() for line in lines]
        while lines[-2:] == ["", ""]:  # rows that a live display has left
            lines.pop()
        return lines


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic))
    monkeypatch.setenv("TERM", "xterm")
    return clock


def test_a_terminal_gets_one_bar_that_ends_as_a_line(clock: Clock) -> None:
    terminal = Terminal()
    console = Console(terminal)
    drawn = []
    with console.bar("statistics", 4, "images") as bar:
        for _ in range(4):
            console._update()
            drawn += terminal.screen()[:1]
            clock.now += 1
            bar.advance()
    assert any(re.fullmatch(r"━+[╸╺]?━* statistics 1/4 images, 3\.0 s left", text) for text in drawn), drawn
    assert terminal.screen() == ["statistics 4/4 images in 4.0 s", ""]


def test_a_bar_is_redrawn_at_most_ten_times_a_second_however_often_it_advances() -> None:
    terminal = Terminal()
    start = time.monotonic()
    with Console(terminal).bar("many", 100_000) as bar:
        while time.monotonic() - start < 0.6:
            bar.advance()
        assert 2 <= terminal.getvalue().count("many") <= 7
    assert "\x1b[?25h" in terminal.getvalue()  # the cursor is back


def test_nothing_is_wider_than_the_terminal_and_nothing_is_cut_off(clock: Clock) -> None:
    terminal = Terminal()
    console = Console(terminal)
    with console.bar("a long label " * 20, 10) as bar:
        clock.now += 1
        bar.advance(note="a long note " * 20)
        console._update()
        drawn = terminal.screen()
        assert max(map(len, drawn)) <= 80
        assert " ".join(drawn).count("long label") == " ".join(drawn).count("long note") == 20
    console.line("warning: " + "a long line " * 20)
    lines = terminal.screen()[-5:-1]
    assert lines[0].startswith("warning: a long") and max(map(len, lines)) <= 80
    assert " ".join(line.strip() for line in lines) == "warning: " + ("a long line " * 20).rstrip()
    assert all(line.startswith("         ") and line[9] != " " for line in lines[1:])


@pytest.mark.parametrize("term", ["xterm", "dumb"])
@pytest.mark.parametrize("columns", [60, 80])
def test_lines_are_broken_between_words_on_every_terminal(
    columns: int, term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", term)
    terminal, pipe = Terminal(), io.StringIO()
    text = "a word and a number 0.123 " * 10
    for stream in (terminal, pipe):
        console = Console(stream)
        console.facts([("model", text), ("device", "cpu")])
        console.close()
    lines = [line for line in terminal.screen() if line]
    assert max(map(len, lines)) <= columns and lines[0].startswith("model   a word") and lines[-1] == "device  cpu"
    assert all(line.startswith("        ") for line in lines[1:-1])
    assert pipe.getvalue().splitlines() == ["", f"model   {text}".rstrip(), "device  cpu"]


def test_a_result_on_a_terminal_has_its_warnings_in_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for colour in (True, False):
        monkeypatch.setattr("sys.stdout", terminal := Terminal())
        Console(io.StringIO()).result("fine\nwarning: but")
        assert ("\x1b[33mwarning: but\x1b[0m" in terminal.getvalue()) == colour
        assert terminal.getvalue().startswith("fine\n")
        monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("sys.stdout", pipe := io.StringIO())
    Console(io.StringIO()).result("warning: " + "but " * 50)
    assert pipe.getvalue() == "warning: " + "but " * 50 + "\n"


def test_a_bar_counts_in_units_or_in_percent(clock: Clock) -> None:
    stream = io.StringIO()
    console = Console(stream)
    list(console.track("abc", "repair", 3, "layers"))
    list(console.track("ab", "plan", 2, "%"))
    assert stream.getvalue().splitlines() == ["repair 3/3 layers in 0.0 s", "plan 100% in 0.0 s"]


def test_lines_and_inner_bars_do_not_break_a_bar(clock: Clock) -> None:
    terminal = Terminal()
    console = Console(terminal)
    with console.bar("epoch", 2) as outer:
        console.line("hello")
        list(console.track("ab", "inner", 2))
        assert terminal.screen()[:2] == ["hello", "inner 2/2 in 0.0 s"]
        assert terminal.screen()[2].endswith("epoch 0/2")
        outer.advance(2, note="loss 0.5")
    assert terminal.screen() == ["hello", "inner 2/2 in 0.0 s", "epoch 2/2 in 0.0 s  loss 0.5", ""]


def test_a_run_shows_its_stage_and_how_long_it_takes_as_soon_as_that_is_known(clock: Clock) -> None:
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        console = Console(stream)
        console.stage("teacher", 1, 3, work=10, after=190)
        clock.now += 60
        if stream is terminal:
            console._update()
            assert terminal.screen()[2] == "stage 1 of 3: teacher, 1 min 00 s so far"
        console.stage("train", 2, 3, work=180, after=10)
        with console.bar("epochs", 10) as bar:
            clock.now += 300
            bar.advance()
            if stream is terminal:  # the bar knows better than the other stage: nine times five minutes, and one
                console._update()
                last = "stage 2 of 3: train, 5 min 00 s so far, run: about 46 min left"
                assert terminal.screen()[4].endswith("epochs 1/10, 45 min 00 s left") and terminal.screen()[5] == last
        console.result("done")
        console.close()
    lines = ["", "== teacher ==  stage 1 of 3", "", "== train ==  stage 2 of 3, run: about 19 min left"]
    end = "epochs 1/10 in 5 min 00 s"
    assert terminal.screen() == [*lines, end, ""]
    assert pipe.getvalue().splitlines() == [*lines, "epochs 1/10, 45 min 00 s left", end]


def test_the_first_stage_is_estimated_by_its_bar(clock: Clock) -> None:
    terminal = Terminal()
    console = Console(terminal)
    console.stage("teacher", 1, 2, work=100, after=50)
    with console.bar("training", 10, "epochs") as bar:
        clock.now += 120
        bar.advance()
        console._update()
        assert terminal.screen()[3] == "stage 1 of 2: teacher, 2 min 00 s so far, run: about 28 min left"  # 18 and 10


def test_work_of_an_earlier_run_makes_an_estimate(clock: Clock) -> None:
    stream = io.StringIO()
    console = Console(stream)
    console.calibrate(10, 3600)
    console.stage("train", 2, 2, work=25)
    assert stream.getvalue() == "\n== train ==  stage 2 of 2, run: about 2 h 30 min left\n"


@pytest.mark.parametrize(
    ("variables", "codes"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)], ids=str
)
def test_colours_are_for_terminals_that_want_them(
    variables: dict[str, str], codes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in ({"TERM": "xterm"} | variables).items():
        monkeypatch.setenv(name, value)
    terminal = Terminal()
    Console(terminal).warn("odd")
    assert ("\x1b[33m" in terminal.getvalue()) == codes
    assert terminal.screen() == ["warning: odd", ""]


def test_a_terminal_of_another_encoding_gets_bars_of_its_characters(clock: Clock) -> None:
    class Ascii(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    stream = Ascii(io.BytesIO(), encoding="ascii")
    console = Console(stream)
    for _ in console.track(range(2), "≤", 2):
        clock.now += 1
        console._update()
    assert b"? 1/2" in stream.buffer.getvalue() and b"? 2/2 in 2.0 s" in stream.buffer.getvalue()


def test_a_loop_that_breaks_off_leaves_no_bar(clock: Clock) -> None:
    terminal = Terminal()
    console = Console(terminal)
    with pytest.raises(RuntimeError), console.bar("broken", 3):
        raise RuntimeError
    for _ in console.track(range(3), "left", 3):
        break
    console.line("after")
    assert terminal.screen() == ["after", ""]


def test_without_a_terminal_there_are_few_plain_lines(clock: Clock) -> None:
    stream = io.StringIO()
    for _ in Console(stream).track(range(100), "epochs", 100):
        clock.now += 3
    lines = stream.getvalue().splitlines()
    assert lines[0] == "epochs 10/100, 4 min 30 s left" and lines[-1] == "epochs 100/100 in 5 min 00 s"
    assert len(lines) == 10 and "\r" not in stream.getvalue()
    stream.truncate(0)
    for _ in Console(stream).track(range(100), "quick", 100):
        clock.now += 0.01
    assert stream.getvalue().strip("\0") == "quick 100/100 in 1.0 s\n"


def test_the_items_of_a_loop_pass_through(clock: Clock) -> None:
    stream = io.StringIO()
    assert list(Console(stream).track(iter("abc"), "items", 3)) == ["a", "b", "c"]
    assert stream.getvalue() == "items 3/3 in 0.0 s\n"


def test_quiet_shows_warnings_only_and_the_log_gets_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = Terminal()
    console = Console(stream, quiet=True)
    log = tmp_path / "run" / "log.txt"
    console.log_to(log)
    console.header("score", "96 images")
    console.warn("odd")
    assert not log.parent.exists()  # a run that cannot start leaves nothing
    log.parent.mkdir()
    list(console.track(range(2), "batches", 2))
    console.result("mAP 0.6")
    console.close()
    assert stream.screen() == ["warning: odd", ""] and console.warnings == ["odd"]
    assert capsys.readouterr().out == "mAP 0.6\n"
    lines = log.read_text().splitlines()
    assert lines == ["", "== score ==  96 images", "warning: odd", "batches 2/2 in 0.0 s", "mAP 0.6"]


def test_what_steers_a_terminal_is_shown_on_every_way_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stream, evil, shown = io.StringIO(), "a\x1b[2Jb\u202e", "a\\x1b[2Jb\\u202e"
    console = Console(stream)
    console.log_to(tmp_path / "log.txt")
    console.line(evil)
    console.warn(evil)
    console.result(f"{evil}\n{evil}")
    console.close()
    assert capsys.readouterr().out == f"{shown}\n{shown}\n"
    for text in (stream.getvalue(), (tmp_path / "log.txt").read_text()):
        assert "\x1b" not in text and "\u202e" not in text and text.count(shown) >= 2


def test_a_stream_that_cannot_show_a_character_gets_another() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(stream).line("≤ 50%")
    assert stream.buffer.getvalue() == b"? 50%\n"
