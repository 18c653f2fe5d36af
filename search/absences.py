"""Trials whose files lie on another host: they are finished, and no ensemble can use them."""

from collections import Counter

from search.owners import owner_of
from search.predictions import has_predictions
from search.retention import kept_trials
from search.study import Study


def count_absent(study: Study) -> Counter[str]:
    """Count, by host, the trials that an ensemble may be built from and whose files are not here.

    Those without an owner are left out: they were made by an older version, on this host.
    """
    config = study.record.config
    absent = [
        owner_of(trial.user_attrs)
        for trial in kept_trials(study.trials(), config.keep, config.metric)
        if not has_predictions(study.paths.trial(trial.number))
    ]
    return Counter(owner.host for owner in absent if owner)


def describe_absent(study: Study) -> str:
    """Say how many trials are missing and where they are; empty if none is."""
    absent = count_absent(study)
    if not absent:
        return ""
    hosts = ", ".join(f"{count} on {host}" for host, count in sorted(absent.items()))
    return (
        f"the files of {absent.total()} trials are not in {study.paths.folder / 'trials'}, so no "
        f"ensemble can use them: {hosts}; copy them there, then `python -m search ensemble "
        f"{study.name}` builds it anew"
    )
