"""English texts of programs with their translations, from the message catalogues (.mo) inside Debian packages.

    python examples/catalogues.py LANGUAGE [OUT]        (default: catalogues-LANGUAGE.jsonl)

Fetches the packages below with `apt-get download` into a temporary folder, shows the licences that each states, and writes a
row a text: english, translation, package. Nothing of it is redistributed here: the translations stay under their packages'
licences. A text that occurs twice is taken once.
"""

from __future__ import annotations

import gettext
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGES = (
    "coreutils", "bash", "tar", "sed", "grep", "diffutils", "findutils", "wget", "nano", "gettext", "make",
    "util-linux-locales", "gtk2.0-common", "libglib2.0-data", "libgtk-3-common", "aptitude-common",
)  # fmt: skip
LONGEST = 80  # characters of a text; longer ones are usage pages


def licences(folder: Path) -> str:
    """The licence names that a package's copyright file states."""
    found = sorted(folder.glob("usr/share/doc/*/copyright"))
    text = found[0].read_text(errors="replace") if found else ""
    named = dict.fromkeys(re.findall(r"^License:\s*(\S.*)$", text, flags=re.M))
    known = dict.fromkeys(re.findall(r"/usr/share/common-licenses/([\w.+-]+)", text))
    return ", ".join([*named, *known][:8]).rstrip(".") or "see its copyright file"


def catalogues(folder: Path, language: str) -> dict[str, str]:
    """Texts and translations of all catalogues of a language below a folder."""
    found = {}
    for file in sorted(folder.glob(f"usr/share/locale/{language}/LC_MESSAGES/*.mo")):
        with file.open("rb") as stream:
            messages = gettext.GNUTranslations(stream)._catalog  # type: ignore[attr-defined]
        for english, translation in messages.items():
            if isinstance(english, str) and isinstance(translation, str):
                found[english.rpartition("\x04")[2]] = translation
    return found


def usable(english: str, translation: str) -> bool:
    """Short, of one line, with words in it, and translated."""
    return (
        0 < len(english) <= LONGEST
        and 0 < len(translation) <= 2 * LONGEST
        and "\n" not in english + translation
        and bool(re.search(r"[A-Za-z]{3}", english))
        and english != translation
    )


def fetch(language: str) -> list[dict[str, str]]:
    """Rows of all packages that can be fetched; those that cannot are told."""
    rows: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for package in PACKAGES:
            folder = Path(temporary) / package
            folder.mkdir()
            done = subprocess.run(["apt-get", "-qq", "download", package], cwd=folder, capture_output=True, text=True)
            files = list(folder.glob("*.deb"))
            if done.returncode or not files:
                print(f"{package}: cannot be fetched, left out", file=sys.stderr)
                continue
            subprocess.run(["dpkg-deb", "-x", files[0].name, "."], cwd=folder, check=True)
            found = {e: t for e, t in catalogues(folder, language).items() if usable(e, t)}
            new = {e: t for e, t in found.items() if e not in rows}
            rows |= {e: {"english": e, "translation": t, "package": package} for e, t in new.items()}
            print(f"{package}: {len(new)} texts; licences: {licences(folder)}", file=sys.stderr)
    return list(rows.values())


def main(language: str, out: str) -> None:
    """Write them as JSON lines."""
    rows = fetch(language)
    Path(out).write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    print(f"{len(rows)} texts in {out}")


if __name__ == "__main__":
    wanted = sys.argv[1] if len(sys.argv) > 1 else "de"
    main(wanted, sys.argv[2] if len(sys.argv) > 2 else f"catalogues-{wanted}.jsonl")
