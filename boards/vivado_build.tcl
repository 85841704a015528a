# Bitstream of the accelerator with Vivado 2022.2 or later:  vivado -mode batch -source build.tcl
#
# Packages the Verilog as IP, makes the board's block design, runs synthesis and implementation, and leaves hwgen.bit and
# hwgen.hwh in the current folder. Everything that depends on the network's hardware is in design.tcl.
set here [file dirname [file normalize [info script]]]
set work [file join [pwd] hwgen_vivado]

if {[package vcompare [version -short] 2022.2] < 0} {
    error "Vivado [version -short]: 2022.2 or later is needed"
}
source [file join $here design.tcl]
source [file join $here package_ip.tcl]
source [file join $here block_design.tcl]

hwgen::package_ip $here [file join $work ip]
hwgen::block_design [file join $work ip] [file join $work project]

launch_runs impl_1 -to_step write_bitstream -jobs 4
wait_on_run impl_1
set status [get_property STATUS [get_runs impl_1]]
if {![string match "write_bitstream Complete*" $status]} {
    error "implementation ended as '$status'; its log is in [get_property DIRECTORY [get_runs impl_1]]"
}
set slack [get_property STATS.WNS [get_runs impl_1]]
if {$slack < 0} {
    error "timing is missed by [expr {-$slack}] ns at $hwgen::clock_mhz MHz: build with a lower --set clock_mhz"
}
set project [file join $work project hwgen]
file copy -force $project.runs/impl_1/hwgen_wrapper.bit hwgen.bit
file copy -force $project.gen/sources_1/bd/hwgen/hw_handoff/hwgen.hwh hwgen.hwh
puts "hwgen.bit and hwgen.hwh are in [pwd]; worst slack $slack ns"
