import pytest
from optuna.trial import FixedTrial
from runs import Finished

from search.assignments import Lesson
from search.candidates import find_candidates
from search.errors import ConfigError, NothingToDoError
from search.extra_trainings import expected_seconds, planned_epochs
from search.students import choose_recipes, order_student
from search.study import Study
from spaces.space import suggest_recipe

LESSON = Lesson(teacher="soft-0", temperature=3.0, share=0.9)


@pytest.mark.slow
def test_students_get_the_recipes_of_the_best_trials_best_first(finished: Finished) -> None:
    study = finished.study
    leaders = study.leaders()

    recipes = choose_recipes(study, n_recipes=2)

    assert [recipe.title for recipe in recipes] == [
        f"trial {trial.number}" for trial in leaders[:2]
    ]
    assert recipes[0].parameters == leaders[0].params


@pytest.mark.slow
def test_where_trials_are_few_the_rest_is_drawn_from_the_space(finished: Finished) -> None:
    study = finished.study
    n_complete = len(study.leaders())

    recipes = choose_recipes(study, n_recipes=n_complete + 2)
    again = choose_recipes(study, n_recipes=n_complete + 2)

    drawn = recipes[-2:]
    assert [recipe.title for recipe in drawn] == ["point 1 of the space", "point 2 of the space"]
    assert drawn[0].parameters != drawn[1].parameters
    assert [recipe.parameters for recipe in recipes] == [recipe.parameters for recipe in again]
    for recipe in drawn:  # FixedTrial knows no value beside those that it is given
        fixed = FixedTrial(dict(recipe.parameters))
        built = suggest_recipe(fixed, study.record.space, study.record.task)
        assert built.architecture.stages[0].width == 8


@pytest.mark.slow
def test_one_trial_can_be_named(finished: Finished) -> None:
    study = finished.study
    last = study.leaders()[-1]

    (recipe,) = choose_recipes(study, trial_number=last.number)

    assert recipe.parameters == last.params
    with pytest.raises(ConfigError, match="has no trial 99 that left a result"):
        choose_recipes(study, trial_number=99)
    with pytest.raises(ConfigError, match=r"so --students must be 1, got 3\."):
        choose_recipes(study, trial_number=last.number, n_recipes=3)


def test_without_a_complete_trial_there_is_no_recipe(unstarted: Study) -> None:
    with pytest.raises(NothingToDoError, match="has no complete trial whose recipe"):
        choose_recipes(unstarted)


@pytest.mark.slow
def test_an_order_says_all_in_which_trainings_differ(finished: Finished) -> None:
    study = finished.study
    recipes = choose_recipes(study, n_recipes=2)
    other = Lesson(teacher="soft-0", temperature=2.0, share=0.9)

    orders = [
        order_student(study, recipe, lesson, [], epochs=epochs)
        for recipe in recipes
        for lesson in (LESSON, other)
        for epochs in (None, 7)
    ]

    assert len({order.name for order in orders}) == 8
    assert orders[0].assignment.epochs == planned_epochs(study, recipes[0].like)
    assert orders[1].assignment.epochs == 7.0
    assert orders[0].assignment.lesson == LESSON
    assert orders[0].assignment.seed != orders[-1].assignment.seed
    assert "7 epochs, temperature 3, share 0.9" in orders[1].name


@pytest.mark.slow
def test_asking_the_teacher_takes_time(finished: Finished) -> None:
    study = finished.study
    (recipe,) = choose_recipes(study)
    teachers = find_candidates(study, [str(trial.number) for trial in study.leaders()[:2]])

    order = order_student(study, recipe, LESSON, teachers)

    usual = planned_epochs(study, recipe.like)
    milliseconds = sum(each.milliseconds for each in teachers)
    assert order.expected_seconds == pytest.approx(
        expected_seconds(study, recipe.like) + usual * 200 * milliseconds / 1000
    )
