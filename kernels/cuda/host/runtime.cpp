// The scheduler of fibers: blocks, barriers, warp collectives, shared memory. See runtime.h.
#include "runtime.h"
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// Saves the registers a call must keep, swaps stacks, restores them.
extern "C" void millgate_switch(void** save, void* load);
#if defined(__x86_64__)
asm(R"(
.text
.globl millgate_switch
.hidden millgate_switch
.type millgate_switch,@function
millgate_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    popq %rcx
    jmpq *%rcx
)");
#else
#error "the emulator switches stacks on x86-64 only"
#endif

namespace host {
namespace {

constexpr size_t STACK_BYTES = 128 << 10, GUARD_BYTES = 4096, MAX_THREADS = 1024;
constexpr size_t MAX_SHARED = 227 << 10, ARENA_BYTES = 512 << 10, REDZONE = 64;

struct Copy {
    void* to;
    const void* from;
    size_t bytes;
    bool is_valid;
    int group;
};
struct Fiber {
    void* sp;
    uint3 index;
    int barrier;
    int groups; // committed groups of copies
    std::vector<Copy> copies;
};
struct Meeting {
    uint32_t mask, arrived;
    const char* op;
    void* args[32];
};
struct Warp {
    uint32_t exists, ready, done;
    std::vector<Meeting> meetings;
};
struct Barrier {
    int arrived, wanted;
};
struct Array {
    const void* key;
    size_t start, bytes;
};

struct Block {
    char* stacks = nullptr;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    Barrier barriers[16];
    int threads, live;
    unsigned char* arena = nullptr;
    size_t arena_used, dynamic_bytes;
    std::vector<Array> arrays;
    void* scheduler_sp;
    int current = -1; // the running fiber; -1 is the scheduler
    const Launch* launch = nullptr;
    std::string error;
} block;

[[noreturn]] void thread_main() {
    block.launch->body();
    Warp& warp = block.warps[block.current / 32];
    const uint32_t bit = 1u << block.current % 32;
    warp.ready &= ~bit;
    warp.done |= bit;
    block.live--;
    void* unused;
    millgate_switch(&unused, block.scheduler_sp);
    __builtin_unreachable();
}

void yield() { millgate_switch(&block.fibers[block.current].sp, block.scheduler_sp); }

void resume(int thread) {
    block.current = thread;
    threadIdx = block.fibers[thread].index;
    millgate_switch(&block.scheduler_sp, block.fibers[thread].sp);
    block.current = -1;
}

void on_bad_access(int signal, siginfo_t* info, void*) {
    if (block.current >= 0) {
        fail(signal == SIGFPE ? "division by zero near %p" : "memory access out of bounds at %p", info->si_addr);
    }
    std::signal(signal, SIG_DFL); // not ours: happens again, with the default action
}

// While a launch runs, a bad access ends the launch and not the process.
class Guard {
    struct sigaction old_[3];
    stack_t old_stack_;
    static constexpr int SIGNALS[3] = {SIGSEGV, SIGBUS, SIGFPE};

  public:
    Guard() {
        static char* stack = static_cast<char*>(
            mmap(nullptr, 64 << 10, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        stack_t mine = {};
        mine.ss_sp = stack;
        mine.ss_size = 64 << 10;
        sigaltstack(&mine, &old_stack_);
        struct sigaction action = {};
        action.sa_sigaction = on_bad_access;
        // The handler leaves by a switch of stacks, never by returning: the signal must stay unblocked.
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        for (int i = 0; i < 3; i++) {
            sigaction(SIGNALS[i], &action, &old_[i]);
        }
    }
    ~Guard() {
        for (int i = 0; i < 3; i++) {
            sigaction(SIGNALS[i], &old_[i], nullptr);
        }
        sigaltstack(&old_stack_, nullptr);
    }
};

void make_stacks() {
    const size_t each = STACK_BYTES + GUARD_BYTES;
    void* all = mmap(nullptr, each * MAX_THREADS, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    block.stacks = static_cast<char*>(all);
    for (size_t i = 0; i < MAX_THREADS; i++) {
        mprotect(block.stacks + i * each, GUARD_BYTES, PROT_NONE);
    }
    void* arena = mmap(nullptr, ARENA_BYTES + 2 * GUARD_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(arena, GUARD_BYTES, PROT_NONE);
    block.arena = static_cast<unsigned char*>(arena) + GUARD_BYTES;
    mprotect(block.arena + ARENA_BYTES, GUARD_BYTES, PROT_NONE);
}

// A fiber's first switch pops six registers and returns into `thread_main`, on a stack aligned as after a call.
void prepare(int thread, dim3 size) {
    Fiber& fiber = block.fibers[thread];
    // Tops at different distances from a page's end, or all fibers would share a few lines of the cache.
    char* top = block.stacks + (thread + 1) * (STACK_BYTES + GUARD_BYTES) - 64 - thread % 61 * 320;
    void** sp = reinterpret_cast<void**>(top) - 1;
    *--sp = reinterpret_cast<void*>(thread_main);
    sp -= 6;
    std::memset(sp, 0, 6 * sizeof(void*));
    fiber.sp = sp;
    const unsigned t = static_cast<unsigned>(thread);
    fiber.index = {t % size.x, t / size.x % size.y, t / (size.x * size.y)};
    fiber.barrier = -1;
    fiber.groups = 0;
    fiber.copies.clear();
}

void start_block(const Launch& launch) {
    block.threads = block.live = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
    block.fibers.resize(block.threads);
    block.warps.assign((block.threads + 31) / 32, Warp{});
    for (int t = 0; t < block.threads; t++) {
        prepare(t, launch.block);
        block.warps[t / 32].exists |= 1u << t % 32;
    }
    for (Warp& warp : block.warps) {
        warp.ready = warp.exists;
    }
    std::memset(block.barriers, 0, sizeof block.barriers);
    // The dynamic part ends the arena, so that running past it meets the guard page.
    block.dynamic_bytes = (launch.shared_bytes + 15) / 16 * 16;
    const size_t used = block.arrays.empty() && block.arena_used == 0 ? ARENA_BYTES : block.arena_used;
    std::memset(block.arena, 0xff, used);
    std::memset(block.arena + ARENA_BYTES - block.dynamic_bytes, 0xff, block.dynamic_bytes);
    block.arena_used = REDZONE;
    block.arrays.clear();
}

void check_redzones() {
    for (const Array& array : block.arrays) {
        for (size_t i = 0; i < REDZONE; i++) {
            if (block.arena[array.start + array.bytes + i] != 0xff && block.error.empty()) {
                block.error = "a shared array of " + std::to_string(array.bytes) + " bytes was written past its end";
            }
        }
    }
}

void release_barrier(int id) {
    block.barriers[id] = {};
    for (int t = 0; t < block.threads; t++) {
        if (block.fibers[t].barrier == id) {
            block.fibers[t].barrier = -1;
            block.warps[t / 32].ready |= 1u << t % 32;
        }
    }
}

// A barrier for all is complete as well when the threads that are missing have ended.
bool release_by_ends() {
    bool released = false;
    for (int id = 0; id < 16; id++) {
        const Barrier& b = block.barriers[id];
        if (b.arrived > 0 && b.wanted == 0 && b.arrived == block.live) {
            release_barrier(id);
            released = true;
        }
    }
    return released;
}

std::string who_waits() {
    std::string text = "threads wait for each other for ever:";
    for (size_t w = 0; w < block.warps.size() && text.size() < 400; w++) {
        for (const Meeting& m : block.warps[w].meetings) {
            char line[128];
            std::snprintf(line, sizeof line, " warp %zu in %s, lanes %08x of %08x;", w, m.op, m.arrived, m.mask);
            text += line;
        }
    }
    for (int id = 0; id < 16; id++) {
        if (block.barriers[id].arrived > 0) {
            text += " " + std::to_string(block.barriers[id].arrived) + " of " + std::to_string(block.live) +
                    " threads at barrier " + std::to_string(id) + ";";
        }
    }
    return text;
}

// Warps, lanes and blocks the other way round: who reads what nobody has promised to have written sees it in one of both.
bool is_reversed() {
    static const bool reversed = [] {
        const char* order = std::getenv("MILLGATE_EMULATED_ORDER");
        return order != nullptr && std::strcmp(order, "reverse") == 0;
    }();
    return reversed;
}

void run_block(const Launch& launch) {
    start_block(launch);
    while (block.live > 0 && block.error.empty()) {
        bool moved = false;
        for (size_t i = 0; i < block.warps.size(); i++) {
            const size_t w = is_reversed() ? block.warps.size() - 1 - i : i;
            while (block.warps[w].ready != 0) {
                moved = true;
                const int lane = is_reversed() ? 31 - __builtin_clz(block.warps[w].ready) : __builtin_ctz(block.warps[w].ready);
                resume(static_cast<int>(w) * 32 + lane);
                if (!block.error.empty()) {
                    return;
                }
            }
        }
        if (!moved && !release_by_ends()) {
            block.error = who_waits();
        }
    }
    check_redzones();
}

} // namespace

std::string run(const Launch& launch) {
    const uint64_t threads = uint64_t{launch.block.x} * launch.block.y * launch.block.z;
    if (threads == 0 || threads > MAX_THREADS || launch.shared_bytes > MAX_SHARED) {
        return launch.name + ": a block of " + std::to_string(threads) + " threads and " +
               std::to_string(launch.shared_bytes) + " bytes of shared memory is not possible";
    }
    if (block.stacks == nullptr) {
        make_stacks();
    }
    Guard guard;
    block.launch = &launch;
    block.error.clear();
    blockDim = launch.block;
    gridDim = launch.grid;
    const dim3 grid = launch.grid;
    const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
    for (uint64_t i = 0; i < blocks; i++) {
        const uint64_t at = is_reversed() ? blocks - 1 - i : i;
        blockIdx = {static_cast<unsigned>(at % grid.x), static_cast<unsigned>(at / grid.x % grid.y),
                    static_cast<unsigned>(at / grid.x / grid.y)};
        run_block(launch);
        if (!block.error.empty()) {
            char where[96];
            std::snprintf(where, sizeof where, "(block %u,%u,%u of %u,%u,%u): ", blockIdx.x, blockIdx.y, blockIdx.z, grid.x,
                          grid.y, grid.z);
            return launch.name + where + block.error;
        }
    }
    return "";
}

void fail(const char* format, ...) {
    char text[512];
    const int start = std::snprintf(text, sizeof text, "thread %u,%u,%u: ", threadIdx.x, threadIdx.y, threadIdx.z);
    va_list args;
    va_start(args, format);
    std::vsnprintf(text + start, sizeof text - start, format, args);
    va_end(args);
    block.error = text;
    yield();
    __builtin_unreachable();
}

void collective(uint32_t mask, const char* op, void* args, Compute compute) {
    Warp& warp = block.warps[block.current / 32];
    const uint32_t bit = 1u << block.current % 32;
    mask &= warp.exists;
    if ((mask & bit) == 0) {
        fail("%s: the calling lane is not in its own mask %08x", op, mask);
    }
    Meeting* meeting = nullptr;
    for (Meeting& m : warp.meetings) {
        if ((m.mask & mask) == 0) {
            continue;
        }
        if (m.mask != mask || m.op != op) {
            fail("%s with mask %08x meets %s with mask %08x", op, mask, m.op, m.mask);
        }
        meeting = &m;
    }
    if (meeting == nullptr) {
        warp.meetings.push_back(Meeting{mask, 0, op, {}});
        meeting = &warp.meetings.back();
    }
    meeting->args[block.current % 32] = args;
    meeting->arrived |= bit;
    if (meeting->arrived != mask) {
        warp.ready &= ~bit;
        yield();
        return;
    }
    if (compute != nullptr) {
        compute(meeting->args, mask);
    }
    warp.ready |= mask;
    *meeting = warp.meetings.back();
    warp.meetings.pop_back();
}

void barrier(int id, int threads) {
    Barrier& b = block.barriers[id];
    if (b.arrived > 0 && b.wanted != threads) {
        fail("barrier %d for %d threads meets one for %d", id, threads, b.wanted);
    }
    b.wanted = threads;
    b.arrived++;
    block.fibers[block.current].barrier = id;
    block.warps[block.current / 32].ready &= ~(1u << block.current % 32);
    if (b.arrived == (threads == 0 ? block.live : threads)) {
        release_barrier(id);
    }
    if ((block.warps[block.current / 32].ready >> block.current % 32 & 1) == 0) {
        yield();
    }
}

unsigned lane() { return static_cast<unsigned>(block.current) % 32; }

unsigned char* dynamic_shared() { return block.arena + ARENA_BYTES - block.dynamic_bytes; }

void* static_shared(const void* key, size_t bytes, size_t alignment) {
    for (const Array& array : block.arrays) {
        if (array.key == key) {
            return block.arena + array.start;
        }
    }
    const size_t start = (block.arena_used + alignment - 1) / alignment * alignment;
    if (start + bytes + REDZONE + block.dynamic_bytes > ARENA_BYTES || start + bytes > (48 << 10) + 64 * REDZONE) {
        fail("shared arrays of more than 48 KiB");
    }
    block.arrays.push_back({key, start, bytes});
    block.arena_used = start + bytes + REDZONE;
    return block.arena + start;
}

void copy_later(void* to, const void* from, size_t bytes, bool is_valid) {
    Fiber& fiber = block.fibers[block.current];
    fiber.copies.push_back({to, from, bytes, is_valid, fiber.groups});
}

void commit_copies() { block.fibers[block.current].groups++; }

void wait_for_copies(int groups_left) {
    Fiber& fiber = block.fibers[block.current];
    size_t kept = 0;
    for (const Copy& copy : fiber.copies) {
        if (copy.group >= fiber.groups - groups_left) {
            fiber.copies[kept++] = copy;
        } else if (copy.is_valid) {
            std::memcpy(copy.to, copy.from, copy.bytes);
        } else {
            std::memset(copy.to, 0, copy.bytes);
        }
    }
    fiber.copies.resize(kept);
}

} // namespace host
