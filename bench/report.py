"""Outcomes as a table for the terminal and as `bench/RESULTS.md`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from bench.outcome import Outcome, Profile, Row, Spot, spread

_HEAD = ("figure", "unit", "median", "spread", "control", "spread", "ratio", "wanted", "rounds")
_NUMBERS = {2, 3, 4, 5, 6, 8}


def table(outcomes: Mapping[str, Outcome]) -> str:
    """Lines of aligned columns, a heading for each question."""
    cells = {name: [_cells(row) for row in outcome.rows] for name, outcome in outcomes.items()}
    every = [_HEAD, *(row for rows in cells.values() for row in rows)]
    widths = [max(len(row[at]) for row in every) for at in range(len(_HEAD))]
    lines = [_aligned(_HEAD, widths)]
    for name, outcome in outcomes.items():
        lines += [name, *(_aligned(row, widths) for row in cells[name]), *(f"  {note}" for note in outcome.notes)]
        for profile in outcome.profiles:
            lines += [f"  {line}" for line in (_told(profile), *map(_spot, profile.spots))]
    return "\n".join(lines)


def results(outcomes: Mapping[str, Outcome], facts: Mapping[str, str], texts: Mapping[str, str]) -> str:
    """The document; `texts` say of each question what it measures."""
    versions = {name: number for outcome in outcomes.values() for name, number in outcome.versions.items()}
    lines = [
        "# Results of `make bench`",
        "",
        "Written by a full run; see docs/development.md. What was learned from it: [FINDINGS.md](FINDINGS.md).",
        "",
    ]
    lines += _rows(("measured on", ""), sorted({**facts, **versions}.items(), key=lambda fact: fact[0].lower()))
    for name, outcome in outcomes.items():
        lines += ["", *_section(name, outcome, texts[name])]
    return "\n".join(lines) + "\n"


def updated(
    document: str, outcomes: Mapping[str, Outcome], texts: Mapping[str, str], *, order: Sequence[str], when: str
) -> str:
    """The document with these answers in the place of earlier ones; each says when it was measured."""
    head, *sections = re.split(r"\n(?=## )", document.rstrip("\n"))
    kept = {section.split(maxsplit=2)[1]: section.rstrip("\n") for section in sections}
    for name, outcome in outcomes.items():
        kept[name] = "\n".join([*_section(name, outcome, texts[name]), "", f"Measured by itself, {when}."])
    return "\n\n".join([head.rstrip("\n"), *(kept[name] for name in order if name in kept)]) + "\n"


def _section(name: str, outcome: Outcome, text: str) -> list[str]:
    lines = [f"## {name}", "", text]
    if outcome.rows:
        lines += ("", *_rows(_HEAD, map(_cells, outcome.rows)))
    for note in outcome.notes:
        lines += ["", note]
    for profile in outcome.profiles:
        lines += _profile(profile)
    return lines


def _profile(profile: Profile) -> list[str]:
    lines = ["", _told(profile)]
    if profile.spots:
        rows = ((f"{spot.own:.1%}", f"{spot.whole:.1%}", spot.name) for spot in profile.spots)
        lines += ["", *_rows(("by itself", "with callees", "function"), rows)]
    return lines


def _told(profile: Profile) -> str:
    if profile.why_not is not None:
        return f"{profile.title}: not profiled, since {profile.why_not}"
    return f"{profile.title}, where its time goes:"


def _spot(spot: Spot) -> str:
    return f"{spot.own:7.1%} {spot.whole:7.1%}  {spot.name}"


def _cells(row: Row) -> tuple[str, ...]:
    of_figure, of_control = _summary(row.figure, row.decimals), _summary(row.control, row.decimals)
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    return (row.name, row.unit, *of_figure, *of_control, ratio, row.target, str(len(row.figure)))


def _summary(values: Sequence[float], decimals: int) -> tuple[str, str]:
    return (f"{median(values):,.{decimals}f}", spread(values, decimals)) if values else ("", "")


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    fitted = (
        cell.rjust(width) if at in _NUMBERS else cell.ljust(width)
        for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  " + "  ".join(fitted).rstrip()


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
