// Second pass over rows of logits: draws one token of each, and scores it.
//
// One block a row. No sort of the vocabulary: where top-k or top-p cut it off is found by counting tokens (and adding up
// weights) in bins of likelihood; the one bin that holds the cut is then put in order. Weights are whole numbers of
// 2^-40, so every sum is the same whoever adds it up, and the draw depends on the row alone. Must agree with
// reference::draw; both break ties towards the lower token.
#include "sample.cuh"

constexpr int THREADS = 512;
constexpr int WARPS = THREADS / 32;
constexpr int BINS = 2048;
constexpr int LIST = THREADS; // tokens put in order at once, one a thread

using Weight = unsigned long long;

// Orders tokens by likelihood, then by id: a token comes before another if its digits do. The first two digits are the
// distance from the peak, which spreads logits evenly over bins; the others split what is closer than that.
constexpr int LEVELS = 7;
__device__ __forceinline__ uint32_t digit(int level, float logit, float peak, uint32_t token) {
    if (level < 2) {
        const float distance = fminf((peak - logit) * 131072.0f, 4194303.0f);
        const uint32_t steps = static_cast<uint32_t>(distance);
        return level == 0 ? steps >> 11 : steps & 2047;
    }
    if (level < 5) {
        const uint32_t bits = __float_as_uint(logit + 0.0f); // one zero, not two
        const uint32_t falling = bits >> 31 ? bits : ~bits & 0x7fffffffu;
        return falling >> (level == 2 ? 21 : level == 3 ? 10 : 0) & (level == 4 ? 1023 : 2047);
    }
    return token >> (level == 5 ? 9 : 0) & (level == 5 ? 2047 : 511);
}

// Likelihood and id in one number, the likeliest first.
__device__ __forceinline__ Weight order_of(float logit, uint32_t token) {
    const uint32_t bits = __float_as_uint(logit + 0.0f);
    const uint32_t falling = bits >> 31 ? bits : ~bits & 0x7fffffffu;
    return static_cast<Weight>(falling) << 32 | token;
}
__device__ __forceinline__ float logit_of(Weight order) {
    const uint32_t falling = static_cast<uint32_t>(order >> 32);
    return __uint_as_float(falling >> 31 ? falling : ~falling & 0x7fffffffu);
}

// A row under study and the block's memory for it.
struct Row {
    const float* logits;
    uint32_t vocab;
    float peak, temperature;
    uint32_t* counts; // of each bin
    uint32_t* weights_low;
    uint32_t* weights_high;
    Weight* list;     // tokens of the bin that holds the cut, in order
    uint32_t* listed;
    Weight* sums;     // of warps
    Weight* found;    // bin, tokens before it, weight before it, tokens in it, tokens of all bins, weight of all bins

    __device__ __forceinline__ Weight weight(float logit) const {
        return fixed_point(exp_exactly(div_rn(sub_rn(logit, peak), temperature)));
    }
};

template <typename Visit> __device__ __forceinline__ void for_each_token(const Row& row, Visit visit) {
    if (row.vocab % 4 == 0) {
        constexpr int BATCH = 2; // loads in flight a thread
        for (uint32_t first = threadIdx.x * 4; first < row.vocab; first += THREADS * 4 * BATCH) {
            Pack<float, 4> logits[BATCH];
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                const uint32_t token = first + b * THREADS * 4;
                if (token < row.vocab) {
                    logits[b] = load_pack<Pack<float, 4>>(row.logits + token);
                }
            }
#pragma unroll
            for (int i = 0; i < BATCH * 4; i++) {
                const uint32_t token = first + i / 4 * THREADS * 4 + i % 4;
                if (token < row.vocab) {
                    visit(logits[i / 4].at[i % 4], token);
                }
            }
        }
    } else {
        for (uint32_t token = threadIdx.x; token < row.vocab; token += THREADS) {
            visit(row.logits[token], token);
        }
    }
}

// Sum over all threads before this one, and over all.
struct Prefix {
    Weight before, all;
};
__device__ __forceinline__ Prefix prefix_sum(Weight value, Weight* sums) {
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Weight up_to = value;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const Weight other = __shfl_up_sync(0xffffffff, up_to, distance);
        up_to += lane >= static_cast<uint32_t>(distance) ? other : 0;
    }
    __syncthreads(); // earlier sums may still be read
    if (lane == 31) {
        sums[warp] = up_to;
    }
    __syncthreads();
    Weight of_warps = lane < WARPS ? sums[lane] : 0;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const Weight other = __shfl_up_sync(0xffffffff, of_warps, distance);
        of_warps += lane >= static_cast<uint32_t>(distance) ? other : 0;
    }
    const Weight warps_before = __shfl_sync(0xffffffff, of_warps, warp == 0 ? 0 : warp - 1);
    return {up_to - value + (warp == 0 ? 0 : warps_before), __shfl_sync(0xffffffff, of_warps, 31)};
}

// Digits chosen so far, and what lies before them.
struct Place {
    uint32_t digits[LEVELS];
    int level; // digits chosen
    uint32_t tokens_before, tokens;
    Weight weight_before;

    // Below 0: before the place; 0: in it; above 0: behind it.
    __device__ __forceinline__ int compare(const Row& row, float logit, uint32_t token) const {
#pragma unroll
        for (int l = 0; l < LEVELS; l++) { // known indices keep the digits in registers
            if (l == level) {
                break;
            }
            const uint32_t own = digit(l, logit, row.peak, token);
            if (own != digits[l]) {
                return own < digits[l] ? -1 : 1;
            }
        }
        return 0;
    }
};

// Fills the bins of the next level with what lies in the place.
__device__ __forceinline__ void fill_bins(const Row& row, const Place& place, bool has_weights) {
    __syncthreads();
    for (int bin = threadIdx.x; bin < BINS; bin += THREADS) {
        row.counts[bin] = 0;
        row.weights_low[bin] = 0;
        row.weights_high[bin] = 0;
    }
    __syncthreads();
    for_each_token(row, [&](float logit, uint32_t token) {
        if (logit > -INFINITY && place.compare(row, logit, token) == 0) {
            const uint32_t bin = digit(place.level, logit, row.peak, token);
            atomicAdd(&row.counts[bin], 1u);
            const Weight weight = has_weights ? row.weight(logit) : 0;
            if (weight != 0) {
                const uint32_t low = static_cast<uint32_t>(weight);
                const uint32_t old = atomicAdd(&row.weights_low[bin], low);
                const uint32_t high = static_cast<uint32_t>(weight >> 32) + (old + low < old ? 1 : 0);
                if (high != 0) {
                    atomicAdd(&row.weights_high[bin], high);
                }
            }
        }
    });
    __syncthreads();
}

// What a cut is made at: the `tokens`-th token, or the first with which the weight reaches `weight`.
struct Goal {
    bool is_count;
    uint32_t tokens;
    double weight;

    __device__ __forceinline__ bool is_met(Weight count, Weight sum) const {
        return is_count ? count >= tokens : static_cast<double>(sum) >= weight;
    }
};

// Steps into the bin in which the goal is met; stays and returns false if none does.
__device__ __forceinline__ bool choose_bin(const Row& row, Place& place, const Goal& goal) {
    constexpr int PER_THREAD = BINS / THREADS;
    Weight counts[PER_THREAD], weights[PER_THREAD], count = 0, weight = 0;
#pragma unroll
    for (int i = 0; i < PER_THREAD; i++) {
        const int bin = threadIdx.x * PER_THREAD + i;
        counts[i] = row.counts[bin];
        weights[i] = static_cast<Weight>(row.weights_high[bin]) << 32 | row.weights_low[bin];
        count += counts[i];
        weight += weights[i];
    }
    const Prefix of_counts = prefix_sum(count, row.sums), of_weights = prefix_sum(weight, row.sums);
    Weight tokens_before = place.tokens_before + of_counts.before, weight_before = place.weight_before + of_weights.before;
    if (threadIdx.x == 0) {
        row.found[0] = NONE;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < PER_THREAD; i++) {
        const Weight tokens_after = tokens_before + counts[i], weight_after = weight_before + weights[i];
        if (counts[i] != 0 && !goal.is_met(tokens_before, weight_before) && goal.is_met(tokens_after, weight_after)) {
            row.found[0] = threadIdx.x * PER_THREAD + i;
            row.found[1] = tokens_before;
            row.found[2] = weight_before;
            row.found[3] = counts[i];
        }
        tokens_before = tokens_after;
        weight_before = weight_after;
    }
    __syncthreads();
    if (row.found[0] == NONE) {
        return false;
    }
#pragma unroll
    for (int l = 0; l < LEVELS; l++) {
        if (l == place.level) {
            place.digits[l] = static_cast<uint32_t>(row.found[0]);
        }
    }
    place.level++;
    place.tokens_before = static_cast<uint32_t>(row.found[1]);
    place.weight_before = row.found[2];
    place.tokens = static_cast<uint32_t>(row.found[3]);
    return true;
}

// Lists what lies in the place, or before it too, in order.
__device__ __forceinline__ uint32_t list_place(const Row& row, const Place& place, bool with_all_before) {
    __syncthreads();
    if (threadIdx.x == 0) {
        *row.listed = 0;
    }
    row.list[threadIdx.x] = ~static_cast<Weight>(0);
    __syncthreads();
    for_each_token(row, [&](float logit, uint32_t token) {
        if (logit > -INFINITY) {
            const int side = place.compare(row, logit, token);
            if (side == 0 || (side < 0 && with_all_before)) {
                row.list[atomicAdd(row.listed, 1u)] = order_of(logit, token);
            }
        }
    });
    __syncthreads();
    const uint32_t listed = *row.listed;
    uint32_t size = 2;
    while (size < listed) {
        size *= 2;
    }
    for (uint32_t run = 2; run <= size; run *= 2) {
        for (uint32_t distance = run / 2; distance > 0; distance /= 2) {
            const uint32_t own = threadIdx.x, other = own ^ distance;
            if (other > own && other < size) {
                const Weight a = row.list[own], b = row.list[other];
                if ((a > b) == ((own & run) == 0)) {
                    row.list[own] = b;
                    row.list[other] = a;
                }
            }
            __syncthreads();
        }
    }
    return listed;
}

// The last token that may be drawn, in order of likelihood.
struct Cut {
    Weight order;
    Weight weight; // of all up to it, if weights were asked for
    bool is_there;
};

// Finds where the goal is met; `place` is level 0 with its bins filled. `is_fresh`: they still are afterwards.
__device__ __forceinline__ Cut find_cut(const Row& row, Place place, const Goal& goal, bool has_weights, bool& is_fresh) {
    if (!choose_bin(row, place, goal)) {
        return {~static_cast<Weight>(0), 0, false};
    }
    while (place.tokens > LIST) {
        is_fresh = false;
        fill_bins(row, place, has_weights);
        choose_bin(row, place, goal);
    }
    const uint32_t listed = list_place(row, place, false);
    const Weight order = row.list[threadIdx.x];
    const Weight weight = has_weights && threadIdx.x < listed ? row.weight(logit_of(order)) : 0;
    const Weight before = place.weight_before + prefix_sum(weight, row.sums).before;
    const Weight tokens = place.tokens_before + threadIdx.x;
    if (threadIdx.x < listed && !goal.is_met(tokens, before) && goal.is_met(tokens + 1, before + weight)) {
        row.found[0] = order;
        row.found[1] = before + weight;
    }
    __syncthreads();
    const Cut cut = {row.found[0], row.found[1], true};
    __syncthreads();
    return cut;
}

// Where top-k, top-p and min-p cut: tokens whose order is larger are not drawn.
__device__ __forceinline__ Weight find_cuts(const Row& row, const DrawRow& how) {
    Weight cut = ~static_cast<Weight>(0);
    if (how.min_p_offset > -INFINITY) {
        cut = order_of(add_rn(row.peak, how.min_p_offset), NONE);
    }
    const bool has_top_k = how.top_k > 0 && how.top_k < row.vocab, has_top_p = how.top_p < 1;
    if (!has_top_k && !has_top_p) {
        return cut;
    }
    Place start = {};
    bool is_fresh = true;
    fill_bins(row, start, has_top_p);
    Weight total = 0;
    if (has_top_k) {
        const Cut top_k = find_cut(row, start, {true, how.top_k, 0}, has_top_p, is_fresh);
        if (top_k.is_there) {
            cut = min(cut, top_k.order);
            total = top_k.weight;
        }
    }
    if (has_top_p) {
        if (!is_fresh) {
            fill_bins(row, start, true);
        }
        if (total == 0) {
            Weight weight = 0;
            for (int bin = threadIdx.x; bin < BINS; bin += THREADS) {
                weight += static_cast<Weight>(row.weights_high[bin]) << 32 | row.weights_low[bin];
            }
            total = prefix_sum(weight, row.sums).all;
        }
        // The likeliest token always stays, also with a share of zero.
        const double share = max(static_cast<double>(how.top_p) * static_cast<double>(total), 1.0);
        cut = min(cut, find_cut(row, start, {false, 0, share}, true, is_fresh).order);
    }
    return cut;
}

// Weight of the tokens [start, end) that the cut keeps, of which this lane takes every 32nd.
__device__ __forceinline__ Weight kept_weight(const Row& row, Weight cut, uint32_t token, uint32_t end) {
    if (token >= end) {
        return 0;
    }
    const float logit = row.logits[token];
    return logit > -INFINITY && order_of(logit, token) <= cut ? row.weight(logit) : 0;
}

// The part of WARPS equal parts of [start, end) in which the kept weight passes `target`; `target` becomes what is missing
// in it. All of the block take part; one warp a part.
__device__ __forceinline__ void narrow(const Row& row, Weight cut, uint32_t& start, uint32_t& end, Weight& target,
                                       const double* share) {
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t part = (end - start + THREADS - 1) / THREADS * 32;
    const uint32_t part_start = start + warp * part, part_end = min(part_start + part, end);
    Weight weight = 0;
    for (uint32_t token = part_start + lane; token < part_end; token += 32) {
        weight += kept_weight(row, cut, token, part_end);
    }
    const Prefix prefix = prefix_sum(weight, row.sums);
    if (share != nullptr) {
        target = static_cast<Weight>(*share * static_cast<double>(prefix.all));
        target = min(target, prefix.all - 1); // rounding can reach the end
    }
    // What lies before the warp, and with it, is the same for all of its lanes.
    const Weight before = __shfl_sync(0xffffffff, prefix.before, 0);
    const Weight after = __shfl_sync(0xffffffff, prefix.before + weight, 31);
    if (lane == 0 && before <= target && target < after) {
        row.found[0] = part_start;
        row.found[1] = part_end;
        row.found[2] = target - before;
    }
    __syncthreads();
    start = static_cast<uint32_t>(row.found[0]);
    end = static_cast<uint32_t>(row.found[1]);
    target = row.found[2];
    __syncthreads();
}

// Draws among the kept tokens in order of their ids, so that the outcome does not depend on how the cut was found.
__device__ __forceinline__ uint32_t pick(const Row& row, const DrawRow& how, Weight cut) {
    const double share = uniform(how);
    uint32_t start = 0, end = row.vocab;
    Weight target = 0;
    narrow(row, cut, start, end, target, &share);
    while (end - start > 32) {
        narrow(row, cut, start, end, target, nullptr);
    }
    const uint32_t lane = threadIdx.x % 32;
    const Weight weight = kept_weight(row, cut, start + lane, end);
    Weight up_to = weight;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const Weight other = __shfl_up_sync(0xffffffff, up_to, distance);
        up_to += lane >= static_cast<uint32_t>(distance) ? other : 0;
    }
    const uint32_t passed = __ballot_sync(0xffffffff, up_to > target);
    return start + __ffs(static_cast<int>(passed)) - 1;
}

// Log probabilities of the raw logits; `row` holds those, with a temperature of 1.
__device__ __forceinline__ void score(const Row& row, const DrawRow& how, uint32_t token, DrawResult& result) {
    Weight weight = 0;
    for_each_token(row, [&](float logit, uint32_t) { weight += fixed_point(exp_exactly(sub_rn(logit, row.peak))); });
    const double total = static_cast<double>(prefix_sum(weight, row.sums).all) * (1.0 / 1099511627776.0);
    const double base = static_cast<double>(row.peak) + log(total);
    const auto logprob = [&](float logit) { return static_cast<float>(static_cast<double>(logit) - base); };
    if (threadIdx.x == 0) {
        result.logprob = logprob(row.logits[token]);
    }
    const uint32_t top = min(how.top, static_cast<uint32_t>(MOST_TOP));
    uint32_t listed = 0;
    if (top > 0) {
        Place place = {};
        fill_bins(row, place, false);
        const Goal goal = {true, top, 0};
        // With fewer tokens than asked for, all of them lie before the last bin.
        bool is_there = choose_bin(row, place, goal);
        while (is_there && place.tokens_before + place.tokens > LIST) {
            fill_bins(row, place, false);
            choose_bin(row, place, goal);
        }
        listed = min(list_place(row, place, true), top);
    }
    if (threadIdx.x < listed) {
        const Weight order = row.list[threadIdx.x];
        result.tokens[threadIdx.x] = static_cast<uint32_t>(order);
        result.logprobs[threadIdx.x] = logprob(logit_of(order));
    }
    if (threadIdx.x == 0) {
        result.top = listed;
    }
}

// The row's peaks from those of its chunks. All threads get the same.
__device__ __forceinline__ ChunkPeak row_peak(const SampleArgs& args, uint32_t draw) {
    ChunkPeak peak = {-INFINITY, 0, -INFINITY, NONE};
    for (uint32_t chunk = 0; chunk < args.chunks; chunk++) {
        const ChunkPeak other = args.peaks[static_cast<size_t>(draw) * args.chunks + chunk];
        peak.raw = fmaxf(peak.raw, other.raw);
        peak.is_broken |= other.is_broken;
        if (other.adjusted > peak.adjusted) { // chunks come in order of their tokens
            peak.adjusted = other.adjusted;
            peak.token = other.token;
        }
    }
    return peak;
}

__device__ __forceinline__ uint32_t status_of(const ChunkPeak& peak) {
    if (peak.is_broken || !(fabsf(peak.raw) < INFINITY)) {
        return NOT_A_NUMBER;
    }
    if (peak.adjusted == -INFINITY) {
        return NOTHING_LEFT;
    }
    // Extreme penalties or biases can overflow although the raw logits are sound.
    return peak.adjusted < INFINITY ? DRAWN : NOT_A_NUMBER;
}

// Grid: x one block a draw.
extern "C" __global__ void __launch_bounds__(THREADS, 1) sample_draw(SAMPLE_PARAMETERS) {
    const SampleArgs args = SAMPLE_ARGUMENTS;
    SHARED_ARRAY(uint32_t, counts, BINS);
    SHARED_ARRAY(uint32_t, weights_low, BINS);
    SHARED_ARRAY(uint32_t, weights_high, BINS);
    SHARED_ARRAY(Weight, list, LIST);
    SHARED_ARRAY(uint32_t, listed, 1);
    SHARED_ARRAY(Weight, sums, 32);
    SHARED_ARRAY(Weight, found, 4);
    const uint32_t draw = blockIdx.x;
    if (draw >= *args.count) {
        return;
    }
    const DrawRow how = args.row(draw);
    DrawResult& result = args.results[draw];
    const ChunkPeak peak = row_peak(args, draw);
    const uint32_t status = status_of(peak);
    const float* raw = args.logits + static_cast<size_t>(how.row) * args.vocab;
    Row row = {how.is_adjusted ? args.adjusted + static_cast<size_t>(draw) * args.vocab : raw,
               args.vocab, peak.adjusted, how.temperature, counts, weights_low, weights_high, list, listed, sums, found};
    uint32_t token = peak.token;
    if (status == DRAWN && how.temperature != 0) {
        token = pick(row, how, find_cuts(row, how));
    }
    if (threadIdx.x == 0) {
        token = status == DRAWN ? token : NONE;
        args.tokens[draw] = token;
        result.token = token;
        result.status = status;
        result.logprob = 0;
        result.top = 0;
    }
    if (status == DRAWN && how.wants_scores) {
        row.logits = raw;
        row.peak = peak.raw;
        row.temperature = 1;
        score(row, how, token, result);
    }
}
EXPORT(sample_draw);
