#!/usr/bin/env python3
"""Makes docs/demo.svg: runs the demo in tmux and draws its screen as it is after so many seconds.

    cargo build --release -p weft-proxy -p weft-controller -p weft-cli
    docs/demo_picture.py 26 target/release/weft demo

Needs tmux and Python, nothing else.
"""

import html
import re
import shlex
import subprocess
import sys
import time

COLUMNS, ROWS = 84, 40
# Of one character, in pixels, for a 14 px monospace font.
WIDTH, HEIGHT, MARGIN = 8.4, 19, 16
BACKGROUND, FOREGROUND = "#12161d", "#d6dae2"
COLORS = {"31": "#ff6b68", "32": "#7bd88f", "33": "#f2c55c", "36": "#6cc7e8"}


def tmux(*arguments):
    return subprocess.run(["tmux", "-L", "weft-picture", *arguments], check=True, capture_output=True, text=True).stdout


def capture(seconds, command):
    size = ["-x", str(COLUMNS), "-y", str(ROWS)]
    tmux("-f", "/dev/null", "new-session", "-d", *size, f"{shlex.join(command)}; sleep 60")
    try:
        time.sleep(seconds)
        return tmux("capture-pane", "-p", "-e").rstrip("\n").split("\n")
    finally:
        # The demo ends by the hangup, and all that it started.
        tmux("kill-server")


def runs(line):
    """Pieces of a line between two escapes, with their codes and columns."""
    codes, column = set(), 0
    for piece in re.split(r"(\x1b\[[0-9;]*m)", line):
        if piece.startswith("\x1b"):
            for code in piece[2:-1].split(";"):
                if code in ("", "0"):
                    codes = set()
                elif code == "39" or code in COLORS:
                    codes = codes - set(COLORS) | {code}
                else:
                    codes = codes | {code}
        elif piece:
            yield column, piece, codes
            column += len(piece)


def draw(lines):
    width, height = COLUMNS * WIDTH + 2 * MARGIN, len(lines) * HEIGHT + 2 * MARGIN
    yield f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" viewBox="0 0 {width:.0f} {height}">'
    yield f'<rect width="100%" height="100%" rx="8" fill="{BACKGROUND}"/>'
    yield f'<g font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,DejaVu Sans Mono,monospace" font-size="14" fill="{FOREGROUND}" xml:space="preserve">'
    for row, line in enumerate(lines):
        for column, text, codes in runs(line):
            # A run for each word, so that columns stand whatever the font.
            for word in re.finditer(r"\S+(?: \S+)*", text):
                style = "".join(f' fill="{color}"' for code, color in COLORS.items() if code in codes)
                style += ' font-weight="bold"' if "1" in codes else ""
                style += ' opacity="0.55"' if "2" in codes else ""
                x = MARGIN + (column + word.start()) * WIDTH
                y = MARGIN + row * HEIGHT + 14
                length = len(word[0]) * WIDTH
                yield f'<text x="{x:.1f}" y="{y}" textLength="{length:.1f}"{style}>{html.escape(word[0])}</text>'
    yield "</g></svg>"


def main():
    lines = capture(float(sys.argv[1]), sys.argv[2:])
    with open("docs/demo.svg", "w", encoding="utf-8") as file:
        file.write("\n".join(draw(lines)) + "\n")


main()
