"""Exploration: every point fits and schedules, the front is one, the choice is the best of all candidates."""

import json

import pytest

from hwgen import boards, cost, explore, planner
from hwgen.dram import of_board
from hwgen.errors import UserError
from sim.tb.graphs import Shape, random_graph

GRAPHS = {"": random_graph(1, Shape(patches=(4, 4), heads=4, head=16, hidden=128))}


@pytest.fixture(scope="module")
def front():
    return explore.explore(GRAPHS, boards.load("pynq-z2"))


def cycles(config, board) -> float:
    memory = of_board(board, config)
    program, _ = planner.plan(GRAPHS, config, memory)
    return cost.estimate(program.tasks[""].instructions, config, memory).cycles


def test_front(front):
    board = boards.load("pynq-z2")
    assert all(explore.fits(point.config, board) for point in front)
    for fast, slow in zip(front, front[1:], strict=False):
        assert fast.cycles <= slow.cycles and fast.used["dsp"] > slow.used["dsp"]
    assert front[0].cycles == cycles(front[0].config, board)
    assert explore.text(front).count("*") == 1


def test_choice_is_near_the_best_candidate(front):
    """Against the cycle model on every candidate, not the finalists alone."""
    board = boards.load("pynq-z2")
    best = min(cycles(config, board) for config in explore.candidates(GRAPHS, board))
    assert front[0].cycles <= 1.05 * best


def test_target(front):
    slowest = front[-1].images_per_second
    assert explore.choose(front, slowest) is front[-1] and explore.choose(front) is front[0]
    with pytest.raises(UserError, match="--target-fps 1e.09: the fastest"):
        explore.choose(front, 1e9)


def test_command(hwgen, tmp_path):
    model = tmp_path / "micro.onnx"
    hwgen("example", "m3vit-micro", "-o", model)
    code, out, _ = hwgen("explore", model, "--board", "ulx3s-85f", "--json", "--workers", "2")
    found = json.loads(out)
    assert code == 0 and found["choice"] == found["front"][0]
    code, out, _ = hwgen("explore", model, "--board", "ulx3s-85f")
    assert code == 0 and "hwgen build --board ulx3s-85f" in out
    assert hwgen("explore", model, "--target-fps", "-1")[0] == 2
