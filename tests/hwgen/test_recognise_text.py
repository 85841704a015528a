"""Patterns as text: tensor IR in, rounds of patterns, layers out. What comes out is read again and computes the same."""

from __future__ import annotations

import numpy as np
import pytest

from hwgen.layers import LAYERS
from hwgen.recognise import recognise
from hwgen.tensor import Input, evaluate, parse, text, verify


def recognised(written: str) -> str:
    """The layers as text without constants; checked for being equal on random inputs, also after parsing."""
    before = parse(written)
    after, findings = recognise(before)
    verify(after)
    assert findings == []
    rng = np.random.default_rng(0)
    inputs = {n.op.name: rng.standard_normal(n.shape).astype(np.float32) for n in before.nodes() if isinstance(n.op, Input)}
    wanted, got = (evaluate(p, inputs)[0] for p in (before, after))
    for name, array in wanted.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=1e-4)
    again = parse(text(after).replace("const ...", "const normal(1)"), LAYERS)
    assert [n.op.kind for n in again.nodes()] == [n.op.kind for n in after.nodes()]
    return "\n".join(line.split("  #")[0] for line in text(after).splitlines() if " = const" not in line)


CASES = {
    "linear layer with its bias and a factor of each channel": (
        """
        %0 = input name='x' : f[1, 5, 8]
        %1 = const normal(1) : f[8, 6]
        %2 = contract spec='abc,cd->abd' %0 %1 : f[1, 5, 6]
        %3 = const normal(2) : f[6]
        %4 = map function='add' %2 %3{1,5:0,6:1} : f[1, 5, 6]
        %5 = const normal(3) : f[6]
        %6 = map function='mul' %4 %5{1,5:0,6:1} : f[1, 5, 6]
        output y = %6
        """,
        """%0 = input name='x' : f[1, 5, 8]
%3 = linear %0{5:8,8:1} %1 %2 : f[5, 6]
output y = %3{1,5:6,6:1}""",
    ),
    "channels first, a constant factor before it": (
        """
        %0 = input name='x' : f[8, 5]
        %1 = const normal(1) : f[8]
        %2 = map function='div' %0 %1{8:1,5:0} : f[8, 5]
        %3 = const normal(2) : f[6, 8]
        %4 = contract spec='kr,nk->nr' %2 %3 : f[6, 5]
        output y = %4
        """,
        """%0 = input name='x' : f[8, 5]
%2 = linear %0{5:1,8:5} %1 : f[5, 6]
output y = %2{6:1,5:6}""",
    ),
    "LayerNorm step by step": (
        """
        %0 = input name='x' : f[5, 4]
        %1 = reduce function='sum' axes=(1,) %0 : f[5, 1]
        %2 = const 0.25 : f[]
        %3 = map function='mul' %1 %2{5:0,1} : f[5, 1]
        %4 = map function='sub' %0 %3{5:1,4:0} : f[5, 4]
        %5 = map function='mul' %4 %4 : f[5, 4]
        %6 = reduce function='sum' axes=(1,) %5 : f[5, 1]
        %7 = map function='mul' %6 %2{5:0,1} : f[5, 1]
        %8 = const 0.001 : f[]
        %9 = map function='add' %7 %8{5:0,1} : f[5, 1]
        %10 = const -0.5 : f[]
        %11 = map function='pow' %9 %10{5:0,1} : f[5, 1]
        %12 = map function='mul' %11{5:1,4:0} %4 : f[5, 4]
        output y = %12
        """,
        """%0 = input name='x' : f[5, 4]
%3 = norm epsilon=0.0010000000474974513 centred=True %0 %1{1,4:0} %2{1,4:0} : f[5, 4]
output y = %3""",
    ),
    "RMSNorm by a length": (
        """
        %0 = input name='x' : f[5, 4]
        %1 = map function='mul' %0 %0 : f[5, 4]
        %2 = reduce function='sum' axes=(1,) %1 : f[5, 1]
        %3 = map function='sqrt' %2 : f[5, 1]
        %4 = const 1e-12 : f[]
        %5 = map function='max' %3 %4{5:0,1} : f[5, 1]
        %6 = map function='div' %0 %5{5:1,4:0} : f[5, 4]
        output y = %6
        """,
        """%0 = input name='x' : f[5, 4]
%3 = norm epsilon=2.499999980020986e-25 centred=False %0 %1{1,4:0} %2{1,4:0} : f[5, 4]
output y = %3""",
    ),
    "GELU by erf, its half first": (
        """
        %0 = input name='x' : f[3, 4]
        %1 = const 0.5 : f[]
        %2 = map function='mul' %0 %1{3:0,4:0} : f[3, 4]
        %3 = const 0.70703125 : f[]
        %4 = map function='mul' %0 %3{3:0,4:0} : f[3, 4]
        %5 = map function='erf' %4 : f[3, 4]
        %6 = const 1.0 : f[]
        %7 = map function='add' %5 %6{3:0,4:0} : f[3, 4]
        %8 = map function='mul' %2 %7 : f[3, 4]
        output y = %8
        """,
        """%0 = input name='x' : f[3, 4]
%1 = activation form='gelu' slope=1.0 %0 : f[3, 4]
output y = %1""",
    ),
    "ReLU as a choice": (
        """
        %0 = input name='x' : f[3, 4]
        %1 = const 0.0 : f[]
        %2 = map function='lt' %1{3:0,4:0} %0 : b[3, 4]
        %3 = map function='where' %2 %0 %1{3:0,4:0} : f[3, 4]
        output y = %3
        """,
        """%0 = input name='x' : f[3, 4]
%1 = activation form='relu' slope=0.0 %0 : f[3, 4]
output y = %1""",
    ),
    "attention of two heads with a mask and a factor on the queries": (
        """
        %0 = input name='q' : f[5, 8]
        %1 = input name='k' : f[6, 8]
        %2 = input name='v' : f[6, 4]
        %3 = const -0.5 : f[]
        %4 = map function='mul' %0{2:4,5:8,4:1} %3{2:0,5:0,4:0} : f[2, 5, 4]
        %5 = contract spec='hid,hjd->hij' %4 %1{2:4,6:8,4:1} : f[2, 5, 6]
        %6 = const normal(1) : f[5, 6]
        %7 = map function='add' %5 %6{2:0,5:6,6:1} : f[2, 5, 6]
        %8 = map function='exp' %7 : f[2, 5, 6]
        %9 = reduce function='sum' axes=(2,) %8 : f[2, 5, 1]
        %10 = map function='div' %8 %9{2:5,5:1,6:0} : f[2, 5, 6]
        %11 = contract spec='hij,hje->ihe' %10 %2{2:2,6:4,2:1} : f[5, 2, 2]
        output y = %11
        """,
        """%0 = input name='q' : f[5, 8]
%1 = input name='k' : f[6, 8]
%2 = input name='v' : f[6, 4]
%4 = attention scale=-0.5 %0{1,2:4,5:8,4:1} %1{1,2:4,6:8,4:1} %2{1,2:2,6:4,2:1} %3{1,2:0,5:6,6:1} : f[5, 4]
output y = %4{5:4,2:2,2:1}""",
    ),
    "attention within windows of two tokens": (
        """
        %0 = input name='x' : f[6, 12]
        %1 = contract spec='whid,whjd->whij' %0{3:24,2:2,2:12,2:1} %0{3:24,2:2,2:12,2:1@4} : f[3, 2, 2, 2]
        %2 = reduce function='max' axes=(3,) %1 : f[3, 2, 2, 1]
        %3 = map function='sub' %1 %2{3:4,2:2,2:1,2:0} : f[3, 2, 2, 2]
        %4 = map function='exp' %3 : f[3, 2, 2, 2]
        %5 = reduce function='sum' axes=(3,) %4 : f[3, 2, 2, 1]
        %6 = map function='div' %4 %5{3:4,2:2,2:1,2:0} : f[3, 2, 2, 2]
        %7 = contract spec='whij,whje->wihe' %6 %0{3:24,2:2,2:12,2:1@8} : f[3, 2, 2, 2]
        output y = %7
        """,
        """%0 = input name='x' : f[6, 12]
%1 = attention scale=1.0 %0{3:24,2:2,2:12,2:1} %0{3:24,2:2,2:12,2:1@4} %0{3:24,2:2,2:12,2:1@8} : f[6, 4]
output y = %1{3:8,2:4,2:2,2:1}""",
    ),
    "class token and positions": (
        """
        %0 = input name='x' : f[4, 3]
        %1 = const normal(1) : f[1, 1, 3]
        %2 = concat axis=1 %1 %0{1,4:3,3:1} : f[1, 5, 3]
        %3 = const normal(2) : f[5, 3]
        %4 = map function='add' %2 %3{1,5:3,3:1} : f[1, 5, 3]
        output y = %4
        """,
        """%0 = input name='x' : f[4, 3]
%3 = embed %0 %1 %2 : f[5, 3]
output y = %3{1,5:3,3:1}""",
    ),
    "mean of all tokens": (
        """
        %0 = input name='x' : f[4, 3]
        %1 = reduce function='sum' axes=(1,) %0{1,4:3,3:1} : f[1, 1, 3]
        %2 = const 0.25 : f[]
        %3 = map function='mul' %1 %2{1,1,3:0} : f[1, 1, 3]
        output y = %3
        """,
        """%0 = input name='x' : f[4, 3]
%1 = pool form='mean' %0{1,4:3,3:1} : f[1, 3]
output y = %1{1,1,3:1}""",
    ),
    "depthwise convolution with a border": (
        """
        %0 = input name='x' : f[1, 2, 4, 4]
        %1 = pad before=(0,0,1,1) after=(0,0,1,1) value=0.0 %0 : f[1, 2, 6, 6]
        %2 = const normal(1) : f[2, 1, 1, 3, 3]
        %3 = contract spec='ngcstij,gocij->ngost' %1{1,2:36,1,4:6,4:1,3:6,3:1} %2 : f[1, 2, 1, 4, 4]
        output y = %3
        """,
        """%0 = input name='x' : f[1, 2, 4, 4]
%2 = conv strides=(1,1) dilations=(1,1) pads=(1,1,1,1) groups=2 %0{2:16,4:4,4:1} %1{2:9,1,3:3,3:1} : f[16, 2]
output y = %2{1,2:1,1,4:8,4:2}""",
    ),
    "range of a quantised file, its rounding left out": (
        """
        %30 = input name='x' : f[3, 4]
        %31 = const normal(2) : f[4, 4]
        %0 = contract spec='rk,nk->rn' %30 %31 : f[3, 4]
        %1 = const 0.001 : f[]
        %2 = map function='div' %0 %1{3:0,4:0} : f[3, 4]
        %3 = map function='round' %2 : f[3, 4]
        %4 = const -1000.0 : f[]
        %5 = map function='max' %3 %4{3:0,4:0} : f[3, 4]
        %6 = const 500.0 : f[]
        %7 = map function='min' %5 %6{3:0,4:0} : f[3, 4]
        %8 = map function='mul' %7 %1{3:0,4:0} : f[3, 4]
        %9 = const normal(1) : f[2, 4]
        %10 = contract spec='rk,nk->rn' %8 %9 : f[3, 2]
        output y = %10
        """,
        None,
    ),
}


@pytest.mark.parametrize("name", [name for name, (_, wanted) in CASES.items() if wanted])
def test_pattern(name):
    written, wanted = CASES[name]
    assert recognised(written) == wanted


def test_range_of_a_quantised_file():
    after, _ = recognise(parse(CASES["range of a quantised file, its rounding left out"][0]))
    kinds = [n.op.kind for n in after.nodes() if n.op.kind != "const"]
    (clip,) = (n.op for n in after.nodes() if n.op.kind == "clip")
    assert kinds == ["input", "linear", "clip", "linear"]
    np.testing.assert_allclose((clip.low, clip.high, clip.step), (-1.0, 0.5, 0.001), rtol=1e-6)


def test_range_of_an_input():
    """One format for all readers, the widest; none where one of them has no limit."""
    limit = """%{0} = map function='div' %0 %1{{3:0,4:0}} : f[3, 4]
        %{0}1 = map function='round' %{0} : f[3, 4]
        %{0}2 = const -{1}.0 : f[]
        %{0}3 = map function='max' %{0}1 %{0}2{{3:0,4:0}} : f[3, 4]
        %{0}4 = const {1}.0 : f[]
        %{0}5 = map function='min' %{0}3 %{0}4{{3:0,4:0}} : f[3, 4]
        %{0}6 = map function='mul' %{0}5 %1{{3:0,4:0}} : f[3, 4]
        """
    begin = "%0 = input name='x' : f[3, 4]\n%1 = const 0.5 : f[]\n"
    read = "%90 = const normal(1) : f[2, 4]\n%91 = contract spec='rk,nk->rn' %56 %90 : f[3, 2]\noutput y = %91\n"
    written = begin + limit.format(5, 8) + limit.format(6, 100) + read
    after, _ = recognise(parse(written + "output z = %66"))
    assert after.notes["ranges"] == {"x": (-50.0, 50.0)} and not any(n.op.kind == "clip" for n in after.nodes())
    after, _ = recognise(parse(written + "output z = %66\noutput w = %0"))
    assert not after.notes["ranges"]


def test_what_no_pattern_takes_stays():
    """A product of two values outside attention."""
    written = """%0 = input name='x' : f[3, 4]
%1 = input name='y' : f[5, 4]
%2 = contract spec='ik,jk->ij' %0 %1 : f[3, 5]
output y = %2"""
    assert recognised(written) == written
