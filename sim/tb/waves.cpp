// cocotb's main program for Verilator with a trace that holds the cycles of a window only (`waves.v` says which): whole runs
// are gigabytes.
#include "svdpi.h"
#include "verilated_fst_c.h"

static bool inside = true;
extern "C" void waves_window(svBit now) { inside = now; }

class WindowFst : public VerilatedFstC {
public:
    void dump(uint64_t time) {
        if (inside) VerilatedFstC::dump(time);
    }
};

#define VerilatedFstC WindowFst
#include "verilator.cpp"
