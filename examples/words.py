"""Eight English words in sixteen voices of a speech synthesizer, as WAV sounds in a Parquet file.

    python examples/words.py [OUT]        (default: words.parquet)

Needs espeak-ng (Debian's package; `make install` has it) and writes a row a sound: audio (the bytes of a WAV file),
label, voice. It downloads nothing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

WORDS = ("yes", "no", "stop", "go", "left", "right", "up", "down")
VOICES = [f"{accent}+{kind}" for accent in ("en-us", "en-gb", "en-gb-scotland", "en-029") for kind in ("m1", "m3", "f2", "f4")]
SPEEDS = ("140", "175")  # words a minute


def sounds(espeak: str) -> Iterator[dict[str, Any]]:
    """All words in all voices and speeds."""
    for voice in VOICES:
        for word in WORDS:
            for speed in SPEEDS:
                command = [espeak, "-v", voice, "-s", speed, "--stdout", word]
                audio = subprocess.run(command, check=True, capture_output=True).stdout
                yield {"audio": audio, "label": word, "voice": voice}


def main() -> None:
    """Write the file."""
    out = sys.argv[1] if len(sys.argv) > 1 else "words.parquet"
    espeak = shutil.which("espeak-ng")
    if espeak is None:
        raise SystemExit("espeak-ng is not installed; install it with: apt-get install espeak-ng")
    rows = list(sounds(espeak))
    pq.write_table(pa.Table.from_pylist(rows), out)
    print(f"{out}: {len(rows)} sounds, {len(WORDS)} words in {len(VOICES)} voices")


if __name__ == "__main__":
    main()
