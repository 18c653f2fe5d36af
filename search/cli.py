"""The command line: names of commands, errors as one line, exit codes.

Commands are imported when they are called, so that `--help` needs neither torch nor Optuna.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | the job failed |
| 2 | a flag, a file or a value that cannot be used |
| 3 | nothing to work on: no such study, no finished trial, no image |
| 4 | finished, but a stated bar was missed |
| 5 | finished with parts missing, such as images that could not be read |
| 130, 143 | interrupted by Ctrl-C or SIGTERM; everything finished is kept |
"""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from cyclopts import App, CycloptsError

from ensembles.errors import BundleError, EnsembleError
from search.errors import ConfigError, NothingToDoError, SearchError
from search.words import program
from spaces.errors import SpaceError

EXIT_CODES: Mapping[type[Exception], int] = {
    ConfigError: 2,
    NothingToDoError: 3,
    SearchError: 1,
    BundleError: 2,
    EnsembleError: 2,
    SpaceError: 2,
}
COMMANDS: Mapping[str, str] = {
    "run": "Search, build the ensemble and report; the same command again goes on.",
    "resume": "Go on with a study that was interrupted, or give it more trials.",
    "worker": "Run trials of a study that another host has begun.",
    "copy": "Move the trials of a study from SQLite to PostgreSQL, or back.",
    "status": "Show how far a study is.",
    "best": "Show the best trials of a study.",
    "list": "List the studies.",
    "ensemble": "Build the ensemble again from the stored predictions, and report.",
    "export": "Write the ensemble, or the best single model, as one folder.",
    "distill": "Train one network that learns from the ensemble.",
    "predict": "Label pictures with an exported model.",
    "evaluate": "Measure an exported model on labeled pictures.",
    "clean": "Show what studies hold on the disk, and free what nobody needs.",
    "dashboard": "Serve Optuna's dashboard on a study, in the browser.",
    "space": "Show what a space lets a study vary.",
}


def make_app() -> App:
    """Return the application with all commands; none of them is imported yet."""
    _spare_docstrings_of_models()
    app = App(
        name=program(),
        help="Hyperparameter search and honest ensembles for image classification.",
        help_format="plaintext",
        version=_version,
    )
    for name, text in COMMANDS.items():
        app.command(f"search.commands.{name}:main", name=name, help=text)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Words of the command line; default: those of this process.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = make_app()(
            words, result_action="return_value", exit_on_error=False, print_error=False
        )
    except CycloptsError as error:
        return _refuse(_usage_message(error), 2)
    except tuple(EXIT_CODES) as error:
        code = next(EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES)
        return _refuse(str(error), code)
    except KeyboardInterrupt:
        return _refuse("interrupted.", 130)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has enough
        sys.stderr.close()
        return 0
    return result if isinstance(result, int) else 0


def _spare_docstrings_of_models() -> None:
    """Have cyclopts take the help of a model's fields from the fields alone.

    It would also parse the source of every base class, pydantic's own included, for strings under
    fields: a fifth of the time of `run --help`. Where a later cyclopts has no such function, help
    is slower and says the same.
    """
    with contextlib.suppress(ImportError, AttributeError):
        from cyclopts.argument import _collection  # noqa: PLC0415

        module: Any = _collection
        parse = module.extract_docstring_help
        if parse.__module__ == __name__:
            return  # done before in this process

        def describe(described: Any) -> Any:
            return {} if isinstance(described, type) else parse(described)

        module.extract_docstring_help = describe


def _version() -> str:
    from importlib.metadata import version  # noqa: PLC0415  # a tenth of a second

    return f"concertino {version('concertino')}"


def _refuse(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _usage_message(error: CycloptsError) -> str:
    from pydantic import ValidationError  # noqa: PLC0415  # not on the way of --help

    from search.config import explain  # noqa: PLC0415

    cause = error.__cause__ or error.__context__
    if isinstance(cause, ValidationError):
        key, colon, rest = explain(cause).partition(":")
        return f"--{key.replace('_', '-')}{colon}{rest}"
    return " ".join(str(error).split())
