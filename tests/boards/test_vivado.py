"""The vendor project: its Tcl runs in tclsh against stand-ins that check all it names against Verilog and register map."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hwgen import boards, registers, vendor
from hwgen.config import Config
from hwgen.steps import verilog

STUB = Path(__file__).with_name("vivado_stub.tcl")
BOARD = boards.load("zcu104")
CONFIG = Config(array_outputs=8, array_inputs=8, weight_ports=4, weight_words=64)


@pytest.fixture(scope="module")
def top() -> dict[str, str]:
    """The generated Verilog."""
    return verilog(CONFIG)


@pytest.fixture
def run(top, tmp_path):
    """run(change, ...): the scripts in tclsh; change: (file, old, new) edits one of them first. Returns the process."""
    if shutil.which("tclsh") is None:
        pytest.skip("tclsh is not installed: apt-get install tcl")

    def go(*changes, version: str = "2022.2", slack: str = "0.1", config: Config = CONFIG, sources=top):
        scripts = vendor.scripts(config, BOARD, [f"rtl/{name}" for name in sources])
        for file, old, new in changes:
            assert old in scripts[f"vivado/{file}"], old
            scripts[f"vivado/{file}"] = scripts[f"vivado/{file}"].replace(old, new)
        for name, text in {**scripts, **{f"rtl/{name}": text for name, text in sources.items()}}.items():
            path = tmp_path / "bundle" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / "facts.tcl").write_text(facts(sources["hwgen_top.v"]))
        work = tmp_path / "work"
        work.mkdir(exist_ok=True)
        command = ["tclsh", STUB, tmp_path / "facts.tcl", version, slack, tmp_path / "bundle" / "vivado" / "build.tcl"]
        return subprocess.run(command, cwd=work, capture_output=True, text=True)

    return go


def facts(text: str) -> str:
    """Ports and registers as Tcl, the ports read from the Verilog itself."""
    header, body = re.search(r"^module hwgen_top\((.*?)\);(.*?)^endmodule", text, re.MULTILINE | re.DOTALL).groups()
    names = [name.strip() for name in header.split(",")]
    found = re.findall(r"^  (input|output) (?:\[[^]]*\] )?(\w+);", body, re.MULTILINE)
    directions = {name: direction for direction, name in found}
    assert set(names) == set(directions)
    access = {"ro": "read-only", "wo": "write-only", "rw": "read-write"}
    listed = " ".join(f"{r.name} {{{r.offset} {access[r.access]}}}" for r in registers.REGISTERS)
    ports = " ".join(f"{name} {direction}" for name, direction in directions.items())
    return f"set verilog_ports {{{ports}}}\nset register_map {{{listed}}}\n"


@pytest.mark.parametrize("version", ["2022.2", "2023.1", "2025.2"])
def test_scripts_run(run, version, tmp_path):
    done = run(version=version)
    assert done.returncode == 0, done.stderr
    placed = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("placed ")]
    assert placed[0] == ["ps/Data", "hwgen_0/s_axi/registers", "0xa0000000", "0x1000"]
    assert [p[:2] for p in placed[2:]] == [
        *([f"hwgen_0/m_axi_w{i}", f"ps/SAXIGP{i + 2}/HP{i}_DDR_LOW"] for i in range(4)),
        ["hwgen_0/m_axi_data", "ps/SAXIGP0/HPC0_DDR_LOW"],
    ]
    assert (tmp_path / "work" / "hwgen.bit").read_text() == "bits\n"
    assert (tmp_path / "work" / "hwgen.hwh").read_text() == "handoff\n"


def test_fewer_ports(run):
    config = CONFIG.replace({"weight_ports": "1"})
    done = run(config=config, sources=verilog(config))
    assert done.returncode == 0, done.stderr
    assert "hwgen_0/m_axi_data ps/SAXIGP3/HP1_DDR_LOW" in done.stdout


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("design.tcl", "m_axi_w2_arlen", "m_axi_w2_arlength", "port m_axi_w2_arlength is not in the Verilog"),
        ("design.tcl", "AWVALID s_axi_awvalid", "AWVALID s_axi_awready", "port s_axi_awready is no input, as AWVALID"),
        ("design.tcl", "RREADY s_axi_rready", "", "ports of the Verilog that no interface takes"),
        ("design.tcl", "ARBURST ", "ARBURTS ", "has no signal ARBURTS"),
        ("design.tcl", "{STATUS 0x010", "{STATUS 0x014", "register STATUS: offset"),
        ("design.tcl", "{IRQ_CLEAR 0x014 write-only", "{IRQ_CLEAR 0x014 read-write", "register IRQ_CLEAR: access"),
        ("design.tcl", "{STATE 0x060", "{STATES 0x060", "register STATES is not in the register map"),
        ("design.tcl", "rtl/ram_sdp.v", "rtl/ram.v", "no such file"),
        ("design.tcl", "register_bytes 4096", "register_bytes 3000", "no multiple of 3000"),
        ("package_ip.tcl", "ACTIVE_HIGH", "ACTIVE_LOW", "rst: polarity"),
        ("package_ip.tcl", "master_address_space_ref $name", "master_address_space_ref other", "no address space"),
        ("package_ip.tcl", "ipx::check_integrity $core", "", "the core is saved unchecked"),
        ("block_design.tcl", "hwgen_0/clk ", "", "hwgen_0/clk is driven by nothing"),
        ("block_design.tcl", "reset/peripheral_reset]", "reset/peripheral_aresetn]", "is low, hwgen_0/rst wants high"),
        ("block_design.tcl", "saxihp1_fpd_aclk", "saxihp6_fpd_aclk", "no pin ps/saxihp6_fpd_aclk"),
        ("block_design.tcl", "{S_AXI_HP1_FPD  3", "{S_AXI_HP1_FPD  4", "no "),
        ("block_design.tcl", "register_base 0xA0000000", "register_base 0xA0010000", "overlaps"),
        ("block_design.tcl", "register_base 0xA0000000", "register_base 0x80000000", "outside the window"),
        ("block_design.tcl", "PSU__USE__IRQ0 1", "PSU__USE__IRQ0 0", "no pin ps/pl_ps_irq0"),
        ("block_design.tcl", "PSU__USE__IRQ0", "PSU__USE_IRQ0", "has no parameter"),
        ("block_design.tcl", "join_interfaces control/M01_AXI interrupts/s_axi", "", "is not connected"),
        ("block_design.tcl", "hwgen:hwgen:$top:1.0", "hwgen:hwgen:$top:1.1", "not packaged"),
        ("block_design.tcl", "zcu104:part0", "zcu999:part0", "Vivado has no files of the board"),
        ("build.tcl", "hwgen::package_ip $here", "# hwgen::package_ip $here", "has no property version"),
    ],
)
def test_what_is_wrong_is_found(run, file, old, new, said):
    done = run((file, old, new))
    assert done.returncode != 0 and said in done.stderr, done.stderr


def test_old_vivado_and_missed_timing(run, tmp_path):
    assert "Vivado 2021.2: 2022.2 or later is needed" in run(version="2021.2").stderr
    assert "timing is missed by 0.25 ns at 300 MHz" in run(slack="-0.25").stderr
    assert not (tmp_path / "work" / "hwgen.bit").exists()


def test_only_boards_with_scripts_get_a_project():
    assert set(vendor.scripts(CONFIG, BOARD, [])) == {
        f"vivado/{name}.tcl" for name in ("build", "package_ip", "block_design", "design")
    }
    assert vendor.scripts(CONFIG, boards.load("ulx3s-85f"), []) == {}


def test_texts_that_braces_cannot_hold_are_refused():
    assert vendor._word("a {b} c") == "{a {b} c}" and vendor._word("") == "{}"
    for text in ("a } b", "a { b", "back\\slash"):
        with pytest.raises(ValueError, match="cannot stand in braces"):
            vendor._word(text)
