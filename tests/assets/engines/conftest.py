"""One real Slurm for all tests of this folder, where its packages are installed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.slurm import SlurmCluster, missing_programs, slurm_cluster


@pytest.fixture(scope="module")
def running_slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    if missing := missing_programs():
        pytest.skip(f"no Slurm here ({', '.join(missing)}); `make slurm` installs it")
    with slurm_cluster(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster


@pytest.fixture
def cluster(running_slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> SlurmCluster:
    """The Slurm that this process's commands ask, with both nodes idle and no job."""
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, running_slurm.environment[name])
    running_slurm.restore()
    return running_slurm
