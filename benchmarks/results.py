"""Where the tables of the benchmarks go: printed, and appended to RESULTS.md where that is asked for."""

import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"


def publish(title: str, lines: Iterable[str], *, append: bool) -> None:
    """Print a section of results; append it to RESULTS.md, with date and commit, where ``append`` says so."""
    text = "\n".join(lines)
    print("\n" + text)
    if append:
        command = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        heading = f"## {title} ({time.strftime('%Y-%m-%d')}, commit {commit or 'unknown'})"
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(f"\n{heading}\n\n{text}\n")
