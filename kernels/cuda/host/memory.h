// Device memory of the emulated driver. See runtime.h.
#pragma once
#include <cstddef>
#include <cstdint>

namespace host {

// Each piece ends at a page that cannot be touched, and is filled with NaN; 0 when the device is full.
uint64_t allocate(size_t bytes);
// Freed memory cannot be touched any more; false for an address that is not the start of a piece.
bool release(uint64_t address);
// Whether all of it lies within one piece, on the device.
bool is_device(uint64_t address, size_t bytes);
size_t free_bytes();
size_t total_bytes();

void* allocate_pinned(size_t bytes);
bool release_pinned(void* address);
bool is_pinned(const void* address, size_t bytes);

} // namespace host
