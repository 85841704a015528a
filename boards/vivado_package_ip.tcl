# The Verilog as an IP with its interfaces, clock, reset, interrupt and register map. Needs design.tcl.
namespace eval hwgen {
    # A bus interface of the core: type is the last part of the bus definition's name, mode master or slave, ports a list
    # of logical name and port, parameters a list of name and value.
    proc interface {core name type mode ports parameters} {
        set library [expr {$type eq "aximm" ? "interface" : "signal"}]
        set bus [ipx::add_bus_interface $name $core]
        set_property bus_type_vlnv xilinx.com:$library:$type:1.0 $bus
        set_property abstraction_type_vlnv xilinx.com:$library:${type}_rtl:1.0 $bus
        set_property interface_mode $mode $bus
        foreach {logical port} $ports {
            set_property physical_name $port [ipx::add_port_map $logical $bus]
        }
        foreach {parameter value} $parameters {
            set_property value $value [ipx::add_bus_parameter $parameter $bus]
        }
        return $bus
    }

    # Package the sources that lie in `here` into the folder `output`.
    proc package_ip {here output} {
        variable part
        variable top
        variable sources
        variable slave
        variable masters
        variable registers
        variable register_bytes

        create_project hwgen_ip $output.project -part $part -force
        foreach file $sources {
            add_files -norecurse [file normalize [file join $here $file]]
        }
        set_property top $top [current_fileset]
        update_compile_order -fileset [current_fileset]
        ipx::package_project -root_dir $output -vendor hwgen -library hwgen -taxonomy /UserIP -import_files -force
        set core [ipx::current_core]
        set_property name $top $core
        set_property version 1.0 $core
        set_property display_name "hwgen accelerator" $core
        set_property supported_families {zynquplus Production} $core
        # What Vivado guessed from the names of ports gives way to what is known.
        foreach bus [ipx::get_bus_interfaces -of_objects $core] {
            ipx::remove_bus_interface [get_property name $bus] $core
        }
        foreach map [ipx::get_memory_maps -of_objects $core] {
            ipx::remove_memory_map [get_property name $map] $core
        }
        foreach space [ipx::get_address_spaces -of_objects $core] {
            ipx::remove_address_space [get_property name $space] $core
        }

        set all {}
        lassign $slave name ports
        set bus [interface $core $name aximm slave $ports {PROTOCOL AXI4LITE}]
        lappend all $name
        set map [ipx::add_memory_map $name $core]
        set_property slave_memory_map_ref $name $bus
        set block [ipx::add_address_block registers $map]
        set_property usage register $block
        set_property range $register_bytes $block
        set_property width 32 $block
        foreach register $registers {
            lassign $register register_name offset access text
            set entry [ipx::add_register $register_name $block]
            set_property address_offset $offset $entry
            set_property size 32 $entry
            set_property access $access $entry
            set_property description $text $entry
        }
        foreach master $masters {
            lassign $master name ports
            set bus [interface $core $name aximm master $ports {PROTOCOL AXI4}]
            lappend all $name
            set space [ipx::add_address_space $name $core]
            set_property range 16E $space
            set_property width 64 $space
            set_property master_address_space_ref $name $bus
        }
        interface $core rst reset slave {RST rst} {POLARITY ACTIVE_HIGH}
        interface $core clk clock slave {CLK clk} [list ASSOCIATED_BUSIF [join $all :] ASSOCIATED_RESET rst]
        interface $core irq interrupt master {INTERRUPT irq} {SENSITIVITY LEVEL_HIGH}

        ipx::create_xgui_files $core
        ipx::update_checksums $core
        ipx::check_integrity $core
        ipx::save_core $core
        close_project
    }
}
