from pathlib import Path

import pytest

from search.config import StudyConfig, continued, resolve_config, validate_config
from search.errors import ConfigError
from search.narrowing import choose_space


def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_preset(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.toml").write_text('preset = "quick"\ntrials = 11\nepochs = 11\nkeep = 11')
    environment = {"CONCERTINO_TRIALS": "22", "CONCERTINO_EPOCHS": "22"}

    config = resolve_config(
        {"name": "mine", "trials": 33}, studies=tmp_path, environment=environment
    )

    assert (config.trials, config.epochs, config.keep, config.space) == (33, 22, 11, "small")


def test_what_nobody_said_is_the_default() -> None:
    assert resolve_config({}, environment={}) == StudyConfig()


def test_a_trial_has_epochs_or_a_budget_of_time() -> None:
    with pytest.raises(ConfigError, match=r"--epochs or a --trial-budget, not both; got '30s'"):
        resolve_config({"epochs": 6, "trial_budget": "30s"}, environment={})


def test_the_nearer_of_two_lengths_of_a_trial_counts(tmp_path: Path) -> None:
    file = tmp_path / "any.toml"
    file.write_text('trial_budget = "1m"')

    by_flag = resolve_config({"trial_budget": "30s"}, environment={"CONCERTINO_EPOCHS": "5"})
    by_environment = resolve_config({}, file=file, environment={"CONCERTINO_EPOCHS": "5"})

    assert (by_flag.epochs, by_flag.trial_budget) == (None, "30s")
    assert (by_environment.epochs, by_environment.trial_budget) == (5, None)


def test_the_budget_of_a_trial_takes_the_place_of_a_presets_epochs() -> None:
    config = resolve_config({"preset": "quick", "trial_budget": "30s"}, environment={})

    assert (config.epochs, config.trial_budget_seconds, config.trials) == (None, 30.0, 20)


def test_a_named_file_is_read_in_place_of_the_studys_own(tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text("trials = 5\n[vary]\nflips = ['none']")

    config = resolve_config({}, file=other, environment={})

    assert config.trials == 5
    assert choose_space(config).flips == ("none",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trails = 5", "unknown key 'trails'; did you mean 'trials'"),
        ("trials = 0", "trials: Input should be greater than or equal to 1, got 0"),
        ("trials = ", "not valid TOML"),
        ("budget = 'soon'", "budget: expected a time such as 90s, 15m or 1h30m, got 'soon'"),
        ("preset = 'huge'", "known presets are quick, balanced, best; got 'huge'"),
        ("space = 'huge'", "known spaces are auto, default, digits, small; got 'huge'"),
        ("name = 'a b'", "a name has letters, digits, dots"),
        ("sampler = 'tp'", "sampler: Input should be 'tpe'"),
        ("image_size = 3", "image_size: Input should be greater than or equal to 4, got 3"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)

    with pytest.raises(ConfigError, match=message) as refusal:
        resolve_config({}, file=file, environment={})

    assert "\n" not in str(refusal.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read: No such file"):
        resolve_config({}, file=tmp_path / "absent.toml", environment={})


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ({"flip": "none"}, "unknown field 'flip'; did you mean 'flips'"),
        ({"flips": "sometimes"}, "flips.0: Input should be 'none', 'random' or 'alternating'"),
        ({"kernel_sizes": "3,4"}, "kernel_sizes must be among 1, 3, 5, 7, got 4"),
        ({"dropout": "0.5,0.1"}, "dropout"),
    ],
)
def test_a_space_cannot_be_narrowed_to_what_it_has_not(vary: dict[str, str], message: str) -> None:
    config = validate_config({"vary": vary}, source="test")

    with pytest.raises(ConfigError, match=message):
        choose_space(config)


def test_one_value_leaves_nothing_to_choose() -> None:
    config = validate_config(
        {"vary": {"flips": "none", "dropout": "0.1", "kernel_sizes": "3,5", "nesterov": "true"}},
        source="test",
    )

    space = choose_space(config)

    assert space.flips == ("none",)
    assert space.dropout == (0.1, 0.1)
    assert space.kernel_sizes == (3, 5)
    assert space.nesterov == (True,)


def test_digits_are_not_mirrored_unless_the_user_says_so() -> None:
    assert choose_space(StudyConfig()).flips == ("none",)
    assert "random" in choose_space(StudyConfig(space="default")).flips


def test_a_study_is_named_after_its_data(tmp_path: Path) -> None:
    folder = tmp_path / "my photos"
    folder.mkdir()

    assert StudyConfig().study_name == "digits"
    assert StudyConfig(data=str(folder)).study_name == "my-photos"
    assert StudyConfig(data=str(folder), name="x").study_name == "x"


def test_a_study_goes_on_with_more_trials_and_nothing_else() -> None:
    stored = StudyConfig(trials=10, seed=3)

    config = continued(stored, StudyConfig(trials=20, seed=3, workers=2))

    assert (config.trials, config.workers, config.seed) == (20, 2, 3)
    with pytest.raises(ConfigError, match="was started with seed = 3, got 4"):
        continued(stored, StudyConfig(seed=4))


def test_a_variable_that_no_setting_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="CONCERTINO_TRIAL'; did you mean 'CONCERTINO_TRIALS'"):
        resolve_config({}, environment={"CONCERTINO_TRIAL": "3"})


def test_the_folder_of_studies_is_no_setting() -> None:
    assert resolve_config({}, environment={"CONCERTINO_STUDIES": "elsewhere"}) == StudyConfig()


def test_pruners_that_look_early_compare_networks_that_have_seen_whole_images() -> None:
    early = {"pruner": "sha", "space": "default"}

    assert choose_space(StudyConfig.model_validate(early)).early_size == (1, 1)
    said = StudyConfig.model_validate({**early, "vary": {"early_size": [0.75, 1]}})
    assert choose_space(said).early_size == (0.75, 1)
    assert choose_space(StudyConfig(space="default")).early_size == (0.5, 1)
