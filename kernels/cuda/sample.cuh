// What the sampling kernels share: a row's parameters, what a draw returns, and arithmetic that is the CPU's to the bit.
#pragma once
#include "device.cuh"

constexpr uint32_t NONE = 0xffffffffu;
constexpr int CHUNK = 4096; // logits that one block scans

// How to draw from one row of logits; written by the host in this order.
struct DrawRow {
    uint32_t row;
    float temperature;  // 0: the likeliest token
    uint32_t top_k;     // 0: off
    float top_p;        // 1 or more: off
    float min_p_offset; // from the largest logit to the smallest that min-p keeps; -inf: off
    float repetition, presence, frequency;
    uint32_t seed_low, seed_high, choice, position;
    uint32_t wants_scores, top; // log probabilities: at all, and of how many of the likeliest tokens
    uint32_t first_adjustment, adjustments;
    uint32_t pending;     // whose token of the step before counts as one more of the completion; NONE: nobody's
    uint32_t is_adjusted; // whether any logit changes
};

// A token whose logit changes; a row's lie in order of their tokens.
struct Adjustment {
    uint32_t token, count;
    float bias;
    uint32_t flags;
};
constexpr uint32_t SEEN = 1, FORBIDDEN = 2;

// What one block found in its chunk.
struct ChunkPeak {
    float raw;
    uint32_t is_broken; // some raw logit is NaN
    float adjusted;
    uint32_t token; // the first that has the adjusted peak
};

constexpr uint32_t DRAWN = 0, NOT_A_NUMBER = 1, NOTHING_LEFT = 2;
constexpr int MOST_TOP = 20;

struct DrawResult {
    uint32_t token, status;
    float logprob;
    uint32_t top; // entries that follow
    uint32_t tokens[MOST_TOP];
    float logprobs[MOST_TOP];
};

struct SampleArgs {
    const float* logits;   // [rows][vocab]
    float* adjusted;       // [draws][vocab], of rows that are adjusted
    const DrawRow* rows;
    const Adjustment* adjustments;
    const uint32_t* previous; // tokens of the step before
    ChunkPeak* peaks;         // [draws][chunks]
    uint32_t* tokens;         // [draws]
    DrawResult* results;      // [draws]
    const uint32_t* count;    // draws; blocks beyond do nothing
    uint32_t vocab, chunks;
    // How much there is of each: what a row says beyond that is left out.
    uint32_t num_rows, num_adjustments, num_previous;

    __device__ __forceinline__ DrawRow row(uint32_t draw) const {
        DrawRow row = rows[draw];
        row.row = min(row.row, num_rows - 1);
        if (row.first_adjustment > num_adjustments || row.adjustments > num_adjustments - row.first_adjustment) {
            row.adjustments = 0;
        }
        if (row.pending >= num_previous) {
            row.pending = NONE;
        }
        return row;
    }
};

// A kernel's parameters, and the arguments made of them.
#define SAMPLE_PARAMETERS                                                                                             \
    const float *logits, float *adjusted, const DrawRow *rows, const Adjustment *adjustments,                         \
        const uint32_t *previous, ChunkPeak *peaks, uint32_t *tokens, DrawResult *results, const uint32_t *count,     \
        uint32_t vocab, uint32_t chunks, uint32_t num_rows, uint32_t num_adjustments, uint32_t num_previous
#define SAMPLE_ARGUMENTS                                                                                              \
    {                                                                                                                 \
        logits, adjusted, rows, adjustments, previous, peaks, tokens, results, count, vocab, chunks, num_rows,        \
            num_adjustments, num_previous                                                                             \
    }

// e^x for x <= 0 as the CPU's sampler computes it: every product and sum rounds by itself.
__device__ __forceinline__ float exp_exactly(float x) {
    const float clamped = fminf(fmaxf(x, -87.0f), 0.0f);
    const int power = static_cast<int>(sub_rn(mul_rn(clamped, 1.44269504088896340736f), 0.5f));
    const float whole = static_cast<float>(power);
    const float rest = sub_rn(sub_rn(clamped, mul_rn(whole, 0.693359375f)), mul_rn(whole, -2.12194442e-4f));
    float series = 1.0f / 720.0f;
    series = add_rn(mul_rn(series, rest), 1.0f / 120.0f);
    series = add_rn(mul_rn(series, rest), 1.0f / 24.0f);
    series = add_rn(mul_rn(series, rest), 1.0f / 6.0f);
    series = add_rn(mul_rn(series, rest), 0.5f);
    series = add_rn(mul_rn(series, rest), 1.0f);
    series = add_rn(mul_rn(series, rest), 1.0f);
    const float scale = __uint_as_float(static_cast<uint32_t>(127 + power) << 23);
    return x < -87.0f ? 0.0f : mul_rn(series, scale);
}

// A weight as a whole number of 2^-40: sums of such are the same in any order.
__device__ __forceinline__ unsigned long long fixed_point(float weight) {
    // Scaling by a power of two is exact.
    return static_cast<unsigned long long>(llrintf(weight * 1099511627776.0f));
}

__device__ __forceinline__ float adjust(float logit, const Adjustment& what, const DrawRow& row) {
    if (what.flags & FORBIDDEN) {
        return -INFINITY;
    }
    if ((what.flags & SEEN) != 0 && row.repetition != 1) {
        logit = logit > 0 ? div_rn(logit, row.repetition) : mul_rn(logit, row.repetition);
    }
    if (what.count > 0) {
        const float penalty = add_rn(row.presence, mul_rn(row.frequency, static_cast<float>(what.count)));
        logit = sub_rn(logit, penalty);
    }
    return add_rn(logit, what.bias);
}

// A number in [0, 1) that is a function of its arguments: Philox 4x32 with 10 rounds, the upper 53 bits.
__device__ __forceinline__ double uniform(const DrawRow& row) {
    uint32_t c[4] = {row.position, row.choice, 0, 0}, key[2] = {row.seed_low, row.seed_high};
    for (int round = 0; round < 10; round++) {
        const uint32_t left_high = __umulhi(0xD2511F53u, c[0]), left_low = 0xD2511F53u * c[0];
        const uint32_t right_high = __umulhi(0xCD9E8D57u, c[2]), right_low = 0xCD9E8D57u * c[2];
        c[0] = right_high ^ c[1] ^ key[0];
        c[1] = right_low;
        c[2] = left_high ^ c[3] ^ key[1];
        c[3] = left_low;
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    const unsigned long long bits = static_cast<unsigned long long>(c[0]) << 32 | c[1];
    return static_cast<double>(bits >> 11) * (1.0 / 9007199254740992.0);
}
