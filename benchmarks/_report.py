"""What the benchmarks share: a table, ``--json FILE``, and running themselves on several ranks."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", metavar="FILE", help='write {"rows": [...]}')
    made.add_argument("--worker", help=argparse.SUPPRESS)
    return made


def row(case: str, metric: str, value: float, at_most: float | None = None, at_least: float | None = None) -> dict:
    """Return a row; it passes if the value keeps the bar (none given: no verdict)."""
    bar = at_most if at_most is not None else at_least
    passes = None if bar is None else bool(value <= bar if at_most is not None else value >= bar)
    return {"case": case, "metric": metric, "value": float(value), "bar": bar, "passes": passes}


def finish(rows: list[dict], path: str | None) -> None:
    """Print the table, and write it as JSON if a path is given."""
    print(f"\n{'case':<44}{'metric':<40}{'value':>11}{'bar':>8}  passes")
    for r in rows:
        bar = "" if r["bar"] is None else f"{r['bar']:g}"
        verdict = {None: "", True: "yes", False: "NO"}[r["passes"]]
        print(f"{r['case']:<44}{r['metric']:<40}{r['value']:>11.4g}{bar:>8}  {verdict}")
    if path:
        aside = Path(f"{path}.part")
        aside.write_text(json.dumps({"rows": rows}, indent=2) + "\n")
        aside.replace(path)


def on_ranks(script: str, ranks: int, worker: str, timeout: float = 1800) -> Any:
    """Run ``script --worker WORKER`` on some ranks; return what its last line of output, JSON, says."""
    launcher = Path(sys.executable).with_name("mpiexec")
    command = [str(launcher) if launcher.exists() else "mpiexec", "-n", str(ranks)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, sys.executable, script, "--worker", worker],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
        check=False,
    )
    if run.returncode:
        raise RuntimeError(f"{script} --worker {worker} on {ranks} ranks failed:\n{run.stdout}\n{run.stderr}")
    return json.loads(run.stdout.strip().splitlines()[-1])
