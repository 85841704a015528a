"""Static timing analysis: arcs, absorbed registers, floorplan and paths on netlists made by hand, and OpenSTA's arithmetic."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest

import opensta
from hwgen import boards, cli, report, synth, timing
from hwgen.errors import UserError
from hwgen.synth.families import Cell
from hwgen.synth.netlist import Flat, Netlist
from hwgen.timing import copies
from hwgen.timing.arrival import arrivals, wires, worst_paths
from hwgen.timing.data import FILES, SCENARIOS, delays, parse
from hwgen.timing.detail import refine
from hwgen.timing.graph import build
from hwgen.timing.place import place
from hwgen.timing.together import cascades, slices

HAS_YOSYS = any(importlib.util.find_spec(module) for module, _ in synth.yosys.TOOLS.values())
OUTPUTS = {"O", "Q", "Z", "P", "PCOUT", "CO", "DOUTADOUT", "DOUT_A", "DOUT_B", "F", "S0", "S1", "COUT"}


def netlist(*cells: tuple, names: dict | None = None) -> Netlist:
    """Cells as (name, type, pins, parameters): a pin's nets as a list, numbers or constants."""
    found = {}
    for name, kind, pins, *parameters in cells:
        ins = {pin: nets for pin, nets in pins.items() if pin not in OUTPUTS}
        outs = {pin: nets for pin, nets in pins.items() if pin in OUTPUTS}
        found[name] = (Cell(kind, parameters[0] if parameters else {}, ins, outs), pins)
    return Netlist({}, names or {}, found)


def graph_of(unit: Netlist, family: str = "ultrascale+"):
    flat = Flat({"top": unit})
    flat.add("top", "")
    return build(delays(family), flat)


def needs(graph, scenario: int = 1) -> list[float]:
    """ps of every end, all cells in one place."""
    xy = np.zeros((len(graph.cells), 2))
    return arrivals(graph, wires(graph, scenario, xy)).needs


def ff(name: str, d, q) -> tuple:
    return (name, "FDRE", {"C": [0], "D": [d], "Q": [q], "CE": ["1"], "R": ["0"]})


@pytest.mark.parametrize("family", FILES)
def test_every_table_names_its_source_and_delays_are_ordered(family):
    table = delays(family)
    for name, values in table.tables.items():
        assert values["source"], name
    assert table["lut"]["delays"] == sorted(table["lut"]["delays"])
    for distance, fanout in ((0, 1), (5, 3), (100, 40)):
        by_scenario = [table.net(s, distance, fanout) for s in range(len(SCENARIOS))]
        assert by_scenario == sorted(by_scenario) and by_scenario[0] < by_scenario[-1]
    assert table.net(1, 50, 1) > table.net(1, 10, 1) and table.net(1, 10, 60) > table.net(1, 10, 1)
    carry = table["carry"]
    assert len({len(row) for row in carry["rows"]}) == 1
    columns = carry["rows"][0][1:]
    assert len(columns) == (carry["bits"] + 1 if family == "ecp5" else 2 * carry["bits"])


def test_a_table_without_source_is_refused():
    with pytest.raises(ValueError, match=r"no table \[ff\]"):
        parse("x", '[clock]\nsource = "s"\n')
    tables = "clock ff lut mux carry lutram dsp bram net global die".split()
    with pytest.raises(ValueError, match=r"\[clock\] names no source"):
        parse("x", "\n".join(f"[{table}]" for table in tables))
    with pytest.raises(UserError, match="no delays for family 'ice40'"):
        delays("ice40")


def test_register_lut_register():
    graph = graph_of(
        netlist(ff("a", 1, 2), ff("b", 9, 3), ("l", "LUT2", {"I0": [2], "I1": [3], "O": [4]}), ff("c", 4, 5))
    )
    wire = delays("ultrascale+").net(1, 0, 1)
    # a and b start, the LUT's slower rank takes the input that comes first (here they tie), c sits beside the LUT.
    assert needs(graph)[-1] == pytest.approx(77 + wire + 94 + 25)


def test_the_latest_input_takes_the_fastest_pin():
    cells = [ff("a", 1, 2), ff("b", 9, 3), ("first", "LUT1", {"I0": [3], "O": [4]})]
    cells += [("second", "LUT2", {"I0": [2], "I1": [4], "O": [5]}), ff("c", 5, 6)]
    wire = delays("ultrascale+").net(1, 0, 1)
    assert needs(graph_of(netlist(*cells)))[-1] == pytest.approx(77 + wire + 78 + wire + 78 + 25)


def test_a_wire_to_a_register_alone_pays_the_pin():
    fast, slow = ff("c", 2, 4), ff("d", 2, 5)
    found = needs(graph_of(netlist(ff("a", 1, 2), fast, slow)))
    assert found[-2:] == pytest.approx([77 + delays("ultrascale+").net(1, 0, 2) + 75] * 2)


def carry(name: str, s: list, o: list, co: list, ci="0") -> tuple:
    return (name, "CARRY4", {"S": s, "DI": ["0"] * 4, "CI": [ci], "CYINIT": ["0"], "O": o, "CO": co})


def test_a_wire_to_a_block_is_longer():
    table = delays("ultrascale+")
    assert table.net(1, 5, 1, block=True) == table.net(1, 5, 1) + 190
    pins = {"CLKARDCLK": [0], "ADDRARDADDR": [2], "DOUTADOUT": [10]}
    memory = ("ram", "RAMB36E2", pins, {"DOA_REG": "0", "DOB_REG": "0"})
    graph = graph_of(netlist(ff("a", 1, 2), memory, ("l", "LUT1", {"I0": [10], "O": [30]}), ff("c", 30, 31)))
    wire = table.net(1, 0, 1, block=True)
    found = needs(graph)
    assert found[1] == pytest.approx(77 + wire + 358)  # the memory's address; the first is D of `a`
    assert found[2] == pytest.approx(1003 + wire + 78 + 25)


def ccu2c(name: str, a: int, sums: list, out: int, into: object = "0") -> tuple:
    return (name, "CCU2C", {"A0": [a], "CIN": [into], "S0": [sums[0]], "S1": [sums[1]], "COUT": [out]})


def trellis(name: str, d: int, q: int) -> tuple:
    return (name, "TRELLIS_FF", {"CLK": [0], "DI": [d], "Q": [q]})


def test_an_ecp5_chain_is_left_and_entered_by_a_cell_of_its_own():
    wire = delays("ecp5").net(1, 0, 1)
    first, second = ccu2c("x", 2, [10, 11], 12), ccu2c("y", 3, [20, 21], 22, 12)
    graph = graph_of(netlist(trellis("a", 1, 2), first, second, trellis("b", 21, 30)), "ecp5")
    chained = 525 + wire + 447 + 366 + 474 + 130  # A0 to FCO, on to the next cell's F1, into the flip-flop of the slice
    assert max(needs(graph)) == pytest.approx(chained)
    lut = ("l", "LUT4", {"A": [12], "Z": [40]})
    graph = graph_of(netlist(trellis("a", 1, 2), first, lut, trellis("b", 40, 41)), "ecp5")
    assert max(needs(graph)) == pytest.approx(525 + wire + 447 + 366 + wire + 443 + 236 + 130)
    graph = graph_of(netlist(trellis("a", 1, 2), ccu2c("y", 3, [20, 21], 22, 2), trellis("b", 21, 30)), "ecp5")
    assert max(needs(graph)) == pytest.approx(525 + wire + 447 + 474 + 130)


def test_two_carry4_are_one_carry8():
    lut = ("l", "LUT1", {"I0": [2], "O": [3]})
    first = carry("x", [3, "0", "0", "0"], [10, 11, 12, 13], [14, 15, 16, 17])
    second = carry("y", ["0"] * 4, [20, 21, 22, 23], [24, 25, 26, 27], ci=17)
    graph = graph_of(netlist(ff("a", 1, 2), lut, first, second, ff("b", 23, 30)))
    wire = delays("ultrascale+").net(1, 0, 1)
    assert needs(graph)[-1] == pytest.approx(77 + wire + 78 + 15 + 241 + 0)  # S0 to O7 of one CARRY8
    third = carry("z", ["0"] * 4, [40, 41, 42, 43], [44, 45, 46, 47], ci=27)
    graph = graph_of(netlist(ff("a", 1, 2), lut, first, second, third, ff("b", 43, 30)))
    assert needs(graph)[-1] == pytest.approx(77 + wire + 78 + 15 + 199 + 46 + 82)  # S0 to CO7, cascade, CI to O3


def ram(outputs: list, registered: str = "0") -> tuple:
    pins = {"CLKARDCLK": [0], "ADDRARDADDR": [2], "DOUTADOUT": outputs}
    return ("ram", "RAMB36E2", pins, {"DOA_REG": registered, "DOB_REG": "0"})


def test_output_registers_of_a_memory_are_taken_in():
    lut = ("l", "LUT2", {"I0": [20], "I1": [21], "O": [30]})
    graph = graph_of(netlist(ram([10, 11]), ff("p", 10, 20), ff("q", 11, 21), lut, ff("c", 30, 31)))
    assert graph.notes == {"RAMB36E2: output registers taken in": 1}
    assert sorted(graph.kinds) == ["FDRE", "LUT2", "RAMB36E2"]
    assert needs(graph)[-1] == pytest.approx(220 + delays("ultrascale+").net(1, 0, 1, True) + 94 + 25)


def test_a_memory_read_before_its_register_keeps_it_outside():
    lut = ("l", "LUT2", {"I0": [10], "I1": [21], "O": [30]})  # reads bit 0 without register
    graph = graph_of(netlist(ram([10, 11]), ff("q", 11, 21), lut, ff("c", 30, 31)))
    assert graph.notes == {"RAMB36E2: outputs without their register, something reads them before it": 1}
    assert max(needs(graph)) == pytest.approx(1003 + delays("ultrascale+").net(1, 0, 1, True) + 78 + 25)
    # Registers of different enables are not one register either.
    other = ("q", "FDRE", {"C": [0], "D": [11], "Q": [21], "CE": [99], "R": ["0"]})
    assert "without" in next(iter(graph_of(netlist(ram([10, 11]), ff("p", 10, 20), other)).notes))


def dsp(**parameters: str) -> tuple:
    regs = {name: "0" for name in ("AREG", "BREG", "CREG", "DREG", "ADREG", "MREG", "PREG")}
    return ("m", "DSP48E2", {"CLK": [0], "A": [2], "B": [3], "P": [4]}, regs | parameters)


def test_registers_around_a_multiplier_are_taken_in():
    inside = [ff("a", 1, 2), ff("b", 9, 3), dsp(), ff("p", 4, 5), ff("q", 5, 6)]
    graph = graph_of(netlist(*inside, ("l", "LUT1", {"I0": [6], "O": [7]}), ff("c", 7, 8)))
    assert graph.notes == {
        **{f"DSP48E2: registers of input {letter} taken in": 1 for letter in "AB"},
        "DSP48E2: PREG taken in": 1,
        "DSP48E2: MREG taken in": 1,
    }
    assert needs(graph)[-1] == pytest.approx(210 + delays("ultrascale+").net(1, 0, 1, True) + 78 + 25)


def test_an_instantiated_multiplier_stays_as_it_is():
    inside = [ff("a", 1, 2), ff("b", 9, 3), dsp(AREG="1", MREG="1"), ff("p", 4, 5)]
    graph = graph_of(netlist(*inside))
    assert not graph.notes and graph.kinds.count("FDRE") == 3


def test_a_multiplier_without_registers_is_a_way_through():
    outside = [ff("a", 1, 2), ff("b", 9, 3), dsp(), ("l", "LUT1", {"I0": [4], "O": [5]}), ff("c", 5, 6), ff("d", 2, 7)]
    graph = graph_of(netlist(*outside))  # a feeds d too, so it stays; b is taken in, and is a register within
    wire = delays("ultrascale+").net
    assert needs(graph)[-2] == pytest.approx(77 + wire(1, 0, 2, True) + 1559 + wire(1, 0, 1, True) + 78 + 25)


@pytest.mark.parametrize("port, launch", [("A", 1292), ("B", 2059)])
def test_ports_of_an_ultraram_differ(port, launch):
    pins = {"CLK": [0], f"ADDR_{port}": [2], f"DOUT_{port}": [10]}
    memory = ("u", "URAM288", pins, {"OREG_A": "FALSE", "OREG_B": "FALSE"})
    graph = graph_of(netlist(memory, ("l", "LUT1", {"I0": [10], "O": [11]}), ff("c", 11, 12)))
    assert max(needs(graph)) == pytest.approx(launch + delays("ultrascale+").net(1, 0, 1, True) + 78 + 25)


def placed(unit: Netlist, board: str, xy: np.ndarray | None = None, monkeypatch=None):
    """(graph with copies, places); xy: where every cell lies, a copy where its loads are, instead of a floorplan."""
    flat = Flat({"top": unit})
    flat.add("top", "")
    if xy is not None:
        monkeypatch.setattr(copies, "place", lambda graph, board, start=None: xy if start is None else start)
        monkeypatch.setattr(copies, "refine", lambda graph, xy: xy)
    return copies.place_with_copies(build(delays(boards.load(board).family), flat), flat, boards.load(board))


def test_a_register_with_a_limit_is_copied_near_its_loads(monkeypatch):
    cells = [ff("a", 1, 2), *(ff(f"r{i}", 2, 10 + i) for i in range(5))]
    limited = dataclasses.replace(netlist(*cells, names={2: "wide"}), max_fanout={2: 2})
    xy = np.array([(0, 0), (0, 1), (90, 300), (0, 2), (90, 301), (50, 150)], dtype=float)
    graph, where = placed(limited, "zcu104", xy, monkeypatch)
    assert graph.notes == {"registers copied for max_fanout": 2} and graph.kinds == ["FDRE"] * 8
    assert sorted(graph.fanout.values()) == [1, 2, 2, 3]  # what the first drove: itself and its copies read one net
    reads = [graph.cells[i].inputs["D"] for i in range(1, 6)]
    assert reads[0] == reads[2] and reads[1] == reads[3] != reads[0]  # neighbours share a copy
    copy = graph.driver[reads[1][0]]
    assert where[copy].tolist() == [90, 300.5]
    ecp5 = [("a", "TRELLIS_FF", {"CLK": [0], "DI": [1], "Q": [2]})]
    ecp5 += [(f"r{i}", "TRELLIS_FF", {"CLK": [0], "DI": [2], "Q": [10 + i]}) for i in range(5)]
    plain, _ = placed(dataclasses.replace(netlist(*ecp5), max_fanout={2: 2}), "ulx3s-85f", xy, monkeypatch)
    assert not plain.notes and plain.fanout[plain.ends[1].net] == 5  # nextpnr makes no copies


def test_a_lut_on_a_long_path_is_copied_near_far_loads(monkeypatch):
    lut = ("l", "LUT2", {"I0": [2], "I1": [3], "O": [4]})
    unit = netlist(ff("a", 1, 2), ff("b", 9, 3), lut, ff("c", 4, 12), ff("d", 4, 13), ff("e", 4, 14), ff("f", 12, 15))
    xy = np.array([(0, 0), (0, 1), (0, 2), (90, 300), (0, 3), (90, 302), (90, 303)], dtype=float)
    graph, where = placed(unit, "zcu104", xy, monkeypatch)
    assert graph.notes["LUTs copied near far loads"] == 1 and graph.kinds.count("LUT2") == 2
    far, near = (graph.driver[graph.cells[i].inputs["D"][0]] for i in (3, 4))
    assert graph.driver[graph.cells[5].inputs["D"][0]] == far != near
    assert where[far].tolist() == [90, 301]
    # What they read is copied behind them in turn.
    assert graph.notes["registers copied near far loads"] == 2 and graph.cells[far].inputs != graph.cells[near].inputs


def srl(name: str, d, q, length: str = "1") -> tuple:
    return (name, "SRL16E", {"CLK": [0], "CE": ["1"], "D": [d], "Q": [q], "A0": [length], "A1": ["0"], "A2": ["0"], "A3": ["0"]})


def test_the_end_of_a_shift_register_is_a_flip_flop():
    graph = graph_of(netlist(ff("a", 1, 2), srl("s", 2, 3), ff("b", 3, 4)))
    assert graph.notes == {"SRL16E: the last stage a flip-flop": 1} and sorted(graph.kinds) == ["FDRE", "FDRE", "FDRE", "SRL16E"]
    wire = delays("ultrascale+").net(1, 0, 1)
    assert sorted(needs(graph)[1:]) == pytest.approx([77 + wire + 75, 77 + wire + 134, 312 + wire + 75])
    # It goes into the multiplier behind it; of one behind a multiplier the first stage is the product's register.
    graph = graph_of(netlist(srl("s", 1, 2), ff("b", 9, 3), dsp(), srl("t", 4, 5), ff("c", 5, 6)))
    assert graph.notes["DSP48E2: registers of input A taken in"] == 1 and graph.notes["DSP48E2: PREG taken in"] == 1
    # One whose length is not fixed stays.
    assert not graph_of(netlist(ff("a", 1, 2), srl("s", 2, 3, 7), ff("b", 3, 4))).notes


def test_a_loop_of_logic_ends():
    loop = [("x", "LUT2", {"I0": [2], "I1": [4], "O": [3]}), ("y", "LUT1", {"I0": [3], "O": [4]})]
    found = needs(graph_of(netlist(ff("a", 1, 2), *loop, ff("b", 4, 5))))
    assert np.isfinite(found[-1]) and found[-1] > 77 + 78


def test_paths_are_named_by_registers_and_counted():
    names = {2: "from[0]", 3: "from[1]", 12: "to[0]", 13: "to[1]"}
    luts = [("l", "LUT1", {"I0": [2], "O": [4]}), ("k", "LUT1", {"I0": [3], "O": [5]})]
    graph = graph_of(netlist(ff("a", 1, 2), ff("b", 9, 3), *luts, ff("c", 4, 12), ff("d", 5, 13), names=names))
    xy = np.zeros((len(graph.cells), 2))
    wire = wires(graph, 1, xy)
    (path,) = worst_paths(graph, arrivals(graph, wire), wire, xy, 5)
    assert (path.start, path.end, path.count) == ("from", "to", 2)
    assert [stage.kind for stage in path.stages] == ["FDRE", "LUT1", "FDRE"]
    assert sum(s.net_ps + s.cell_ps for s in path.stages) == pytest.approx(path.ps)


def chain(length: int) -> Netlist:
    """Registers one behind the other."""
    return netlist(*(ff(f"r{i}", i + 1, i + 2) for i in range(length)))


def test_floorplan_keeps_neighbours_near_and_fits_the_die():
    graph = graph_of(chain(4000))
    board = boards.load("zcu104")
    xy = place(graph, board)
    near = np.abs(np.diff(xy, axis=0)).sum(axis=1)
    far = np.abs(xy[2000:] - xy[:2000]).sum(axis=1)
    assert np.median(near) < 1 and np.median(far) > 5
    assert xy.min() >= 0 and (xy.max(axis=0) <= (100, 360)).all()
    assert np.array_equal(xy, place(graph_of(chain(4000)), board))  # the same again


@pytest.mark.parametrize("board, kind", [("zcu104", "DSP48E2"), ("zcu104", "URAM288"), ("ulx3s-85f", "MULT18X18D")])
def test_blocks_lie_on_the_sites_that_the_part_has(board, kind):
    board = boards.load(board)
    count = 40
    register, pins = ("TRELLIS_FF", ("CLK", "DI")) if board.family == "ecp5" else ("FDRE", ("C", "D"))
    cells = [(f"m{i}", kind, {"A": [2 * i + 1], "B": [], "P": [2 * i + 2]}, {"PREG": "1"}) for i in range(count)]
    cells += [(f"r{i}", register, {pins[0]: [0], pins[1]: [2 * i + 2], "Q": [2 * i + 3]}) for i in range(count)]
    graph = graph_of(netlist(*cells), board.family)
    xy = place(graph, board)[[i for i, cell in enumerate(graph.kinds) if cell == kind]]
    if board.family == "ecp5":  # rows of 52
        assert set(xy[:, 1].round()) <= {10, 34, 58}
        apart = 126 / 52
        lines = [xy[xy[:, 1] == y, 0] for y in set(xy[:, 1])]
    else:  # columns of 144 and 96
        apart = 2.5 if kind == "DSP48E2" else 3.75
        lines = [xy[xy[:, 0] == x, 1] for x in set(xy[:, 0])]
        assert len(lines) == 1 if kind == "URAM288" else len(lines) < 9
    assert all(np.diff(np.sort(line)).min(initial=apart) > apart * 0.95 for line in lines)


def test_what_shares_a_slice_lies_in_one_place():
    lut = ("l", "LUT2", {"I0": [2], "I1": [3], "O": [4]})
    adder = carry("x", [4, 3, "0", "0"], [10, 11, 12, 13], [14, 15, 16, 17])
    graph = graph_of(netlist(ff("a", 1, 2), ff("b", 9, 3), lut, adder, ff("c", 11, 20), ff("d", 3, 21)))
    a, b, *chain, d = slices(graph).tolist()
    assert len({*chain}) == 1 and len({a, b, chain[0], d}) == 4  # the LUT, its carry and what is behind that
    xy = place(graph, boards.load("zcu104"))
    assert (xy[2:5] == xy[2]).all() and (xy[0] != xy[2]).any()


def test_a_cascade_lies_on_neighbouring_sites():
    count = 8
    pins = [{"A": [100 + i], "B": [], "P": [200 + i], "PCOUT": [300 + i], "PCIN": [299 + i] if i else []} for i in range(count)]
    cells = [(f"m{i}", "DSP48E2", pins[i], {"PREG": "1"}) for i in range(count)]
    cells += [("other", "DSP48E2", {"A": [120], "B": [], "P": [220]}, {"PREG": "1"})]
    cells += [ff(f"r{i}", 200 + i, i) for i in range(5)]
    graph = graph_of(netlist(*cells))
    assert cascades(graph) == [[*range(count)]]
    xy = place(graph, boards.load("zcu104"))
    assert len(set(xy[:count, 0])) == 1 and np.diff(xy[:count, 1]) == pytest.approx([2.5] * (count - 1))
    assert (np.abs(xy[:count] - xy[count]).sum(axis=1) > 2).all()


def test_a_register_moves_to_where_neither_side_is_late():
    ram_in, ram_out = ({"CLKARDCLK": [0], "ADDRARDADDR": [a], "DOUTADOUT": [b]} for a, b in ((8, 2), (4, 9)))
    registered = {"DOA_REG": "1", "DOB_REG": "1"}
    cells = [("from", "RAMB36E2", ram_in, registered), ("l", "LUT1", {"I0": [2], "O": [3]}), ff("r", 3, 4)]
    graph = graph_of(netlist(*cells, ("to", "RAMB36E2", ram_out, registered), ff("far", 4, 5)))
    xy = np.array([(0, 0), (0, 300), (0, 300), (0, 300), (0, 299)], dtype=float)

    def late(xy: np.ndarray) -> float:
        return max(arrivals(graph, wires(graph, 1, xy)).needs)

    better = refine(graph, xy)
    assert late(better) < 0.75 * late(xy)
    assert better[0].tolist() == [0, 0] and better[3].tolist() == [0, 300]  # memories stay
    assert better[1].tolist() == better[2].tolist() and 100 < better[1][1] < 200


def test_a_lut_moves_with_the_registers_behind_it():
    cells = [("l", "LUT2", {"I0": [2], "I1": [3], "O": [4]}), *(ff(f"r{i}", 4, 10 + i) for i in range(5))]
    ends = [{"CLKARDCLK": [0], "ADDRARDADDR": [10 + i], "DOUTADOUT": [30 + i]} for i in range(5)]
    starts = [("s", "RAMB36E2", {"CLKARDCLK": [0], "ADDRARDADDR": [8], "DOUTADOUT": [2, 3]}, {"DOA_REG": "1", "DOB_REG": "1"})]
    cells += starts + [(f"e{i}", "RAMB36E2", pins, {"DOA_REG": "1", "DOB_REG": "1"}) for i, pins in enumerate(ends)]
    # Behind a net of many loads the LUT is a little later beside the memory.
    cells += [ff(f"o{net}{i}", net, 100 * net + i) for net in (2, 3) for i in range(63)]
    graph = graph_of(netlist(*cells))
    xy = np.array([*[(0, 300)] * 6, (0, 0), *[(0, 300)] * 5, *[(0, 0)] * 126], dtype=float)

    def late(xy: np.ndarray) -> float:
        return max(arrivals(graph, wires(graph, 1, xy)).needs)

    better = refine(graph, xy)  # neither the LUT nor a register alone makes the path shorter
    assert late(better) < 0.8 * late(xy) and (better[:6, 1] < 290).all()


def test_opensta_adds_up_the_same(tmp_path):
    if not opensta.available():
        pytest.skip("OpenSTA (Debian: opensta) is not installed")
    lut = ("l", "LUT3", {"I0": [2], "I1": [3], "I2": [10], "O": [30]})
    first = carry("x", [30, 3, 3, "0"], [40, 41, 42, 43], [44, 45, 46, 47])  # one net on two pins of a cell
    cells = [ff("a", 1, 2), ff("b", 9, 3), ram([10, 11]), lut, first, ff("c", 43, 31), ff("d", 11, 32)]
    graph = graph_of(netlist(*cells))
    xy = np.arange(2.0 * len(graph.cells)).reshape(-1, 2) * 3
    wire = wires(graph, 1, xy)
    found = arrivals(graph, wire)
    assert opensta.Export(graph, found, wire).worst(tmp_path) == pytest.approx(max(found.needs), abs=0.5)


def made(**more) -> timing.Estimate:
    path = {"ps": 3000, "from": "a", "to": "b", "unit": "core", "bits": 1, "stages": []}
    needs = {"optimistic": 2000.0, "likely": 3000.0, "pessimistic": 4500.0}
    paths = {scenario: [path] for scenario in SCENARIOS}
    return timing.Estimate("zcu104", "", 10, needs=needs, units={"core": [2000.0, 3000.0, 4500.0]}, paths=paths, **more)


def test_estimate_in_mhz_and_slack():
    found = made()
    assert found.mhz("likely") == pytest.approx(333.3, abs=0.1)
    assert found.slack("likely", 300) == pytest.approx(333.3, abs=0.1)
    assert found.to_dict(300)["unit_slack_ps"]["core"]["pessimistic"] == -1167
    assert made(limits={"DSP48E2": 4000}).mhz("likely") == 250  # a block's own limit
    text = timing.text(found, 300)
    assert "333.3" in text and "warning" not in text
    assert "warning: 400 MHz is above what likely allows" in timing.text(found, 400)


def test_report_takes_the_clock_that_likely_allows():
    task = {"milliseconds": 1.0, "images_per_second": 1000.0, "cycles": 300_000}
    plain = {"clock_mhz": 300.0, "tasks": {"": task}}
    assert report.at_clock(plain, {}) is plain
    fast = report.at_clock(plain, {"optimistic": 400.0, "likely": 320.0, "pessimistic": 250.0})
    assert fast["clock_of_times_mhz"] == 300 and fast["tasks"][""] == task
    slow = report.at_clock(plain, {"optimistic": 300.0, "likely": 200.0, "pessimistic": 150.0})
    assert slow["tasks"][""]["milliseconds"] == 1.5 and slow["tasks"][""]["images_per_second"] == pytest.approx(666.667)


DESIGN = """\
module hwgen_top(clk, a, y);
  input clk;
  wire clk;
  input [7:0] a;
  output reg [7:0] y;
  (* max_fanout = 32'd2 *) reg [7:0] kept;
  reg [7:0] more;
  always @(posedge clk) begin kept <= a; more <= kept + 8'd3; y <= more ^ kept; end
endmodule
"""


@pytest.mark.slow
@pytest.mark.skipif(not HAS_YOSYS, reason="Yosys is not installed")
@pytest.mark.parametrize("board, most", [("zcu104", 1500), ("pynq-z2", 4000), ("ulx3s-85f", 6000)])
def test_a_design_of_each_family(board, most, tmp_path):
    found = timing.estimate({"a.v": DESIGN}, boards.load(board), cache=tmp_path)
    assert 300 < found.needs["optimistic"] <= found.needs["likely"] <= found.needs["pessimistic"] < most
    assert found.paths["likely"][0]["from"] == "kept" and found.paths["likely"][0]["to"] in ("more", "y")
    assert list(found.units) == ["hwgen_top"]
    assert ("registers copied for max_fanout" in found.notes) == (board != "ulx3s-85f")
    again = timing.cached({"a.v": DESIGN}, boards.load(board), tmp_path)
    assert again is not None and json.dumps(dataclasses.asdict(again)) == json.dumps(dataclasses.asdict(found))
    with pytest.raises(UserError, match="the design has no unit 'nothing'"):
        timing.estimate({"a.v": DESIGN}, boards.load(board), only="nothing")


def test_command_refuses_what_it_cannot_do(tmp_path, capsys):
    assert cli.main(["timing", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err
