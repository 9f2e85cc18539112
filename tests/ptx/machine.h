// What executes one kernel: instructions, warps of 32 lanes, and memory that remembers who touched it.
//
// Registers lie lane by lane in a warp's file; operands are offsets into it, constants among them. Every register,
// and every byte of shared memory, holds a NaN before it is written.
#pragma once
#include <cstdint>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using f32 = float;
using f64 = double;
using pred = u8;  // its lowest bit

constexpr int LANES = 32;
constexpr u32 ALL = 0xffffffff;
constexpr u8 POISON[2] = {0xff, 0x7f};  // a NaN in 16, 32 and 64 bits

struct Warp;
struct Instruction;
using Handler = void (*)(Warp&, const Instruction&);

enum Kind : s32 { PLAIN, CONVERGENT, BRANCH, EXIT, BARRIER };  // CONVERGENT: all lanes of the warp take part

struct Instruction {  // as parse.py fills it in
    s32 op, guard, negated, first, n;  // guard -1: none; first, n: its operands
    s32 size, count, width;            // of memory: bytes of a number, numbers of a lane, bytes of a register
    s64 offset;                        // to be added to an address; where a branch goes
    s32 line, flops;                   // of the PTX text; of a lane
};

struct Constant {  // in every lane of a register
    s32 slot, width;
    u64 value;
};

struct Counts {  // of a launch; `instructions` of warps, bytes of different addresses in each of them
    u64 instructions, loaded, stored, barriers, flops, mma_flops;
    u64 shared;  // bytes, of turns of the shared memory, in each of which its 32 banks move 4
};

struct Launch {
    s32 grid[3], threads, file_bytes, shared_bytes, n_code, n_constants, n_regions;
    s32 shift;        // bytes of a cell, as a power of 2
    s32 only_counts;  // products are zero, and nobody remembers who touched what: control must not depend on numbers
    u64 seed;
    const Instruction* code;
    const s32* operands;
    const Constant* constants;
    const u64* regions;  // begin and end of memory that the launch was given, in order
    Counts counts;
    char said[4096];  // what was found, a line each: kind, PTX line, PTX line of the other access, text
};

struct Fault {
    std::string text;
    s32 line;
};

// Who touched a few bytes: the warp and the interval between two barriers, and the program (from 1).
struct Cell {
    u32 wrote, read;  // interval
    u32 wrote_by, read_by, wrote_in, read_in;
    s32 wrote_at, read_at;  // PTX line
    u32 wrote_when;         // instruction, to tell the lanes of one apart
    s32 in_flight;          // copies that are on their way here
};
constexpr u32 SEVERAL = 0xfffffffe;

struct Region {
    u64 begin, end;
    std::vector<Cell> cells;
};

struct Copy {  // cp.async; or what wgmma reads
    u32 to, n;
    s32 line;
    u8 data[16];
};

struct Program;  // a CTA

struct Path {  // lanes that are at the same place
    s32 pc;
    u32 lanes;
};

struct Warp {
    Program* program;
    u32 id, live, mask;  // mask: lanes that execute this instruction
    bool waits;
    std::vector<Path> paths;
    std::vector<u8> file;
    std::vector<Copy> open;
    std::deque<std::vector<Copy>> groups;
    std::vector<Copy> products;  // what wgmma has read
    std::deque<std::vector<Copy>> product_groups;
    u32 fenced;  // when it last let wgmma see what it knows to be written

    template <class T>
    T* reg(s32 slot) {
        return reinterpret_cast<T*>(file.data() + slot);
    }
    u32 lanes_where(s32 slot) {
        u32 found = 0;
        for (int l = 0; l < LANES; l++) found |= u32(file[slot + l] & 1) << l;
        return found;
    }
};

struct Program {
    Launch* launch;
    std::vector<Region>* global;
    std::vector<Cell> cells;  // of the shared memory
    std::vector<u8> shared;
    std::vector<Warp> warps;
    u32 id, interval, now;
    bool is_ordered;  // after an atomic operation: what other programs wrote may be meant

    u8* at(Warp& w, const Instruction& in, int lane, bool is_shared, u64 address, u32 bytes);
    void reads(Warp& w, s32 line, bool is_shared, u64 address, u32 bytes);
    void writes(Warp& w, s32 line, bool is_shared, u64 address, u32 bytes, const u8* data, bool is_sure = false);
    void say(const char* kind, s32 line, s32 other, const std::string& text);
    Cell* cell(bool is_shared, u64 address);
};

inline const s32* operands(Warp& w, const Instruction& in) { return w.program->launch->operands + in.first; }

template <class T>
void put(Warp& w, s32 slot, const T* value) {
    T* to = w.reg<T>(slot);
    if (w.mask == ALL)
        memcpy(to, value, sizeof(T) * LANES);
    else
        for (int l = 0; l < LANES; l++)
            if (w.mask >> l & 1) to[l] = value[l];
}

struct Operation {
    const char* name;
    Handler run;
    Kind kind;
    std::vector<int> widths;  // bytes of its operands; empty: parse.py knows them
};

void add_arithmetic(std::vector<Operation>&);
void add_memory(std::vector<Operation>&);
void add_warp(std::vector<Operation>&);
void add_warpgroup(std::vector<Operation>&);
