// Attention of many queries a sequence over its paged context, causal, with an optional window, on tensor cores.
//
// A block takes 64 * M_TILES rows of one kv head; a row is one query of one head of its group, so that a key or value
// once in shared memory serves the whole group. It walks over the context a cache block at a time: scores, running
// softmax, sum of values, all in registers, while asynchronous copies fetch the blocks behind. Steps are cache blocks,
// so a row's result does not depend on which tile holds it.
#include "attention.cuh"

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * 32;
constexpr int STEP = BLOCK_TOKENS;

// Wide heads leave registers for half as many rows.
template <int DIM> constexpr int M_TILES = DIM > 128 ? 1 : 2;
template <int DIM> constexpr int TILE_ROWS = WARPS * 16 * M_TILES<DIM>;

// Blocks of context in shared memory. With three, one barrier a step is enough.
template <int DIM> constexpr int STAGES = DIM > 128 ? 2 : 3;

template <int DIM> constexpr int STAGE_CELLS = 2 * STEP * TILE_STRIDE<DIM>; // keys, then values

// Copies keys and values of the block that starts at token `first`; zeros beyond the end.
template <typename T, typename C, int DIM>
__device__ __forceinline__ void load_step(const AttentionArgs& args, T* stage, const uint32_t* table, uint32_t kv_head,
                                          uint32_t first, uint32_t end) {
    constexpr int CELLS = 16 / sizeof(C), ROW_COPIES = DIM / CELLS;
    const size_t block = block_row(args, table, first, end, kv_head);
#pragma unroll
    for (int part = 0; part < 2; part++) {
        const C* from = static_cast<const C*>(part == 0 ? args.keys : args.values) + block;
        T* to = stage + part * STEP * TILE_STRIDE<DIM>;
#pragma unroll
        for (int i = threadIdx.x; i < STEP * ROW_COPIES; i += THREADS) {
            const uint32_t row = i / ROW_COPIES, column = i % ROW_COPIES * CELLS;
            const bool is_valid = first + row < end && column < args.dim;
            const uint32_t at = is_valid ? row * args.dim + column : 0;
            if constexpr (sizeof(C) == 2) {
                cp_async16(to + tile_at<DIM>(row, column), from + at, is_valid);
            } else {
                Cells wide[2] = {};
                if (is_valid) {
                    widen_fp8<T>(load_pack<Cells>(from + at), wide);
                }
                store_pack(to + tile_at<DIM>(row, column), wide[0]);
                store_pack(to + tile_at<DIM>(row, column + 8), wide[1]);
            }
        }
    }
}

// The rows of a block: row r is query r / group of the span, head r % group of the kv head.
struct PackedRows {
    uint32_t first, count, group, first_position;
    size_t token_stride; // of `data`, in elements
    size_t start;        // of the span's first query, this kv head's first head

    // Of the row's query, the last one it sees; rows past the end do as the last one does, and are not written.
    __device__ __forceinline__ uint32_t position(uint32_t row) const {
        return first_position + min(first + row, count - 1) / group;
    }
    __device__ __forceinline__ bool has(uint32_t row) const { return first + row < count; }
    __device__ __forceinline__ size_t at(uint32_t row, uint32_t dim) const {
        const uint32_t packed = first + row;
        return start + packed / group * token_stride + static_cast<size_t>(packed % group) * dim;
    }
};

template <typename T, int DIM>
__device__ __forceinline__ void load_queries(const AttentionArgs& args, const PackedRows& rows, T* tile) {
    for (int i = threadIdx.x; i < TILE_ROWS<DIM> * DIM / 8; i += THREADS) {
        const uint32_t row = i / (DIM / 8), column = i % (DIM / 8) * 8;
        const bool is_valid = rows.has(row) && column < args.dim;
        const T* from = static_cast<const T*>(args.q) + (is_valid ? rows.at(row, args.dim) + column : 0);
        cp_async16(tile + tile_at<DIM>(row, column), from, is_valid);
    }
}

// One warp's rows: their running softmax and sums.
template <typename T, int DIM> struct PrefillWarp {
    static constexpr int M = M_TILES<DIM>;
    RunningRows state[M];
    float sums[M][DIM / 8][4];
    float s[M][STEP / 8][4];

    __device__ __forceinline__ void score(const T* queries, const T* keys) {
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int n = 0; n < STEP / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    s[m][n][i] = 0;
                }
            }
        }
#pragma unroll
        for (int step = 0; step < DIM / 16; step++) {
            uint32_t a[M][4];
#pragma unroll
            for (int m = 0; m < M; m++) {
                load_query_fragment<T, DIM>(a[m], queries, m * 16, step);
            }
#pragma unroll
            for (int n = 0; n < STEP / 16; n++) {
                uint32_t b[2][2];
                load_key_fragment<T, DIM>(b, keys, n * 16, step);
#pragma unroll
                for (int m = 0; m < M; m++) {
                    mma_16x8x16<T>(s[m][2 * n], a[m], b[0]);
                    mma_16x8x16<T>(s[m][2 * n + 1], a[m], b[1]);
                }
            }
        }
    }

    // Few steps need this, so what a row may see is found anew each time instead of kept.
    __device__ __forceinline__ void mask(const PackedRows& rows, uint32_t first, uint32_t window) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const uint32_t last = rows.position(warp * 16 * M + m * 16 + half * 8 + lane / 4);
#pragma unroll
                for (int i = 0; i < STEP / 4; i++) {
                    // Beyond the last one seen the distance wraps round to a large one.
                    if (last - (first + lane % 4 * 2 + i / 2 * 8 + i % 2) >= window) {
                        s[m][i / 2][2 * half + i % 2] = NEVER;
                    }
                }
            }
        }
    }

    __device__ __forceinline__ void weigh(float scale) {
#pragma unroll
        for (int m = 0; m < M; m++) {
            float shrink[2];
            state[m].add(s[m], scale, shrink);
            shrink_sums(sums[m], shrink);
        }
    }

    __device__ __forceinline__ void add_values(const T* values) {
#pragma unroll
        for (int k = 0; k < STEP / 16; k++) {
            uint32_t a[M][4];
#pragma unroll
            for (int m = 0; m < M; m++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float* pair = &s[m][2 * k + i / 2][i % 2 * 2];
                    a[m][i] = pack2<T>(pair[0], pair[1]);
                }
            }
#pragma unroll
            for (int step = 0; step < DIM / 16; step++) {
                uint32_t b[2][2];
                load_value_fragment<T, DIM>(b, values, k * 16, step);
#pragma unroll
                for (int m = 0; m < M; m++) {
                    mma_16x8x16<T>(sums[m][2 * step], a[m], b[0]);
                    mma_16x8x16<T>(sums[m][2 * step + 1], a[m], b[1]);
                }
            }
        }
    }

    // Into the warp's own rows of the query tile, which nobody reads any more.
    __device__ __forceinline__ void store(T* tile) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int m = 0; m < M; m++) {
            state[m].finish();
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float factor = 1 / state[m].sum[half];
                const int row = m * 16 + half * 8 + lane / 4;
#pragma unroll
                for (int n = 0; n < DIM / 8; n++) {
                    const uint32_t pair = pack2<T>(sums[m][n][2 * half] * factor, sums[m][n][2 * half + 1] * factor);
                    store_pack(tile + tile_at<DIM>(row, n * 8) + lane % 4 * 2, pair);
                }
            }
        }
    }
};

// Grid: x one block a tile, y one a kv head.
template <typename T, typename C, int DIM> __device__ __forceinline__ void prefill(const AttentionArgs& args) {
    DYNAMIC_SHARED(shared);
    constexpr int M = M_TILES<DIM>;
    T* queries = reinterpret_cast<T*>(shared);
    T* stages = queries + TILE_ROWS<DIM> * TILE_STRIDE<DIM>;
    const AttentionItem item = args.items[blockIdx.x];
    if (!args.has(item)) {
        return;
    }
    const Span span = args.spans[item.span];
    const uint32_t* table = args.tables + span.table_start;
    const uint32_t kv_head = blockIdx.y, group = args.heads / args.kv_heads;
    const size_t head_start = static_cast<size_t>(kv_head) * group * args.dim;
    PackedRows rows = {item.slot, span.query_len * group, group, span.context_len - span.query_len, args.q_stride,
                       span.query_start * static_cast<size_t>(args.q_stride) + head_start};

    load_queries<T, DIM>(args, rows, queries);
    for (int stage = 0; stage < STAGES<DIM> - 1; stage++) {
        const uint32_t first = item.begin + stage * STEP;
        load_step<T, C, DIM>(args, stages + stage * STAGE_CELLS<DIM>, table, kv_head, first, item.end);
        cp_async_commit();
    }

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t window = args.window != 0 ? args.window : 0x80000000u;
    const uint32_t earliest = rows.position(warp * 16 * M), latest = rows.position(warp * 16 * M + 16 * M - 1);
    const uint32_t all_see_from = latest >= window ? latest - window + 1 : 0;
    PrefillWarp<T, DIM> own = {};
    T* own_queries = queries + warp * 16 * M * TILE_STRIDE<DIM>;
    int stage = 0;
    for (uint32_t first = item.begin; first < item.end; first += STEP, stage = (stage + 1) % STAGES<DIM>) {
        cp_async_wait<STAGES<DIM> - 2>();
        __syncthreads(); // this block has come, the one before it is used up
        const uint32_t ahead = first + (STAGES<DIM> - 1) * STEP;
        if (ahead < item.end) {
            const int free_stage = (stage + STAGES<DIM> - 1) % STAGES<DIM>;
            load_step<T, C, DIM>(args, stages + free_stage * STAGE_CELLS<DIM>, table, kv_head, ahead, item.end);
        }
        cp_async_commit();
        const T* keys = stages + stage * STAGE_CELLS<DIM>;
        own.score(own_queries, keys);
        if (first < all_see_from || first + STEP > earliest + 1) {
            own.mask(rows, first, window);
        }
        own.weigh(args.scale);
        own.add_values(keys + STEP * TILE_STRIDE<DIM>);
    }
    cp_async_wait<0>();
    own.store(own_queries);
    __syncwarp();
    rows.token_stride = static_cast<size_t>(args.heads) * args.dim;
    rows.start = span.query_start * rows.token_stride + head_start;
    for (int i = lane; i < 16 * M * DIM / 8; i += 32) {
        const uint32_t row = i / (DIM / 8), column = i % (DIM / 8) * 8;
        if (rows.has(warp * 16 * M + row) && column < args.dim) {
            store_pack(static_cast<T*>(args.out) + rows.at(warp * 16 * M + row, args.dim) + column,
                       load_pack<Cells>(own_queries + tile_at<DIM>(row, column)));
        }
    }
}

#define PREFILL(T, type, C, kv, DIM)                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                          \
        attention_prefill_##DIM##_##type##_##kv(ATTENTION_PARAMETERS) {                                               \
        prefill<T, C, DIM>(ATTENTION_ARGUMENTS);                                                                      \
    }                                                                                                                 \
    EXPORT(attention_prefill_##DIM##_##type##_##kv)
#define PREFILL_DIMS(T, type, C, kv)                                                                                  \
    PREFILL(T, type, C, kv, 64);                                                                                      \
    PREFILL(T, type, C, kv, 96);                                                                                      \
    PREFILL(T, type, C, kv, 128);                                                                                     \
    PREFILL(T, type, C, kv, 256)
PREFILL_DIMS(bf16, bf16, bf16, bf16);
PREFILL_DIMS(half, f16, half, f16);
PREFILL_DIMS(bf16, bf16, fp8, fp8);
PREFILL_DIMS(half, f16, fp8, fp8);
