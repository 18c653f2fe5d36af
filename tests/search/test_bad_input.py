"""Bad input, whatever it is, ends in one line that helps and the right exit code."""

import json
import os
import shlex
import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from runs import draw_folder, make_tiny_study

from search.cli import main

Prepare = Callable[[], object]
PORT = "TAKEN"
"""Stands for a port that another program listens on."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One mistake: a command, and what it shall say."""

    words: str
    message: str
    """How the line begins, after `error: `."""
    code: int = 2
    prepare: Prepare = lambda: None
    """Makes the mistake in a folder that is this case's own."""
    environment: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    """What is wrong, where the words do not tell."""


READERS = ("status", "best", "ensemble", "export", "distill", "dashboard", "resume", "clean")
"""Commands that want a study."""
FLAGS = [
    ("frobnicate", 'Unknown command "frobnicate". Available commands: run,'),
    ("run --trails 5", "Unknown option: --trails. Did you mean --trials?"),
    ("run extra", "Unused Tokens: ['extra']"),
    ("run --trials", 'Command "run" parameter --trials requires an argument'),
    ("run --trials many", "--trials: Input should be a valid integer"),
    ("run --trials 0", "--trials: Input should be greater than or equal to 1, got '0'"),
    ("run --epochs 0.5", "--epochs: Input should be a valid integer"),
    ("run --budget soon", "--budget: expected a time such as 90s, 15m or 1h30m, got 'soon'"),
    ("run --budget=-5m", "--budget: expected a time such as 90s, 15m or 1h30m, got '-5m'"),
    ("run --trial-timeout 0s", "--trial-timeout: expected a time such as 90s"),
    ("run --workers 0", "--workers: Input should be greater than or equal to 1"),
    ("run --workers 99999", "--workers: Input should be less than or equal to 1024, got '99999'"),
    ("run --seed -1", "--seed: Input should be greater than or equal to 0, got '-1'"),
    ("run --seed 99999999999999999999999", "--seed: Input should be less than or equal to 42949"),
    ("run --trials 10000001", "--trials: Input should be less than or equal to 10000000, got"),
    ("resume fresh --trials 10000001", "resume: trials: Input should be less than or equal to 1"),
    ("resume fresh --trials +10000000", "resume: trials: Input should be less than or equal to"),
    ("resume fresh --trials \u00b2", "--trials: expected a number such as 150 or +50, got"),
    ("run --seed 1 --seed 2", "Parameter --seed specified multiple times"),
    ("run --image-size 2", "--image-size: Input should be greater than or equal to 4, got '2'"),
    ("run --image-size 999", "--image-size: Input should be less than or equal to 512, got '999'"),
    ("run --limit-train 1", "--limit-train: Input should be greater than or equal to 2"),
    ("run --keep 0", "--keep: Input should be greater than or equal to 1"),
    ("run --max-members 0", "--max-members: Input should be greater than or equal to 1"),
    ("run --preset huge", "--preset: Input should be 'quick', 'balanced' or 'best', got 'huge'"),
    ("run --metric f1", "--metric: Input should be 'log_loss', 'accuracy',"),
    ("run --sampler best", "--sampler: Input should be 'tpe', 'random', 'grid',"),
    ("run --pruner hard", "--pruner: Input should be 'median', 'none',"),
    ("run --fit squeeze", "--fit: Input should be 'crop', 'pad' or 'stretch', got 'squeeze'"),
    ("run --space huge", "--space: known spaces are auto, default, digits, small; got 'huge'"),
    (
        "run --storage mysql://ann:secret@host/trials",
        (
            "--storage: expected an URL such as postgresql://USER@HOST:5432/DATABASE, got "
            "'mysql://ann:***@host/trials'"
        ),
    ),
    (
        "run --storage sqlite:///trials.db",
        (
            "--storage: expected an URL such as postgresql://USER@HOST:5432/DATABASE, got "
            "'sqlite:///trials.db'; SQLite needs no URL: it is the default"
        ),
    ),
    (
        "run --storage postgresql://ann:se#cret@host/trials",
        (
            "--storage: expected an URL such as postgresql://USER@HOST:5432/DATABASE, got one "
            "that cannot be read; a password with special characters is written with %40 for @"
        ),
    ),
    ("run --name ../x", "--name: a name has letters, digits, dots, dashes and underscores"),
    ("run --name .x", "--name: a name has letters, digits, dots, dashes and underscores"),
    ("list --studies text.txt", "text.txt: not a folder; --studies names the folder of studies"),
    ("run --download=maybe", 'Invalid value for --download: unable to convert "maybe"'),
    (
        "run --devices gpu",
        "devices: expected auto, cpu or a list such as 0,1 or cuda:0,cuda:1 or GPU-7f31, got",
    ),
    ("run --slots-per-device many", "--slots-per-device: expected auto or a number from 1 to 99"),
    ("run --devices cuda:99", "devices: cuda:99 is not there; torch sees"),
    ("run --vary.flip none", "vary: unknown field 'flip'; did you mean 'flips'"),
    ("run --vary.flips sideways", "vary: flips.0: Input should be 'none', 'random' or"),
    ("run --vary.width wide", "vary: width.0: Input should be a valid integer"),
    ("run --vary.width -8", "vary: space.width must be two numbers, the lower one first, from 1"),
    ("run --config absent.toml", "absent.toml: cannot be read: No such file or directory"),
    ("run --config photos", "photos: cannot be read: Is a directory"),
    ("run --studies text.txt", "text.txt/digits: cannot be written: Not a directory; --studies"),
    ("space dflt", "unknown space 'dflt'; did you mean 'default'"),
    ("status one two", "Unused Tokens: ['two']"),
    ("best --top 0", 'Invalid value "0" for --top. Must be >= 1'),
    ("ensemble --method magic", 'Invalid value "magic" for --method. Choose from: "single"'),
    ("ensemble --folds 1", 'Invalid value "1" for --folds. Must be >= 2'),
    ("ensemble --seeds 1", 'Invalid value "1" for --seeds. Must be >= 2'),
    ("ensemble --seeds two", 'Invalid value for --seeds: unable to convert "two" into int'),
    ("run --folds 1", "--folds: Input should be greater than or equal to 2, got '1'"),
    ("run --folds 100", "--folds: Input should be less than or equal to 99, got '100'"),
    ("run --seeds 1", "--seeds: Input should be greater than or equal to 2, got '1'"),
    ("ensemble --max-members 0", 'Invalid value "0" for --max-members. Must be >= 1'),
    ("export --method magic", 'Invalid value "magic" for --method'),
    ("distill --method magic", 'Invalid value "magic" for --method'),
    ("distill --student -1", 'Invalid value "-1" for --student. Must be >= 0'),
    ("distill --student best", 'Invalid value for --student: unable to convert "best" into int'),
    ("distill --students 0", 'Invalid value "0" for --students. Must be >= 1'),
    ("distill --epochs 0", 'Invalid value "0" for --epochs. Must be >= 1'),
    ("distill --temperature 0", 'Invalid value "0.0" for --temperature. Must be > 0'),
    ("distill --share 1.5", 'Invalid value "1.5" for --share. Must be <= 1'),
    ("distill --budget soon", "distill: budget: expected a time such as 90s, 15m or 1h30m, got"),
    ("distill fresh --out photos", "photos is not empty; choose another folder, or replace"),
    ("distill fresh --out text.txt", "text.txt is a file; a bundle is a folder"),
    ("clean --keep 0", 'Invalid value "0" for --keep. Must be >= 1'),
    ("clean --keep few", 'Invalid value for --keep: unable to convert "few" into int'),
    ("clean one two", "Unused Tokens: ['two']"),
    ("dashboard --port 70000", 'Invalid value "70000" for --port. Must be <= 65535'),
    ("dashboard --port http", 'Invalid value for --port: unable to convert "http" into int'),
    (
        f"dashboard fresh --no-browser --port {PORT}",
        f"--port: cannot listen on 127.0.0.1:{PORT}: Address already in use; choose another",
    ),
    (
        "dashboard fresh --no-browser --port 0 --host 192.0.2.1",  # kept free for documents
        "--host: cannot listen on 192.0.2.1: Cannot assign requested address; expected an address",
    ),
    ("predict", 'Command "predict" parameter BUNDLE requires an argument'),
    ("predict model photos --top-k 0", 'Invalid value "0" for --top-k. Must be >= 1'),
    ("predict model photos --threshold 2", 'Invalid value "2.0" for --threshold. Must be <= 1'),
    ("predict model photos --output x.txt", "--output must end in .csv or .jsonl, got 'x.txt'"),
    ("predict model photos --jsn", "unknown option --jsn; did you mean '--json'"),
    ("predict model photos --device gpu", "--device gpu: must be auto, cpu, cuda or cuda:N"),
    ("predict model photos --device cuda:99", "--device cuda:99: torch finds"),
    ("evaluate model", 'Command "evaluate" parameter --data requires an argument'),
    ("evaluate model --data photos --split exam", 'Invalid value "exam" for --split'),
    ("evaluate model --data photos --fail-under accuracy", "--fail-under accuracy: "),
    (
        "evaluate model --data photos --fail-under f9=1",
        "--fail-under f9=1: unknown metric; known are accuracy,",
    ),
]
TOML = [
    ("trials = ", "study.toml: not valid TOML: Invalid value"),
    ("trails = 5", "study.toml: unknown key 'trails'; did you mean 'trials'"),
    ("trials = 0", "study.toml: trials: Input should be greater than or equal to 1"),
    ("trials = 'many'", "study.toml: trials: Input should be a valid integer"),
    ("name = 5", "study.toml: name: Input should be a valid string, got 5"),
    ("vary = 5", "study.toml: vary: Input should be a valid dictionary, got 5"),
    ("preset = 'huge'", "preset: known presets are quick, balanced, best; got 'huge'"),
    ("vary.flips = 'sideways'", "vary: flips.0: Input should be 'none', 'random' or"),
    ("# \udcff", "study.toml: not valid TOML: 'utf-8' codec can't decode byte 0xff"),
]
ENVIRONMENT = [
    ("CONCERTINO_TRIALS", "many", "environment: trials: Input should be a valid integer"),
    ("CONCERTINO_PRESET", "huge", "preset: known presets are quick, balanced, best"),
    ("CONCERTINO_VARY", "{", 'CONCERTINO_VARY: expected JSON such as {"flips": "none"}'),
    ("CONCERTINO_DEVICES", "gpu", "devices: expected auto, cpu or a list"),
    ("CONCERTINO_STORAGE", "redis://h", "environment: storage: expected an URL such as postgres"),
    ("CONCERTINO_TRAILS", "5", "environment: unknown variable 'CONCERTINO_TRAILS'; did you mean"),
    ("CONCERTINO_STUDIES", "text.txt", "text.txt/digits: cannot be written: Not a directory"),
]
DATA = [
    ("absent", "absent: no such folder, file or data set; known are cifar10"),
    ("cifer10", "cifer10: no such folder, file or data set; did you mean 'cifar10'"),
    ("fotos", "fotos: no such folder, file or data set; did you mean 'photos'"),
    ("./fotos", "./fotos: no such file or folder; did you mean 'photos'"),
    ("column.csv", "column.csv: no such file or folder; did you mean 'columns.csv'?"),
    ("pictures/two", "pictures/two: no such file or folder; pictures is not there either"),
    ("", "--data: expected a folder, a file or a data set, got ''"),
    ("text.txt", "text.txt: expected a folder, a .csv or an .npz file"),
    ("empty", "empty: no pictures and no folders; expected one folder for each class"),
    ("photos/left", "photos/left: 9 pictures, but no folders; expected one folder for each class"),
    ("one", "one: only one class, 'left'; a search needs at least 2 classes"),
    ("few", "class 'right' has 2 images: none is left for the ens role"),
    ("gap", "gap/third: no pictures in this class folder; add some, or remove it"),
    ("/dev/null", "/dev/null: neither a folder nor a regular file; expected a folder, a .csv or"),
    ("bytes", "bytes: the name of its class folder 'right\\udcff' is not UTF-8; rename it"),
    ("\udcff", "--data: '\\udcff': the path is not UTF-8; rename it"),
    ("untrained", "untrained: has val but no folder 'train'; expected train/CLASS/*.jpg"),
    ("broken", "broken: 10 of 10 pictures cannot be read; the first, left/000.png: not a picture"),
    ("cut", "cut: no picture of class 'left' can be read; mend its files"),
    ("blank.csv", "blank.csv: empty; expected a line of column names such as path,label"),
    ("columns.csv", "columns.csv: no column 'path' or"),
    ("heading.csv", "heading.csv: has column names (path, label) but no images"),
    ("unlabeled.csv", "unlabeled.csv: line 2: 'label' is empty"),
    ("gone.csv", "gone.csv: none of its 1 files is there; looked first for"),
    ("exam.csv", "exam.csv: photos/left/000.png: unknown split 'exam'; expected train, val or"),
    ("latin.csv", "latin.csv: cannot be read as UTF-8 text"),
    ("other.npz", "other.npz: no images; found arrays"),
    ("floats.npz", "floats.npz: x must be uint8, got float64; pixels from 0 to 1 become so"),
    ("flat.npz", "flat.npz: x must be (n, h, w) or (n, h, w, channels), got (8, 64)"),
    ("short.npz", "short.npz: y must be one whole number or text for each of the 8 images"),
    ("objects.npz", "objects.npz: x holds Python objects, which could run code"),
    ("unlabeled.npz", "unlabeled.npz: no labels 'y' beside the images"),
    ("text.npz", "text.npz: not a whole .npz file"),
    ("mnist", "mnist is not in .; add --download"),
]


def draw_data() -> None:
    """Make what `DATA` names."""
    draw_folder(Path("photos"), {"left": 9, "right": 9})
    draw_folder(Path("one"), {"left": 9})
    draw_folder(Path("few"), {"left": 9, "right": 2})
    draw_folder(Path("gap"), {"left": 5, "right": 5})
    draw_folder(Path("untrained/val"), {"left": 5, "right": 5})
    for picture in draw_folder(Path("broken"), {"left": 5, "right": 5}).rglob("*.png"):
        picture.write_bytes(b"no picture")
    for picture in draw_folder(Path("cut"), {"left": 5, "right": 5}).glob("left/*.png"):
        picture.write_bytes(picture.read_bytes()[:60])
    draw_folder(Path("bytes"), {"left": 5, "right\udcff": 5})
    for folder in ("empty", "gap/third"):
        Path(folder).mkdir()
    for name, text in {
        "text.txt": "hello",
        "text.npz": "hello",
        "blank.csv": "",
        "columns.csv": "a,b\n1,2\n",
        "heading.csv": "path,label\n",
        "unlabeled.csv": "path,label\nphotos/left/000.png,\n",
        "gone.csv": "path,label\na.png,b\n",
        "exam.csv": "path,label,split\nphotos/left/000.png,left,exam\n",
        "latin.csv": "path,label\nphotos/left/000.png,\udce9\n",
    }.items():
        Path(name).write_text(text, encoding="utf-8", errors="surrogateescape")
    images, labels = np.zeros((8, 8, 8), np.uint8), np.arange(8) % 2
    arrays: dict[str, dict[str, Any]] = {
        "other": {"z": images},
        "floats": {"x": images / 255, "y": labels},
        "flat": {"x": images.reshape(8, 64), "y": labels},
        "short": {"x": images, "y": labels[:3]},
        "objects": {"x": np.array([images, None], dtype=object), "y": labels},
        "unlabeled": {"x": images},
    }
    for name, values in arrays.items():
        np.savez(f"{name}.npz", **values)


FRESH = Path("studies/fresh")
DATABASE = FRESH / "study.db"


def in_database(*statements: str) -> Prepare:
    """Change the database of the study behind its back."""

    def change() -> None:
        with sqlite3.connect(DATABASE) as connection:
            for statement in statements:
                connection.execute(statement)
            connection.execute("PRAGMA journal_mode=DELETE")  # all is in the one file
        connection.close()

    return change


def in_record(change: Callable[[dict[str, Any]], object]) -> Prepare:
    """Change what the study says of itself."""

    def prepare() -> None:
        with sqlite3.connect(DATABASE) as connection:
            where = "FROM study_user_attributes WHERE key = 'concertino'"
            ((text,),) = connection.execute(f"SELECT value_json {where}").fetchall()
            record = json.loads(text)
            change(record)
            connection.execute(
                "UPDATE study_user_attributes SET value_json = ? WHERE key = 'concertino'",
                (json.dumps(record),),
            )
        connection.close()

    return prepare


def tear_page_of(table: str) -> Prepare:
    """Overwrite one page of the database, as a dying disk does."""

    def tear() -> None:
        in_database()()
        with sqlite3.connect(DATABASE) as connection:
            query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
            ((page,),) = connection.execute(query, (table,)).fetchall()
            ((size,),) = connection.execute("PRAGMA page_size").fetchall()
        connection.close()
        with DATABASE.open("rb+") as file:
            file.seek((page - 1) * size)
            file.write(b"\xff" * size)

    return tear


def replace(path: Path, content: str | bytes | None) -> Prepare:
    """Write something else into a file; None: remove it."""

    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def make_plain_study() -> None:
    """Make a study without this tool."""
    Path("studies/other").mkdir()
    optuna.create_study(storage="sqlite:///studies/other/study.db", study_name="other")


STUDIES = [
    Case(
        words="run --data pipe.csv",
        message="pipe.csv: neither a folder nor a regular file; expected a folder, a .csv or an",
        prepare=lambda: os.mkfifo("pipe.csv"),
    ),
    *(
        Case(words=f"{command} {name}", message=f"{where}a name has letters, digits, dots, dashes")
        for command, where in [*((each, "") for each in READERS), ("worker", "worker: name: ")]
        for name in ("../studies/fresh", "fresh/")
    ),
    *(
        Case(words=f"{command} ''", message="a name has letters, digits, dots, dashes")
        for command in (*READERS, "worker", "copy --to studies/fresh")
    ),
    Case(
        words="list --studies nowhere",
        code=3,
        message="there is no study in nowhere yet; `python -m search run` makes one",
    ),
    *(
        Case(words=f"{command} absent", code=3, message="there is no study 'absent' in studies")
        for command in READERS
    ),
    *(
        Case(
            words=f"{command} --studies nowhere",
            code=3,
            message="there is no study in nowhere yet; `python -m search run` makes one",
        )
        for command in READERS
    ),
    *(
        Case(
            words=f"{command} fresh",
            code=1,
            message="studies/fresh/study.db: not the database of study 'fresh': file is not a "
            "database",
            prepare=replace(DATABASE, b"This was a database once. " * 100),
            name=f"{command}: no database",
        )
        for command in READERS
    ),
    Case(words="best fresh", code=3, message="study 'fresh' has no complete trial yet"),
    Case(
        words="ensemble fresh",
        code=3,
        message="study 'fresh' has no finished trial to build an ensemble from",
    ),
    *(
        Case(
            words=f"ensemble fresh {flag} 3",
            code=3,
            message="study 'fresh' has no finished trial to build an ensemble from",
        )
        for flag in ("--seeds", "--folds")
    ),
    Case(
        words="distill fresh",
        code=3,
        message="study 'fresh' has no ensemble yet; `python -m search ensemble` builds it",
    ),
    Case(
        words="export fresh",
        code=3,
        message="study 'fresh' has no ensemble yet; `python -m search ensemble` builds it",
    ),
    Case(
        words="status other",
        code=1,
        message="study 'other' was not made by `python -m search run`: it has no attribute",
        prepare=make_plain_study,
        name="a study of Optuna alone",
    ),
    Case(
        words="status fresh",
        code=1,
        message="study 'fresh' was not made by `python -m search run`: it has no attribute "
        "'concertino' that can be read",
        prepare=in_database("UPDATE study_user_attributes SET value_json = '5'"),
        name="a record that is none",
    ),
    Case(
        words="resume fresh",
        code=1,
        message="study 'fresh' was made by another version (9.9, this is ",
        prepare=in_record(lambda record: record.update(version="9.9", wheels=4)),
        name="a record of a later version",
    ),
    Case(
        words="resume fresh",
        code=1,
        message="study 'fresh' was made with another version of the space (0123456789abcdef, ",
        prepare=in_record(lambda record: record.update(space_fingerprint="0123456789abcdef")),
        name="another version of the space",
    ),
    Case(
        words="resume fresh",
        code=1,
        message="studies/fresh/study.db: not the database of study 'fresh': The runtime optuna "
        "version",
        prepare=in_database("UPDATE alembic_version SET version_num = 'v9.9.9'"),
        name="a database of a later Optuna",
    ),
    Case(
        words="status fresh",
        code=1,
        message="studies/fresh/study.db: holds study 'other', not 'fresh'; rename its folder to "
        "'studies/other'",
        prepare=in_database("UPDATE studies SET study_name = 'other'"),
        name="a folder that was renamed",
    ),
    Case(
        words="status fresh",
        code=1,
        message="studies/fresh/study.db: holds no study; move its folder away, and the same",
        prepare=replace(DATABASE, b""),
        name="an empty database",
    ),
    *(
        Case(
            words=f"{command} fresh",
            code=1,
            message="postgresql://ann:***@127.0.0.1:1/x: cannot be used: connection failed: ",
            prepare=replace(FRESH / "storage.url", "postgresql://ann:secret@127.0.0.1:1/x"),
            name=f"{command}: no server",
        )
        for command in ("status", "best", "ensemble", "export", "dashboard", "resume")
    ),
    Case(
        words="run --name other --storage postgresql://ann:secret@127.0.0.1:1/x",
        code=1,
        message="postgresql://ann:***@127.0.0.1:1/x: cannot be used: connection failed: ",
        name="run: no server",
    ),
    Case(
        words="status fresh",
        code=1,
        message="studies/fresh/storage.url: cannot be read: expected an URL such as postgresql:",
        prepare=replace(FRESH / "storage.url", "there"),
        name="a note that is no URL",
    ),
    Case(
        words="run --name fresh --storage postgresql://ann:secret@127.0.0.1:1/x",
        message="storage: study 'fresh' is stored in studies/fresh/study.db, got "
        "postgresql://ann:***@127.0.0.1:1/x; `python -m search copy fresh --to URL` moves it",
        name="a study that is elsewhere",
    ),
    *(
        Case(
            words=words,
            code=1,
            message="studies/fresh/study.db: cannot be used: database disk image is malformed; "
            "put back a copy, or save what is left of it with `sqlite3 FILE .recover`",
            prepare=tear_page_of(table),
            name=f"a torn page: {table}",
        )
        for words, table in (
            ("status fresh", "trials"),
            ("best fresh", "trial_system_attributes"),
            ("dashboard fresh --no-browser", "study_user_attributes"),
        )
    ),
    *(
        Case(
            words=f"{command} fresh",
            code=1,
            message="studies/fresh/ensemble.json: cannot be read (",
            prepare=replace(FRESH / "ensemble.json", content),
            name=f"{command}: an ensemble that is {content}",
        )
        for command in ("status", "export", "distill")
        for content in ("{", "[1]")
    ),
    *(
        Case(
            words="resume fresh",
            message="studies/fresh/roles.npz: the roles of the images cannot be read: ",
            prepare=replace(FRESH / "roles.npz", content),
            name=f"roles: {content!r}",
        )
        for content in (None, b"hello")
    ),
    *(
        Case(
            words=f"run --name fresh --{flag} {value}",
            message=f"study 'fresh' was started with {key} = {before}, got ",
        )
        for flag, value, key, before in (
            ("seed", 3, "seed", "0"),
            ("epochs", 9, "epochs", "2"),
            ("data", "photos", "data", "'digits'"),
            ("metric", "accuracy", "metric", "'log_loss'"),
            ("space", "default", "space", "'small'"),
            ("vary.width", 16, "vary", "{'width': 8, 'depth': 2}"),
        )
    ),
    *(
        Case(
            words=f"resume fresh --trials={trials}",
            message=f"--trials: expected a number such as 150 or +50, got {trials!r}",
        )
        for trials in ("many", "-3", "+")
    ),
    Case(words="resume fresh --trials 0", message="resume: trials: Input should be greater than"),
    Case(words="resume fresh --workers 0", message="resume: workers: Input should be greater"),
    Case(words="resume fresh --budget soon", message="resume: budget: expected a time such as"),
    Case(
        words="resume fresh --slots-per-device 0",
        message="resume: slots_per_device: expected auto or a number from 1 to 99, got '0'",
    ),
    Case(words="resume fresh --devices gpu", message="devices: expected auto, cpu or a list"),
]


def in_manifest(change: Callable[[dict[str, Any]], object]) -> Prepare:
    """Change what the bundle says of itself."""

    def prepare() -> None:
        file = Path("model/manifest.json")
        manifest = json.loads(file.read_text(encoding="utf-8"))
        change(manifest)
        file.write_text(json.dumps(manifest), encoding="utf-8")

    return prepare


WEIGHTS = Path("model/members/00000.safetensors")
BUNDLES = [
    Case(words="predict absent photos", message="absent is not a bundle: no such folder"),
    Case(words="predict photos photos", message="photos: manifest.json is missing"),
    Case(words="evaluate photos --data photos", message="photos: manifest.json is missing"),
    Case(
        words="predict model photos",
        message="manifest.json is not JSON: Expecting property name",
        prepare=replace(Path("model/manifest.json"), "{"),
        name="a manifest that is no JSON",
    ),
    Case(
        words="predict model photos",
        message="manifest.json: format_version: Input should be ",
        prepare=in_manifest(lambda manifest: manifest.update(format_version=99)),
        name="a bundle of a later version",
    ),
    Case(
        words="predict model photos",
        message="manifest.json: format: Input should be 'concertino-bundle', got 'zip'; it is not "
        "a bundle",
        prepare=in_manifest(lambda manifest: manifest.update(format="zip")),
        name="a manifest of something else",
    ),
    Case(
        words="predict model photos",
        message="manifest.json: wheels: Extra inputs are not permitted, got 4",
        prepare=in_manifest(lambda manifest: manifest.update(wheels=4)),
        name="a manifest with an unknown key",
    ),
    Case(
        words="predict model photos",
        message="manifest.json: members.0.file: String should match pattern",
        prepare=in_manifest(lambda manifest: manifest["members"][0].update(file="../key")),
        name="a manifest that leads elsewhere",
    ),
    Case(
        words="evaluate model --data photos",
        message="model: members/00000.safetensors is missing",
        prepare=replace(WEIGHTS, None),
        name="a bundle without weights",
    ),
    Case(
        words="predict model photos",
        message="model: members/00000.safetensors has 5 bytes instead of",
        prepare=replace(WEIGHTS, "hello"),
        name="a bundle with other weights",
    ),
    Case(
        words="predict model photos",
        message="model: self_test.safetensors is missing",
        prepare=replace(Path("model/self_test.safetensors"), None),
        name="a bundle without self-test",
    ),
    Case(
        words="predict model", code=3, message="no picture found; name files, folders or patterns"
    ),
    Case(
        words="evaluate model --data one --split test",
        message="one: no split 'test'; it has no splits. Try --split all",
    ),
    Case(
        words="evaluate model --data photos",
        message="photos: the bundle does not know the classes left, right; it knows cat, dog, owl",
    ),
    Case(words="evaluate model --data fotos", message="fotos: no such folder, file or data set"),
]
CASES = [
    *(Case(words=words, message=message) for words, message in FLAGS),
    *(
        Case(
            words=words,
            message=message,
            prepare=replace(Path("study.toml"), text.encode(errors="surrogateescape")),
            name=f"{text} for {words}",
        )
        for text, message in TOML
        for words in ("run --config study.toml", "run --workers 2 --config study.toml")
    ),
    *(
        Case(words="run", message=message, environment={variable: text}, name=variable)
        for variable, text, message in ENVIRONMENT
    ),
    *(
        Case(words=f"run --name wrong --data-root . --data={data}", message=message)
        for data, message in DATA
    ),
    *STUDIES,
    *BUNDLES,
]


@pytest.fixture(scope="module")
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with data and a study, which every case copies."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        draw_data()
        make_tiny_study(Path("studies"), name="fresh")
    return folder


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", CASES, ids=[case.name or case.words for case in CASES])
def test_bad_input_is_one_line_and_an_exit_code(
    *,
    case: Case,
    world: Path,
    taken_port: int,
    tmp_path: Path,
    write_tiny_bundle: Callable[[], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    if " model" in case.words:
        write_tiny_bundle()
    for name, text in case.environment.items():
        monkeypatch.setenv(name, text)
    case.prepare()
    before = sorted(Path("studies").iterdir())
    capsys.readouterr()

    code = main(shlex.split(case.words.replace(PORT, str(taken_port))))

    told = capsys.readouterr()
    assert told.err.startswith(f"error: {case.message.replace(PORT, str(taken_port))}")
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert code == case.code
    assert sorted(Path("studies").iterdir()) == before
