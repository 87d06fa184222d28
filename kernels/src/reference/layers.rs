//! The parts of a layer, one number after the other: norms, products, rotary positions with the cache, attention.

use crate::quant::{self, BLOCK, RUN, RUNS_PER_BLOCK, RawCodes};
use crate::{AttentionBatch, BLOCK_TOKENS, KvLayer, Level, PAD_SLOT, RopeStore, WeightFormat};
use half::bf16;

/// A row-major weight matrix as on disk.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// Format of `bytes`.
    pub format: WeightFormat,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// `rows` rows after each other.
    pub bytes: &'a [u8],
}

/// `out = x / sqrt(mean(x²) + eps) * weight`.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
        let squares: f32 = x.iter().map(|v| v * v).sum();
        let scale = 1.0 / (squares / x.len() as f32 + eps).sqrt();
        for i in 0..x.len() {
            out[i] = x[i] * scale * weight[i];
        }
    }
}

/// `residual += x`.
pub fn add(residual: &mut [f32], x: &[f32]) {
    for (r, x) in residual.iter_mut().zip(x) {
        *r += x;
    }
}

/// `out = gate * sigmoid(gate) * up`.
pub fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for i in 0..out.len() {
        out[i] = gate[i] / (1.0 + (-gate[i]).exp()) * up[i];
    }
}

/// Thirty-two activations as signed bytes with one scale.
///
/// The scale is NaN when an activation is no number, infinite, or beyond 1e33, so that a broken row stays visibly broken.
pub fn quantise_run(x: &[f32]) -> ([i8; RUN], f32) {
    let peak = f32::from_bits(peak_bits(x));
    // Below this the quotient could overflow; such a run counts as zero.
    if peak < 1e-30 {
        return ([0; RUN], 0.0);
    }
    let inverse = 127.0 / peak;
    (std::array::from_fn(|i| (x[i] * inverse).round_ties_even() as i8), quant::activation_scale(peak))
}

/// The bits of the largest absolute value: NaN compares above everything, so it is not lost as in a float maximum.
fn peak_bits(x: &[f32]) -> u32 {
    x.iter().map(|v| v.abs().to_bits()).max().unwrap_or(0)
}

/// Activations of a block of the K formats as signed bytes: the codes of run `r` stand for `scale / 2^shifts[r]` each.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantisedBlock {
    /// The codes.
    pub codes: [i8; BLOCK],
    /// Powers of two of each run.
    pub shifts: [u32; RUNS_PER_BLOCK],
    /// Of the whole block; NaN as in [`quantise_run`].
    pub scale: f32,
}

/// Two hundred and fifty-six activations as signed bytes with one scale: each run of 32 by so many powers of two finer as
/// it is smaller than the largest.
pub fn quantise_block(x: &[f32]) -> QuantisedBlock {
    let block_peak = peak_bits(x);
    let peak = f32::from_bits(block_peak);
    if peak < 1e-30 {
        return QuantisedBlock { codes: [0; BLOCK], shifts: [0; RUNS_PER_BLOCK], scale: 0.0 };
    }
    let shifts: [u32; RUNS_PER_BLOCK] =
        std::array::from_fn(|r| quant::run_shift(block_peak, peak_bits(&x[r * RUN..(r + 1) * RUN])));
    let inverse = |i: usize| 127.0 / peak * (1u32 << shifts[i / RUN]) as f32;
    let codes = std::array::from_fn(|i| (x[i] * inverse(i)).round_ties_even() as i8);
    QuantisedBlock { codes, shifts, scale: quant::activation_scale(peak) }
}

/// `y = x · wᵀ + bias`, rounded as `level` rounds.
///
/// Dense weights: sums in f32, one weight after the other; bf16 weights round the activation to bf16 first.
/// Quantised weights: activations become signed bytes with a scale a run of 32, or a block of 256 where
/// [`Level::takes_blocks`]; dot products are exact integers.
pub fn linear(level: Level, x: &[f32], w: &Matrix, bias: Option<&[f32]>, y: &mut [f32]) {
    each_output(x, w, bias, y, |x, row| {
        if level.takes_blocks(w.format, w.cols) {
            dot_blocks(x, w.format, row)
        } else if w.format.is_quantised() {
            dot_runs(x, w.format, row)
        } else {
            dot(x, w, row)
        }
    });
}

/// As [`linear`] with quantised weights on a GPU, where activations have a scale a run of 32 in every format.
pub fn linear_by_runs(x: &[f32], w: &Matrix, bias: Option<&[f32]>, y: &mut [f32]) {
    each_output(x, w, bias, y, |x, row| dot_runs(x, w.format, row));
}

fn each_output(x: &[f32], w: &Matrix, bias: Option<&[f32]>, y: &mut [f32], dot: impl Fn(&[f32], &[u8]) -> f32) {
    let row_bytes = w.bytes.len() / w.rows.max(1);
    for (x, y) in x.chunks_exact(w.cols).zip(y.chunks_exact_mut(w.rows.max(1))) {
        for (r, y) in y.iter_mut().enumerate() {
            let row = &w.bytes[r * row_bytes..(r + 1) * row_bytes];
            let sum = dot(x, row);
            *y = bias.map_or(sum, |b| sum + b[r]);
        }
    }
}

fn dot(x: &[f32], w: &Matrix, row: &[u8]) -> f32 {
    let mut weights = vec![0.0; x.len()];
    quant::dequantise_row(w.format, row, &mut weights).expect("the caller promised whole rows");
    let rounds = w.format == WeightFormat::Bf16;
    let x = x.iter().map(|&v| if rounds { bf16::from_f32(v).to_f32() } else { v });
    x.zip(weights).fold(0.0, |sum, (x, w)| x.mul_add(w, sum))
}

/// One running sum a block in units of the activations' scale, then one over the blocks.
fn dot_blocks(x: &[f32], format: WeightFormat, row: &[u8]) -> f32 {
    let mut sum = 0.0f32;
    for (block, x) in x.chunks_exact(BLOCK).enumerate() {
        let x = quantise_block(x);
        let (mut in_block, mut minima, mut d_min) = (0.0f32, 0i32, 0.0);
        for (r, codes) in x.codes.as_chunks::<RUN>().0.iter().enumerate() {
            let raw = RawCodes::of(format, row, block * RUNS_PER_BLOCK + r);
            let w = raw.decoded(format);
            let product = |i: usize| i32::from(codes[i]) * (i32::from(w.q[i]) - i32::from(w.offset));
            let shifted = |part: i32| part as f32 / (1u32 << x.shifts[r]) as f32;
            if format == WeightFormat::Q6K {
                for (half, scale) in w.scale.iter().enumerate() {
                    let part: i32 = (16 * half..16 * (half + 1)).map(product).sum();
                    in_block = shifted(part).mul_add(*scale, in_block);
                }
            } else {
                let part: i32 = (0..RUN).map(product).sum();
                in_block = shifted(part).mul_add(w.scale[0], in_block);
                let x_sum: i32 = codes.iter().map(|&v| i32::from(v)).sum();
                minima += i32::from(raw.min) * quant::quarters(x_sum, x.shifts[r]);
                d_min = raw.d_min.to_f32();
            }
        }
        if format.has_minima() {
            in_block = (-0.25 * d_min).mul_add(minima as f32, in_block);
        }
        sum = in_block.mul_add(x.scale, sum);
    }
    sum
}

fn dot_runs(x: &[f32], format: WeightFormat, row: &[u8]) -> f32 {
    let mut sum = 0.0f32;
    for (run, x) in x.chunks_exact(RUN).enumerate() {
        let (x, x_scale) = quantise_run(x);
        let w = quant::codes(format, row, run);
        let product = |i: usize| i32::from(x[i]) * (i32::from(w.q[i]) - i32::from(w.offset));
        if format == WeightFormat::Q6K {
            for (half, scale) in w.scale.iter().enumerate() {
                let part: i32 = (16 * half..16 * (half + 1)).map(product).sum();
                sum = (part as f32 * x_scale).mul_add(*scale, sum);
            }
        } else {
            let part: i32 = (0..RUN).map(product).sum();
            sum = (part as f32 * x_scale).mul_add(w.scale[0], sum);
        }
        if matches!(format, WeightFormat::Q4K | WeightFormat::Q5K) {
            let x_sum: i32 = x.iter().map(|&v| i32::from(v)).sum();
            sum = (-w.min).mul_add(x_sum as f32 * x_scale, sum);
        }
    }
    sum
}

/// Norms and rotates queries in place; norms, rotates and stores keys; stores values.
pub fn rope_store(q: &mut [f32], input: &RopeStore, kv: &mut KvLayer) {
    let (dim, kv_heads) = (kv.shape().head_dim, kv.shape().kv_heads);
    let tokens = input.positions.len();
    let heads = q.len() / (tokens * dim).max(1);
    for t in 0..tokens {
        let position = input.positions[t] as usize;
        for head in q[t * heads * dim..(t + 1) * heads * dim].chunks_exact_mut(dim) {
            turn(head, input.qk_norm.map(|n| (n.q, n.eps)), input, position);
        }
        for h in 0..kv_heads {
            let at = (t * kv_heads + h) * dim;
            let mut key = input.k[at..at + dim].to_vec();
            turn(&mut key, input.qk_norm.map(|n| (n.k, n.eps)), input, position);
            if input.slots[t] != PAD_SLOT {
                kv.write(input.slots[t] as usize, h, &key, &input.v[at..at + dim]);
            }
        }
    }
}

fn turn(head: &mut [f32], norm: Option<(&[f32], f32)>, input: &RopeStore, position: usize) {
    if let Some((weight, eps)) = norm {
        let plain = head.to_vec();
        rms_norm(&plain, weight, eps, head);
    }
    let half = input.rope.half();
    if half == 0 {
        return;
    }
    let (cos, sin) = input.rope.at(position);
    for i in 0..half {
        let (a, b) = (head[i], head[i + half]);
        head[i] = a * cos[i] - b * sin[i];
        head[i + half] = b * cos[i] + a * sin[i];
    }
}

/// Attention of every query of `batch` with a plain softmax over its visible keys. `heads`: query heads.
pub fn paged_attention(q: &[f32], kv: &KvLayer, batch: &AttentionBatch, heads: usize, out: &mut [f32]) {
    let (dim, kv_heads) = (kv.shape().head_dim, kv.shape().kv_heads);
    for span in batch.sequences {
        let table = &batch.tables[span.table_start as usize..][..span.table_len as usize];
        for i in 0..span.query_len {
            let position = (span.context_len - span.query_len + i) as usize;
            let first = batch.window.map_or(0, |w| (position + 1).saturating_sub(w as usize));
            for h in 0..heads {
                let at = ((span.query_start + i) as usize * heads + h) * dim;
                let slots =
                    (first..=position).map(|p| table[p / BLOCK_TOKENS] as usize * BLOCK_TOKENS + p % BLOCK_TOKENS);
                let head = h / (heads / kv_heads);
                attend(&q[at..at + dim], slots, (kv, head), batch.scale, &mut out[at..at + dim]);
            }
        }
    }
}

fn attend(q: &[f32], slots: impl Iterator<Item = usize>, kv: (&KvLayer, usize), scale: f32, out: &mut [f32]) {
    let (mut key, mut scores, mut values) = (vec![0.0; q.len()], Vec::new(), Vec::new());
    for slot in slots {
        let mut value = vec![0.0; q.len()];
        kv.0.read(slot, kv.1, &mut key, &mut value);
        scores.push(q.iter().zip(&key).map(|(q, k)| q * k).sum::<f32>() * scale);
        values.push(value);
    }
    let peak = scores.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let weights: Vec<f32> = scores.iter().map(|s| (s - peak).exp()).collect();
    let total: f32 = weights.iter().sum();
    out.fill(0.0);
    for (weight, value) in weights.iter().zip(&values) {
        for (o, v) in out.iter_mut().zip(value) {
            *o += weight / total * v;
        }
    }
}
