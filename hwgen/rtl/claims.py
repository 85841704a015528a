"""What always holds in a component, beside it: assertions on a platform that proves (tests/proofs), nothing in hardware."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Assert, Assume, Cat, Module, Mux, Signal, Value


@dataclass(frozen=True)
class Followed:
    """One word inside a component, any of them: whether it is `there`, how many words are ahead of it, and what it is.

    held: how many words are inside.
    """

    there: Value
    ahead: Value
    word: Value
    held: Value


def proves(platform) -> bool:
    return getattr(platform, "proves", False)


def claim(m: Module, platform, *conditions) -> None:
    """Conditions that hold in every cycle."""
    if proves(platform):
        for condition in conditions:
            m.d.comb += Assert(condition, src_loc_at=1)


def assume(m: Module, platform, *conditions) -> None:
    """Conditions that those around the component keep."""
    if proves(platform):
        for condition in conditions:
            m.d.comb += Assume(condition, src_loc_at=1)


def claim_counter(m: Module, platform, counter: tuple[Value, Value, Value], limit: int) -> None:
    """What `common.counter` keeps of (count, some, full)."""
    count, some, full = counter
    claim(m, platform, count <= limit, some == (count != 0), full == (count == limit))


def claim_order(m: Module, platform, i, o, most: int) -> Followed | None:
    """Claims of two streams: `o` gives every word that `i` took, once, unchanged and in order; at most `most` lie between.

    Returns the word that is followed, for the component's own claims on where it is; None where words are not proven.
    """
    if not getattr(platform, "contents", False):
        return None
    held, ahead = Signal(range(most + 1), name="claim_held"), Signal(range(most + 1), name="claim_ahead")
    there, word = Signal(name="claim_there"), Signal(len(Value.cast(i.payload)), name="claim_word")
    push, pop = i.valid & i.ready, o.valid & o.ready
    m.d.sync += held.eq(held + push - pop)
    with m.If(push & ~there & platform.free(1, "claim_mark")):
        m.d.sync += [there.eq(1), word.eq(i.payload), ahead.eq(held - pop)]
    with m.Elif(there & pop):
        m.d.sync += [ahead.eq(ahead - 1), there.eq(ahead != 0)]
    first = there & (ahead == 0) & o.valid
    claim(
        m, platform, held <= most, ~o.valid | (held != 0), ~push | pop | (held != most), ~there | (ahead < held),
        ~first | (Value.cast(o.payload) == word),
    )  # fmt: skip
    return Followed(there, ahead, word, held)


def stays(m: Module, valid: Value, ready: Value, word, name: str = "offered") -> Value:
    """Whether a word that was offered a cycle ago and not taken still is, unchanged. With registers of its own: for proofs."""
    word = Value.cast(word)
    offered, before = Signal(name=f"claim_{name}"), Signal(len(word), name=f"claim_{name}_word")
    m.d.sync += [offered.eq(valid & ~ready), before.eq(word)]
    return ~offered | (valid & (word == before))


def claim_stable(m: Module, platform, stream) -> None:
    """A word once offered stays until it is taken."""
    if proves(platform):
        claim(m, platform, stays(m, stream.valid, stream.ready, stream.payload))


PAGE = 4096  # bytes, whose border no burst crosses


def _address(m: Module, platform, bus, x: str) -> Value:
    """Claims of an address channel; the beats of the burst that it offers."""
    valid, ready, addr, length = (getattr(bus, f"{x}{name}") for name in ("valid", "ready", "addr", "len"))
    beats = length + 1
    end = addr[:12] + (beats << getattr(bus, f"{x}size"))
    claim(m, platform, stays(m, valid, ready, Cat(addr, length), x), ~valid | (end <= PAGE))
    return beats


def claim_writes(m: Module, platform, bus, outstanding: int, most: int) -> tuple[Value, Value] | None:
    """AXI's rules for what writes, bursts of at most `most` beats: addresses and beats stay until they are taken, beats
    follow their address, the last one is marked, no page is left; at most `outstanding` bursts lack an answer.

    The other side answers only bursts that are complete. Returns (beats of the taken address that are still to come,
    complete bursts without an answer); None without a platform that proves.
    """
    if not proves(platform):
        return None
    beats = _address(m, platform, bus, "aw")
    due, complete = Signal(range(most + 1), name="claim_due"), Signal(range(outstanding + 2), name="claim_complete")
    taken, beat = bus.awvalid & bus.awready, bus.wvalid & bus.wready
    m.d.sync += [
        due.eq(Mux(taken, beats, due - beat)),
        complete.eq(complete + (beat & bus.wlast) - (bus.bvalid & bus.bready)),
    ]
    claim(
        m, platform, stays(m, bus.wvalid, bus.wready, Cat(bus.wdata, bus.wlast), "w"), ~taken | (due == 0),
        ~bus.wvalid | ((due != 0) & (bus.wlast == (due == 1))), complete + (due != 0) <= outstanding,
    )  # fmt: skip
    assume(m, platform, ~bus.bvalid | (complete != 0))
    return due, complete


def claim_reads(m: Module, platform, bus, outstanding: int, most: int) -> tuple[Value, Value] | None:
    """AXI's rules for what reads: addresses stay until they are taken, no page is left, at most `outstanding` bursts of at
    most `most` beats are under way; and every beat that comes is taken at once.

    The other side sends the beats of the bursts that were asked for, the last of each marked. Returns (beats to come,
    bursts to come) of addresses that were taken; None without a platform that proves.
    """
    if not proves(platform):
        return None
    beats = _address(m, platform, bus, "ar")
    due = Signal(range(outstanding * most + 1), name="claim_due")
    bursts = Signal(range(outstanding + 1), name="claim_bursts")
    taken, beat = bus.arvalid & bus.arready, bus.rvalid & bus.rready
    m.d.sync += [due.eq(due + Mux(taken, beats, 0) - beat), bursts.eq(bursts + taken - (beat & bus.rlast))]
    claim(
        m, platform, ~bus.rvalid | bus.rready, bursts <= outstanding, due <= bursts * most, due >= bursts,
        ~taken | (bursts != outstanding),
    )  # fmt: skip
    # Each burst that is left has a beat at least, and `most` at most.
    left, after = bursts - bus.rlast, due - 1
    assume(m, platform, ~bus.rvalid | ((bursts != 0) & (after >= left) & (after <= left * most)))
    return due, bursts
