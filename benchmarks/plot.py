"""Draw ratios as an SVG: a row for each case, a dot for each measure, on a logarithmic scale; by hand."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import log10

__all__ = ["Row", "draw"]

COLOURS = {"wall": "#1f77b4", "CPU": "#d62728", "bytes": "#2ca02c", "memory": "#9467bd"}
LEFT, WIDTH, ROW, TOP, RIGHT = 330, 560, 22, 64, 40


@dataclass(frozen=True, slots=True)
class Row:
    label: str
    ratios: dict[str, float]
    """Ours to theirs, by measure (see COLOURS)."""
    goals: dict[str, float]


def draw(title: str, subtitle: str, rows: Sequence[Row]) -> str:
    """Return the SVG. Left of the line at 1 we need less than git; a ring is a goal."""
    values = [v for row in rows for v in (*row.ratios.values(), *row.goals.values()) if v > 0]
    low = min([0.1, *values])
    high = max([2.0, *values])
    span = log10(high) - log10(low)

    def x(value: float) -> float:
        return LEFT + WIDTH * (log10(min(max(value, low), high)) - log10(low)) / span

    height = TOP + ROW * len(rows) + 40
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + RIGHT}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="18" font-size="15">{escape(title)}</text>',
        f'<text x="10" y="34" fill="#555">{escape(subtitle)}</text>',
    ]
    at = LEFT
    for name, colour in COLOURS.items():
        out.append(f'<circle cx="{at}" cy="50" r="4.5" fill="{colour}"/>')
        out.append(f'<text x="{at + 9}" y="54">{name}</text>')
        at += 70
    out.append(f'<circle cx="{at}" cy="50" r="5" fill="none" stroke="#555"/>')
    out.append(f'<text x="{at + 9}" y="54">goal</text>')
    bottom = TOP + ROW * len(rows)
    for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50):
        if low <= tick <= high:
            colour = "#000" if tick == 1 else "#ddd"
            out.append(
                f'<line x1="{x(tick):.1f}" y1="{TOP}" x2="{x(tick):.1f}" y2="{bottom}" stroke="{colour}"/>'
            )
            out.append(f'<text x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    for number, row in enumerate(rows):
        y = TOP + ROW * number + ROW / 2
        out.append(f'<text x="{LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(row.label)}</text>')
        out.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{LEFT + WIDTH}" y2="{y:.1f}" stroke="#f0f0f0"/>')
        for name, value in row.goals.items():
            out.append(
                f'<circle cx="{x(value):.1f}" cy="{y:.1f}" r="6.5" fill="none" stroke="{COLOURS[name]}"/>'
            )
        for name, value in row.ratios.items():
            if value > 0:
                out.append(
                    f'<circle cx="{x(value):.1f}" cy="{y:.1f}" r="4.5" fill="{COLOURS[name]}" '
                    f'fill-opacity="0.85"><title>{name} {value:.2f}</title></circle>'
                )
    out.append(
        f'<text x="{LEFT + WIDTH / 2}" y="{bottom + 34}" text-anchor="middle">'
        "gitsmart : git-http-backend (left of 1: gitsmart needs less)</text>"
    )
    return "\n".join([*out, "</svg>"]) + "\n"
