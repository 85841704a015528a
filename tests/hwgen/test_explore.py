"""Exploration: every point fits and schedules, no point beats another, the choice is near the best of all candidates."""

import json
import re
import shlex
from dataclasses import replace

import pytest

from hwgen import boards, cost, explore, mapping
from hwgen.dram import of_board
from hwgen.errors import UserError
from hwgen.explore import points, space, work
from hwgen.schedule import schedule
from hwgen.sim.tb.graphs import Shape, random_graph
from hwgen.sim.tb.windows import random_window_graph

GRAPHS = {"": random_graph(1, Shape(patches=(4, 4), heads=4, head=16, hidden=128))}
PYNQ = boards.load("pynq-z2")


@pytest.fixture(scope="module")
def front():
    return explore.explore(GRAPHS, PYNQ)


def cycles(config, board) -> float:
    memory = of_board(board, config)
    program = mapping.mapped(GRAPHS, config, mapping.choose(GRAPHS, config, memory).mapping)
    return cost.estimate(program.tasks[""].instructions, config, memory).cycles


def test_front(front):
    assert all(space.fits(point.config, PYNQ) for point in front)
    assert len(front) > 3 and front == sorted(front, key=lambda p: p.milliseconds)
    for one in front:
        for other in front:
            assert one is other or any(a < b for a, b in zip(one.costs(), other.costs(), strict=True))
    best = explore.choose(front)
    assert best.milliseconds <= 1.01 * front[0].milliseconds
    assert best.cycles == pytest.approx(cycles(best.config, PYNQ), abs=0.1)
    assert best.images_per_second == pytest.approx(PYNQ.clock_mhz * 1e6 / best.cycles, rel=1e-4)
    assert explore.text(front, best).count("*") == 1


def test_a_larger_array_than_any_candidate_is_a_config():
    """Also with windows, whose engine is as wide as the row reader of its array."""
    board = boards.load("ultra96v2")
    wanted = work.measure({"": random_window_graph(0)})
    found = list(space.candidates(wanted, board))
    assert max(config.window_chunks for config in found) > 2
    assert any(points._limit(config, board) for config in found)


def test_choice_is_near_the_best_candidate(front):
    """Against the cycle model on every candidate, not the finalists alone."""
    candidates = {*space.candidates(work.measure(GRAPHS), PYNQ)}
    assert len(candidates) > 5
    best = min(cycles(config, PYNQ) for config in candidates)
    assert explore.choose(front).cycles <= 1.03 * best


def test_what_is_measured_is_what_a_program_needs():
    """A Config with these memories runs the network whole, one with half of them does not."""
    need = work.measure(GRAPHS)
    config = replace(PYNQ.make_config(), **need.fields(), banks=2, bank_words=256)
    while work.capacity(config) < space.MARGIN * need.elements:
        config = replace(config, bank_words=2 * config.bank_words)
    schedule(GRAPHS, config)
    assert need.scale_entries == 256  # where measuring begins
    with pytest.raises(UserError, match="queue_entries"):
        schedule(GRAPHS, replace(config, queue_entries=need.queue_entries // 2))
    with pytest.raises(UserError, match="bank_words"):
        schedule(GRAPHS, replace(config, bank_words=config.bank_words // 4))


def test_memories_that_are_too_small_are_raised():
    config = replace(PYNQ.make_config(), scale_entries=16)
    point = points.evaluate(GRAPHS, PYNQ, points.Job(config))
    assert replace(point.config, scale_entries=16) == config and point.config.scale_entries > 16
    error = points.evaluate(GRAPHS, PYNQ, points.Job(replace(config, bank_words=2)))
    assert isinstance(error, UserError) and "bank_words" in str(error)


def test_target(front):
    slowest = min(point.images_per_second for point in front)
    cheap = explore.choose(front, slowest)
    assert cheap.part == min(point.part for point in front) and cheap.images_per_second >= slowest
    with pytest.raises(UserError, match=r"--target-fps 1e\+09: the fastest Config gives"):
        explore.choose(front, 1e9)
    target = 0.5 * front[0].images_per_second
    aimed = explore.choose(explore.explore(GRAPHS, PYNQ, target=target), target)
    assert aimed.images_per_second >= target and aimed.part <= explore.choose(front, target).part


def test_batches_are_compared():
    found = explore.explore(GRAPHS, PYNQ, batches=(1, 2))
    assert {point.batch for point in found} == {1, 2}
    fast, most = min(found, key=lambda p: p.milliseconds), max(found, key=lambda p: p.images_per_second)
    assert (fast.batch, most.batch) == (1, 2)
    assert most.milliseconds == pytest.approx(2e3 / most.images_per_second, rel=1e-3)


def test_the_smallest_machine_for_a_board_that_takes_none():
    tiny = replace(PYNQ, name="tiny", resources=PYNQ.resources | {"dsp": 60, "bram": 10})
    with pytest.raises(UserError, match=r"no array fits tiny: the smallest array, 8 x 8, is short of .*\d+ DSP \(\d+ needed, 60"):
        explore.explore(GRAPHS, tiny)


def test_a_network_that_no_config_holds_says_what_is_short():
    small = replace(PYNQ, name="small", resources=PYNQ.resources | {"bram": 40})
    huge = {"": random_graph(1, Shape(patches=(16, 16), heads=4, head=64, hidden=512))}
    with pytest.raises(UserError, match="needs .* scratchpad|no room for|need acc_rows"):
        explore.explore(huge, small)


def test_what_binds(front):
    assert "DRAM bandwidth" in front[0].binds or "array" in front[0].binds
    slow = replace(PYNQ, dram_peak=PYNQ.dram_peak / 20)
    assert "DRAM bandwidth (9" in explore.choose(explore.explore(GRAPHS, slow)).binds
    quick = replace(PYNQ, dram_peak=20 * PYNQ.dram_peak)
    assert all("DRAM" not in point.binds for point in explore.explore(GRAPHS, quick))


def test_processes_change_nothing(front, monkeypatch):
    monkeypatch.setattr("hwgen.explore.workers.WORTH_SECONDS", 0.0)
    seen = []
    assert explore.explore(GRAPHS, PYNQ, workers=2, progress=lambda done, total: seen.append((done, total))) == front
    assert [done for done, _ in seen] == [*range(1, len(seen) + 1)] and seen[-1][0] == seen[-1][1]


@pytest.fixture(scope="module")
def micro(tmp_path_factory):
    from hwgen.example import write

    return write("m3vit-micro", tmp_path_factory.mktemp("micro with space") / "micro.onnx")[0]


def test_printed_command_builds_the_choice(hwgen, micro, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hwgen.progress.LOG_SECONDS", 0.01)
    code, out, err = hwgen("explore", micro, "--board", "ulx3s-85f", "--json", "--workers", 1)
    found = json.loads(out)
    assert code == 0 and found["choice"] in found["front"] and re.search(r"explore: \d+ of \d+ Configs, 0:\d\d", err)
    code, out, _ = hwgen("explore", micro, "--board", "ulx3s-85f", "--workers", 1)
    line = shlex.split(out.splitlines()[-1])
    assert code == 0 and shlex.join(line) == found["command"] and line[:2] == ["hwgen", "build"]
    assert hwgen(*line[1:])[0] == 0
    manifest = json.loads((tmp_path / "micro.bundle" / "manifest.json").read_text())
    assert manifest["config"] == found["choice"]["config"] and manifest["board"] == "ulx3s-85f"
    report = json.loads((tmp_path / "micro.bundle" / "report.json").read_text())
    assert report["tasks"][""]["cycles"] == pytest.approx(found["choice"]["cycles"], abs=1)


@pytest.mark.parametrize(
    "options, said",
    [
        (["--target-fps", "-1"], "--target-fps -1.0"),
        (["--workers", "0"], "--workers 0"),
        (["--batch", "1,x"], "--batch 1,x: whole numbers"),
        (["--batch", "100"], "batch=100: a program takes 1 to 64"),
    ],
)
def test_bad_options_are_told(hwgen, micro, options, said):
    code, out, err = hwgen("explore", micro, *options)
    assert (code, out) == (2, "") and said in err


def test_a_window_engine_where_windows_are():
    """Networks with windows get one as wide as a read of rows, others none."""
    asked = {True: {"": random_window_graph(1)}, False: GRAPHS}
    for wanted, graphs in asked.items():
        measured = work.measure(graphs)
        assert bool(measured.windows) == wanted
        found = list(space.shaped(space.base(PYNQ, measured), measured, PYNQ, 8, 12))
        assert found and {config.window_chunks for config in found} == {3 * wanted}
        assert space.smallest(measured, PYNQ).window_chunks == wanted


def test_rows_share_a_windows_reads_where_it_pays():
    """As many as make a large kernel faster; one where rows read nothing in common, or where there are no windows."""
    measured = replace(work.measure({"": random_window_graph(1)}), products=())
    for (kernel, run), several in {((7, 7), 14): True, ((7, 7), 1): False, ((1, 1), 1): False}.items():
        asked = replace(measured, windows=((196, 96, kernel, run, True, 100),))
        found = list(space.shaped(space.base(PYNQ, asked), asked, PYNQ, 8, 12))
        assert found and all((config.window_rows > 1) == several for config in found)
        other = found[0].window_rows - 1 if several else 2
        assert other in {config.window_rows for config in space.neighbours(found[0], asked, PYNQ)}
    none = work.measure(GRAPHS)
    assert {config.window_rows for config in space.shaped(space.base(PYNQ, none), none, PYNQ, 8, 12)} == {1}
