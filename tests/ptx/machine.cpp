// Runs a launch's programs in random order, one at a time, and a program's warps by turns of random length.
#include "machine.h"

#include <algorithm>
#include <numeric>
#include <random>

static const std::vector<Operation>& all_operations() {
    static const std::vector<Operation> all = [] {
        std::vector<Operation> found = {
            {"bra", nullptr, BRANCH, {}}, {"ret", nullptr, EXIT, {}}, {"bar.sync", nullptr, BARRIER, {4}}};
        add_arithmetic(found), add_memory(found), add_warp(found), add_warpgroup(found);
        return found;
    }();
    return all;
}

// The path that goes next: the one that is furthest behind, as those before it wait for it to come along.
static Path* next_path(Warp& w) {
    const Launch& launch = *w.program->launch;
    Path* found = nullptr;
    for (Path& p : w.paths) {
        Kind kind = all_operations()[launch.code[p.pc].op].kind;
        bool is_early = (kind == CONVERGENT || kind == BARRIER) && p.lanes != w.live;
        if (!is_early && (!found || p.pc < found->pc)) found = &p;
    }
    if (!found) throw Fault{"not all lanes of a warp come here", launch.code[w.paths[0].pc].line};
    return found;
}

static void merge(Warp& w) {
    std::sort(w.paths.begin(), w.paths.end(), [](const Path& a, const Path& b) { return a.pc < b.pc; });
    size_t last = 0;
    for (size_t i = 1; i < w.paths.size(); i++)
        if (w.paths[i].pc == w.paths[last].pc)
            w.paths[last].lanes |= w.paths[i].lanes;
        else
            w.paths[++last] = w.paths[i];
    w.paths.resize(last + 1);
}

static void step(Warp& w) {
    Launch& launch = *w.program->launch;
    Path* path = next_path(w);
    const Instruction& in = launch.code[path->pc++];
    const Operation& operation = all_operations()[in.op];
    w.mask = path->lanes;
    if (in.guard >= 0) w.mask &= in.negated ? ~w.lanes_where(in.guard) : w.lanes_where(in.guard);
    launch.counts.instructions++;
    launch.counts.flops += u64(in.flops) * __builtin_popcount(w.mask);
    if (operation.kind == BRANCH) {
        if (w.mask == path->lanes) {
            path->pc = s32(in.offset);
        } else if (w.mask) {
            path->lanes &= ~w.mask;
            w.paths.push_back({s32(in.offset), w.mask});
        }
    } else if (operation.kind == EXIT) {
        w.live &= ~w.mask;
        path->lanes &= ~w.mask;
        if (!path->lanes) w.paths.erase(w.paths.begin() + (path - w.paths.data()));
    } else if (operation.kind == BARRIER) {
        w.waits = true;
    } else if (w.mask) {
        operation.run(w, in);
    }
    if (w.paths.size() > 1) merge(w);
}

static void run_program(Program& p, u32 id, std::mt19937_64& random) {
    const Launch& launch = *p.launch;
    p.id = id, p.is_ordered = false, p.interval++;
    for (size_t i = 0; i < p.shared.size(); i++) p.shared[i] = POISON[i & 1];
    for (Cell& c : p.cells) c = {};
    const s32 n_x = launch.grid[0], n_y = launch.grid[1];
    for (Warp& w : p.warps) {
        w.live = ALL, w.waits = false, w.paths = {{0, ALL}};
        w.open.clear(), w.groups.clear(), w.products.clear(), w.product_groups.clear();
        w.fenced = 0;
        const u32 special[] = {id % n_x, id / n_x % n_y, id / n_x / n_y};  // after tid.x, which never changes
        for (int i = 0; i < 3; i++) std::fill_n(w.reg<u32>((1 + i) * 4 * LANES), LANES, special[i]);
    }
    for (;;) {
        std::vector<Warp*> ready;
        bool is_over = true;
        for (Warp& w : p.warps) {
            if (w.live && !w.waits) ready.push_back(&w);
            is_over &= !w.live;
        }
        if (is_over) return;
        if (ready.empty()) {  // all are at a barrier, or have left
            p.interval++, p.launch->counts.barriers++;
            for (Warp& w : p.warps) w.waits = false;
            continue;
        }
        Warp& w = *ready[random() % ready.size()];
        for (u32 left = 1 + random() % 48; left && w.live && !w.waits; left--) step(w);
    }
}

extern "C" {
int n_operations() { return int(all_operations().size()); }
const char* name_of(int op) { return all_operations()[op].name; }
int n_widths(int op) { return int(all_operations()[op].widths.size()); }
int width_of(int op, int i) { return all_operations()[op].widths[i]; }

// 0, or the PTX line at which something was done that ends a kernel, which `said` then explains.
int run(Launch* launch) {
    std::vector<Region> regions;
    for (int i = 0; i < launch->n_regions; i++) regions.push_back({launch->regions[2 * i], launch->regions[2 * i + 1], {}});
    Program p{};
    p.launch = launch, p.global = &regions;
    p.shared.resize(launch->shared_bytes);
    p.cells.resize((launch->shared_bytes >> launch->shift) + 1);
    p.warps.resize(launch->threads / LANES);
    for (u32 i = 0; i < p.warps.size(); i++) {
        Warp& w = p.warps[i];
        w.program = &p, w.id = i, w.file.resize(launch->file_bytes);
        for (size_t b = 0; b < w.file.size(); b++) w.file[b] = POISON[b & 1];
        for (int c = 0; c < launch->n_constants; c++)
            for (int l = 0; l < LANES; l++)
                memcpy(w.file.data() + launch->constants[c].slot + l * launch->constants[c].width,
                       &launch->constants[c].value, launch->constants[c].width);
        std::iota(w.reg<u32>(0), w.reg<u32>(0) + LANES, i * LANES);
    }
    std::mt19937_64 random(launch->seed);
    std::vector<u32> order(u64(launch->grid[0]) * launch->grid[1] * launch->grid[2]);
    std::iota(order.begin(), order.end(), 0u);
    std::shuffle(order.begin(), order.end(), random);
    try {
        for (u32 id : order) run_program(p, id, random);
    } catch (const Fault& fault) {
        launch->said[0] = 0;
        p.say("fault", fault.line, fault.line, fault.text);
        return fault.line;
    }
    return 0;
}
}
