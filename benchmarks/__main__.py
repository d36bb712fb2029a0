"""Run every benchmark, or those named."""

from __future__ import annotations

import subprocess
import sys

ALL = (
    "data", "training", "training_lm", "startup", "serving", "batch_predict", "quality", "quality_images",
    "quality_rec", "training_rec", "quality_lm",
    "quality_gen", "init_defaults", "generation", "generation_serving", "tuning",
)  # fmt: skip


def main() -> int:
    """Each in a process of its own; the exit code is that of the worst."""
    worst = 0
    for name in sys.argv[1:] or ALL:
        print(f"== {name}", flush=True)
        worst = max(worst, subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main())
