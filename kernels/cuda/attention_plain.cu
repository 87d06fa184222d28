// Attention of any query over its paged context in single precision: one warp a query and head, a token a lane.
//
// For checkpoints in f32, which are small and must agree with the CPU closely; every other type has faster kernels.
#include "attention.cuh"

constexpr int WARPS = 4;
constexpr int MOST_DIMS = 256;

template <typename C> __device__ __forceinline__ float dot(const float* query, const C* key, uint32_t dim) {
    float sum = 0;
    for (uint32_t d = 0; d < dim; d += 4) {
        const Pack<C, 4> cells = load_pack<Pack<C, 4>>(key + d);
        const Pack<float, 4> q = load_pack<Pack<float, 4>>(query + d);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sum += q.at[i] * to_float(cells.at[i]);
        }
    }
    return sum;
}

// Grid: x any number of blocks, which share the items; y one block every four heads.
template <typename C> __device__ __forceinline__ void attend(const AttentionArgs& args) {
    DYNAMIC_SHARED(shared);
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.y * WARPS + warp;
    float* query = reinterpret_cast<float*>(shared) + warp * args.dim;
    if (head >= args.heads) {
        return;
    }
    const uint32_t kv_head = head / (args.heads / args.kv_heads);
    for (uint32_t at = blockIdx.x; at < args.item_count(); at += gridDim.x) {
        const AttentionItem item = args.items[at];
        if (!args.has(item) || item.slot >= args.spans[item.span].query_len) {
            continue;
        }
        const Span span = args.spans[item.span];
        const uint32_t* table = args.tables + span.table_start;
        const uint32_t end = span.context_len - span.query_len + item.slot + 1;
        const uint32_t begin = args.window != 0 && end > args.window ? end - args.window : 0;
        const size_t row = span.query_start + item.slot;
        for (uint32_t d = lane; d < args.dim; d += 32) {
            query[d] = static_cast<const float*>(args.q)[row * args.q_stride + head * args.dim + d];
        }
        __syncwarp();
        float peak = NEVER, total = 0, sums[MOST_DIMS / 32] = {};
        for (uint32_t first = begin / BLOCK_TOKENS * BLOCK_TOKENS; first < end; first += BLOCK_TOKENS) {
            const size_t block = block_row(args, table, first, end, kv_head);
            const C* keys = static_cast<const C*>(args.keys) + block;
            const C* values = static_cast<const C*>(args.values) + block;
            const bool is_seen = first + lane >= begin && first + lane < end;
            const float score = is_seen ? dot(query, keys + lane * args.dim, args.dim) * args.scale : NEVER;
            const float top = fmaxf(peak, warp_max(score)); // every block holds a token that is seen
            const float weight = exp2f(score - top), shrink = exp2f(peak - top);
            peak = top;
            total = total * shrink + warp_sum(weight);
#pragma unroll
            for (int i = 0; i < MOST_DIMS / 32; i++) {
                sums[i] *= shrink;
            }
            for (uint32_t token = 0; token < BLOCK_TOKENS && first + token < end; token++) {
                const float share = __shfl_sync(0xffffffff, weight, token);
                if (first + token < begin) {
                    continue;
                }
#pragma unroll
                for (int i = 0; i < MOST_DIMS / 32; i++) {
                    if (i * 32 + lane < args.dim) {
                        sums[i] += share * to_float(values[token * args.dim + i * 32 + lane]);
                    }
                }
            }
        }
#pragma unroll
        for (int i = 0; i < MOST_DIMS / 32; i++) {
            if (i * 32 + lane < args.dim) {
                static_cast<float*>(args.out)[(row * args.heads + head) * args.dim + i * 32 + lane] = sums[i] / total;
            }
        }
        __syncwarp();
    }
}

#define PLAIN(C, kv)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, 4) attention_plain_f32_##kv(ATTENTION_PARAMETERS) {      \
        attend<C>(ATTENTION_ARGUMENTS);                                                                               \
    }                                                                                                                 \
    EXPORT(attention_plain_f32_##kv)
PLAIN(float, f32);
PLAIN(bf16, bf16);
PLAIN(fp8, fp8);
