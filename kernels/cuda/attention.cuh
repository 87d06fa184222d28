// What the attention kernels share: their arguments, tiles of the paged cache, fragments of tensor-core products.
//
// Cache of one layer: keys and values each [num_blocks][kv_heads][32][dim]. A tile is some rows (tokens of one head, or
// queries) of DIM elements in shared memory; DIM is the next size there is a kernel for, what lies beyond dim is zero.
#pragma once
#include "device.cuh"
#include <type_traits>

constexpr int BLOCK_TOKENS = 32;

// As `SequenceSpan` of the host.
struct Span {
    uint32_t query_start, query_len, context_len, table_start, table_len;
};

// Part of the work, planned on the host. Decode: tokens [begin, end) of the context for one query row; `slot` is where
// the partial result goes, NO_SLOT means straight into `out`. Prefill: packed query rows from `slot` on, over tokens
// [begin, end). Plain: query `slot` of the span.
struct AttentionItem {
    uint32_t span, begin, end, slot;
};
constexpr uint32_t NO_SLOT = 0xffffffffu;

// Adds up the parts `first_slot`, `first_slot + 1`, ... of one query row.
struct CombineItem {
    uint32_t row, first_slot, parts, unused;
};

struct AttentionArgs {
    void* out;              // [tokens][heads][dim]
    const void* q;          // row of a token every `q_stride` elements, its heads after each other
    const void *keys, *values;
    const Span* spans;
    const uint32_t* tables;
    const AttentionItem* items;
    const CombineItem* combines;
    const uint32_t* counts; // items, combines; none: all there is room for
    float* partial;         // [slots][heads][dim], not normalised; then [slots][heads] largest score, sum of weights
    // How much there is of each: what the lists say beyond that is skipped.
    uint32_t tokens, num_spans, num_tables, num_blocks, num_items, num_combines, num_slots;
    uint32_t heads, kv_heads, dim, q_stride;
    uint32_t window; // 0: all
    float scale;     // of scores, times log2(e): weights are powers of two

    __device__ __forceinline__ float2* partial_state() const {
        return reinterpret_cast<float2*>(partial + static_cast<size_t>(num_slots) * heads * dim);
    }
    __device__ __forceinline__ uint32_t item_count() const {
        return counts == nullptr ? num_items : min(counts[0], num_items);
    }
    // Whether everything an item leads to is there.
    __device__ __forceinline__ bool has(const AttentionItem& item) const {
        if (item.span >= num_spans) {
            return false;
        }
        const Span& span = spans[item.span];
        const uint32_t blocks = span.context_len / BLOCK_TOKENS + (span.context_len % BLOCK_TOKENS != 0);
        return span.query_start < tokens && span.query_len <= tokens - span.query_start &&
               span.query_len <= span.context_len && span.table_start <= num_tables &&
               blocks <= num_tables - span.table_start && item.begin <= item.end && item.end <= span.context_len;
    }
};

// A kernel's parameters, and the arguments made of them.
#define ATTENTION_PARAMETERS                                                                                          \
    void *out, const void *q, const void *keys, const void *values, const Span *spans, const uint32_t *tables,        \
        const AttentionItem *items, const CombineItem *combines, const uint32_t *counts, float *partial,              \
        uint32_t tokens, uint32_t num_spans, uint32_t num_tables, uint32_t num_blocks, uint32_t num_items,            \
        uint32_t num_combines, uint32_t num_slots, uint32_t heads, uint32_t kv_heads, uint32_t dim,                   \
        uint32_t q_stride, uint32_t window, float scale
#define ATTENTION_ARGUMENTS                                                                                           \
    {                                                                                                                 \
        out, q, keys, values, spans, tables, items, combines, counts, partial, tokens, num_spans, num_tables,         \
            num_blocks, num_items, num_combines, num_slots, heads, kv_heads, dim, q_stride, window, scale             \
    }

constexpr float NEVER = -INFINITY;

// Two-byte elements of one row of a tile.
template <int DIM> constexpr int TILE_STRIDE = DIM % 64 == 0 ? DIM : DIM + 8;

// Where a row's element lies in a tile; `column` is a multiple of 8. Eight rows' pieces of 16 bytes lie in eight
// different banks, by exchange where a row has whole lots of eight pieces, by padding elsewhere.
template <int DIM> __device__ __forceinline__ int tile_at(int row, int column) {
    if constexpr (DIM % 64 == 0) {
        return row * DIM + (column ^ row % 8 * 8);
    } else {
        return row * TILE_STRIDE<DIM> + column;
    }
}

// Index of the row of a block's first token in the cache, in elements; of any row when `token` is not there.
__device__ __forceinline__ size_t block_row(const AttentionArgs& args, const uint32_t* table, uint32_t token,
                                            uint32_t end, uint32_t kv_head) {
    const size_t block = token < end ? min(table[token / BLOCK_TOKENS], args.num_blocks - 1) : 0;
    return (block * args.kv_heads + kv_head) * BLOCK_TOKENS * args.dim;
}

using Cells = Pack<uint32_t, 4>; // sixteen bytes

// Sixteen cells of fp8 as two packs of T.
template <typename T> __device__ __forceinline__ void widen_fp8(const Cells& cells, Cells (&wide)[2]) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        uint32_t pair = fp8x2_to_half2(static_cast<uint16_t>(cells.at[i / 2] >> i % 2 * 16));
        if constexpr (!std::is_same_v<T, half>) {
            const float2 v = unpack2<half>(pair);
            pair = pack2<T>(v.x, v.y);
        }
        wide[i / 4].at[i % 4] = pair;
    }
}

// Sixteen key rows from `row` on, dims [step * 16, +16): b[0] of tokens 0-7, b[1] of tokens 8-15.
template <typename T, int DIM>
__device__ __forceinline__ void load_key_fragment(uint32_t (&b)[2][2], const T* tile, int row, int step) {
    const int lane = threadIdx.x % 32;
    uint32_t out[4];
    ldmatrix_x4(out, tile + tile_at<DIM>(row + lane / 16 * 8 + lane % 8, step * 16 + lane / 8 % 2 * 8));
    b[0][0] = out[0], b[0][1] = out[1], b[1][0] = out[2], b[1][1] = out[3];
}

// Sixteen value rows from `row` on: b[0] of the dims [step * 16, +8), b[1] of the next eight.
template <typename T, int DIM>
__device__ __forceinline__ void load_value_fragment(uint32_t (&b)[2][2], const T* tile, int row, int step) {
    const int lane = threadIdx.x % 32;
    uint32_t out[4];
    ldmatrix_x4_trans(out, tile + tile_at<DIM>(row + lane / 8 % 2 * 8 + lane % 8, step * 16 + lane / 16 * 8));
    b[0][0] = out[0], b[0][1] = out[1], b[1][0] = out[2], b[1][1] = out[3];
}

// Sixteen query rows from `row` on, dims [step * 16, +16).
template <typename T, int DIM>
__device__ __forceinline__ void load_query_fragment(uint32_t (&a)[4], const T* tile, int row, int step) {
    const int lane = threadIdx.x % 32;
    ldmatrix_x4(a, tile + tile_at<DIM>(row + lane % 16, step * 16 + lane / 16 * 8));
}

// Running softmax of the two rows a lane holds parts of: a row's scores lie in four neighbouring lanes.
struct RunningRows {
    float peak[2] = {NEVER, NEVER};
    float sum[2] = {0, 0}; // of this lane's own weights only, until `finish`

    // Turns scores into weights, `scale` included; `shrink` is what older sums must be multiplied by.
    template <int TILES>
    __device__ __forceinline__ void add(float (&s)[TILES][4], float scale, float (&shrink)[2]) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float top = peak[half];
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                top = fmaxf(top, fmaxf(s[t][2 * half], s[t][2 * half + 1]));
            }
            top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 2));
            // Nothing visible yet: any finite base gives weights of zero.
            const float base = top == NEVER ? 0 : top * scale;
            shrink[half] = fast_exp2(peak[half] * scale - base);
            float total = sum[half] * shrink[half];
#pragma unroll
            for (int t = 0; t < TILES; t++) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    s[t][i] = fast_exp2(s[t][i] * scale - base);
                    total += s[t][i];
                }
            }
            sum[half] = total;
            peak[half] = top;
        }
    }

    // Adds up what the four lanes hold.
    __device__ __forceinline__ void finish() {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            sum[half] += __shfl_xor_sync(0xffffffff, sum[half], 1);
            sum[half] += __shfl_xor_sync(0xffffffff, sum[half], 2);
        }
    }
};

// Multiplies sums by what `add` gave; most steps find no new peak, and then nothing is to do.
template <int TILES> __device__ __forceinline__ void shrink_sums(float (&sums)[TILES][4], const float (&shrink)[2]) {
    if (__any_sync(0xffffffff, shrink[0] != 1 || shrink[1] != 1)) {
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            sums[n][0] *= shrink[0], sums[n][1] *= shrink[0];
            sums[n][2] *= shrink[1], sums[n][3] *= shrink[1];
        }
    }
}
