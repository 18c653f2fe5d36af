"""Labels for pictures from an exported bundle; needs neither a study nor Optuna."""

import sys
from itertools import chain, islice
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from search.errors import ConfigError, NothingToDoError

_PARTS_MISSING = 5
_N_IN_TABLE = 3
_FLAGS = ("--json", "--output", "--top-k", "--threshold", "--sets", "--reject", "--cascade",
          "--no-cascade", "--batch-size", "--device", "--help")  # fmt: skip


def main(
    bundle: Path,
    /,
    *paths: Annotated[str, Parameter(allow_leading_hyphen=True)],
    json: Annotated[bool, Parameter(negative="")] = False,
    output: Path | None = None,
    top_k: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    threshold: Annotated[float, Parameter(validator=Number(gte=0, lte=1))] = 0.0,
    sets: Annotated[bool, Parameter(negative="")] = False,
    reject: Annotated[bool, Parameter(negative="")] = False,
    cascade: bool | None = None,
    batch_size: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    device: str = "auto",
) -> int:
    """Label pictures with an exported model.

    Args:
        bundle: Folder that `export` wrote.
        paths: Files, folders, patterns such as "photos/**/*.jpg", or - for a list of them on the
            standard input, one in each line.
        json: Print JSON lines, one document for each picture.
        output: Write F.csv or F.jsonl instead of printing a table.
        top_k: How many of the most likely classes to give; default: 3 in the table, all elsewhere.
        threshold: Give no label to a picture whose most likely class is less likely than this.
        sets: Give the classes that a picture may have, so that as many pictures have the true one
            among them as the model promises.
        reject: Give no label where the model does not answer for it.
        cascade: Run the members one after another, and stop when they are sure: much cheaper,
            a little less accurate; the promises of --sets and --reject are not for it. Default:
            as the model was exported.
        batch_size: Pictures to run at once; default: by their size.
        device: auto, cpu, cuda or, for example, cuda:1.
    """
    # Imported late, so that --help and a mistyped name need not wait for NumPy and torch.
    from search.inference import Complaints, find_pictures, refuse_unknown_flags  # noqa: PLC0415

    refuse_unknown_flags(paths, _FLAGS)
    if output is not None and output.suffix not in (".csv", ".jsonl"):
        raise ConfigError(f"--output must end in .csv or .jsonl, got {str(output)!r}.")
    complaints = Complaints()
    pictures = find_pictures(paths, sys.stdin, complain=complaints.add)
    first = next(pictures, None)
    if first is None:
        where = f" in {', '.join(paths)}" if paths else "; name files, folders or patterns"
        raise NothingToDoError(f"no picture found{where}.")

    from ensembles.bundle import load_bundle  # noqa: PLC0415
    from search.inference import choose_device, picture_counter  # noqa: PLC0415
    from search.labels import Promises, open_writers  # noqa: PLC0415

    promises = Promises(sets=sets, reject=reject, cascade=cascade)
    loaded = load_bundle(bundle, device=choose_device(device))
    promises.check(loaded)
    prints_table = not json and output is None
    n_ranked = min(top_k or len(loaded.classes), len(loaded.classes))
    if prints_table and top_k is None:
        n_ranked = min(_N_IN_TABLE, n_ranked)
    size = batch_size or loaded.default_batch_size
    predictions = loaded.predict_each(
        chain([first], pictures), batch_size=size, cascade=promises.runs_cascade
    )
    with (
        picture_counter(visible=not prints_table and sys.stderr.isatty()) as show_count,
        open_writers(
            sys.stdout,
            json_lines=json,
            output=output,
            columns=loaded.classes,
            n_ranked=n_ranked if top_k else None,
            with_sets=sets,
        ) as write,
    ):
        while batch := list(islice(predictions, size)):
            for each in batch:
                if each.problem:
                    complaints.add(str(each.source), each.problem)
            write(
                [
                    promises.label(each, loaded.classes, n_ranked=n_ranked, threshold=threshold)
                    for each in batch
                    if not each.problem
                ]
            )
            show_count(len(batch))
    return _PARTS_MISSING if complaints.n_problems else 0
