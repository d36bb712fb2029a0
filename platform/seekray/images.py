"""Pictures to look at: PNG files of generated images, and contact sheets of many."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
from PIL import Image

CONTACT_SHEET = "contact_sheet.png"
MOST_ON_SHEET = 100


def image_column(table: pa.Table) -> str | None:
    """The first column of encoded images, None without one."""
    return next((f.name for f in table.schema if pa.types.is_binary(f.type)), None)


def contact_sheet(images: Sequence[bytes], scale_to: int = 64) -> bytes:
    """A PNG of encoded images (one size) in rows, each enlarged to about `scale_to` pixels, nearest neighbour."""
    opened = [Image.open(io.BytesIO(data)).convert("RGB") for data in images[:MOST_ON_SHEET]]
    if not opened:
        return b""
    width, height = opened[0].size
    factor = max(1, scale_to // max(width, height))
    columns = min(len(opened), max(1, round(len(opened) ** 0.5)))
    cell = (width * factor + 2, height * factor + 2)
    sheet = Image.new("RGB", (columns * cell[0], -(-len(opened) // columns) * cell[1]), "white")
    for number, image in enumerate(opened):
        large = image.resize((width * factor, height * factor), Image.Resampling.NEAREST)
        sheet.paste(large, (number % columns * cell[0], number // columns * cell[1]))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def write_images(tables: Iterable[pa.Table], folder: Path) -> int:
    """`000000.png`, … (with the other columns in `rows.csv`) and a contact sheet of the first; returns how many."""
    import pyarrow.csv as pacsv

    folder.mkdir(parents=True, exist_ok=True)
    count, others = 0, []
    shown: list[bytes] = []
    for table in tables:
        name = image_column(table)
        assert name is not None
        names = []
        for data in table.column(name).to_pylist():
            names.append(f"{count:06d}.png")
            (folder / names[-1]).write_bytes(data)
            shown += [data] if len(shown) < MOST_ON_SHEET else []
            count += 1
        others.append(_beside(table, name, names))
    pacsv.write_csv(pa.concat_tables(others), folder / "rows.csv")
    (folder / CONTACT_SHEET).write_bytes(contact_sheet(shown))
    return count


def _beside(table: pa.Table, name: str, files: list[str]) -> pa.Table:
    """The other columns with the files' names."""
    return table.drop_columns([name]).add_column(0, "file", pa.array(files))
