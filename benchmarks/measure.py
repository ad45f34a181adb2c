"""What every benchmark shares: interleaved timing, the machine's matmul peak, tables and JSON."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from recbole_jepa4rec.base.allocator import reuse_freed_memory
from recbole_jepa4rec.base.files import atomic_write
from recbole_jepa4rec.runner.doctor import hardware, versions

MATMUL_SIZE = 2048
MATMUL_FLOP = 2 * MATMUL_SIZE**3

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""What products are computed in; weights are fp32, bf16 is autocast."""


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark: ``--json``, ``--repeats``, ``--device``."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds (default 5)")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help=f"cpu or cuda (default here: {default})")
    return parser


def interleaved(
    candidates: Mapping[str, Callable[[], Any]],
    repeats: int,
    device: str = "cpu",
    warm_up: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each candidate; in every round each runs once, in turn.

    Args:
        candidates: what to run, by name.
        repeats: timed rounds.
        device: on a GPU its queue is waited for around every run.
        warm_up: whether each runs once before any is timed.
        clock: tells seconds; ``time.process_time`` where others keep the machine busy.
    """
    torch.autograd.set_detect_anomaly(False)  # RecBole's sine.py turns it on for every model
    reuse_freed_memory()  # as the runner does; whoever else is timed gains as much
    for run in candidates.values() if warm_up else ():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            synchronise(device)
            begun = clock()
            run()
            synchronise(device)
            seconds[name].append(clock() - begun)
    return {name: statistics.median(times) for name, times in seconds.items()}


def matmul(dtype: torch.dtype, device: str = "cpu") -> Callable[[], Any]:
    """One product of two square matrices of that type, ``MATMUL_FLOP`` of work; times the peak."""
    left, right = (torch.randn(MATMUL_SIZE, MATMUL_SIZE, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    return lambda: torch.matmul(left, right, out=out)


def matmuls(device: str = "cpu") -> dict[str, Callable[[], Any]]:
    """A matrix product of each precision, to be timed among other candidates."""
    return {f"matmul {name}": matmul(dtype, device) for name, dtype in PRECISIONS.items()}


def matmul_peak(seconds: Mapping[str, float]) -> dict[str, float]:
    """The peak by precision, in FLOP/s, where ``matmuls`` were among what was timed."""
    return {name: MATMUL_FLOP / seconds[f"matmul {name}"] for name in PRECISIONS}


def autocast(precision: str, device: str = "cpu") -> torch.autocast:
    """The context in which a model computes at a precision, a key of ``PRECISIONS``."""
    kind = torch.device(device).type
    return torch.autocast(kind, PRECISIONS["bf16"], enabled=precision == "bf16")


def synchronise(device: str) -> None:
    """Wait for a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_memory_mib(run: Callable[[], Any], device: str = "cpu") -> float:
    """MiB that a call holds at most, beyond what was held before it."""
    gc.collect()
    if device.startswith("cuda"):
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status_mib("VmRSS")
    run()
    return _status_mib("VmHWM") - before


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of values over sizes in logarithms, by least squares: 1 is linear, 0 is constant."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    return statistics.linear_regression(x, y).slope


def report(
    options: argparse.Namespace,
    rows: Sequence[Mapping[str, Any]],
    ratio: Mapping[str, float],
    peak: Mapping[str, float],
    share_of_peak: float | None = None,
) -> None:
    """Print the figures and write ``--json`` if asked for.

    Args:
        options: of the command line.
        rows: printed as a Markdown table.
        ratio: comparisons by name, printed below it.
        peak: FLOP/s of a matrix product by precision, measured beside the rows.
        share_of_peak: what the benchmark's main row reaches of it.
    """
    print(table(rows))
    for name, value in peak.items():
        print(f"measured matmul peak, {name}: {value / 1e9:.0f} GFLOP/s")
    for name, value in ratio.items():
        print(f"{name}: {value:.2f}")
    if share_of_peak is not None:
        print(f"share of the measured matmul peak: {share_of_peak:.2f}")
    if options.json:
        content = {
            "ratio": dict(ratio),
            "share_of_peak": share_of_peak,
            "matmul_peak_gflops": {name: value / 1e9 for name, value in peak.items()},
            "rows": [dict(row) for row in rows],
            "hardware": hardware(torch.device(options.device)),
            "versions": versions(),
            "command": shlex.join(["python", *sys.argv]),
        }
        with atomic_write(options.json, "w") as file:
            json.dump(content, file, indent=1)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as Markdown, a column for every key; a number keeps three significant digits."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names), *([_cell(row.get(n)) for n in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _status_mib(name: str) -> float:
    """An entry of ``/proc/self/status``, kept in kB there."""
    match = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    if match is None:
        raise RuntimeError(f"/proc/self/status has no {name}")
    return int(match[1]) / 2**10
