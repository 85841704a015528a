// Drives two forms of the same MacPair side by side with INPUTS inputs in cascades of 8 and compares them with sums
// made here: every product of w0 in argv[1]..argv[2], w1 and x in [-127, 127], then argv[3] rounds of random weights and x with the extremes.
// Prints the number of rows compared, or the first difference.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <random>
#include <vector>

#include "Vpairs.h"
#include "verilated.h"

static const int GROUP = 8;
static Vpairs *dut;

static void put(void *words, int lane, int8_t value) {
    reinterpret_cast<int8_t *>(words)[lane] = value;
}

static void tick() {
    dut->clk = 1;
    dut->eval();
    dut->clk = 0;
    dut->eval();
}

struct Row {
    std::vector<int8_t> x;
    int64_t y0, y1;
};

int main(int argc, char **argv) {
    Verilated::commandArgs(argc, argv);
    dut = new Vpairs;
    dut->eval();
    std::mt19937 random(7);
    std::deque<Row> flying;
    std::vector<std::vector<int8_t>> late(INPUTS);  // x of the last GROUP cycles, for the skew of a cascade
    std::vector<int8_t> w0(INPUTS), w1(INPUTS);
    uint64_t rows = 0;

    // Position p of a cascade sees x a cycle later than position p - 1.
    auto step = [&](const std::vector<int8_t> &x) {
        Row row{x, 0, 0};
        for (int i = 0; i < INPUTS; i++) {
            row.y0 += w0[i] * x[i];
            row.y1 += w1[i] * x[i];
        }
        flying.push_back(row);
        for (int i = 0; i < INPUTS; i++) {
            late[i].insert(late[i].begin(), x[i]);
            late[i].resize(GROUP);
            put(&dut->x, i, late[i][i % GROUP]);
        }
        tick();
        // From here the row of LATENCY clocks ago is at the outputs.
        if (flying.size() > LATENCY - 1) {
            Row &out = flying.front();
            int64_t a0 = (int32_t)(dut->a0 << 5) >> 5, a1 = (int32_t)(dut->a1 << 5) >> 5;
            int64_t b0 = (int32_t)(dut->b0 << 5) >> 5, b1 = (int32_t)(dut->b1 << 5) >> 5;
            if (a0 != out.y0 || a1 != out.y1 || b0 != out.y0 || b1 != out.y1) {
                printf("row %llu: want %lld %lld, described %lld %lld, primitives %lld %lld\n",
                       (unsigned long long)rows, (long long)out.y0, (long long)out.y1, (long long)a0, (long long)a1,
                       (long long)b0, (long long)b1);
                exit(1);
            }
            rows++;
            flying.pop_front();
        }
    };
    auto load = [&]() {
        // Both at once, or one after the other beside noise on the other's port.
        int at_once = random() & 1;
        for (int k = 0; k < 2 - at_once; k++) {
            for (int i = 0; i < INPUTS; i++) {
                put(&dut->w0, i, k ? (int8_t)random() : w0[i]);
                put(&dut->w1, i, k || at_once ? w1[i] : (int8_t)random());
            }
            dut->write0 = k ? 0 : 0xff;
            dut->write1 = k || at_once ? 0xff : 0;
            tick();
        }
        dut->write0 = dut->write1 = 0;
        dut->swap = 0xff;
        tick();
        dut->swap = 0;
        flying.clear();
        for (auto &lane : late) lane.assign(GROUP, 0);
    };
    // The rows in flight of the last weights are pushed out by zeros, whose sums are zero.
    auto flush = [&]() {
        std::vector<int8_t> none(INPUTS, 0);
        for (int n = 0; n < LATENCY; n++) step(none);
    };

    int first = atoi(argv[1]), last = atoi(argv[2]), rounds = atoi(argv[3]);
    std::vector<int8_t> x(INPUTS);
    for (int a = first; a <= last; a++)
        for (int b = -127; b <= 127; b++) {
            for (int i = 0; i < INPUTS; i++) w0[i] = a, w1[i] = b;
            load();
            for (int v = -127; v <= 127;) {
                for (int i = 0; i < INPUTS; i++) x[i] = 0;
                for (int i = 0; i < INPUTS; i++, v++) x[i] = v <= 127 ? v : 0;
                step(x);
            }
            flush();
        }
    auto draw = [&](int mode) -> int8_t {
        if (mode == 0) return random() & 1 ? 127 : -127;
        if (mode == 1) return 127;
        return (int)(random() % 255) - 127;
    };
    for (int n = 0; n < rounds; n++) {
        for (int i = 0; i < INPUTS; i++) w0[i] = draw(n % 4), w1[i] = draw(n / 4 % 4);
        load();
        for (int r = 0; r < 20; r++) {
            for (int i = 0; i < INPUTS; i++) x[i] = draw(n / 16 % 4);
            step(x);
        }
        flush();
    }
    printf("%llu rows\n", (unsigned long long)rows);
    return 0;
}
