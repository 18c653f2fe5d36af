import csv
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ensembles.bundle import load_bundle
from ensembles.cascade import Cascade, Stage
from ensembles.combination import Combination
from ensembles.conformal import Conformal, Rejection
from ensembles.decision import Decision
from search.cli import main

WriteBundle = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of three pictures, one of them in a folder below."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in ("2.png", "10.png", "below/3.png"):
        pixels = generator.integers(0, 256, (12, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def documents(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_lines_hold_what_the_bundle_predicts(
    photos: Path, write_tiny_bundle: WriteBundle, capsys: Capture
) -> None:
    folder = write_tiny_bundle()

    code = main(["predict", str(folder), str(photos), "--json"])

    lines = documents(capsys.readouterr().out)
    files = [photos / "2.png", photos / "10.png", photos / "below/3.png"]
    bundle = load_bundle(folder)
    rows = bundle.predict(files)
    assert code == 0
    assert [line["file"] for line in lines] == [str(file) for file in files]
    for line, row in zip(lines, rows, strict=True):
        assert line["schema"] == 1
        assert line["label"] == bundle.classes[row.argmax()]
        assert line["probability"] == pytest.approx(row.max(), abs=1e-6)
        probabilities = line["probabilities"]
        assert isinstance(probabilities, dict)
        assert [probabilities[name] for name in bundle.classes] == pytest.approx(row, abs=1e-6)
        assert list(probabilities.values()) == sorted(probabilities.values(), reverse=True)


def test_a_pipe_gets_aligned_text_without_color_or_heading(
    photos: Path, write_tiny_bundle: WriteBundle, capsys: Capture
) -> None:
    main(["predict", str(write_tiny_bundle()), str(photos / "2.png"), str(photos / "10.png")])

    captured = capsys.readouterr()
    first, second = captured.out.splitlines()
    assert captured.err == ""
    assert "\x1b" not in captured.out
    assert first.split()[0] == str(photos / "2.png")
    assert first.split()[1] in ("cat", "dog", "owl")
    assert first.index(first.split()[1]) == second.index(second.split()[1])
    assert len(first.split()) == 3 + 4  # the two next classes


def test_top_k_limits_the_classes(
    photos: Path, write_tiny_bundle: WriteBundle, capsys: Capture
) -> None:
    words = ["predict", str(write_tiny_bundle()), str(photos / "2.png"), "--top-k"]

    main([*words, "1", "--json"])
    main([*words, "2", "--json"])
    main([*words, "9", "--json"])

    sizes = [
        len(str(line["probabilities"]).split(",")) for line in documents(capsys.readouterr().out)
    ]
    assert sizes == [1, 2, 3]


def test_a_doubtful_picture_gets_no_label(
    photos: Path, write_tiny_bundle: WriteBundle, capsys: Capture
) -> None:
    words = ["predict", str(write_tiny_bundle()), str(photos / "2.png"), "--threshold", "1"]

    assert main([*words, "--json"]) == 0
    assert documents(capsys.readouterr().out)[0]["label"] is None
    main(words)
    assert capsys.readouterr().out.split()[1] == "-"


def test_csv_has_a_column_for_each_class(
    tmp_path: Path, photos: Path, write_tiny_bundle: WriteBundle, capsys: Capture
) -> None:
    output = tmp_path / "out" / "labels.csv"

    code = main(["predict", str(write_tiny_bundle()), str(photos), "--output", str(output)])

    rows = list(csv.DictReader(output.read_text().splitlines()))
    assert code == 0
    assert capsys.readouterr().out == ""
    assert list(rows[0]) == ["file", "label", "probability", "p(cat)", "p(dog)", "p(owl)"]
    for row in rows:
        assert sum(float(row[f"p({name})"]) for name in ("cat", "dog", "owl")) == pytest.approx(1)
        assert row["probability"] == row[f"p({row['label']})"]
    assert [path.name for path in output.parent.iterdir()] == ["labels.csv"]


def test_csv_with_top_k_has_a_pair_of_columns_for_each_place(
    tmp_path: Path, photos: Path, write_tiny_bundle: WriteBundle
) -> None:
    output = tmp_path / "labels.csv"

    main(["predict", str(write_tiny_bundle()), str(photos), "--output", str(output), "--top-k=2"])

    header, *rows = csv.reader(output.read_text().splitlines())
    assert header == ["file", "label", "probability", "label_2", "probability_2"]
    assert all(float(row[2]) >= float(row[4]) for row in rows)


def test_jsonl_output_is_what_json_prints(
    tmp_path: Path, photos: Path, write_tiny_bundle: WriteBundle, capsys: Capture
) -> None:
    output = tmp_path / "labels.jsonl"

    main(["predict", str(write_tiny_bundle()), str(photos), "--json", "--output", str(output)])

    assert output.read_text() == capsys.readouterr().out


def test_another_kind_of_output_is_refused(
    photos: Path, write_tiny_bundle: WriteBundle, capsys: Capture
) -> None:
    assert main(["predict", str(write_tiny_bundle()), str(photos), "--output", "a.xls"]) == 2
    assert "--output must end in .csv or .jsonl, got 'a.xls'" in capsys.readouterr().err


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(
    photos: Path, write_tiny_bundle: WriteBundle, capsys: Capture
) -> None:
    (photos / "9.png").write_bytes(b"broken")

    code = main(["predict", str(write_tiny_bundle()), str(photos), "nowhere.png", "--json"])

    captured = capsys.readouterr()
    assert code == 5
    assert len(documents(captured.out)) == 3
    assert captured.err.splitlines() == [
        "nowhere.png: no such file",
        f"{photos / '9.png'}: not a picture in a known format",
    ]


@pytest.mark.parametrize("batch_size", ["1", "2", "3"])
def test_batches_do_not_change_what_is_printed(
    photos: Path, write_tiny_bundle: WriteBundle, capsys: Capture, batch_size: str
) -> None:
    folder = str(write_tiny_bundle())

    main(["predict", folder, str(photos), "--json"])
    whole = documents(capsys.readouterr().out)
    main(["predict", folder, str(photos), "--json", "--batch-size", batch_size])

    parts = documents(capsys.readouterr().out)
    assert [line["file"] for line in parts] == [line["file"] for line in whole]
    assert [line["probability"] for line in parts] == pytest.approx(
        [line["probability"] for line in whole], abs=1e-6
    )


def test_patterns_that_the_shell_left_alone_are_expanded(
    photos: Path, write_tiny_bundle: WriteBundle, capsys: Capture
) -> None:
    main(["predict", str(write_tiny_bundle()), f"{photos}/**/*.png", "--json"])

    names = [Path(str(line["file"])).name for line in documents(capsys.readouterr().out)]
    assert names == ["2.png", "10.png", "3.png"]


def test_a_hyphen_reads_names_from_standard_input(
    photos: Path,
    write_tiny_bundle: WriteBundle,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{photos / '2.png'}\n\n{photos / 'below'}\n"))

    code = main(["predict", str(write_tiny_bundle()), "-", "--json"])

    names = [Path(str(line["file"])).name for line in documents(capsys.readouterr().out)]
    assert (code, names) == (0, ["2.png", "3.png"])


@pytest.mark.parametrize("words", [["nowhere"], ["*.nothing"], ["empty"], []])
def test_no_picture_at_all_is_nothing_to_do(
    tmp_path: Path,
    write_tiny_bundle: WriteBundle,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()

    assert main(["predict", str(write_tiny_bundle()), *words]) == 3
    assert "no picture found" in capsys.readouterr().err


def test_a_mistyped_flag_is_not_taken_for_a_file(
    photos: Path, write_tiny_bundle: WriteBundle, capsys: Capture
) -> None:
    assert main(["predict", str(write_tiny_bundle()), str(photos), "--jsn"]) == 2
    assert "unknown option --jsn; did you mean '--json'" in capsys.readouterr().err


def test_a_folder_that_is_no_bundle_gives_one_line(photos: Path, capsys: Capture) -> None:
    assert main(["predict", str(photos), str(photos)]) == 2

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"error: {photos}: manifest.json is missing.\n"


@pytest.mark.parametrize(
    ("device", "problem"),
    [
        ("gpu", "must be auto, cpu, cuda"),
        ("meta", "must be auto, cpu"),
        ("cuda:99", "torch finds"),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    photos: Path, write_tiny_bundle: WriteBundle, capsys: Capture, device: str, problem: str
) -> None:
    assert main(["predict", str(write_tiny_bundle()), str(photos), "--device", device]) == 2
    assert problem in capsys.readouterr().err


def test_names_cannot_send_commands_to_the_terminal(
    photos: Path, write_tiny_bundle: WriteBundle, capsys: Capture
) -> None:
    (photos / "2.png").rename(photos / "\x1b[31m\n.png")

    main(["predict", str(write_tiny_bundle()), str(photos)])

    assert "?[31m?.png" in capsys.readouterr().out


@pytest.mark.slow
def test_help_needs_no_torch_and_no_numpy() -> None:
    code = (
        "import sys\n"
        "from search.cli import main\n"
        "assert main(['predict', '--help']) == 0\n"
        "assert not {'torch', 'numpy', 'optuna', 'PIL'} & set(sys.modules)\n"
    )
    root = Path(__file__).parents[3]
    start = time.perf_counter()

    outcome = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )

    assert outcome.returncode == 0, outcome.stderr
    assert "--top-k" in outcome.stdout
    assert time.perf_counter() - start < 10  # 0.3 seconds on a machine with nothing else to do


def test_a_terminal_gets_a_table_with_one_heading(
    photos: Path,
    write_tiny_bundle: WriteBundle,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "300")

    code = main(["predict", str(write_tiny_bundle()), str(photos), "--batch-size", "2"])

    shown = capsys.readouterr().out
    assert code == 0
    assert all(shown.count(heading) == 1 for heading in ("label", "probability", "next"))
    assert all(name in shown for name in ("2.png", "10.png", "3.png"))


@pytest.fixture
def promising(write_tiny_bundle: WriteBundle) -> Path:
    """Return a bundle that promises sets of all classes and answers for nothing."""
    alone = Combination(method="greedy", space="probability", weights=(1.0,))
    both = Combination(method="greedy", space="probability", weights=(0.25, 0.75))
    return write_tiny_bundle(
        "promising",
        conformal=Conformal(alpha=0.1, threshold=0.0, n_images=100),
        rejection=Rejection(threshold=1.0, target_accuracy=0.9, coverage=0.1, n_images=100),
        cascade=Cascade(
            order=(0, 1),
            stages=(
                Stage(combination=alone, threshold=0.0),
                Stage(combination=both, threshold=0.0),
            ),
        ),
    )


def test_sets_are_in_every_form_of_output(
    photos: Path, promising: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ["predict", str(promising), str(photos / "2.png"), "--sets"]

    main([*words, "--json"])
    (line,) = documents(capsys.readouterr().out)
    main(words)
    text = capsys.readouterr().out
    main([*words, "--output", str(tmp_path / "all.csv")])
    (row,) = csv.DictReader(io.StringIO((tmp_path / "all.csv").read_text()))

    possible = line["set"]
    assert isinstance(possible, list)
    assert sorted(possible) == ["cat", "dog", "owl"]
    assert possible[0] == line["label"]
    assert text.rstrip().endswith("{" + ", ".join(possible) + "}")
    assert row["set"] == "|".join(possible)


def test_a_picture_that_is_not_answered_for_has_no_label(
    photos: Path, promising: Path, capsys: Capture
) -> None:
    words = ["predict", str(promising), str(photos / "2.png"), "--json"]

    main(words)
    (answered,) = documents(capsys.readouterr().out)
    main([*words, "--reject"])
    (rejected,) = documents(capsys.readouterr().out)

    assert answered["label"] is not None
    assert "set" not in answered
    assert rejected["label"] is None
    assert rejected["probabilities"] == answered["probabilities"]


def test_a_cascade_may_stop_at_the_first_member(
    photos: Path, promising: Path, write_tiny_bundle: WriteBundle, capsys: Capture
) -> None:
    first = load_bundle(write_tiny_bundle("first", weights=(1.0,)))

    main(["predict", str(promising), str(photos / "2.png"), "--json", "--cascade"])

    (line,) = documents(capsys.readouterr().out)
    assert line["probability"] == pytest.approx(first.predict([photos / "2.png"]).max(), abs=1e-6)


def test_a_bundle_may_prefer_its_cascade_but_promises_are_of_all_members(
    photos: Path, write_tiny_bundle: WriteBundle, capsys: Capture
) -> None:
    alone = Combination(method="greedy", space="probability", weights=(1.0,))
    both = Combination(method="greedy", space="probability", weights=(0.25, 0.75))
    stages = Stage(combination=alone, threshold=0.0), Stage(combination=both, threshold=0.0)
    bundle = write_tiny_bundle(
        "preferring",
        cascade=Cascade(order=(0, 1), stages=stages),
        prefers_cascade=True,
        conformal=Conformal(alpha=0.1, threshold=0.0, n_images=100),
    )
    picture = photos / "2.png"
    first = load_bundle(write_tiny_bundle("first", weights=(1.0,))).predict([picture])
    whole = load_bundle(bundle).predict([picture], cascade=False)

    found = []
    for flags in ([], ["--no-cascade"], ["--sets"]):
        main(["predict", str(bundle), str(picture), "--json", *flags])
        (line,) = documents(capsys.readouterr().out)
        found.append(line["probability"])

    assert found == pytest.approx([first.max(), whole.max(), whole.max()], abs=1e-6)
    assert found[0] != pytest.approx(found[1], abs=1e-6)


def test_the_class_that_the_bundle_decides_for_leads(
    photos: Path, write_tiny_bundle: WriteBundle, capsys: Capture
) -> None:
    plain = load_bundle(write_tiny_bundle("plain"))
    (probabilities,) = plain.predict([photos / "2.png"])
    least = int(probabilities.argmin())
    # So rare that even the least likely class is likely for its share.
    priors = [0.5 - 5e-7] * 3
    priors[least] = 1e-6
    bundle = write_tiny_bundle(
        "decided", decision=Decision(rule="prior_corrected", priors=tuple(priors))
    )

    main(["predict", str(bundle), str(photos / "2.png"), "--json"])
    (line,) = documents(capsys.readouterr().out)
    main(["predict", str(bundle), str(photos / "2.png"), "--json", "--threshold", "0.99"])
    (doubtful,) = documents(capsys.readouterr().out)

    assert line["label"] == plain.classes[least]
    assert line["probability"] == pytest.approx(probabilities[least], abs=1e-6)
    assert next(iter(line["probabilities"])) == plain.classes[least]  # type: ignore[call-overload]
    assert doubtful["label"] is None


@pytest.mark.parametrize(
    ("flags", "message", "code"),
    [
        (["--sets"], "promises no sets", 2),
        (["--reject"], "answers for every picture", 2),
        (["--cascade"], "has no cascade", 2),
        (["--cascade", "--sets"], "leave --cascade out", 2),
    ],
)
def test_what_a_bundle_does_not_promise_is_refused(
    photos: Path,
    write_tiny_bundle: WriteBundle,
    capsys: Capture,
    flags: list[str],
    message: str,
    code: int,
) -> None:
    assert main(["predict", str(write_tiny_bundle()), str(photos), *flags]) == code
    assert message in capsys.readouterr().err
