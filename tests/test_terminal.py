"""Nothing that strangers made is a command to the terminal: through every way of printing."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path

import pytest

from detoxbench import cli, terminal
from detoxbench.cli import common
from detoxbench.errors import DetoxbenchError
from detoxbench.runner import composition

ESC, C1, BIDI = "\x1b[2J\x1b]0;title\x07", "\x9b31m\x90q\x9c", "\u202eevil\u2066"
HOSTILE = f"a{ESC}b{C1}c{BIDI}d\rover\x08\x7f\u2028e\ud800"
HARMLESS = "a�[2J�]0;title�b�31m�q�c�evil�d�over���e�"


def commands(text: str) -> set[str]:
    return {c for c in text if terminal.harmless(c) != c}


def test_text_stays_and_commands_are_shown() -> None:
    assert terminal.harmless(HOSTILE) == HARMLESS
    plain = "Ünïcode 漢字\u3000 שלום 👩‍👩‍👧 → ↑ %\n\ttab"
    assert terminal.harmless(plain) == plain
    assert terminal.harmless("a,b\r\nc,d\r\n") == "a,b\nc,d\n"


def test_every_way_of_printing_goes_through_the_door(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with terminal.guarded():
        print(HOSTILE)
        sys.stdout.writelines([HOSTILE, "\n"])
        common.complain(DetoxbenchError(HOSTILE), 1)
        logging.getLogger("of a test").warning(HOSTILE[:-1])  # pytest keeps it, and cannot send half a character
        out = common.console()
        out.print(HOSTILE)
        out.print(common.table([(HOSTILE, "b")]))
        common.print_json({HOSTILE: [HOSTILE]})
    assert (sys.stdout, sys.stderr) == before
    said = capsys.readouterr()
    assert not commands(said.out + said.err)
    assert said.out.count("a�[2J�]0;title") == 4
    assert said.out.count(HARMLESS) == 2, "rich leaves some out"
    document = said.out[said.out.index("{") :]
    assert json.loads(document) == {HOSTILE: [HOSTILE]}, "as it is, for programs"


def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert common.complain(DetoxbenchError("one\ntwo\r\n  three"), 1) == 1
    assert capsys.readouterr().err == "detoxbench: one two three\n"


def test_colours_are_still_colours(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with terminal.guarded():
        shown = terminal.console(force_terminal=True, color_system="standard", highlight=False)
        shown.print("a\x1b[2Jb", style="red")
    assert capsys.readouterr().out == "\x1b[31ma�[2Jb\x1b[0m\n"


@pytest.mark.parametrize("argv", [[HOSTILE], ["run", f"method={HOSTILE}"],
                                  ["leaderboard", HOSTILE], ["status", HOSTILE], ["verify", HOSTILE],
                                  ["describe", "method", HOSTILE], ["report", HOSTILE]])  # fmt: skip
def test_no_verb_repeats_a_command(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    argv = [text.replace("\ud800", "") for text in argv]  # no argument of a process has it
    assert cli.main(argv) > 0
    said = capsys.readouterr()
    assert "�" in said.err
    assert not commands(said.out + said.err)


def test_a_warning_is_no_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def conf_dirs() -> list[Path]:
        warnings.warn(HOSTILE[:-1], stacklevel=1)
        raise DetoxbenchError(HOSTILE)

    monkeypatch.setattr(composition, "conf_dirs", conf_dirs)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main(["list"]) == 1
    said = capsys.readouterr().err
    assert said.count("�") > 20
    assert not commands(said)
