// Runs kernels on the CPU, so that they can be tested where there is no GPU. A test tool only: it is never shipped.
//
// Every thread of a block is a fiber that runs until it meets a barrier or a warp collective. Blocks run one after the
// other, in a fixed order, on the thread that calls `run`. Fresh shared memory holds NaN, memory out of bounds and
// barriers that not everybody reaches end the launch with an error that names kernel, block and thread.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

// What a kernel reads; set by the scheduler before a fiber goes on.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace host {

struct Launch {
    std::string name;
    dim3 grid, block;
    size_t shared_bytes = 0;
    std::function<void()> body; // what one thread does
};

// Runs a launch to its end; an empty string, or what went wrong. Not reentrant: callers hold a lock.
std::string run(const Launch& launch);

// Ends the launch with this message. Called on a fiber only; does not return.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Lanes of `mask` meet: each leaves `args`, the last one calls `compute` with all of them, then all go on.
using Compute = void (*)(void* const* args, uint32_t mask);
void collective(uint32_t mask, const char* op, void* args, Compute compute);

// Waits for `threads` threads at barrier `id`; 0 threads: all that have not ended.
void barrier(int id, int threads);

unsigned lane();

// Shared memory of the block: the launch's dynamic part, and arrays declared in kernels, one a `key`.
unsigned char* dynamic_shared();
void* static_shared(const void* key, size_t bytes, size_t alignment);

// Copies to shared memory that have not arrived: they are done only when waited for.
void copy_later(void* to, const void* from, size_t bytes, bool is_valid);
void commit_copies();
void wait_for_copies(int groups_left);

} // namespace host
