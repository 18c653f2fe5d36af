import io
from dataclasses import replace

import pytest
from curves import POINT
from explanations import AFTER, BEFORE, CASCADE, EXPLANATION, FIRST
from rich.console import Console

from ensembles.diagnostics import Explanation
from search.reporting import print_explanation


def explain(explanation: Explanation, *, terminal: bool = False) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80, color_system=None)
    print_explanation(
        console,
        explanation=explanation,
        overtuning=POINT.overtuning,
        reliabilities=(BEFORE, AFTER),
        cascade=CASCADE,
    )
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_an_explanation_is_printed_as_tables_and_sentences() -> None:
    lines = explain(EXPLANATION).splitlines()

    assert lines[0].split("  ")[0] == "why these members"
    assert " ".join(lines[1].split()) == (
        "trial 7 0.75 77.20 % +0.40 points, +0.0123 nats 2 images"
    )
    assert [line.split()[0] for line in lines if line] == [
        *("why", "trial", "trial", "2", "confidence", "right", "right", "calibration"),
        *("as", "The"),
    ]


def test_five_members_are_explained_in_twenty_lines_of_a_narrow_terminal() -> None:
    members = tuple(replace(FIRST, name=f"10{place}") for place in range(5))

    lines = explain(replace(EXPLANATION, members=members), terminal=True).splitlines()

    assert len(lines) <= 22
    assert max(map(len, lines)) <= 80


def test_a_single_member_is_not_explained() -> None:
    assert "why these members" not in explain(replace(EXPLANATION, members=(FIRST,)))


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_not_known_is_not_told(terminal: bool) -> None:  # noqa: FBT001
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)

    print_explanation(console)

    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == ""
