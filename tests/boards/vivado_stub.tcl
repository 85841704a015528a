# Stand-ins for the Vivado commands that our scripts call. They do nothing but check: every port, interface, pin, parameter
# and address that a script names must exist, fit, and be connected.
#
#     tclsh vivado_stub.tcl FACTS.tcl VERSION SLACK SCRIPT.tcl
#
# FACTS.tcl, made by the test from the generated Verilog and the register map: `verilog_ports` {name direction ...} and
# `register_map` {name offset access ...}. vivado_ip.tcl holds what is recorded of Vivado's own IP.
lassign $argv facts vivado_version slack script
source $facts
source [file join [file dirname [info script]] vivado_ip.tcl]

proc need {condition text} {
    if {![uplevel 1 [list expr $condition]]} {
        error [uplevel 1 [list subst $text]]
    }
}

# The word behind a flag in a command's arguments.
proc flag {arguments name} {
    set at [lsearch -exact $arguments $name]
    need {$at >= 0} {no $name among $arguments}
    return [lindex $arguments [incr at]]
}

# --- projects, files, properties: an object is a name, its properties are in `properties` --------------------------------
array set properties {}
set project ""
set sources {}
set folder ""

proc version {args} { return $::vivado_version }

proc create_project {name dir args} {
    need {$::project eq ""} {project $::project is still open}
    set ::project $name
    set ::folder $dir
    set ::sources {}
    set part [flag $args -part]
    need {$part eq "xczu7ev-ffvc1156-2-e"} {unknown part $part}
    file mkdir $dir
}

proc close_project {} { set ::project "" }
proc current_project {} { need {$::project ne ""} {no project}; return project:$::project }
proc current_fileset {} { return fileset:$::project }
proc update_compile_order {args} {}
proc update_ip_catalog {args} {}
proc get_board_parts {pattern} { return [lsearch -all -inline -glob $::recorded_boards $pattern] }

proc add_files {args} {
    set file [lindex $args end]
    need {[file isfile $file]} {no such file $file}
    lappend ::sources $file
}

proc set_property {args} {
    if {[lindex $args 0] eq "-dict"} {
        lassign [lrange $args 1 end] values object
    } else {
        lassign $args name value object
        set values [list $name $value]
    }
    need {$object ne ""} {set_property $values: no object}
    foreach {name value} $values {
        check_property $object $name $value
        set ::properties($object,$name) $value
    }
}

proc check_property {object name value} {
    switch -glob $object {
        fileset:* { need {$name eq "top" && $value in [modules]} {no module $value among $::sources} }
        project:* {
            need {$name in {board_part ip_repo_paths}} {unknown project property $name}
            need {$name ne "board_part" || $value in $::recorded_boards} {unknown board $value}
        }
        map:* {
            need {[dict exists $::verilog_ports $value]} {port $value is not in the Verilog}
            check_direction $object $value
        }
        cell:* {
            set ip [dict get $::cells [string range $object 5 end]]
            need {[string match CONFIG.* $name]} {$object has no property $name}
            need {[parameter_known $ip [string range $name 7 end]]} {$ip has no parameter $name}
        }
    }
}

proc parameter_known {ip parameter} {
    foreach pattern [dict get $::recorded_parameters $ip] {
        if {[string match $pattern $parameter]} { return 1 }
    }
    return 0
}

proc modules {} {
    set found {}
    foreach file $::sources {
        set handle [open $file]
        foreach {- name} [regexp -all -inline -line {^module (\w+)} [read $handle]] { lappend found $name }
        close $handle
    }
    return $found
}

proc get_property {name object} {
    if {[info exists ::properties($object,$name)]} { return $::properties($object,$name) }
    if {[string match run:* $object]} {
        return [dict get [list STATUS "write_bitstream Complete!" STATS.WNS $::slack DIRECTORY runs] $name]
    }
    if {$name eq "name"} { return [lindex [split $object :] end] }
    error "$object has no property $name"
}

# --- packaging ------------------------------------------------------------------------------------------------------------
namespace eval ipx {
    variable buses {} maps {} spaces {} blocks {} registers {} parameters {} checked 0

    proc package_project {args} {
        need {[get_property top [current_fileset]] eq "hwgen_top"} {the top is not hwgen_top}
        # What Vivado infers by itself, so that the script has something to remove.
        variable buses [list clk [dict create mode slave type guessed ports {}]] maps {s_axi {}} spaces {} checked 0
        file mkdir [flag $args -root_dir]
    }
    proc current_core {} { return core:hwgen_top }
    proc get_bus_interfaces {args} { variable buses; return [lmap name [dict keys $buses] { string cat bus: $name }] }
    proc get_memory_maps {args} { variable maps; return [lmap name [dict keys $maps] { string cat memory: $name }] }
    proc get_address_spaces {args} { variable spaces; return [lmap name [dict keys $spaces] { string cat space: $name }] }
    proc remove_bus_interface {name core} { variable buses; dict unset buses $name }
    proc remove_memory_map {name core} { variable maps; dict unset maps $name }
    proc remove_address_space {name core} { variable spaces; dict unset spaces $name }

    proc add_bus_interface {name core} {
        variable buses
        need {![dict exists $buses $name]} {interface $name is there already}
        dict set buses $name ports {}
        return bus:$name
    }
    proc add_port_map {logical bus} {
        variable buses
        set name [string range $bus 4 end]
        set type [get_property bus_type_vlnv $bus]
        need {[dict exists $::recorded_signals $type $logical]} {$type has no signal $logical}
        need {![dict exists $buses $name ports $logical]} {signal $logical of $name is mapped twice}
        dict set buses $name ports $logical ""
        return map:$name:$logical
    }
    proc add_bus_parameter {parameter bus} {
        need {$parameter in $::recorded_bus_parameters} {unknown bus parameter $parameter}
        return parameter:[string range $bus 4 end]:$parameter
    }
    proc add_memory_map {name core} { variable maps; dict set maps $name {}; return memory:$name }
    proc add_address_block {name map} { variable blocks; lappend blocks $name; return block:$name }
    proc add_address_space {name core} { variable spaces; dict set spaces $name {}; return space:$name }
    proc add_register {name block} {
        variable registers
        need {[dict exists $::register_map $name]} {register $name is not in the register map}
        need {$name ni $registers} {register $name is there already}
        lappend registers $name
        return register:$name
    }
    proc create_xgui_files {core} {}
    proc update_checksums {core} {}
    proc save_core {core} { variable checked; need {$checked} {the core is saved unchecked} }

    proc check_integrity {core} {
        variable buses
        variable maps
        variable spaces
        variable registers
        variable checked
        set seen {}
        set memory {}
        dict for {name bus} $buses {
            set type [get_property bus_type_vlnv bus:$name]
            need {[get_property abstraction_type_vlnv bus:$name] eq [string map {:1.0 _rtl:1.0} $type]} {$name: abstraction}
            dict for {logical -} [dict get $bus ports] { lappend seen [get_property physical_name map:$name:$logical] }
            if {[string match *:aximm:* $type]} {
                lappend memory $name
                set lite [expr {[get_property value parameter:$name:PROTOCOL] eq "AXI4LITE"}]
                need {$lite == ([get_property interface_mode bus:$name] eq "slave")} {$name: protocol}
                if {$lite} {
                    need {[dict exists $maps [get_property slave_memory_map_ref bus:$name]]} {$name: no memory map}
                } else {
                    need {[dict exists $spaces [get_property master_address_space_ref bus:$name]]} {$name: no address space}
                    need {[get_property width space:$name] == 64} {$name: address width}
                }
            }
        }
        need {[lsort $seen] eq [lsort [dict keys $::verilog_ports]]} \
            {ports of the Verilog that no interface takes, or two: [lsort $seen] against [lsort [dict keys $::verilog_ports]]}
        need {[lsort [split [get_property value parameter:clk:ASSOCIATED_BUSIF] :]] eq [lsort $memory]} {clk: not all buses}
        need {[get_property value parameter:clk:ASSOCIATED_RESET] eq "rst"} {clk: reset}
        need {[get_property value parameter:rst:POLARITY] eq "ACTIVE_HIGH"} {rst: polarity}
        need {[lsort $registers] eq [lsort [dict keys $::register_map]]} {registers are missing}
        set range [get_property range block:registers]
        dict for {name entry} $::register_map {
            lassign $entry offset access
            need {[get_property address_offset register:$name] == $offset && $offset < $range} {register $name: offset}
            need {[get_property access register:$name] eq $access} {register $name: access}
        }
        set checked 1
    }
}

proc check_direction {map port} {
    lassign [split $map :] - bus logical
    set mode [get_property interface_mode bus:$bus]
    # Recorded as the master drives it.
    set direction [dict get $::recorded_signals [get_property bus_type_vlnv bus:$bus] $logical]
    if {$mode eq "slave"} { set direction [dict get {output input input output} $direction] }
    need {[dict get $::verilog_ports $port] eq $direction} {port $port is no $direction, as $logical of a $mode is}
}

# --- block design -----------------------------------------------------------------------------------------------------------
set cells {}
set driven {}
set joined {}
set placed {}
set valid 0

proc create_bd_design {name} { need {$::project eq "hwgen"} {no project} }

proc create_bd_cell {args} {
    set vlnv [flag $args -vlnv]
    set name [lindex $args end]
    set ip [lindex [split $vlnv :] 2]
    need {$ip eq "hwgen_top" || [dict exists $::recorded_pins $ip]} {unknown IP $vlnv}
    if {$ip eq "hwgen_top"} {
        need {$vlnv eq "hwgen:hwgen:[get_property name core:hwgen_top]:[get_property version core:hwgen_top]"} {$vlnv: not packaged}
        need {$ipx::checked} {the core is not packaged}
    }
    need {![dict exists $::cells $name]} {cell $name is there already}
    dict set ::cells $name $ip
    return cell:$name
}

proc apply_bd_automation {args} {
    need {[flag $args -rule] eq "xilinx.com:bd_rule:zynq_ultra_ps_e"} {unknown rule}
}

proc get_bd_cells {name} { need {[dict exists $::cells $name]} {no cell $name}; return cell:$name }

proc setting {cell parameter} {
    if {[info exists ::properties(cell:$cell,CONFIG.$parameter)]} { return $::properties(cell:$cell,CONFIG.$parameter) }
    return 0
}

# Pins of a cell that its settings bring about: {name {direction kind} ...}; interfaces {name mode ...}.
proc pins_of {cell} {
    set ip [dict get $::cells $cell]
    if {$ip eq "hwgen_top"} { return {clk {input clock} rst {input high} irq {output interrupt}} }
    set found {}
    foreach {pin direction kind guard} [dict get $::recorded_pins $ip] {
        if {$guard eq "" || [setting $cell $guard]} { dict set found $pin [list $direction $kind] }
    }
    return $found
}

proc interfaces_of {cell} {
    set ip [dict get $::cells $cell]
    set found {}
    if {$ip eq "hwgen_top"} {
        dict for {name -} $ipx::buses {
            if {[string match *:aximm:* [get_property bus_type_vlnv bus:$name]]} {
                dict set found $name [get_property interface_mode bus:$name]
            }
        }
    } elseif {$ip eq "smartconnect"} {
        for {set i 0} {$i < [setting $cell NUM_SI]} {incr i} { dict set found [format S%02d_AXI $i] slave }
        for {set i 0} {$i < [setting $cell NUM_MI]} {incr i} { dict set found [format M%02d_AXI $i] master }
    } else {
        foreach {name mode guard} [dict get $::recorded_interfaces $ip] {
            if {$guard eq "" || [setting $cell $guard]} { dict set found $name $mode }
        }
    }
    return $found
}

proc get_bd_pins {path} {
    lassign [split $path /] cell pin
    need {[dict exists $::cells $cell] && [dict exists [pins_of $cell] $pin]} {no pin $path}
    return $path
}

proc get_bd_intf_pins {path} {
    lassign [split $path /] cell name
    need {[dict exists $::cells $cell] && [dict exists [interfaces_of $cell] $name]} {no interface $path}
    return $path
}

proc connect_bd_net {from to} {
    foreach {path variable} [list $from a $to b] {
        lassign [split $path /] cell pin
        set $variable [dict get [pins_of $cell] $pin]
    }
    need {[lindex $a 0] eq "output" && [lindex $b 0] eq "input"} {$from to $to: directions}
    need {[lindex $a 1] eq [lindex $b 1]} {$from is [lindex $a 1], $to wants [lindex $b 1]}
    need {$to ni $::driven} {$to is driven twice}
    lappend ::driven $to
}

proc connect_bd_intf_net {from to} {
    foreach {path variable} [list $from a $to b] {
        lassign [split $path /] cell name
        set $variable [dict get [interfaces_of $cell] $name]
        need {$path ni $::joined} {$path is connected twice}
        lappend ::joined $path
    }
    need {$a eq "master" && $b eq "slave"} {$from to $to: $a to $b}
}

proc get_bd_addr_spaces {path} {
    lassign [split $path /] cell name
    set ip [dict get $::cells $cell]
    need {$path eq "ps/Data" || ($ip eq "hwgen_top" && [dict exists $ipx::spaces $name])} {no address space $path}
    return $path
}

proc get_bd_addr_segs {path} {
    set name [join [lassign [split $path /] cell] /]
    switch [dict get $::cells $cell] {
        hwgen_top { need {[dict exists $ipx::maps [file dirname $name]] && [file tail $name] in $ipx::blocks} {no segment $path} }
        zynq_ultra_ps_e {
            need {[dict exists $::recorded_segments $name]} {no segment $path}
            need {[setting ps [dict get $::recorded_segments $name]]} {the port of segment $path is not in use}
        }
        default { need {$name in [dict get $::recorded_blocks [dict get $::cells $cell]]} {no segment $path} }
    }
    return $path
}

proc assign_bd_address {args} {
    set segment [lindex $args end]
    set offset [expr {[flag $args -offset]}]
    set range [expr {[flag $args -range]}]
    set space [flag $args -target_address_space]
    need {$range > 0 && ($range & ($range - 1)) == 0 && $offset % $range == 0} {$segment: $offset is no multiple of $range}
    if {$space eq "ps/Data"} {
        need {$offset >= 0xA0000000 && $offset + $range <= 0xB0000000} {$segment: outside the window of M_AXI_HPM0_FPD}
        need {$range >= 4096} {$segment: less than a page}
    } else {
        need {$offset == 0 && $range == 0x80000000} {$segment: not the 2 GiB of DRAM}
    }
    foreach {other_space other_offset other_range} $::placed {
        need {$space ne $other_space || $offset + $range <= $other_offset || $offset >= $other_offset + $other_range} \
            {$segment: overlaps}
    }
    lappend ::placed $space $offset $range
    lappend ::segments $segment
}

proc validate_bd_design {} {
    dict for {cell ip} $::cells {
        dict for {pin entry} [pins_of $cell] {
            set optional [expr {$pin in $::recorded_optional}]
            need {[lindex $entry 0] eq "output" || $optional || "$cell/$pin" in $::driven} {$cell/$pin is driven by nothing}
        }
        dict for {name -} [interfaces_of $cell] { need {"$cell/$name" in $::joined} {$cell/$name is not connected} }
        if {$ip eq "hwgen_top"} {
            dict for {name -} $ipx::spaces { need {"$cell/$name" in $::placed} {$cell/$name reaches no memory} }
        }
    }
    set ::valid 1
}

proc save_bd_design {} {}
proc get_files {name} { return $name }
proc make_wrapper {args} {
    need {$::valid} {the design is not validated}
    set file [file join $::folder hwgen_wrapper.v]
    set handle [open $file w]
    puts $handle "module hwgen_wrapper();\nendmodule"
    close $handle
    return $file
}

# --- runs ---------------------------------------------------------------------------------------------------------------------
proc get_runs {name} { return run:$name }
proc launch_runs {name args} {
    foreach {path text} {hwgen.runs/impl_1/hwgen_wrapper.bit bits hwgen.gen/sources_1/bd/hwgen/hw_handoff/hwgen.hwh handoff} {
        set file [file join $::folder $path]
        file mkdir [file dirname $file]
        set handle [open $file w]
        puts $handle $text
        close $handle
    }
}
proc wait_on_run {name} {}

set argv {}
source $script
foreach {space offset range} $placed segment $segments {
    puts "placed $space $segment [format {%#x %#x} $offset $range]"
}
puts "connected [lsort $joined]"
