// First pass over rows of logits: the largest value of each chunk, whether any is broken, and adjusted logits.
//
// Grid: x one block a chunk of 4096 logits, y one a draw. A row that nothing adjusts is not copied.
#include "sample.cuh"

constexpr int THREADS = 256;

// Index of the first of a row's adjustments whose token is not below `token`.
__device__ __forceinline__ uint32_t first_not_below(const Adjustment* all, uint32_t count, uint32_t token) {
    uint32_t low = 0, high = count;
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        if (all[middle].token < token) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

__device__ __forceinline__ void adjust_chunk(const SampleArgs& args, const DrawRow& row, float* chunk, uint32_t start,
                                             uint32_t end) {
    const Adjustment* all = args.adjustments + row.first_adjustment;
    const uint32_t last_token = row.pending == NONE ? NONE : args.previous[row.pending];
    const uint32_t first = first_not_below(all, row.adjustments, start);
    for (uint32_t i = first + threadIdx.x; i < row.adjustments && all[i].token < end; i += THREADS) {
        Adjustment what = all[i];
        if (what.token == last_token) {
            what.count += 1;
            what.flags |= SEEN;
        }
        chunk[what.token - start] = adjust(chunk[what.token - start], what, row);
    }
    if (threadIdx.x == 0 && last_token >= start && last_token < end) {
        const uint32_t at = first_not_below(all, row.adjustments, last_token);
        if (at == row.adjustments || all[at].token != last_token) {
            chunk[last_token - start] = adjust(chunk[last_token - start], {last_token, 1, 0, SEEN}, row);
        }
    }
}

// The better of two peaks: larger, then the lower token.
__device__ __forceinline__ void take_better(ChunkPeak& own, const ChunkPeak& other) {
    own.raw = fmaxf(own.raw, other.raw);
    own.is_broken |= other.is_broken;
    if (other.adjusted > own.adjusted || (other.adjusted == own.adjusted && other.token < own.token)) {
        own.adjusted = other.adjusted;
        own.token = other.token;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) sample_scan(SAMPLE_PARAMETERS) {
    const SampleArgs args = SAMPLE_ARGUMENTS;
    SHARED_ARRAY(float, chunk, CHUNK);
    SHARED_ARRAY(ChunkPeak, of_warps, THREADS / 32);
    if (blockIdx.y >= *args.count) {
        return;
    }
    const DrawRow row = args.row(blockIdx.y);
    const uint32_t start = blockIdx.x * CHUNK, end = min(start + CHUNK, args.vocab);
    const float* own_logits = args.logits + static_cast<size_t>(row.row) * args.vocab;
    ChunkPeak peak = {-INFINITY, 0, -INFINITY, NONE};
    for (uint32_t token = start + threadIdx.x; token < end; token += THREADS) {
        const float logit = own_logits[token];
        chunk[token - start] = logit;
        peak.raw = fmaxf(peak.raw, logit);
        peak.is_broken |= logit != logit;
    }
    __syncthreads();
    if (row.is_adjusted) {
        adjust_chunk(args, row, chunk, start, end);
        __syncthreads();
        float* adjusted = args.adjusted + static_cast<size_t>(blockIdx.y) * args.vocab;
        for (uint32_t token = start + threadIdx.x; token < end; token += THREADS) {
            adjusted[token] = chunk[token - start];
        }
    }
    for (uint32_t token = start + threadIdx.x; token < end; token += THREADS) {
        if (chunk[token - start] > peak.adjusted) {
            peak.adjusted = chunk[token - start];
            peak.token = token;
        }
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        ChunkPeak other;
        other.raw = __shfl_xor_sync(0xffffffff, peak.raw, distance);
        other.is_broken = __shfl_xor_sync(0xffffffff, peak.is_broken, distance);
        other.adjusted = __shfl_xor_sync(0xffffffff, peak.adjusted, distance);
        other.token = __shfl_xor_sync(0xffffffff, peak.token, distance);
        take_better(peak, other);
    }
    if (threadIdx.x % 32 == 0) {
        of_warps[threadIdx.x / 32] = peak;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int warp = 1; warp < THREADS / 32; warp++) {
            take_better(peak, of_warps[warp]);
        }
        args.peaks[static_cast<size_t>(blockIdx.y) * args.chunks + blockIdx.x] = peak;
    }
}
EXPORT(sample_scan);
