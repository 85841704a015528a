"""Scratchpad: the on-chip memory of all activations, in banks that several units use at once."""

from __future__ import annotations

from functools import reduce
from operator import or_

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib.wiring import Component, In

from ..config import Config
from ..memories import memories
from .common import WIDE, delay, register
from .memory import RAM_LATENCY, STYLES, Ram
from .ports import READ_LATENCY, read_port, write_port

NEAR_RAMS = {"max_fanout": 4}  # of an address: a word is several RAMs wide


class Scratchpad(Component):
    """scratch_chunks chunks of `chunk` int16 elements; every port moves 1 or more consecutive chunks a cycle.

    A chunk address is bank | word | sub-bank from high to low bits. An access of n chunks touches n consecutive
    sub-banks, of the next word where it wraps, and of the bank's first behind its last: a row is read in whole accesses, and
    what lies behind its end is used by nobody. Each bank serves one read and one write a
    cycle: requesters in different banks never meet, and reads never meet writes. Address bits beyond the memory are not
    used.

    Parameters: config; style of the RAMs (memory.STYLES).
    Ports, in falling priority: rd_res (output_chunks), rd_x, rd_w (input_chunks), rd_vector (window_chunks, at least 1),
    rd_store (1): `read_port`;
    wr_y (output_chunks), wr_vector, wr_load (1): `write_port`. `ready` = no port of higher priority is valid in the
    same bank: combinational from the other ports' valid and addr and the own addr, never from the own valid.
    Latency: data READ_LATENCY (4) cycles after acceptance, for one cycle. Reads accepted WRITE_LATENCY (2) or more
    cycles after a write see it, those up to the cycle of the write do not; one cycle after it they are undefined.
    Cost: banks * word_chunks RAMs of bank_words x chunk*16 bits; per chunk of a read port a multiplexer over all
    RAMs; an address register per RAM, registers for one word written per bank, and for each port's data.
    """

    def __init__(self, config: Config, style: str = "auto"):
        if style not in STYLES:
            raise ValueError(f"Scratchpad style={style!r} is not one of {STYLES}")
        self.config, self.style = config, style
        wide_in, wide_out = read_port(config, config.input_chunks), read_port(config, config.output_chunks)
        super().__init__(
            {
                "rd_res": In(wide_out),
                "rd_x": In(wide_in),
                "rd_w": In(wide_in),
                "rd_vector": In(read_port(config, max(config.window_chunks, 1))),
                "rd_store": In(read_port(config, 1)),
                "wr_y": In(write_port(config, config.output_chunks)),
                "wr_vector": In(write_port(config, 1)),
                "wr_load": In(write_port(config, 1)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        c = self.config
        shape = memories(c)["scratchpad"]
        rams = []  # [bank][sub-bank]
        for b in range(c.banks):
            rams.append([Ram(shape.depth, shape.width, style=self.style) for _ in range(c.word_chunks)])
            for i, ram in enumerate(rams[b]):
                m.submodules[f"ram_{b}_{i}"] = ram
        self._reads(m, rams)
        self._writes(m, rams)
        return m

    def _split(self, addr: Value) -> tuple[Value, Value, Value]:
        """(sub-bank, word, bank) of a chunk address; the sub-bank has no bits where a word is one chunk."""
        c = self.config
        sub = (c.word_chunks - 1).bit_length()
        word = sub + (c.bank_words - 1).bit_length()
        return addr[:sub], addr[sub:word], addr[word : word + (c.banks - 1).bit_length()]

    def _grant(self, m: Module, ports: list) -> None:
        """Drive `ready` of ports in falling priority."""
        banks = [self._split(port.addr)[2] for port in ports]
        for i, port in enumerate(ports):
            beaten = [ports[j].valid & (banks[j] == banks[i]) for j in range(i)]
            m.d.comb += port.ready.eq(~reduce(or_, beaten, Const(0, 1)))

    def _reads(self, m: Module, rams: list[list[Ram]]) -> None:
        c = self.config
        readers = {"res": self.rd_res, "x": self.rd_x, "w": self.rd_w, "vector": self.rd_vector, "store": self.rd_store}
        self._grant(m, list(readers.values()))
        split = {name: self._split(port.addr) for name, port in readers.items()}

        # Cycle t: the winner's address into the registers of the bank's RAMs, for each of them as every port would have it.
        places = {
            name: [Mux(sub > i, word + 1, word)[: len(word)] for i in range(c.word_chunks)]
            for name, (sub, word, _) in split.items()
        }
        *others, last = readers
        for b, bank_rams in enumerate(rams):
            wins = [readers[name].valid & (split[name][2] == b) for name in others]
            for i, ram in enumerate(bank_rams):
                address: Value = places[last][i]  # also where nobody reads
                for name, win in reversed(list(zip(others, wins, strict=True))):
                    address = Mux(win, places[name][i], address)
                m.d.comb += ram.read_addr.eq(register(m, address, f"rd_word_{b}_{i}", NEAR_RAMS))

        # t + 3: the RAMs' data through one multiplexer per requested chunk into the port's register.
        contents = Array(ram.read_data for bank_rams in rams for ram in bank_rams)
        for name, port in readers.items():
            sub, _, bank = split[name]
            sub, bank = delay(m, sub, RAM_LATENCY, f"{name}_sub"), delay(m, bank, RAM_LATENCY, f"{name}_bank")
            wide = port.data.as_value()
            for k in range(len(wide) // (16 * c.chunk)):
                source = register(m, Cat((sub + k)[: len(sub)], bank), f"{name}_from_{k}", WIDE)
                chunk = register(m, contents[source], f"{name}_chunk_{k}")
                m.d.comb += wide.word_select(k, 16 * c.chunk).eq(chunk)

    def _writes(self, m: Module, rams: list[list[Ram]]) -> None:
        c = self.config
        width = 16 * c.chunk
        writers = {"y": self.wr_y, "vector": self.wr_vector, "load": self.wr_load}
        self._grant(m, list(writers.values()))

        # Cycle t: each port's chunks rotated to their sub-banks, registered.
        stages = []
        for name, port in writers.items():
            sub, word, bank = self._split(port.addr)
            chunks = len(port.mask)
            data = port.data.as_value()
            # Per distance from the access's start; what lies beyond its chunks is never enabled.
            places = Array(data.word_select(min(k, chunks - 1), width) for k in range(c.word_chunks))
            masks = Array(port.mask[k] if k < chunks else Const(0, 1) for k in range(c.word_chunks))
            to = []  # per sub-bank: enable, word, data
            for i in range(c.word_chunks):
                k = (i - sub)[: len(sub)]
                enable = Signal(name=f"{name}_enable_{i}")
                m.d.sync += enable.eq(port.valid & port.ready & masks[k])
                place = register(m, Mux(sub > i, (word + 1)[: len(word)], word), f"{name}_word_{i}")
                to.append((enable, place, register(m, places[k] if chunks > 1 else data, f"{name}_data_{i}")))
            stages.append((register(m, bank, f"{name}_bank"), to))

        # t + 1: at most one port's chunks per bank, registered; t + 2: into the RAM.
        for b, bank_rams in enumerate(rams):
            for i, ram in enumerate(bank_rams):
                enable = Signal(name=f"wr_enable_{b}_{i}")
                address = Signal(len(ram.write_addr), name=f"wr_word_{b}_{i}", reset_less=True)
                data = Signal(width, name=f"wr_data_{b}_{i}", reset_less=True)
                hits = [(bank == b) & to[i][0] for bank, to in stages]
                m.d.sync += enable.eq(reduce(or_, hits))
                choice = m.If
                for hit, (_, to) in zip(hits, stages, strict=True):
                    with choice(hit):
                        m.d.sync += [address.eq(to[i][1]), data.eq(to[i][2])]
                    choice = m.Elif
                m.d.comb += [
                    ram.write_enable.eq(enable),
                    ram.write_addr.eq(address),
                    ram.write_data.eq(data),
                ]


assert READ_LATENCY == RAM_LATENCY + 2, "Scratchpad has one register before and one behind its RAMs"
