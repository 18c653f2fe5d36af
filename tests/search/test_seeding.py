from search.seeding import derive_seed


def test_each_use_has_a_seed_of_its_own() -> None:
    seeds = {derive_seed(0, "trial", number) for number in range(1000)}

    assert len(seeds) == 1000


def test_a_seed_is_the_same_on_every_machine() -> None:
    assert derive_seed(0, "trial", 1) == 2043471749
