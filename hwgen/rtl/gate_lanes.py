"""Top-k and softmax weights of a few rows of logits in lockstep, one logit of each row a cycle."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from .. import latency
from ..config import Config
from ..memories import expert_bits
from ..numerics import EXP2_TABLE, LOGIT_STEPS, MAX_TOP_K
from .common import delay, delay_valid, register
from .memory import RAM_LATENCY, Ram
from .ports import ELEMENT
from .small_memory import rom

ROM_LATENCY = latency.GATE_ROM
IN_FLIGHT = 2  # groups between the sorted lists and `given`: one being summed, one being taken


def weight_sum_bits(config: Config) -> int:
    """Bits of the sum of all experts' softmax weights."""
    return (config.max_experts * int(EXP2_TABLE[0])).bit_length()


class GateLanes(Component):
    """For `lanes` rows at once: best experts and their softmax weights 2^((logit - max) / 512) with the weights' sum.

    First pass: each logit is compared with a sorted list of the best MAX_TOP_K so far and inserted behind its equals, so
    that ties stay in order of the experts. Second pass, over a copy of the row in a RAM, while the next rows are in the
    first: weight = EXP2_TABLE[distance % 512] >> distance // 512 is added up and, for a chosen expert, kept.

    Parameters: config, lanes.
    Ports: i_valid, i_ready, i_last (logit of the last expert), i_rows (how many lanes hold a row), i_logits (one per lane);
    experts, top_k, renormalise, held during an instruction; given (strobe: the
    group before the next o_valid is taken at most LATENCY - 1 cycles from now);
    o_valid (strobe), o_rows, o_sum, o_weights, o_experts (held until the next group).
    Cycles per group: experts + 1. Latency from the last logit: experts + LATENCY.
    Cost per lane: MAX_TOP_K comparators, one 512x16 table, a shifter, an adder; no multiplier.
    """

    LATENCY = latency.GATE_LANES

    def __init__(self, config: Config, lanes: int):
        if lanes < 1:
            raise ValueError(f"GateLanes lanes={lanes} must be positive")
        self.config, self.lanes = config, lanes
        number = expert_bits(config)
        super().__init__(
            {
                "i_valid": In(1),
                "i_ready": Out(1),
                "i_last": In(1),
                "i_rows": In(range(lanes + 1)),
                "i_logits": In(data.ArrayLayout(ELEMENT, lanes)),
                "experts": In(8),
                "top_k": In(4),
                "renormalise": In(1),
                "given": In(1),
                "o_valid": Out(1),
                "o_rows": Out(range(lanes + 1)),
                "o_sum": Out(data.ArrayLayout(weight_sum_bits(config), lanes)),
                "o_weights": Out(data.ArrayLayout(data.ArrayLayout(16, MAX_TOP_K), lanes)),
                "o_experts": Out(data.ArrayLayout(data.ArrayLayout(number, MAX_TOP_K), lanes)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        number = expert_bits(self.config)
        lanes, best = range(self.lanes), range(MAX_TOP_K)

        # --- first pass: sorted insertion -----------------------------------------------------------------------
        expert, bank = Signal(number), Signal()
        sorted_full, hand_over = Signal(), Signal()  # the lists are complete; they move to the second pass
        rows = Signal(range(self.lanes + 1), reset_less=True)
        step = Signal()
        m.d.comb += [self.i_ready.eq(~sorted_full | hand_over), step.eq(self.i_valid & self.i_ready)]
        with m.If(hand_over):
            m.d.sync += sorted_full.eq(0)
        with m.If(step):
            m.d.sync += [expert.eq(expert + 1), rows.eq(self.i_rows)]
            with m.If(self.i_last):
                m.d.sync += [expert.eq(0), bank.eq(~bank), sorted_full.eq(1)]
        values = [[Signal(ELEMENT, name=f"best_{i}_{k}", reset_less=True) for k in best] for i in lanes]
        names = [[Signal(number, name=f"name_{i}_{k}", reset_less=True) for k in best] for i in lanes]
        for i in lanes:
            logit = self.i_logits[i]
            # Strictly greater moves up; the list holds as many entries as experts came before this one.
            above = [(logit > values[i][k]) | (expert <= k) for k in best]
            with m.If(step):
                for k in best:
                    with m.If(above[k]):
                        m.d.sync += [values[i][k].eq(logit), names[i][k].eq(expert)]
                        if k:
                            with m.If(above[k - 1]):
                                m.d.sync += [values[i][k].eq(values[i][k - 1]), names[i][k].eq(names[i][k - 1])]

        # --- second pass: control -------------------------------------------------------------------------------
        weighing, weighed, read_bank = Signal(), Signal(8), Signal()
        weigh_rows = Signal.like(rows)
        in_flight = Signal(range(IN_FLIGHT + 1))
        last = Signal()
        m.d.comb += [
            hand_over.eq(sorted_full & ~weighing & (in_flight != IN_FLIGHT)),
            last.eq(weighed + 1 == self.experts),
        ]
        m.d.sync += in_flight.eq(in_flight + hand_over - self.given)
        with m.If(hand_over):
            m.d.sync += [weighing.eq(1), weighed.eq(0), read_bank.eq(~bank), weigh_rows.eq(rows)]
        with m.Elif(weighing):
            m.d.sync += [weighed.eq(weighed + 1), weighing.eq(~last)]

        # --- second pass: weights -------------------------------------------------------------------------------
        to_distance = RAM_LATENCY
        to_weight = to_distance + 1 + ROM_LATENCY + 1
        valid = delay_valid(m, weighing, to_weight, "weigh")
        first = delay(m, weighed == 0, to_weight, "weigh_first")
        weight_expert = delay(m, weighed[:number], to_weight, "weigh_expert")
        m.d.sync += self.o_valid.eq(delay_valid(m, weighing & last, to_weight, "weigh_last"))
        weighed_rows = delay(m, weigh_rows, to_weight, "weigh_rows")
        with m.If(valid & first):
            m.d.sync += self.o_rows.eq(weighed_rows)
        for i in lanes:
            ram = Ram(2 << number, 16, style="distributed")
            m.submodules[f"row_{i}"] = ram
            top = Signal(ELEMENT, name=f"top_{i}", reset_less=True)
            chosen_names = [Signal(number, name=f"chosen_{i}_{k}", reset_less=True) for k in best]
            with m.If(hand_over):
                m.d.sync += [top.eq(values[i][0]), *(c.eq(n) for c, n in zip(chosen_names, names[i], strict=True))]
            m.d.comb += [
                ram.write_addr.eq((bank << number) | expert),
                ram.write_data.eq(self.i_logits[i]),
                ram.write_enable.eq(step),
                ram.read_addr.eq((read_bank << number) | weighed[:number]),
            ]
            chosen = [(chosen_names[k] == weighed) & (self.top_k > k) for k in best]
            counts = ~self.renormalise
            for hit in chosen:
                counts = counts | hit
            chosen = [delay(m, hit, to_weight, f"hit_{i}_{k}") for k, hit in enumerate(chosen)]
            counts = delay(m, counts, to_weight, f"counts_{i}")
            distance = register(
                m, (delay(m, top, to_distance, f"top_{i}") - ram.read_data.as_signed())[:17], f"distance_{i}"
            )
            fraction = rom(m, EXP2_TABLE, 16, distance[: LOGIT_STEPS.bit_length() - 1], f"exp2_{i}")
            octaves = distance[LOGIT_STEPS.bit_length() - 1 :]
            octaves = delay(m, Mux(octaves > 16, 16, octaves)[:5], ROM_LATENCY, f"octaves_{i}")
            weight = register(m, fraction >> octaves, f"weight_{i}")
            with m.If(valid):
                m.d.sync += self.o_sum[i].eq(Mux(first, 0, self.o_sum[i]) + Mux(counts, weight, 0))
                for k in best:
                    with m.If(chosen[k]):
                        m.d.sync += [self.o_weights[i][k].eq(weight), self.o_experts[i][k].eq(weight_expert)]
        return m
