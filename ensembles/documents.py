"""Reading what was written as JSON back into the value that it was."""

import json
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from ensembles.errors import EnsembleError

T = TypeVar("T")


def read_document(kind: type[T], values: object, *, what: str) -> T:
    """Read a dataclass from JSON values, strictly.

    Args:
        kind: The dataclass.
        values: What `json.loads` gave.
        what: The name of the document, for the message: "report of ensembles".

    Raises:
        EnsembleError: A key is missing or unknown, or a value is of the wrong kind.
    """
    try:
        document: T = TypeAdapter(kind).validate_json(json.dumps(values), strict=True)
    except (ValidationError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise EnsembleError(f"this is no {what}: {first}.") from error
    return document
