#!/usr/bin/env python3
"""Draws docs/growth.svg: the index's memory and the cost of one change, by the number of services.

    cargo bench -p weft-controller --bench index && python3 docs/growth.py
"""

import json
import math
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
BENCH = ROOT / "target/criterion/an endpoint's readiness"
LEFT, TOP, WIDTH, HEIGHT = 60, 40, 320, 200
GAP = 110
COLOURS = {"line": "#2563eb", "axis": "#888", "text": "#666"}


def memory():
    lines = (ROOT / "target/index-memory.json").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [(row["services"], row["bytes"] / (1 << 20)) for row in rows]


def cost():
    found = []
    for services, _ in memory():
        estimates = json.loads((BENCH / str(services) / "new/estimates.json").read_text())
        found.append((services, estimates["median"]["point_estimate"] / 1e3))
    return found


def panel(left, title, points, low, high, unit):
    """Both axes logarithmic: what grows with the services rises, what does not is level."""
    first, last = points[0][0], points[-1][0]

    def x(services):
        return left + WIDTH * math.log(services / first) / math.log(last / first)

    def y(value):
        return TOP + HEIGHT * (1 - math.log(value / low) / math.log(high / low))

    parts = [f'<text x="{left}" y="{TOP - 16}" font-weight="bold">{title}</text>']
    tick = low
    while tick <= high:
        parts.append(f'<line x1="{left}" x2="{left + WIDTH}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="{COLOURS["axis"]}" stroke-opacity="0.3"/>')
        parts.append(f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
        tick *= 10
    for services, value in points:
        parts.append(f'<circle cx="{x(services):.1f}" cy="{y(value):.1f}" r="3" fill="{COLOURS["line"]}"/>')
        parts.append(f'<text x="{x(services):.1f}" y="{y(value) - 8:.1f}" text-anchor="middle">{value:.0f} {unit}</text>')
        parts.append(f'<text x="{x(services):.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{services:,}</text>')
    path = " ".join(f"{x(services):.1f},{y(value):.1f}" for services, value in points)
    parts.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS["line"]}" stroke-width="2"/>')
    parts.append(f'<text x="{left + WIDTH / 2}" y="{TOP + HEIGHT + 36}" text-anchor="middle">services, ten endpoints each</text>')
    return parts


def main():
    right = LEFT + WIDTH + GAP
    parts = panel(LEFT, "memory of the index", memory(), 1, 1000, "MiB")
    parts += panel(right, "one endpoint changes", cost(), 1, 1000, "µs")
    width, height = right + WIDTH + 40, TOP + HEIGHT + 56
    style = f'font-family="sans-serif" font-size="11" fill="{COLOURS["text"]}"'
    body = "\n".join(parts)
    (ROOT / "docs/growth.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {style}>\n{body}\n</svg>\n'
    )


main()
