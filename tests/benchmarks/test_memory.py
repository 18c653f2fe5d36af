from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.errors import ConfigError


@pytest.fixture
def benchmark(load_script: Callable[[str], Any]) -> Any:
    return load_script("memory")


@pytest.mark.parametrize(
    ("parent", "limit", "anonymous"),
    [(".", "memory.max", "anon"), ("memory", "memory.limit_in_bytes", "total_rss")],
)
def test_a_group_is_made_as_either_version_of_the_kernel_wants_it(
    parent: str,
    limit: str,
    anonymous: str,
    benchmark: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(benchmark, "GROUPS", tmp_path)
    monkeypatch.setattr(benchmark.Group, "dissolve", lambda _: None)
    (tmp_path / parent).mkdir(exist_ok=True)
    if parent == ".":
        (tmp_path / "cgroup.controllers").touch()
        (tmp_path / "cgroup.subtree_control").touch()

    with benchmark._group(3) as group:
        assert group.folder.parent == tmp_path / parent
        assert (group.folder / limit).read_text() == "3145728"
        assert group.anonymous == anonymous
    if parent == ".":
        assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory"


def test_without_control_groups_it_says_what_it_needs(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "GROUPS", tmp_path)

    with pytest.raises(ConfigError, match="no control group can be made"), benchmark._group(3):
        pass
