// Loads, stores, copies and tickets: each is looked for in the memory that the launch was given, checked for alignment,
// and held against what other warps did since the last barrier, and what other programs did.
#include <algorithm>

#include "machine.h"

void Program::say(const char* kind, s32 line, s32 other, const std::string& text) {
    std::string all = std::string(kind) + "\t" + std::to_string(line) + "\t" + std::to_string(other) + "\t" + text + "\n";
    size_t used = strlen(launch->said);
    if (used + all.size() < sizeof launch->said && !strstr(launch->said, all.c_str()))
        memcpy(launch->said + used, all.c_str(), all.size() + 1);
}

static Region* region_of(std::vector<Region>& all, u64 address, u32 bytes) {
    static size_t last = 0;
    if (last < all.size() && address >= all[last].begin && address + bytes <= all[last].end) return &all[last];
    auto after = std::upper_bound(all.begin(), all.end(), address, [](u64 a, const Region& r) { return a < r.begin; });
    if (after == all.begin()) return nullptr;
    Region* found = &*(after - 1);
    last = found - all.data();
    return address + bytes <= found->end ? found : nullptr;
}

Cell* Program::cell(bool is_shared, u64 address) {
    if (is_shared) return &cells[address >> launch->shift];
    Region* r = region_of(*global, address, 1);
    u64 first = r->begin >> launch->shift << launch->shift;
    if (r->cells.empty()) r->cells.resize(((r->end - first) >> launch->shift) + 2);
    return &r->cells[(address - first) >> launch->shift];
}

u8* Program::at(Warp& w, const Instruction& in, int lane, bool is_shared, u64 address, u32 bytes) {
    const char* wrong = nullptr;
    if (address % bytes)
        wrong = "misaligned";
    else if (is_shared ? address + bytes > shared.size() : !region_of(*global, address, bytes))
        wrong = "outside of the memory that the launch was given";
    if (wrong) {
        std::string who = "program " + std::to_string(id) + ", thread " + std::to_string(w.id * LANES + lane);
        std::string what = std::to_string(bytes) + " bytes at " + std::to_string(address);
        throw Fault{who + ": " + what + (is_shared ? " of the shared memory: " : ": ") + wrong, in.line};
    }
    return is_shared ? shared.data() + address : reinterpret_cast<u8*>(address);
}

void Program::reads(Warp& w, s32 line, bool is_shared, u64 address, u32 bytes) {
    if (launch->only_counts) return;
    Cell* c = cell(is_shared, address);
    for (u64 i = address >> launch->shift; i <= (address + bytes - 1) >> launch->shift; i++, c++) {
        if (c->in_flight) say("copy", line, c->wrote_at, "read before the copy to it was waited for");
        if (c->wrote == interval && c->wrote_by != w.id) say("race", line, c->wrote_at, "another warp wrote, no barrier");
        if (!is_shared && !is_ordered && c->wrote_in && c->wrote_in != id + 1)
            say("programs", line, c->wrote_at, "another program wrote");
        c->read_by = c->read == interval && c->read_by != w.id ? SEVERAL : w.id;
        if (!is_ordered) c->read_in = c->read_in && c->read_in != id + 1 ? SEVERAL : id + 1;
        c->read = interval, c->read_at = line;
    }
}

// A store of what is there already is no write: threads, and programs, may agree. `is_sure`: it counts all the same.
void Program::writes(Warp& w, s32 line, bool is_shared, u64 address, u32 bytes, const u8* data, bool is_sure) {
    if (launch->only_counts) return;
    Cell* c = cell(is_shared, address);
    const u8* old = is_shared ? shared.data() : nullptr;
    u32 step = 1u << launch->shift;
    for (u64 a = address; a < address + bytes; a += step, c++) {
        if (!is_sure && !memcmp(old + a, data + (a - address), std::min<u64>(step, address + bytes - a))) continue;
        if (c->in_flight) say("copy", line, c->wrote_at, "written while a copy is on its way");
        if (c->wrote == interval && c->wrote_by != w.id) say("race", line, c->wrote_at, "another warp wrote, no barrier");
        if (c->read == interval && c->read_by != w.id) say("race", line, c->read_at, "another warp read, no barrier");
        if (c->wrote == interval && c->wrote_by == w.id && c->wrote_when == now)
            say(is_shared ? "copies" : "lanes", line, line, "lanes of a warp write different numbers");
        if (!is_shared && !is_ordered) {
            if (c->wrote_in && c->wrote_in != id + 1) say("programs", line, c->wrote_at, "another program wrote");
            if (c->read_in && c->read_in != id + 1) say("programs", line, c->read_at, "another program read");
            c->wrote_in = id + 1;
        }
        c->wrote = interval, c->wrote_by = w.id, c->wrote_at = line, c->wrote_when = now;
    }
}

static u64 different_bytes(const u64* addresses, u32 mask, u32 bytes) {
    u64 seen[64], found = 0;
    bool taken[64] = {};
    for (int l = 0; l < LANES; l++) {
        if (!(mask >> l & 1)) continue;
        u32 at = addresses[l] / bytes & 63;
        while (taken[at] && seen[at] != addresses[l]) at = (at + 1) & 63;
        if (!taken[at]) taken[at] = true, seen[at] = addresses[l], found += bytes;
    }
    return found;
}

// What an access of the shared memory takes at least: as many turns as a bank has different words of it.
static u64 turns(const u64* addresses, u32 mask, u32 bytes) {
    constexpr u32 WORD = 4, BANKS = 32;
    u64 words[BANKS][LANES], most = 0;
    u32 found[BANKS] = {};
    for (int l = 0; l < LANES; l++)
        for (u64 word = addresses[l] / WORD; mask >> l & 1 && word <= (addresses[l] + bytes - 1) / WORD; word++) {
            u64* of_bank = words[word % BANKS];
            u32& n = found[word % BANKS];
            if (std::find(of_bank, of_bank + n, word) == of_bank + n) of_bank[n++] = word;
            most = std::max<u64>(most, n);
        }
    return most * WORD * BANKS;
}

// Operands: the address, then the numbers. A register that is wider gets zeros, or the sign.
template <bool SHARED>
static void addresses_of(Warp& w, const Instruction& in, s32 slot, u64* found) {
    for (int l = 0; l < LANES; l++) found[l] = (SHARED ? u64(w.reg<u32>(slot)[l]) : w.reg<u64>(slot)[l]) + in.offset;
}

template <bool SHARED, bool SIGNED>
static void load(Warp& w, const Instruction& in) {
    Program& p = *w.program;
    const s32* at = operands(w, in);
    u32 bytes = in.size * in.count;
    u64 addresses[LANES];
    addresses_of<SHARED>(w, in, at[0], addresses);
    for (int l = 0; l < LANES; l++) {
        if (!(w.mask >> l & 1)) continue;
        const u8* from = p.at(w, in, l, SHARED, addresses[l], bytes);
        p.reads(w, in.line, SHARED, addresses[l], bytes);
        for (int i = 0; i < in.count; i++, from += in.size) {
            u8* to = w.file.data() + at[1 + i] + l * in.width;
            memset(to, SIGNED && from[in.size - 1] >> 7 ? 255 : 0, in.width);
            memcpy(to, from, std::min(in.size, in.width));
        }
    }
    SHARED ? p.launch->counts.shared += turns(addresses, w.mask, bytes)
           : p.launch->counts.loaded += different_bytes(addresses, w.mask, bytes);
}

template <bool SHARED>
static void store(Warp& w, const Instruction& in) {
    Program& p = *w.program;
    const s32* at = operands(w, in);
    u32 bytes = in.size * in.count;
    u64 addresses[LANES];
    addresses_of<SHARED>(w, in, at[0], addresses);
    p.now++;
    for (int l = 0; l < LANES; l++) {
        if (!(w.mask >> l & 1)) continue;
        u8 data[32];
        for (int i = 0; i < in.count; i++)
            memcpy(data + i * in.size, w.file.data() + at[1 + i] + l * in.width, in.size);
        u8* to = p.at(w, in, l, SHARED, addresses[l], bytes);
        p.writes(w, in.line, SHARED, addresses[l], bytes, data);
        memcpy(to, data, bytes);
    }
    SHARED ? p.launch->counts.shared += turns(addresses, w.mask, bytes)
           : p.launch->counts.stored += different_bytes(addresses, w.mask, bytes);
}

// Operands: the shared address, the global one, and how many bytes of it; zeros are the others. `width` is the offset
// of the global one. The place holds NaNs until the copy is waited for.
static void copy(Warp& w, const Instruction& in) {
    Program& p = *w.program;
    const s32* at = operands(w, in);
    u64 sources[LANES], targets[LANES];
    p.now++;
    for (int l = 0; l < LANES; l++) {
        sources[l] = w.reg<u64>(at[1])[l] + in.width;
        targets[l] = u32(w.reg<u32>(at[0])[l] + in.offset);
        if (!(w.mask >> l & 1)) continue;
        Copy c{u32(targets[l]), u32(in.size), in.line, {}};
        u32 n = in.n > 2 ? w.reg<u32>(at[2])[l] : in.size;
        if (n > u32(in.size)) throw Fault{"cp.async of " + std::to_string(n) + " bytes", in.line};
        if (n) {
            memcpy(c.data, p.at(w, in, l, false, sources[l], in.size), n);
            p.reads(w, in.line, false, sources[l], n);
        }
        u8* to = p.at(w, in, l, true, c.to, c.n);
        p.writes(w, in.line, true, c.to, c.n, c.data, true);
        Cell* cell = p.cell(true, c.to);
        for (u32 i = 0; i < c.n >> p.launch->shift; i++) cell[i].in_flight++;
        for (u32 i = 0; i < c.n; i++) to[i] = POISON[i & 1];
        w.open.push_back(c);
    }
    p.launch->counts.loaded += different_bytes(sources, w.mask, in.size);
    p.launch->counts.shared += turns(targets, w.mask, in.size);
}

static void commit(Warp& w, const Instruction&) {
    w.groups.push_back(std::move(w.open));
    w.open.clear();
}

static void wait(Warp& w, const Instruction& in) {
    Program& p = *w.program;
    p.now++;
    for (; w.groups.size() > size_t(in.offset); w.groups.pop_front())
        for (const Copy& c : w.groups.front()) {
            Cell* cell = p.cell(true, c.to);
            for (u32 i = 0; i < c.n >> p.launch->shift; i++) cell[i].in_flight--;
            p.writes(w, c.line, true, c.to, c.n, c.data, true);
            memcpy(p.shared.data() + c.to, c.data, c.n);
        }
}

// A register and the parts of it, from the lowest.
template <bool IS_PACKED>
static void move_parts(Warp& w, const Instruction& in) {
    const s32* at = operands(w, in);
    for (int l = 0; l < LANES; l++)
        for (int i = 1; i < in.n && w.mask >> l & 1; i++) {
            u8* whole = w.file.data() + at[0] + l * in.width + (i - 1) * in.size;
            u8* part = w.file.data() + at[i] + l * in.size;
            IS_PACKED ? memcpy(whole, part, in.size) : memcpy(part, whole, in.size);
        }
}

// Operands: address, what was there, number. Orders this program's accesses after it among the others'.
template <class T>
static void atomic_add(Warp& w, const Instruction& in) {
    Program& p = *w.program;
    const s32* at = operands(w, in);
    p.is_ordered = true;
    for (int l = 0; l < LANES; l++) {
        if (!(w.mask >> l & 1)) continue;
        T* to = reinterpret_cast<T*>(p.at(w, in, l, false, w.reg<u64>(at[0])[l] + in.offset, sizeof(T)));
        T before = *to;
        *to += w.reg<T>(at[2])[l];
        w.reg<T>(at[1])[l] = before;
    }
}

// 8 x 8 tiles of 16 bits: lane 8i + r has the address of row r of tile i; each lane gets two neighbours of each tile.
template <int TILES, bool TRANSPOSED>
static void load_matrix(Warp& w, const Instruction& in) {
    Program& p = *w.program;
    const s32* at = operands(w, in);
    u64 tile[LANES];
    for (int r = 0; r < 8 * TILES; r++) {
        tile[r] = w.reg<u32>(at[0])[r] + u32(in.offset);
        p.at(w, in, r, true, tile[r], 16);
        p.reads(w, in.line, true, tile[r], 16);
    }
    p.launch->counts.shared += turns(tile, ALL >> (LANES - 8 * TILES), 16);
    for (int i = 0; i < TILES; i++)
        for (int l = 0; l < LANES; l++)
            for (int j = 0; j < 2; j++) {
                int row = TRANSPOSED ? l % 4 * 2 + j : l / 4, column = TRANSPOSED ? l / 4 : l % 4 * 2 + j;
                memcpy(w.reg<u16>(at[1 + i]) + 2 * l + j, &p.shared[tile[8 * i + row] + 2 * column], 2);
            }
}

template <int TILES, bool TRANSPOSED>
static void store_matrix(Warp& w, const Instruction& in) {
    Program& p = *w.program;
    const s32* at = operands(w, in);
    u64 tile[LANES];
    p.now++;
    for (int r = 0; r < 8 * TILES; r++) {
        u32 to = w.reg<u32>(at[0])[r] + u32(in.offset);
        tile[r] = to;
        u16 row[8];
        for (int column = 0; column < 8; column++) {
            int first = TRANSPOSED ? column : r % 8, second = TRANSPOSED ? r % 8 : column;
            row[column] = w.reg<u16>(at[1 + r / 8])[2 * (4 * first + second / 2) + second % 2];
        }
        u8* place = p.at(w, in, r, true, to, 16);
        p.writes(w, in.line, true, to, 16, reinterpret_cast<u8*>(row));
        memcpy(place, row, 16);
    }
    p.launch->counts.shared += turns(tile, ALL >> (LANES - 8 * TILES), 16);
}

void add_memory(std::vector<Operation>& all) {
    const std::vector<Operation> here = {
        {"ld.global", load<false, false>, PLAIN, {}}, {"ld.shared", load<true, false>, PLAIN, {}},
        {"ld.global.s", load<false, true>, PLAIN, {}}, {"ld.shared.s", load<true, true>, PLAIN, {}},
        {"st.global", store<false>, PLAIN, {}}, {"st.shared", store<true>, PLAIN, {}},
        {"cp.async", copy, PLAIN, {}}, {"cp.async.commit_group", commit, CONVERGENT, {}},
        {"cp.async.wait_group", wait, CONVERGENT, {}},
        {"atom.add.u32", atomic_add<u32>, PLAIN, {}}, {"atom.add.u64", atomic_add<u64>, PLAIN, {}},
        {"pack", move_parts<true>, PLAIN, {}}, {"unpack", move_parts<false>, PLAIN, {}},
        {"ldmatrix.x1", load_matrix<1, false>, CONVERGENT, {}}, {"ldmatrix.x1.trans", load_matrix<1, true>, CONVERGENT, {}},
        {"ldmatrix.x2", load_matrix<2, false>, CONVERGENT, {}}, {"ldmatrix.x2.trans", load_matrix<2, true>, CONVERGENT, {}},
        {"ldmatrix.x4", load_matrix<4, false>, CONVERGENT, {}}, {"ldmatrix.x4.trans", load_matrix<4, true>, CONVERGENT, {}},
        {"stmatrix.x1", store_matrix<1, false>, CONVERGENT, {}}, {"stmatrix.x1.trans", store_matrix<1, true>, CONVERGENT, {}},
        {"stmatrix.x2", store_matrix<2, false>, CONVERGENT, {}}, {"stmatrix.x2.trans", store_matrix<2, true>, CONVERGENT, {}},
        {"stmatrix.x4", store_matrix<4, false>, CONVERGENT, {}}, {"stmatrix.x4.trans", store_matrix<4, true>, CONVERGENT, {}},
    };
    all.insert(all.end(), here.begin(), here.end());
}
