// out[N,W] = table[id of the row]; an id with its top bit set names a draw of the step before, whose id is read from
// `previous`. Ids that are out of range count as 0, draws that are not there too: nothing outside the table is read.
// One block a row, 16-byte moves. Needs W % (16 / sizeof(T)) == 0.
#include "device.cuh"

constexpr uint32_t DRAWN = 0x80000000u;

template <typename T>
__device__ __forceinline__ void embed_row(const uint32_t* ids, const uint32_t* previous, const T* table, T* out,
                                          int num_previous, int vocab, int width) {
    using P = Pack<T, WIDEST<T>>;
    uint32_t id = ids[blockIdx.x];
    if (id & DRAWN) {
        const uint32_t draw = id & ~DRAWN;
        id = draw < static_cast<uint32_t>(num_previous) ? previous[draw] : 0;
    }
    if (id >= static_cast<uint32_t>(vocab)) {
        id = 0;
    }
    const T* from = table + static_cast<size_t>(id) * width;
    T* to = out + static_cast<size_t>(blockIdx.x) * width;
    for (int at = threadIdx.x * WIDEST<T>; at < width; at += blockDim.x * WIDEST<T>) {
        store_pack(to + at, load_pack<P>(from + at));
    }
}

#define INSTANCE(T, suffix)                                                                                           \
    extern "C" __global__ void __launch_bounds__(1024)                                                                \
        embedding_##suffix(const uint32_t* ids, const uint32_t* previous, const T* table, T* out, int num_previous,   \
                           int vocab, int width) {                                                                    \
        embed_row<T>(ids, previous, table, out, num_previous, vocab, width);                                          \
    }                                                                                                                 \
    EXPORT(embedding_##suffix)
FOR_EACH_TYPE(INSTANCE);
