// out[i] = x[rows[i]], rows of W elements; zeros for a row that is not there. One block a row of `out`, 16-byte moves.
// Needs W % (16 / sizeof(T)) == 0.
#include "device.cuh"

template <typename T>
__device__ __forceinline__ void gather_row(const T* x, const uint32_t* rows, T* out, int num_rows, int width) {
    using P = Pack<T, WIDEST<T>>;
    const uint32_t row = rows[blockIdx.x];
    const bool is_there = row < static_cast<uint32_t>(num_rows);
    const T* from = x + static_cast<size_t>(is_there ? row : 0) * width;
    T* to = out + static_cast<size_t>(blockIdx.x) * width;
    for (int at = threadIdx.x * WIDEST<T>; at < width; at += blockDim.x * WIDEST<T>) {
        P pack;
        if (is_there) {
            pack = load_pack<P>(from + at);
        } else {
#pragma unroll
            for (int j = 0; j < WIDEST<T>; j++) {
                pack.at[j] = from_float<T>(0);
            }
        }
        store_pack(to + at, pack);
    }
}

#define INSTANCE(T, suffix)                                                                                           \
    extern "C" __global__ void __launch_bounds__(1024)                                                                \
        gather_rows_##suffix(const T* x, const uint32_t* rows, T* out, int num_rows, int width) {                     \
        gather_row<T>(x, rows, out, num_rows, width);                                                                 \
    }                                                                                                                 \
    EXPORT(gather_rows_##suffix)
FOR_EACH_TYPE(INSTANCE);
