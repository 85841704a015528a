# Block design of the ZCU104: processing system, clock, reset, AXI ports, interrupt, the accelerator. Needs design.tcl.
namespace eval hwgen {
    variable board_part xilinx.com:zcu104:part0

    # The processing system's memory ports in the order in which masters get them: name, number of its parameters, clock
    # pin, address segment of DRAM. Weights go to the HP ports, which have their own ways to the DDR controller; what comes
    # last to HPC0, through the coherent interconnect.
    variable memory_ports {
        {S_AXI_HP0_FPD  2 saxihp0_fpd_aclk  SAXIGP2/HP0_DDR_LOW}
        {S_AXI_HP1_FPD  3 saxihp1_fpd_aclk  SAXIGP3/HP1_DDR_LOW}
        {S_AXI_HP2_FPD  4 saxihp2_fpd_aclk  SAXIGP4/HP2_DDR_LOW}
        {S_AXI_HP3_FPD  5 saxihp3_fpd_aclk  SAXIGP5/HP3_DDR_LOW}
        {S_AXI_HPC0_FPD 0 saxihpc0_fpd_aclk SAXIGP0/HPC0_DDR_LOW}
        {S_AXI_HPC1_FPD 1 saxihpc1_fpd_aclk SAXIGP1/HPC1_DDR_LOW}
    }
    variable dram_bytes 0x80000000
    variable register_base 0xA0000000
    variable interrupt_base 0xA0010000
    variable interrupt_bytes 0x10000

    proc clock {args} {
        foreach pin $args {
            connect_bd_net [get_bd_pins ps/pl_clk0] [get_bd_pins $pin]
        }
    }

    proc active_low_reset {args} {
        foreach pin $args {
            connect_bd_net [get_bd_pins reset/peripheral_aresetn] [get_bd_pins $pin]
        }
    }

    proc join_interfaces {from to} {
        connect_bd_intf_net [get_bd_intf_pins $from] [get_bd_intf_pins $to]
    }

    # The project with the packaged core in `repository`, its block design and the wrapper around it.
    proc block_design {repository folder} {
        variable part
        variable board_part
        variable top
        variable slave
        variable masters
        variable axi_bits
        variable clock_mhz
        variable memory_ports
        variable dram_bytes
        variable register_base
        variable register_bytes
        variable interrupt_base
        variable interrupt_bytes

        create_project hwgen $folder -part $part -force
        set boards [lsort -dictionary [get_board_parts $board_part:*]]
        if {[llength $boards] == 0} {
            error "Vivado has no files of the board $board_part: install them with its Board Store"
        }
        set_property board_part [lindex $boards end] [current_project]
        set_property ip_repo_paths $repository [current_project]
        update_ip_catalog
        create_bd_design hwgen

        # Processing system.
        set ps [create_bd_cell -type ip -vlnv xilinx.com:ip:zynq_ultra_ps_e ps]
        apply_bd_automation -rule xilinx.com:bd_rule:zynq_ultra_ps_e -config {apply_board_preset "1"} $ps
        set settings [list \
            CONFIG.PSU__FPGA_PL0_ENABLE 1 \
            CONFIG.PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ $clock_mhz \
            CONFIG.PSU__USE__IRQ0 1 \
            CONFIG.PSU__USE__M_AXI_GP0 1 \
            CONFIG.PSU__USE__M_AXI_GP1 0 \
            CONFIG.PSU__USE__M_AXI_GP2 0 \
            CONFIG.PSU__MAXIGP0__DATA_WIDTH 32]
        set used [lrange $memory_ports 0 [expr {[llength $masters] - 1}]]
        foreach port $memory_ports {
            set number [lindex $port 1]
            lappend settings CONFIG.PSU__USE__S_AXI_GP$number [expr {$port in $used}]
            if {$port in $used} {
                lappend settings CONFIG.PSU__SAXIGP${number}__DATA_WIDTH $axi_bits
            }
        }
        set_property -dict $settings $ps

        # The accelerator, reset, interrupt controller (PYNQ's driver expects one), control bus.
        create_bd_cell -type ip -vlnv hwgen:hwgen:$top:1.0 hwgen_0
        create_bd_cell -type ip -vlnv xilinx.com:ip:proc_sys_reset reset
        create_bd_cell -type ip -vlnv xilinx.com:ip:axi_intc interrupts
        set_property -dict {CONFIG.C_IRQ_CONNECTION 1} [get_bd_cells interrupts]
        create_bd_cell -type ip -vlnv xilinx.com:ip:smartconnect control
        set_property -dict {CONFIG.NUM_SI 1 CONFIG.NUM_MI 2} [get_bd_cells control]

        clock reset/slowest_sync_clk hwgen_0/clk interrupts/s_axi_aclk control/aclk ps/maxihpm0_fpd_aclk
        connect_bd_net [get_bd_pins ps/pl_resetn0] [get_bd_pins reset/ext_reset_in]
        connect_bd_net [get_bd_pins reset/peripheral_reset] [get_bd_pins hwgen_0/rst]
        active_low_reset interrupts/s_axi_aresetn control/aresetn
        join_interfaces ps/M_AXI_HPM0_FPD control/S00_AXI
        join_interfaces control/M00_AXI hwgen_0/[lindex $slave 0]
        join_interfaces control/M01_AXI interrupts/s_axi
        connect_bd_net [get_bd_pins hwgen_0/irq] [get_bd_pins interrupts/intr]
        connect_bd_net [get_bd_pins interrupts/irq] [get_bd_pins ps/pl_ps_irq0]

        assign_bd_address -offset $register_base -range $register_bytes -force \
            -target_address_space [get_bd_addr_spaces ps/Data] \
            [get_bd_addr_segs hwgen_0/[lindex $slave 0]/registers]
        assign_bd_address -offset $interrupt_base -range $interrupt_bytes -force \
            -target_address_space [get_bd_addr_spaces ps/Data] [get_bd_addr_segs interrupts/S_AXI/Reg]

        # Every master to its own port: a SmartConnect fits address and ID widths.
        foreach master $masters port $used {
            lassign $master name
            lassign $port pin number port_clock segment
            set bridge bridge_$name
            create_bd_cell -type ip -vlnv xilinx.com:ip:smartconnect $bridge
            set_property -dict {CONFIG.NUM_SI 1 CONFIG.NUM_MI 1} [get_bd_cells $bridge]
            clock $bridge/aclk ps/$port_clock
            active_low_reset $bridge/aresetn
            join_interfaces hwgen_0/$name $bridge/S00_AXI
            join_interfaces $bridge/M00_AXI ps/$pin
            assign_bd_address -offset 0 -range $dram_bytes -force \
                -target_address_space [get_bd_addr_spaces hwgen_0/$name] [get_bd_addr_segs ps/$segment]
        }

        validate_bd_design
        save_bd_design
        set wrapper [make_wrapper -files [get_files hwgen.bd] -top]
        add_files -norecurse $wrapper
        set_property top hwgen_wrapper [current_fileset]
        update_compile_order -fileset [current_fileset]
    }
}
