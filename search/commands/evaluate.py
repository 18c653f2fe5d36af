"""How good an exported bundle is on labelled images."""

import json as json_format
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

_BAR_MISSED = 4
_PARTS_MISSING = 5


def main(
    bundle: Path,
    /,
    *,
    data: str,
    split: Literal["test", "val", "train", "all"] | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
    fail_under: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    batch_size: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    device: str = "auto",
    download: Annotated[bool, Parameter(negative="")] = False,
    data_root: Path | None = None,
) -> int:
    """Measure an exported model on labeled pictures.

    Args:
        bundle: Folder that `export` wrote.
        data: Folder of class folders, CSV or NPZ file, digits, or a torchvision name.
        split: Which of the data's own splits; default: test if there is one, else all images.
        json: Print one JSON document.
        fail_under: End with exit code 4 if a metric misses a bar, such as accuracy=0.95; for
            log_loss and other metrics of which less is better, if it lies above. May be repeated.
        batch_size: Pictures to run at once; default: by their size.
        device: auto, cpu, cuda or, for example, cuda:1.
        download: Fetch a torchvision data set that is not there.
        data_root: Folder of torchvision's data sets.
    """
    # Imported here, so that --help needs neither torch nor scikit-learn.
    from ensembles.bundle import load_bundle  # noqa: PLC0415
    from search import evaluation, inference  # noqa: PLC0415
    from search.data.sources import DataRequest, list_dataset  # noqa: PLC0415

    bars = evaluation.parse_bars(fail_under)
    loaded = load_bundle(bundle, device=inference.choose_device(device))
    listing = list_dataset(DataRequest(data=data, data_root=data_root, download=download))
    selection = evaluation.select_images(listing, split, loaded.classes)
    searched_on = Path(loaded.manifest.provenance.dataset).resolve()
    if selection.split != "test" and searched_on == Path(data).resolve():
        print(
            f"warning: the study behind {bundle} was searched on {data}, so these images are "
            "partly those that it was trained on: the figures flatter.",
            file=sys.stderr,
        )
    complaints = inference.Complaints()
    with inference.picture_counter(visible=sys.stderr.isatty()) as count:
        result = evaluation.evaluate(
            loaded,
            listing,
            selection,
            complain=complaints.add,
            count=count,
            batch_size=batch_size,
        )
    missed = evaluation.find_missed(result, bars)
    if json:
        print(json_format.dumps({**result.to_json(), "missed": missed}))
    else:
        print("\n".join(evaluation.evaluation_lines(result)))
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    if missed:
        return _BAR_MISSED
    return _PARTS_MISSING if complaints.n_problems else 0
