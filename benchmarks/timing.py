"""Shared by the benchmarks: time ways side by side, check that they agree, keep what was measured.

Ways take turns in one process on one thread, after a round that warms up and does not count. A time is the
median of CPU time over the rounds, a ratio the median over rounds of (plain / ours), with its range.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from dataclasses import asdict, dataclass
from functools import cache
from itertools import chain
from pathlib import Path

import torch

from hemomil.products import has_onednn, multiplied_by_onednn

ROUNDS = 11
RESULTS = Path(__file__).with_name("results")
BF16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Names under which torch reports that a CPU multiplies in bf16."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number, what it should be, and how it came about."""

    name: str
    value: float
    unit: str = "x"
    low: float | None = None
    high: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    plain_ms: float | None = None
    ours_ms: float | None = None
    error: float | None = None
    """Largest difference between what both ways give, relative."""
    allowed: float | None = None
    note: str = ""

    def __str__(self):
        parts = [f"{self.name:66s} {self.value:8.3g} {self.unit:8s}"]
        if self.low is not None:
            parts.append(f"[{self.low:.3g}, {self.high:.3g}]")
        if self.plain_ms is not None:
            parts.append(f"plain {self.plain_ms:.4g} ms, ours {self.ours_ms:.4g} ms")
        if self.error is not None:
            parts.append(f"error {self.error:.1e} (at most {self.allowed:.0e})")
        for sign, bound in ((">=", self.at_least), ("<=", self.at_most)):
            if bound is not None:
                parts.append(f"target {sign} {bound:g}")
        return "  ".join([*parts, self.note] if self.note else parts)


def alternate(tasks, rounds=ROUNDS, clock=time.process_time):
    """Seconds of each task, by name, in each round."""

    def seconds(task):
        start = clock()
        task()
        return clock() - start

    return [{name: seconds(task) for name, task in tasks.items()} for _ in range(rounds + 1)][1:]


def versus(name, plain, ours, *, repeat=1, **more):
    """A row: how many times longer the plain way takes. `repeat`: calls in one round of what is short."""
    tasks = {"plain": lambda: _again(plain, repeat), "ours": lambda: _again(ours, repeat)}
    rounds = alternate(tasks)
    plain_ms, ours_ms = (1e3 * statistics.median(r[of] for r in rounds) / repeat for of in tasks)
    found = spread([r["plain"] / r["ours"] for r in rounds])
    return told(Row(name=name, **found, plain_ms=plain_ms, ours_ms=ours_ms, **more))


def _again(task, times):
    for _ in range(times):
        task()


def spread(values):
    """Median and range, as a Row names them."""
    return {"value": statistics.median(values), "low": min(values), "high": max(values)}


def told(row):
    """The row, printed."""
    print(row, flush=True)
    return row


def agree(found, expected, allowed):
    """Relative error of what both ways give, which must not be larger than allowed; for a Row."""
    found, expected = (torch.as_tensor(values).double() for values in (found, expected))
    error = float(((found - expected).abs() / expected.abs().clamp_min(1e-300)).max())
    assert error <= allowed, f"both ways should give the same: {error:.1e} apart, {allowed:.0e} allowed"
    return {"error": error, "allowed": allowed}


def has_bf16():
    """Whether this CPU has instructions for bf16."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in BF16)


def matmul_seconds(dtype=torch.float32, size=1024, best_of=3):
    """CPU seconds of a square matrix product at its best, by the faster of torch's two libraries."""
    left, right = (torch.ones(size, size, dtype=dtype) for _ in range(2))
    ways = [torch.matmul, multiplied_by_onednn] if dtype == torch.float32 and has_onednn() else [torch.matmul]
    times = []
    for _ in range(best_of + 1):
        for multiply in ways:
            start = time.process_time()
            multiply(left, right)
            times.append(time.process_time() - start)
    return min(times)


def peak_gflops(dtype=torch.float32, size=1024):
    """Measured matrix peak of one thread."""
    return 2e-9 * size**3 / matmul_seconds(dtype, size, best_of=20)


@cache
def machine():
    """What the numbers were measured on; names no host."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "bf16": has_bf16(),
        "fp32_gflops": round(peak_gflops(), 1),
        "bf16_gflops": round(peak_gflops(torch.bfloat16), 1) if has_bf16() else None,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def cpu_model():
    """What the processor calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def resident():
    """Bytes of memory this process holds now, and the most it held since `forget_peak`. Linux only."""
    status = Path("/proc/self/status").read_text()
    held = dict(line.split(":", 1) for line in status.splitlines())
    return tuple(1024 * int(held[name].split()[0]) for name in ("VmRSS", "VmHWM"))


def forget_peak():
    """Let the peak be what is held now."""
    Path("/proc/self/clear_refs").write_text("5")


def main(name, about, benchmarks):
    """Run benchmarks one after another and write benchmarks/results/NAME.json, or `--json FILE`."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, default=RESULTS / f"{name}.json")
    path = parser.parse_args().json
    torch.set_num_threads(1)
    keep(path, machine(), chain.from_iterable(benchmark() for benchmark in benchmarks))


def keep(path, measured_on, found):
    """Write each row as soon as it is found, below what it was measured on."""
    print(", ".join(f"{key} {value}" for key, value in measured_on.items()), flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in found:
        rows.append(_rounded(asdict(row)))
        told_of = {"machine": measured_on, "rows": rows}
        path.write_text(json.dumps(told_of, indent=1, ensure_ascii=False) + "\n")


def commit():
    """Short hash of the commit; with a + where src differs from it."""

    def git(*words):
        done = subprocess.run(
            ["git", *words], cwd=RESULTS.parent, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "../src") else "")


def _rounded(row):
    """Four digits, and nothing that is not known."""
    known = {key: value for key, value in row.items() if value not in (None, "")}
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in known.items()}
