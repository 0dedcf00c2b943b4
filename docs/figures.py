#!/usr/bin/env python3
"""Writes docs/performance.md's tables and the README's from target/bench/hop.json and mesh.json.

    make bench && python3 docs/figures.py

A table whose cases the run did not have stays as it is: each is of one run.
"""

import json
import pathlib
import re
import shutil

ROOT = pathlib.Path(__file__).resolve().parent.parent
SUBJECTS = ["floor", "weft", "nginx", "haproxy", "envoy"]
PAIRS = ["weft", "nginx", "haproxy", "envoy", "envoy-h2"]
README_CASES = ["h1-64", "h1-post-10k", "h2-64", "grpc-unary", "tls-64", "tcp-1g"]
README_PAIRS = ["h1-64", "pair-h1-64", "pair-grpc-unary"]
MESH = {
    "mesh-rss-": ("memory of a sidecar, services × replicas in use: {}", "anonymous_mib", "{:.1f} MiB of it its own, the rest pages of the program"),
    "mesh-spread-": ("an endpoint's change to the last of {} sidecars", "p50_ms", "p50 {:.0f} ms"),
    "mesh-kill-replica": ("kill -9 of application and sidecar, to the last try sent there", "tries_each", "{:.0f} tries each, all sent again"),
    "mesh-kill-application": ("kill -9 of the application alone, to the last try sent there", "tries_each", "{:.0f} tries each, all sent again"),
}


def cpu(row):
    return row["cpu_user_us"] + row["cpu_sys_us"]


def grid(heading, subjects, cases, cell):
    lines = [f"| {heading} | " + " | ".join(subjects) + " |", "| --- |" + " ---: |" * len(subjects)]
    for case in cases:
        lines.append(f"| `{case}` | " + " | ".join(cell(case, subject) for subject in subjects) + " |")
    return "\n".join(lines)


def table(rows, subjects, cases):
    def cell(case, subject):
        found = [rows[of] for of in [(case, subject)] if of in rows]
        # Where there is one column for Envoy, it has the cheaper of its two pairs.
        if "envoy-h2" not in subjects and subject == "envoy":
            found += [rows[of] for of in [(case, "envoy-h2")] if of in rows]
        return f"{min(map(cpu, found)):.1f}" if found else "–"

    return grid("CPU µs a request", subjects, cases, cell)


def speed(rows, cases):
    def cell(case, subject):
        row = rows.get((case, subject))
        return f"{row['rps']:,.0f}/s, {row['p50_us'] / 1000:.1f}, {row['p99_us'] / 1000:.1f}" if row else "–"

    return grid("a second; p50, p99 ms", PAIRS, cases, cell)


def mesh(figures):
    lines = ["| | | bar | |", "| --- | ---: | ---: | --- |"]
    for figure in figures:
        for prefix, (words, name, beside) in MESH.items():
            if figure["case"].startswith(prefix):
                bar = f"{figure['at_most']:g}" if "at_most" in figure else "–"
                what = words.format(figure["case"].removeprefix(prefix))
                more = beside.format(figure["beside"][name])
                lines.append(f"| {what} | {figure['value']:.1f} {figure['unit']} | {bar} | {more} |")
    rows = {(figure["case"], figure["subject"]): figure for figure in figures}
    cases = ["mesh-handshake-full", "mesh-handshake-resumed"]

    def cell(case, subject):
        row = rows.get((case, subject))
        return f"{row['value']:,.0f} ({row['beside']['cpu_us']:.0f} µs)" if row else "–"

    return "\n".join(lines) + "\n\n" + grid("a second of one core", PAIRS[:-1], cases, cell)


def put(path, name, text):
    page = path.read_text()
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    assert begin in page and end in page, path
    path.write_text(re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{text}\n{end}", page, flags=re.S))


def main():
    entries = json.loads((ROOT / "target/bench/hop.json").read_text())
    rows = {(entry["case"], entry["subject"]): entry for entry in entries}
    cases = list(dict.fromkeys(entry["case"] for entry in entries))
    hops = [case for case in cases if not case.startswith("pair-")]
    pairs = [case for case in cases if case.startswith("pair-")]
    performance, readme = ROOT / "docs/performance.md", ROOT / "README.md"
    if set(README_CASES) <= set(cases):
        put(performance, "bench", table(rows, SUBJECTS, hops))
        note = "User and system, one worker on one core; `tcp-1g` is µs a MiB. All cases, the plot, and what is not reached yet: [docs/performance.md](docs/performance.md)."
        put(readme, "bench", table(rows, SUBJECTS, README_CASES) + "\n\n" + note)
        shutil.copy(ROOT / "target/bench/hop.svg", ROOT / "docs/hop.svg")
    if set(README_PAIRS) <= set(cases):
        put(performance, "pairs", table(rows, PAIRS, ["h1-64", *pairs]) + "\n\n" + speed(rows, pairs))
        note = "`pair-`: two proxies and mutual TLS between them, both together; for Envoy the cheaper of HTTP/1.1 and HTTP/2 between."
        put(readme, "pairs", table(rows, SUBJECTS[1:], README_PAIRS) + "\n\n" + note)
    put(performance, "mesh", mesh(json.loads((ROOT / "target/bench/mesh.json").read_text())))


main()
