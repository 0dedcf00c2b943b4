#!/usr/bin/env python3
"""Writes docs/performance.md's tables and the README's from target/bench/hop.json.

    make bench && python3 docs/figures.py
"""

import json
import pathlib
import re
import shutil

ROOT = pathlib.Path(__file__).resolve().parent.parent
SUBJECTS = ["floor", "weft", "nginx", "haproxy", "envoy"]
README_CASES = ["h1-64", "h1-post-10k", "h2-64", "grpc-unary", "tls-64", "tcp-1g"]


def table(rows, cases):
    lines = ["| CPU µs a request | " + " | ".join(SUBJECTS) + " |", "| --- |" + " ---: |" * len(SUBJECTS)]
    for case in cases:
        cells = []
        for subject in SUBJECTS:
            row = rows.get((case, subject))
            cells.append("–" if row is None else f"{row['cpu_user_us'] + row['cpu_sys_us']:.1f}")
        lines.append(f"| `{case}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def put(path, text):
    page = path.read_text()
    begin, end = "<!-- bench:begin -->", "<!-- bench:end -->"
    assert begin in page and end in page, path
    path.write_text(re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{text}\n{end}", page, flags=re.S))


def main():
    entries = json.loads((ROOT / "target/bench/hop.json").read_text())
    rows = {(entry["case"], entry["subject"]): entry for entry in entries}
    cases = list(dict.fromkeys(entry["case"] for entry in entries))
    put(ROOT / "docs/performance.md", table(rows, cases))
    note = "User and system, one worker on one core; `tcp-1g` is µs a MiB. All cases, the plot, and what is not reached yet: [docs/performance.md](docs/performance.md)."
    put(ROOT / "README.md", table(rows, README_CASES) + "\n\n" + note)
    shutil.copy(ROOT / "target/bench/hop.svg", ROOT / "docs/hop.svg")


main()
