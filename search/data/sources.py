"""From what the user typed after `--data` to a list of images."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from search.data.arrays import read_arrays, read_digits
from search.data.folders import read_folder
from search.data.listing import Listing
from search.data.manifests import read_manifest
from search.data.torchvision_sets import SETS, read_torchvision
from search.errors import DataError
from search.words import is_text, suggestion

DIGITS = "digits"

FILE_READERS: Mapping[str, Callable[[Path], Listing]] = {
    ".csv": read_manifest,
    ".tsv": read_manifest,
    ".npz": read_arrays,
}
"""From the suffix of a file to what reads it."""


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """What the user typed."""

    data: str
    """`digits`, a torchvision name, a folder, or a file; a name wins over a folder of that name,
    which `./name` reaches."""
    data_root: Path | None = None
    """Where torchvision's data sets lie."""
    download: bool = False
    """Whether to fetch a torchvision data set that is not there."""


def list_dataset(request: DataRequest) -> Listing:
    """List the images that the user named; decodes none of them.

    Raises:
        DataError: Nothing has this name, or what has it is no data set; the message says in one
            line what is wrong, what was got, and what would be right.
    """
    if not request.data.strip():
        raise DataError(f"--data: expected a folder, a file or a data set, got {request.data!r}.")
    name = request.data.lower().replace("_", "-")
    if name == DIGITS:
        return read_digits()
    if name in SETS:
        return read_torchvision(name, root=request.data_root, download=request.download)
    path = Path(request.data).expanduser()
    if not is_text(str(path.absolute())):
        raise DataError(f"--data: {str(path)!a}: the path is not UTF-8; rename it.")
    if path.is_dir():
        return read_folder(path)
    if path.suffix.lower() in FILE_READERS and path.is_file():
        return FILE_READERS[path.suffix.lower()](path)
    raise DataError(_unknown(request.data, path))


def _unknown(data: str, path: Path) -> str:
    """Say what is wrong with a name that leads nowhere."""
    if path.exists() and not path.is_file():
        return (
            f"{data}: neither a folder nor a regular file; expected a folder, a .csv or an .npz "
            "file."
        )
    if path.is_file():
        return f"{data}: expected a folder, a .csv or an .npz file; unpack an archive first."
    looks_like_path = path.suffix or path.name != data
    if not path.parent.is_dir():
        return f"{data}: no such file or folder; {path.parent} is not there either."
    beside = [entry.name for entry in path.parent.iterdir()]
    known = [] if looks_like_path else [DIGITS, *SETS]
    kinds = "file or folder" if looks_like_path else "folder, file or data set"
    wrong = f"{data}: no such {kinds}"
    near = difflib.get_close_matches(path.name, [*known, *beside], n=1)
    if near:
        meant = near[0] if near[0] in known else str(path.parent / near[0])
        return f"{wrong}; did you mean {meant!r}?"
    return f"{wrong}." if looks_like_path else f"{wrong}{suggestion(data, known)}"
