"""What the ensembles of a study are fitted on, and which networks stand behind their models."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ensembles.pool import Pool
from search.candidates import Candidate, candidate_pool, list_candidates
from search.study import Study
from search.trained_again import list_fold_members, list_seeds, out_of_fold_pool
from search.words import command

NO_SEEDS_BESIDE_FOLDS = "seeds learn from the train role alone; beside folds they prove nothing."


@dataclass(frozen=True, kw_only=True, eq=False)
class Basis:
    """What the builder may choose from, and the rival that it may not."""

    pool: Pool
    """Predictions for images that no model learned from or was stopped on."""
    networks: Mapping[str, tuple[Candidate, ...]]
    """Behind each model of the pool: itself, or those that it is the mean of."""
    n_folds: int | None = None
    """Of the networks behind each model; None where it is one network."""
    seeds: tuple[Candidate, ...] = ()
    """Networks of the best trial's recipe."""
    no_seeds: str = ""
    """Why there are none."""

    @property
    def folds(self) -> Mapping[str, tuple[str, ...]] | None:
        """The names of the networks behind each model; None where it is one network."""
        if self.n_folds is None:
            return None
        return {
            name: tuple(each.name for each in behind) for name, behind in self.networks.items()
        }

    def networks_of(self, names: Collection[str]) -> list[Candidate]:
        """Return the networks behind some models and seeds, each once."""
        behind = [each for name, nets in self.networks.items() if name in names for each in nets]
        known = {each.name for each in behind}
        return behind + [
            each for each in self.seeds if each.name in names and each.name not in known
        ]


def find_basis(study: Study) -> Basis:
    """Return what the ensembles of a study are fitted on, as its settings say.

    Raises:
        NothingToDoError: No trial has finished with predictions and weights.
        SearchError: Predictions are gone.
    """
    n_folds = study.record.config.folds
    members = list_fold_members(study, n_folds) if n_folds else {}
    if n_folds and members:
        return Basis(
            pool=out_of_fold_pool(study, members, n_folds),
            networks=members,
            n_folds=n_folds,
            no_seeds=NO_SEEDS_BESIDE_FOLDS,
        )
    candidates = list_candidates(study)
    seeds = tuple(list_seeds(study))
    return Basis(
        pool=candidate_pool(study, candidates, "ens"),
        networks={each.name: (each,) for each in candidates},
        seeds=seeds,
        no_seeds="" if seeds else _no_seeds(study),
    )


def fitted_pool(study: Study, networks: Sequence[Candidate], n_folds: int | None) -> Pool:
    """Return the predictions that the members of an ensemble were fitted on.

    Args:
        study: The study.
        networks: Of the ensemble, in its order.
        n_folds: Of the networks of each member, which come one after another; None: each network
            is a member.

    Raises:
        SearchError: Predictions are gone.
    """
    if n_folds is None:
        return candidate_pool(study, networks, "ens")
    starts = range(0, len(networks), n_folds)
    members = {str(networks[at].trial): networks[at : at + n_folds] for at in starts}
    return out_of_fold_pool(study, members, n_folds)


def _no_seeds(study: Study) -> str:
    studies = study.paths.folder.parent
    return (
        "seeds, the rival of every ensemble: the best recipe was trained once; "
        f"`{command(f'ensemble {study.name} --seeds 5', studies)}` trains it again."
    )
