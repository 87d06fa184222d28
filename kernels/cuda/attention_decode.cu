// Attention of one query a sequence over its paged context, split over blocks; and the sum of the parts.
//
// A block takes one part of one sequence's context for one kv head: every key and value is read from memory once for all
// query heads of the group (up to 16, else once for every 16). Each warp takes every WARPS-th tile of 16 tokens through
// its own ring of asynchronous copies, so no barrier stands between memory and tensor cores; the warps' sums are added
// in a fixed order. Rows of the 16-row product that have no query head are zeros: memory is the limit, not products.
#include "attention.cuh"

constexpr int STAGES = 2;
constexpr int TILE = 16;

// How the cells of the cache travel: as they are, or as bytes that a second buffer takes widened.
template <typename T, typename C, int DIM> struct DecodeLayout {
    static constexpr bool WIDENS = sizeof(C) == 1;
    static constexpr int WARPS = DIM > 128 ? 2 : 4;
    static constexpr int WIDE_BYTES = TILE * TILE_STRIDE<DIM> * 2;
    static constexpr int KEY_BYTES = WIDENS ? TILE * DIM : WIDE_BYTES; // of one stage; its values follow
    static constexpr int RING_BYTES = STAGES * 2 * KEY_BYTES + (WIDENS ? 2 * WIDE_BYTES : 0);
    static constexpr int SUM_STRIDE = DIM + 2; // floats; neighbouring rows in different banks
    static constexpr int QUERY_BYTES = WIDE_BYTES;
    static constexpr int SHARED_BYTES = QUERY_BYTES + WARPS * RING_BYTES;
    static_assert(RING_BYTES >= TILE * SUM_STRIDE * 4, "a warp's sums take the place of its ring");
};

// One warp's way through its tiles.
template <typename T, typename C, int DIM> struct DecodeWarp {
    using Layout = DecodeLayout<T, C, DIM>;
    static constexpr int CELLS = 16 / sizeof(C); // of one copy

    const AttentionArgs& args;
    const uint32_t* table;
    uint32_t kv_head, begin, end;
    const T* queries;
    unsigned char* ring;
    float sums[DIM / 8][4];
    RunningRows rows;

    __device__ __forceinline__ void request(int stage, uint32_t tile) {
        constexpr int ROW_COPIES = DIM / CELLS;
        unsigned char* to = ring + stage * 2 * Layout::KEY_BYTES;
        const size_t block = block_row(args, table, tile, end, kv_head) + tile % BLOCK_TOKENS * args.dim;
        const C* keys = static_cast<const C*>(args.keys) + block;
        const C* values = static_cast<const C*>(args.values) + block;
#pragma unroll
        for (int i = threadIdx.x % 32; i < TILE * ROW_COPIES; i += 32) {
            const uint32_t row = i / ROW_COPIES, column = i % ROW_COPIES * CELLS;
            const bool is_valid = tile + row < end && column < args.dim;
            const uint32_t from = is_valid ? row * args.dim + column : 0;
            unsigned char* cell = to + (Layout::WIDENS ? row * DIM + column : tile_at<DIM>(row, column) * 2);
            cp_async16(cell, keys + from, is_valid);
            cp_async16(cell + Layout::KEY_BYTES, values + from, is_valid);
        }
    }

    // The stage's keys; its values follow them.
    __device__ __forceinline__ const T* arrived(int stage) {
        unsigned char* from = ring + stage * 2 * Layout::KEY_BYTES;
        if constexpr (!Layout::WIDENS) {
            return reinterpret_cast<const T*>(from);
        } else {
            T* to = reinterpret_cast<T*>(ring + STAGES * 2 * Layout::KEY_BYTES);
            for (int i = threadIdx.x % 32; i < 2 * TILE * DIM / 16; i += 32) {
                const int row = i / (DIM / 16), column = i % (DIM / 16) * 16;
                Cells wide[2];
                widen_fp8<T>(load_pack<Cells>(from + row * DIM + column), wide);
                T* tile = to + row / TILE * TILE * TILE_STRIDE<DIM>;
                store_pack(tile + tile_at<DIM>(row % TILE, column), wide[0]);
                store_pack(tile + tile_at<DIM>(row % TILE, column + 8), wide[1]);
            }
            __syncwarp();
            return to;
        }
    }

    __device__ __forceinline__ void attend(const T* keys, uint32_t tile) {
        const T* values = keys + TILE * TILE_STRIDE<DIM>;
        float s[2][4] = {};
#pragma unroll
        for (int step = 0; step < DIM / 16; step++) {
            uint32_t q[4], b[2][2];
            load_query_fragment<T, DIM>(q, queries, 0, step);
            load_key_fragment<T, DIM>(b, keys, 0, step);
            mma_16x8x16<T>(s[0], q, b[0]);
            mma_16x8x16<T>(s[1], q, b[1]);
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            uint32_t token = tile + i / 4 * 8 + threadIdx.x % 32 % 4 * 2 + i % 2;
            if (token < begin || token >= end) {
                s[i / 4][i % 4] = NEVER;
            }
        }
        float shrink[2];
        rows.add(s, args.scale, shrink);
        shrink_sums(sums, shrink);
        const uint32_t weights[4] = {pack2<T>(s[0][0], s[0][1]), pack2<T>(s[0][2], s[0][3]), pack2<T>(s[1][0], s[1][1]),
                                     pack2<T>(s[1][2], s[1][3])};
#pragma unroll
        for (int step = 0; step < DIM / 16; step++) {
            uint32_t b[2][2];
            load_value_fragment<T, DIM>(b, values, 0, step);
#pragma unroll
            for (int n = 0; n < 2; n++) {
                mma_16x8x16<T>(sums[2 * step + n], weights, b[n]);
            }
        }
    }

    __device__ __forceinline__ void run(int warp) {
        // Tiles start at multiples of 16, so none crosses a cache block.
        uint32_t next = begin / TILE * TILE + warp * TILE;
        constexpr uint32_t STRIDE = TILE * Layout::WARPS;
        for (int stage = 0; stage < STAGES - 1; stage++) {
            if (next + stage * STRIDE < end) {
                request(stage, next + stage * STRIDE);
            }
            cp_async_commit();
        }
        for (int stage = 0; next < end; next += STRIDE, stage = (stage + 1) % STAGES) {
            uint32_t ahead = next + (STAGES - 1) * STRIDE;
            if (ahead < end) {
                request((stage + STAGES - 1) % STAGES, ahead);
            }
            cp_async_commit();
            cp_async_wait<STAGES - 1>();
            __syncwarp();
            attend(arrived(stage), next);
            __syncwarp();
        }
        cp_async_wait<0>();
        rows.finish();
    }
};

// Writes what the warps found: into `out`, or as one part of several.
template <typename T, typename Layout>
__device__ __forceinline__ void merge(const AttentionArgs& args, const AttentionItem& item, uint32_t row, uint32_t first_head, uint32_t heads,
                  const unsigned char* rings, const float2* states) {
    for (uint32_t i = threadIdx.x; i < heads * args.dim; i += Layout::WARPS * 32) {
        const uint32_t head = i / args.dim, dim = i % args.dim;
        float peak = NEVER, sum = 0.0f, total = 0.0f;
        for (int w = 0; w < Layout::WARPS; w++) {
            peak = fmaxf(peak, states[w * TILE + head].x);
        }
        for (int w = 0; w < Layout::WARPS; w++) {
            const float2 state = states[w * TILE + head];
            const float share = fast_exp2((state.x - peak) * args.scale);
            const float* sums = reinterpret_cast<const float*>(rings + w * Layout::RING_BYTES);
            sum += share * sums[head * Layout::SUM_STRIDE + dim];
            total += share * state.y;
        }
        if (item.slot == NO_SLOT) {
            size_t at = (static_cast<size_t>(row) * args.heads + first_head + head) * args.dim + dim;
            static_cast<T*>(args.out)[at] = from_float<T>(sum / total);
        } else {
            size_t at = static_cast<size_t>(item.slot) * args.heads + first_head + head;
            args.partial[at * args.dim + dim] = sum;
            if (dim == 0) {
                args.partial_state()[at] = make_float2(peak, total);
            }
        }
    }
}

template <typename T, typename C, int DIM>
__device__ __forceinline__ void decode_item(const AttentionArgs& args, const AttentionItem& item, uint32_t kv_head, uint32_t head_tile) {
    using Layout = DecodeLayout<T, C, DIM>;
    constexpr int THREADS = Layout::WARPS * 32;
    DYNAMIC_SHARED(shared);
    SHARED_ARRAY(float2, states, Layout::WARPS* TILE);
    const Span span = args.spans[item.span];
    const uint32_t group = args.heads / args.kv_heads;
    const uint32_t first_head = kv_head * group + head_tile * TILE;
    const uint32_t heads = min(group - head_tile * TILE, static_cast<uint32_t>(TILE));
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

    T* queries = reinterpret_cast<T*>(shared);
    const T* from = static_cast<const T*>(args.q) + static_cast<size_t>(span.query_start) * args.q_stride;
    for (int i = threadIdx.x; i < TILE * DIM / 8; i += THREADS) {
        const uint32_t head = i / (DIM / 8), dim = i % (DIM / 8) * 8;
        Cells cells = {};
        if (head < heads && dim < args.dim) {
            cells = load_pack<Cells>(from + (first_head + head) * args.dim + dim);
        }
        store_pack(queries + tile_at<DIM>(head, dim), cells);
    }
    __syncthreads();

    unsigned char* ring = shared + Layout::QUERY_BYTES + warp * Layout::RING_BYTES;
    DecodeWarp<T, C, DIM> work = {args, args.tables + span.table_start, kv_head, item.begin, item.end,
                                  queries, ring, {}, {}};
    work.run(warp);

    float* sums = reinterpret_cast<float*>(ring);
#pragma unroll
    for (int n = 0; n < DIM / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sums[(lane / 4 + i / 2 * 8) * Layout::SUM_STRIDE + n * 8 + lane % 4 * 2 + i % 2] = work.sums[n][i];
        }
    }
    if (lane % 4 == 0) {
        for (int half = 0; half < 2; half++) {
            states[warp * TILE + lane / 4 + half * 8] = make_float2(work.rows.peak[half], work.rows.sum[half]);
        }
    }
    __syncthreads();
    merge<T, Layout>(args, item, span.query_start, first_head, heads, shared + Layout::QUERY_BYTES, states);
    __syncthreads();
}

// Grid: x any number of blocks, which share the items; y one block for every kv head and 16 of its query heads.
template <typename T, typename C, int DIM> __device__ __forceinline__ void decode(const AttentionArgs& args) {
    const uint32_t head_tiles = (args.heads / args.kv_heads + TILE - 1) / TILE;
    const uint32_t items = args.item_count();
    for (uint32_t i = blockIdx.x; i < items; i += gridDim.x) {
        const AttentionItem item = args.items[i];
        if (args.has(item) && (item.slot == NO_SLOT || item.slot < args.num_slots)) {
            decode_item<T, C, DIM>(args, item, blockIdx.y / head_tiles, blockIdx.y % head_tiles);
        }
    }
}

// Grid: x any number of blocks, which share the rows; y one block a head. The parts are added in their order.
template <typename T> __device__ __forceinline__ void combine(const AttentionArgs& args) {
    const float2* states = args.partial_state();
    const uint32_t rows = min(args.counts[1], args.num_combines);
    for (uint32_t i = blockIdx.x; i < rows; i += gridDim.x) {
        const CombineItem item = args.combines[i];
        if (item.row >= args.tokens || item.first_slot >= args.num_slots ||
            item.parts > args.num_slots - item.first_slot) {
            continue;
        }
        const size_t first = static_cast<size_t>(item.first_slot) * args.heads + blockIdx.y;
        float peak = NEVER;
        for (uint32_t part = 0; part < item.parts; part++) {
            peak = fmaxf(peak, states[first + static_cast<size_t>(part) * args.heads].x);
        }
        for (uint32_t dim = threadIdx.x; dim < args.dim; dim += blockDim.x) {
            float sum = 0.0f, total = 0.0f;
            for (uint32_t part = 0; part < item.parts; part++) {
                const size_t at = first + static_cast<size_t>(part) * args.heads;
                const float2 state = states[at];
                const float share = fast_exp2((state.x - peak) * args.scale);
                sum += share * args.partial[at * args.dim + dim];
                total += share * state.y;
            }
            const size_t at = (static_cast<size_t>(item.row) * args.heads + blockIdx.y) * args.dim + dim;
            static_cast<T*>(args.out)[at] = from_float<T>(sum / total);
        }
    }
}

#define DECODE(T, type, C, kv, DIM)                                                                                   \
    extern "C" __global__ void __launch_bounds__(DecodeLayout<T, C, DIM>::WARPS * 32, 3)                              \
        attention_decode_##DIM##_##type##_##kv(ATTENTION_PARAMETERS) {                                                \
        decode<T, C, DIM>(ATTENTION_ARGUMENTS);                                                                       \
    }                                                                                                                 \
    EXPORT(attention_decode_##DIM##_##type##_##kv)
#define DECODE_DIMS(T, type, C, kv)                                                                                   \
    DECODE(T, type, C, kv, 64);                                                                                       \
    DECODE(T, type, C, kv, 96);                                                                                       \
    DECODE(T, type, C, kv, 128);                                                                                      \
    DECODE(T, type, C, kv, 256)
DECODE_DIMS(bf16, bf16, bf16, bf16);
DECODE_DIMS(half, f16, half, f16);
DECODE_DIMS(bf16, bf16, fp8, fp8);
DECODE_DIMS(half, f16, fp8, fp8);

#define COMBINE(T, type)                                                                                              \
    extern "C" __global__ void __launch_bounds__(128) attention_combine_##type(ATTENTION_PARAMETERS) {                \
        combine<T>(ATTENTION_ARGUMENTS);                                                                              \
    }                                                                                                                 \
    EXPORT(attention_combine_##type)
COMBINE(bf16, bf16);
COMBINE(half, f16);
