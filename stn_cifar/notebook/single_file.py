"""The notebook as one file that needs nothing beside it: its setup cell carries the package.

Its pictures are in the notebook already: `python -m stn_cifar report` embeds them.
"""

import base64
import hashlib
import io
import json
import re
import zipfile
from pathlib import Path

from .. import __version__
from ..files import check_new, write_whole

PACKAGE = Path(__file__).resolve().parents[1]
NOTEBOOK = PACKAGE.parent / "notebooks" / "stn_cifar10.ipynb"

PROSE = """## Setup

The package `stn_cifar` is packed in the cell below: version {version}, content {digest}. The
cell unpacks it into a temporary folder; nothing is downloaded or installed. It can be run twice."""

# Unpacked, not imported from the zip: so tracebacks, and ?? in a notebook, show the source. It goes
# before a package of that name beside the notebook, as these cells are made for this one, and
# before an older one that is loaded already.
SETUP = '''# @title Setup: unpacks the package, which this cell carries
import atexit
import base64
import importlib.util
import io
import shutil
import sys
import tempfile
import zipfile

NAME = "{name}"
PACKED = """
{packed}
"""
needed = ("torch", "matplotlib", "tqdm")
if missing := [name for name in needed if not importlib.util.find_spec(name)]:
    raise ImportError(f"run %pip install {{' '.join(missing)}} in a cell, then this cell again")
if not any(NAME in place for place in sys.path):
    folder = tempfile.mkdtemp(prefix=NAME)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    zipfile.ZipFile(io.BytesIO(base64.b64decode(PACKED))).extractall(folder)
    sys.path.insert(0, folder)
    for name in [name for name in sys.modules if name.split(".")[0] == "stn_cifar"]:
        del sys.modules[name]
'''


def write(out: Path) -> None:
    """Write a self-contained copy of the notebook, without outputs, to `out`.

    The same bytes each time. ValueError if `out` is no .ipynb; OSError if it is there already, or
    cannot be written, or the notebook is not there.
    """
    out = Path(out)
    if out.suffix != ".ipynb":
        raise ValueError(f"out: {str(out)!r} is no notebook; its name must end in .ipynb")
    if not NOTEBOOK.is_file():
        raise FileNotFoundError("the notebook is not part of the installed package; it is in the "
                                "repository: clone it, and run this command there")
    check_new(out)
    write_whole(out, json.dumps(alone(), indent=1, ensure_ascii=False) + "\n")


def alone() -> dict:
    """The notebook, as JSON has it, without outputs and with all it needs."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    content = packed()
    digest = hashlib.sha256(content).hexdigest()[:12]
    lines = re.findall(".{1,100}", base64.b64encode(content).decode())
    setup = SETUP.format(name=f"stn_cifar-{digest}-", packed="\n".join(lines))
    carried = [_cell("markdown", "packed-prose", PROSE.format(version=__version__, digest=digest)),
               _cell("code", "packed", setup, outputs=[], execution_count=None,
                     metadata=dict(cellView="form", jupyter=dict(source_hidden=True)))]
    cells = []
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("tags", [])
        if "setup" in tags:  # which find and install the package: the first is replaced
            cells, carried = cells + carried, []
            continue
        if cell["cell_type"] == "code":
            cell |= dict(outputs=[], execution_count=None)
        if "parameters" in tags:  # an address is of no use here
            cell["source"] = [line for line in cell["source"]
                              if not re.match("(REPO_URL|REF) = ", line)]
            cell["source"][-1] = cell["source"][-1].rstrip("\n")
        cells.append(cell)
    return notebook | dict(cells=cells)


def _cell(kind: str, ident: str, source: str, **more) -> dict:
    return dict(cell_type=kind, id=ident, metadata={},
                source=source.splitlines(keepends=True)) | more


def packed() -> bytes:
    """The package's files as a zip; the same bytes each time (with the same zlib)."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for path in sorted(PACKAGE.rglob("*")):
            place = path.relative_to(PACKAGE.parent)
            if path.is_file() and not any(part[0] == "." or part == "__pycache__"
                                          for part in place.parts):
                entry = zipfile.ZipInfo(place.as_posix())  # dated 1980, not today
                archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED, compresslevel=9)
    return content.getvalue()
