// Device memory with guard pages: a read or write out of bounds, or of freed memory, is caught where it happens.
// See runtime.h.
#include "memory.h"
#include <cstdlib>
#include <cstring>
#include <map>
#include <sys/mman.h>

namespace host {
namespace {

constexpr size_t PAGE = 4096;

struct Piece {
    size_t bytes;
    void* mapping;
    size_t mapping_bytes;
};
std::map<uint64_t, Piece> pieces; // by address
std::map<uint64_t, size_t> pinned;
size_t used = 0;

size_t whole_pages(size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

} // namespace

size_t total_bytes() {
    static const size_t total = [] {
        const char* text = std::getenv("MILLGATE_EMULATED_GPU_BYTES");
        const size_t bytes = text == nullptr ? 0 : std::strtoull(text, nullptr, 10);
        return bytes == 0 ? size_t{2} << 30 : bytes;
    }();
    return total;
}
size_t free_bytes() { return total_bytes() - used; }

uint64_t allocate(size_t bytes) {
    const size_t inside = whole_pages(bytes);
    if (inside > free_bytes()) {
        return 0;
    }
    void* mapping = mmap(nullptr, inside + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) {
        return 0;
    }
    char* start = static_cast<char*>(mapping) + PAGE;
    mprotect(start, inside, PROT_READ | PROT_WRITE);
    std::memset(start, 0xff, inside);
    used += inside;
    // As close to the guard page as wide loads allow. (A real device aligns to 256 bytes.)
    const uint64_t address = reinterpret_cast<uint64_t>(start) + inside - (bytes + 15) / 16 * 16;
    pieces[address] = {bytes, mapping, inside + 2 * PAGE};
    return address;
}

bool release(uint64_t address) {
    const auto found = pieces.find(address);
    if (found == pieces.end()) {
        return false;
    }
    const Piece& piece = found->second;
    // The addresses stay taken, so that a stale pointer meets nothing; only tests run long enough to notice.
    mmap(piece.mapping, piece.mapping_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    used -= piece.mapping_bytes - 2 * PAGE;
    pieces.erase(found);
    return true;
}

bool is_device(uint64_t address, size_t bytes) {
    auto after = pieces.upper_bound(address);
    if (after == pieces.begin()) {
        return false;
    }
    --after;
    return address + bytes <= after->first + after->second.bytes;
}

void* allocate_pinned(size_t bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, PAGE, whole_pages(bytes)) != 0) {
        return nullptr;
    }
    std::memset(memory, 0xff, whole_pages(bytes));
    pinned[reinterpret_cast<uint64_t>(memory)] = bytes;
    return memory;
}

bool release_pinned(void* address) {
    if (pinned.erase(reinterpret_cast<uint64_t>(address)) == 0) {
        return false;
    }
    std::free(address);
    return true;
}

bool is_pinned(const void* address, size_t bytes) {
    auto after = pinned.upper_bound(reinterpret_cast<uint64_t>(address));
    if (after == pinned.begin()) {
        return false;
    }
    --after;
    return reinterpret_cast<uint64_t>(address) + bytes <= after->first + after->second;
}

} // namespace host
