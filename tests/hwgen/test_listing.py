"""Level P as text: instructions come back from it, and what is no instruction is named."""

import pytest

from hwgen import isa, listing
from hwgen.config import Config
from hwgen.schedule import schedule
from hwgen.sim.tb.graphs import Shape, random_graph

CONFIG = Config(bank_words=512)


def test_text_and_back():
    program = schedule({"a": random_graph(5, Shape()), "b": random_graph(6, Shape())}, CONFIG)
    for name, task in program.tasks.items():
        written = listing.text(program, name)
        assert listing.parse(written) == (task.instructions, task.origins)
        regions = program.regions["weights0"]
        assert f"region weights0 {regions.offset} +{regions.size}\n" in written
        assert f"output {task.outputs[0].name!r} image 0 at {task.outputs[0].dram}" in written


def test_every_field_comes_back():
    for insn in isa.INSNS.values():
        values = {name: 1 for name, _ in isa.layout(insn) if name != "op"}
        made = isa.decode(isa.encode(insn(**values)))
        assert isa.parse(isa.text(made)) == made


@pytest.mark.parametrize(
    "line, fault",
    [
        ("HALT", "no instruction HALT"),
        ("STORE src=1 rows=1 chunks=1 pitch=1", "STORE without dram"),
        ("STREAM dram=1 words=2 size=3", "STREAM has no field 'size'"),
        ("STREAM dram=1 words=x", "STREAM words=x"),
        (f"STREAM dram=1 words={1 << 32}", "does not fit 32 bits"),
        ("store?", "is no instruction"),
    ],
)
def test_what_is_no_instruction_is_named(line, fault):
    with pytest.raises(ValueError, match=rf"line 2: .*{fault}"):
        listing.parse("  END\n" + line)
