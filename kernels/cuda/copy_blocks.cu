// Copies whole blocks of the cache of one layer, keys and values: pairs of (from, to). Pairs that are out of range are
// skipped. Grid: (pairs, pieces of a block). A block is `packs` packs of 16 bytes.
#include "device.cuh"

extern "C" __global__ void __launch_bounds__(256)
    copy_blocks(const uint32_t* pairs, unsigned char* keys, unsigned char* values, int num_blocks, int packs) {
    using P = Pack<uint32_t, 4>;
    const uint32_t from = pairs[2 * blockIdx.x], to = pairs[2 * blockIdx.x + 1];
    const uint32_t at = blockIdx.y * blockDim.x + threadIdx.x;
    if (from >= static_cast<uint32_t>(num_blocks) || to >= static_cast<uint32_t>(num_blocks) ||
        at >= static_cast<uint32_t>(packs)) {
        return;
    }
    const size_t source = (static_cast<size_t>(from) * packs + at) * sizeof(P);
    const size_t target = (static_cast<size_t>(to) * packs + at) * sizeof(P);
    store_pack(keys + target, load_pack<P>(keys + source));
    store_pack(values + target, load_pack<P>(values + source));
}
EXPORT(copy_blocks);
