# What the scripts use of Vivado's IP and bus definitions, 2022.2 to 2025.2, as AMD documents it: PG201 (Zynq UltraScale+
# processing system), PG247 (SmartConnect), PG164 (processor system reset), PG099 (interrupt controller), UG1118 (IP
# packager). Nobody ran Vivado here.

set recorded_boards {xilinx.com:zcu104:part0:1.0 xilinx.com:zcu104:part0:1.1}

# Pins: name, direction, kind (a clock, a reset by its active level, an interrupt), the parameter that brings it about.
set recorded_pins {
    zynq_ultra_ps_e {
        pl_clk0 output clock PSU__FPGA_PL0_ENABLE
        pl_resetn0 output low ""
        pl_ps_irq0 input interrupt PSU__USE__IRQ0
        maxihpm0_fpd_aclk input clock PSU__USE__M_AXI_GP0
        maxihpm1_fpd_aclk input clock PSU__USE__M_AXI_GP1
        saxihpc0_fpd_aclk input clock PSU__USE__S_AXI_GP0
        saxihpc1_fpd_aclk input clock PSU__USE__S_AXI_GP1
        saxihp0_fpd_aclk input clock PSU__USE__S_AXI_GP2
        saxihp1_fpd_aclk input clock PSU__USE__S_AXI_GP3
        saxihp2_fpd_aclk input clock PSU__USE__S_AXI_GP4
        saxihp3_fpd_aclk input clock PSU__USE__S_AXI_GP5
    }
    proc_sys_reset {
        slowest_sync_clk input clock ""
        ext_reset_in input low ""
        aux_reset_in input low ""
        dcm_locked input level ""
        peripheral_reset output high ""
        peripheral_aresetn output low ""
        interconnect_aresetn output low ""
    }
    smartconnect {
        aclk input clock ""
        aresetn input low ""
    }
    axi_intc {
        s_axi_aclk input clock ""
        s_axi_aresetn input low ""
        intr input interrupt ""
        irq output interrupt ""
    }
}
set recorded_optional {aux_reset_in dcm_locked}

set recorded_interfaces {
    zynq_ultra_ps_e {
        M_AXI_HPM0_FPD master PSU__USE__M_AXI_GP0
        M_AXI_HPM1_FPD master PSU__USE__M_AXI_GP1
        S_AXI_HPC0_FPD slave PSU__USE__S_AXI_GP0
        S_AXI_HPC1_FPD slave PSU__USE__S_AXI_GP1
        S_AXI_HP0_FPD slave PSU__USE__S_AXI_GP2
        S_AXI_HP1_FPD slave PSU__USE__S_AXI_GP3
        S_AXI_HP2_FPD slave PSU__USE__S_AXI_GP4
        S_AXI_HP3_FPD slave PSU__USE__S_AXI_GP5
    }
    axi_intc {s_axi slave ""}
    proc_sys_reset {}
}

set recorded_parameters {
    zynq_ultra_ps_e {
        PSU__FPGA_PL0_ENABLE PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ PSU__USE__IRQ0 PSU__USE__M_AXI_GP[0-2]
        PSU__MAXIGP[0-2]__DATA_WIDTH PSU__USE__S_AXI_GP[0-6] PSU__SAXIGP[0-6]__DATA_WIDTH
    }
    smartconnect {NUM_SI NUM_MI NUM_CLKS}
    axi_intc {C_IRQ_CONNECTION}
    proc_sys_reset {}
}

# Segments of DRAM behind the processing system's ports, with the parameter that enables the port.
set recorded_segments {
    SAXIGP0/HPC0_DDR_LOW PSU__USE__S_AXI_GP0
    SAXIGP1/HPC1_DDR_LOW PSU__USE__S_AXI_GP1
    SAXIGP2/HP0_DDR_LOW PSU__USE__S_AXI_GP2
    SAXIGP3/HP1_DDR_LOW PSU__USE__S_AXI_GP3
    SAXIGP4/HP2_DDR_LOW PSU__USE__S_AXI_GP4
    SAXIGP5/HP3_DDR_LOW PSU__USE__S_AXI_GP5
}
set recorded_blocks {axi_intc S_AXI/Reg}

set recorded_bus_parameters {PROTOCOL ASSOCIATED_BUSIF ASSOCIATED_RESET POLARITY SENSITIVITY FREQ_HZ}

# Signals of bus definitions, with the direction at a master.
set recorded_signals {
    xilinx.com:interface:aximm:1.0 {
        AWID output AWADDR output AWLEN output AWSIZE output AWBURST output AWCACHE output AWPROT output AWVALID output
        AWREADY input WDATA output WSTRB output WLAST output WVALID output WREADY input BID input BRESP input BVALID input
        BREADY output ARID output ARADDR output ARLEN output ARSIZE output ARBURST output ARCACHE output ARPROT output
        ARVALID output ARREADY input RID input RDATA input RRESP input RLAST input RVALID input RREADY output
    }
    xilinx.com:signal:clock:1.0 {CLK output}
    xilinx.com:signal:reset:1.0 {RST output}
    xilinx.com:signal:interrupt:1.0 {INTERRUPT output}
}
