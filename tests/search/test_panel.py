import multiprocessing

from search.panel import NO_TRIAL, Panel, shared_panel


def _get_on(panel: Panel) -> None:
    panel.begin_trial(7)
    for _ in range(10):
        panel.beat()
    panel.end_round()
    panel.tell("ÄÖ" * 400)


def test_what_a_worker_shows_is_seen_by_the_process_that_started_it() -> None:
    context = multiprocessing.get_context("spawn")
    panel = shared_panel(context)
    before = (panel.trial_number, panel.n_beats, panel.n_rounds, panel.trouble)

    process = context.Process(target=_get_on, args=(panel,))
    process.start()
    process.join()

    assert before == (NO_TRIAL, 0, 0, "")
    assert (panel.trial_number, panel.n_beats, panel.n_rounds) == (7, 12, 1)
    assert panel.trouble == "ÄÖ" * 100


def test_a_trial_that_is_over_is_shown_no_more() -> None:
    panel = Panel()
    panel.begin_trial(3)

    panel.end_trial()

    assert panel.trial_number == NO_TRIAL
    assert Panel().n_beats == 0
