// Norms (where a model has that) and rotates queries in place and keys, and stores keys and values in their cache slots.
// A row of qkv is the heads of the query, of the key, of the value. One warp a head, f32 inside, rounded once.
// Cache: keys and values each [num_blocks][kv_heads][32][dim] of C. Slots that are not there (PAD_SLOT) store nothing; a
// position beyond the table counts as its last. Needs dim <= 256. Must agree with reference::rope_store.
#include "device.cuh"

constexpr int BLOCK_TOKENS = 32, MAX_DIM = 256, WARPS = 4;

template <typename T, typename C> struct RopeStore {
    T* qkv;
    const T *q_norm, *k_norm; // null: no norm
    const float* table;       // [positions][2 * pairs]: cosines, then sines
    const uint32_t *positions, *slots;
    C *keys, *values;
    float eps;
    int heads, kv_heads, dim, pairs, num_positions; // pairs: of elements that are rotated
    unsigned num_slots;
};

template <typename T, typename C> __device__ __forceinline__ void rope_store(const RopeStore<T, C>& in) {
    SHARED_ARRAY(float, memory, WARPS * MAX_DIM);
    float* row = memory + threadIdx.x / 32 * MAX_DIM;
    const int lane = threadIdx.x % 32, token = blockIdx.x;
    const int head = blockIdx.y * WARPS + threadIdx.x / 32;
    if (head >= in.heads + 2 * in.kv_heads) {
        return;
    }
    const bool is_query = head < in.heads, is_value = head >= in.heads + in.kv_heads;
    T* from = in.qkv + (static_cast<size_t>(token) * (in.heads + 2 * in.kv_heads) + head) * in.dim;
    const uint32_t slot = in.slots[token];
    if (!is_query && slot >= in.num_slots) {
        return;
    }
    const size_t cell = ((static_cast<size_t>(slot / BLOCK_TOKENS) * in.kv_heads + (head - in.heads) % in.kv_heads) *
                             BLOCK_TOKENS +
                         slot % BLOCK_TOKENS) *
                        in.dim;
    if (is_value) {
        for (int i = lane; i < in.dim; i += 32) {
            in.values[cell + i] = from_float<C>(to_float(from[i]));
        }
        return;
    }
    float squares = 0;
    for (int i = lane; i < in.dim; i += 32) {
        row[i] = to_float(from[i]);
        squares += row[i] * row[i];
    }
    const T* norm = is_query ? in.q_norm : in.k_norm;
    if (norm != nullptr) {
        const float scale = rsqrtf(warp_sum(squares) / in.dim + in.eps);
        for (int i = lane; i < in.dim; i += 32) {
            row[i] *= scale * to_float(norm[i]);
        }
    }
    __syncwarp();
    const int position = min(in.positions[token], static_cast<uint32_t>(in.num_positions - 1));
    const float* cosines = in.table + static_cast<size_t>(position) * 2 * in.pairs;
    for (int i = lane; i < in.dim; i += 32) {
        float x = row[i];
        if (i < in.pairs) {
            x = x * cosines[i] - row[i + in.pairs] * cosines[i + in.pairs];
        } else if (i < 2 * in.pairs) {
            x = x * cosines[i - in.pairs] + row[i - in.pairs] * cosines[i];
        }
        if (is_query) {
            from[i] = from_float<T>(x);
        } else {
            in.keys[cell + i] = from_float<C>(x);
        }
    }
}

#define INSTANCE(T, t, C, c)                                                                                          \
    extern "C" __global__ void __launch_bounds__(32 * WARPS)                                                          \
        rope_store_##t##_##c(T* qkv, const T* q_norm, const T* k_norm, const float* table, const uint32_t* positions, \
                             const uint32_t* slots, C* keys, C* values, float eps, int heads, int kv_heads, int dim,  \
                             int pairs, int num_positions, unsigned num_slots) {                                       \
        rope_store<T, C>({qkv, q_norm, k_norm, table, positions, slots, keys, values, eps, heads, kv_heads, dim, pairs, \
                          num_positions, num_slots});                                                                 \
    }                                                                                                                 \
    EXPORT(rope_store_##t##_##c)
INSTANCE(float, f32, float, f32);
INSTANCE(bf16, bf16, bf16, bf16);
INSTANCE(half, f16, half, f16);
INSTANCE(float, f32, fp8, fp8);
INSTANCE(bf16, bf16, fp8, fp8);
INSTANCE(half, f16, fp8, fp8);
