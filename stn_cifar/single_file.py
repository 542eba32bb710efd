"""The notebook as one file that needs nothing beside it: the package is packed in its setup cell.

Its pictures are in the notebook already: `report.embed_pictures`.
"""

import base64
import hashlib
import io
import json
import re
import zipfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
NOTEBOOK = PACKAGE.parent / "notebooks" / "stn_cifar10.ipynb"

PROSE = """## Setup

The package `stn_cifar` is packed in the cell below, which unpacks it into a temporary folder: nothing is downloaded or
installed. It can be run twice."""

# Unpacked, not imported from the zip: so tracebacks, and ?? in a notebook, show the source. It goes before a package of
# that name beside the notebook, as these cells are made for this one, and before an older one that is loaded already.
SETUP = '''# @title Setup: unpacks the package, which this cell carries
%matplotlib inline
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
if missing := [name for name in ("torch", "torchvision", "matplotlib", "tqdm") if not importlib.util.find_spec(name)]:
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
    """Write a self-contained copy of the notebook, without outputs, to `out`, the same bytes each time.

    ValueError if `out` is no .ipynb, or is the notebook; OSError if it cannot be written, or the notebook is not there.
    """
    out = Path(out)
    if out.suffix != ".ipynb":
        raise ValueError(f"out: {str(out)!r} is no notebook; its name must end in .ipynb")
    if not NOTEBOOK.is_file():
        raise FileNotFoundError("the notebook is not part of the installed package; it is in the repository: clone it, "
                                "and run this command there")
    if out.resolve() == NOTEBOOK.resolve():
        raise ValueError(f"out: {out} is the notebook itself; name another file")
    text = json.dumps(alone(), indent=1, ensure_ascii=False) + "\n"
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OSError(f"{out}: cannot be written ({error.strerror}); name another place") from error


def alone() -> dict:
    """The notebook, as JSON has it, without outputs and with all it needs."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    before = None
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            cell |= dict(outputs=[], execution_count=None)
            if "parameters" in cell["metadata"].get("tags", []):
                source = re.sub(r"(?m)^(REPO_URL|REF) = .*\n?", "", source).rstrip("\n")  # of no use here
            if 'find_spec("stn_cifar")' in source:
                source, before["source"] = _setup(), PROSE.splitlines(keepends=True)
                cell["metadata"] |= {"cellView": "form", "jupyter": {"source_hidden": True}}
        cell["source"] = source.splitlines(keepends=True)
        before = cell
    return notebook


def _setup() -> str:
    """The source of the cell that carries the package."""
    content = packed()
    name = f"stn_cifar-{hashlib.sha256(content).hexdigest()[:12]}-"
    text = base64.b64encode(content).decode()
    return SETUP.format(name=name, packed="\n".join(re.findall(".{1,120}", text)))


def packed() -> bytes:
    """The package's modules, and nothing else, as a zip; the same bytes each time (with the same zlib)."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for path in sorted(PACKAGE.glob("*.py")):
            entry = zipfile.ZipInfo(f"{PACKAGE.name}/{path.name}")  # dated 1980, not today
            archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED, compresslevel=9)
    return content.getvalue()
