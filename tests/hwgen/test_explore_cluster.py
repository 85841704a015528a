"""Exploration on a Dask cluster: the same front as in this process, with progress; clear errors where there is no cluster."""

import sys
import warnings

import pytest

from hwgen import boards, explore
from hwgen.errors import UserError
from hwgen.sim.tb.graphs import Shape, random_graph

PYNQ = boards.load("pynq-z2")


def test_without_distributed(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match=r"distributed is not installed: pip install 'hwgen\[cluster\]'"):
        explore.explore({"": random_graph(0)}, PYNQ, cluster="tcp://127.0.0.1:1")


@pytest.fixture
def distributed(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own
        found = pytest.importorskip("distributed", reason="distributed is not installed")
    monkeypatch.setattr("hwgen.explore.workers.CONNECT_SECONDS", 2)
    return found


@pytest.mark.filterwarnings("ignore")  # of distributed about itself
def test_on_a_cluster(distributed):
    graphs = {"": random_graph(1, Shape(patches=(3, 3), heads=2, head=16, hidden=64))}
    seen = []
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, scheduler_port=0, host="tcp://127.0.0.1"
    )
    with cluster:
        address = cluster.scheduler_address
        front = explore.explore(graphs, PYNQ, cluster=address, progress=lambda *counts: seen.append(counts))
    assert front == explore.explore(graphs, PYNQ)
    assert [done for done, _ in seen] == [*range(1, len(seen) + 1)] and seen[-1][0] == seen[-1][1] > 5
    with pytest.raises(UserError, match="--cluster .*: no Dask scheduler answers there"):
        explore.explore(graphs, PYNQ, cluster=address)


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_without_workers(distributed):
    with distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=None, host="tcp://127.0.0.1") as cluster:
        with pytest.raises(UserError, match="the scheduler has no workers"):
            explore.explore({"": random_graph(0)}, PYNQ, cluster=cluster.scheduler_address)


@pytest.mark.parametrize("address", ["here", "ftp://x:1"])
def test_an_address_that_is_none(distributed, address):
    with pytest.raises(UserError, match=f"--cluster {address}"):
        explore.explore({"": random_graph(0)}, PYNQ, cluster=address)
