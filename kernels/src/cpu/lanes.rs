//! Arithmetic over sixteen lanes in plain Rust, to be inlined into functions compiled for one instruction set.

/// Width of one step: the widest vector register.
pub(crate) const LANES: usize = 16;

/// `e^x`, to about two units in the last place; zero below -87.3, infinite above 88.3; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer held in the low bits
    let clamped = if x > 88.3 { 88.3 } else { x };
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln 2 in two parts, so that the remainder keeps its low bits.
    let r = n.mul_add(-1.428_606_8e-6, n.mul_add(-0.693_145_75, clamped));
    let mut p = 1.388_888_9e-3f32;
    p = p.mul_add(r, 8.333_334e-3);
    p = p.mul_add(r, 4.166_666_8e-2);
    p = p.mul_add(r, 0.166_666_67);
    p = p.mul_add(r, 0.5);
    p = p.mul_add(r, 1.0);
    p = p.mul_add(r, 1.0);
    let power = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    let result = p * f32::from_bits(power);
    let bounded = if x > 88.3 { f32::INFINITY } else { result };
    if x < -87.3 { 0.0 } else { bounded }
}

/// 1.5 * 2^23: adding it rounds to an integer held in the low bits, 127 more than it is: the exponent of its power.
pub(crate) const EXP2_ROUND: f32 = 12_582_912.0 + 127.0;
/// The smallest number whose power of two is not taken to be zero.
pub(crate) const EXP2_SMALLEST: f32 = -126.0;
/// Highest power first: smallest relative error over -0.5..=0.5 among polynomials that are 1 at 0.
pub(crate) const EXP2_POLYNOMIAL: [f32; 7] =
    [1.559_467_8e-4, 1.340_664_3e-3, 9.617_693e-3, 5.550_310_4e-2, 0.240_226_52, 0.693_147_24, 1.0];

/// `2^x` for `x` of at most zero (or little above), to one unit in the last place; zero below -126; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp2_below_zero(x: f32) -> f32 {
    let shifted = x + EXP2_ROUND;
    let r = x - (shifted - EXP2_ROUND);
    let mut p = EXP2_POLYNOMIAL[0];
    for c in &EXP2_POLYNOMIAL[1..] {
        p = p.mul_add(r, *c);
    }
    let result = p * f32::from_bits(shifted.to_bits() << 23);
    if x < EXP2_SMALLEST { 0.0 } else { result }
}

/// Adds the lanes in a fixed tree.
#[inline(always)]
pub(crate) fn sum(lanes: [f32; LANES]) -> f32 {
    let mut lanes = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Sum of squares in sixteen interleaved partial sums.
#[inline(always)]
pub(crate) fn sum_of_squares(x: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for i in 0..LANES {
            sums[i] = chunk[i].mul_add(chunk[i], sums[i]);
        }
    }
    for (i, v) in chunks.remainder().iter().enumerate() {
        sums[i] = v.mul_add(*v, sums[i]);
    }
    sum(sums)
}

/// `out = x / sqrt(mean(x²) + eps) * weight` for one row.
#[inline(always)]
pub(crate) fn rms_norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let scale = 1.0 / (sum_of_squares(x) / x.len() as f32 + eps).sqrt();
    for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * w;
    }
}

/// [`rms_norm_row`] in place.
#[inline(always)]
pub(crate) fn rms_norm_row_in_place(x: &mut [f32], weight: &[f32], eps: f32) {
    let scale = 1.0 / (sum_of_squares(x) / x.len() as f32 + eps).sqrt();
    for (x, w) in x.iter_mut().zip(weight) {
        *x = *x * scale * w;
    }
}

/// Rounds to bf16, to nearest even; NaN stays NaN.
#[inline(always)]
pub(crate) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let kept = if bits & 0x7fff_ffff > 0x7f80_0000 { bits | 0x0040_0000 } else { rounded };
    (kept >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_the_standard_library() {
        let mut worst = 0.0f64;
        for i in -873_000..=883_000 {
            let x = i as f32 * 1e-4;
            let wanted = f64::from(x).exp();
            worst = worst.max(((f64::from(exp(x)) - wanted) / wanted).abs());
        }
        assert!(worst < 3e-7, "relative error {worst}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(1e30), f32::INFINITY);
    }

    #[test]
    fn powers_of_two_agree_with_the_standard_library() {
        let mut worst = 0.0f64;
        for i in -1_260_000..=0 {
            let x = i as f32 * 1e-4;
            let wanted = f64::from(x).exp2();
            worst = worst.max(((f64::from(exp2_below_zero(x)) - wanted) / wanted).abs());
        }
        assert!(worst < 1e-7, "relative error {worst}");
        assert_eq!(exp2_below_zero(0.0), 1.0);
        assert_eq!(exp2_below_zero(-127.0), 0.0);
        assert_eq!(exp2_below_zero(f32::NEG_INFINITY), 0.0);
        assert!(exp2_below_zero(f32::NAN).is_nan());
    }

    #[test]
    fn bf16_rounding_agrees_with_the_half_crate() {
        for i in 0..1_000_000u32 {
            let x = f32::from_bits(i.wrapping_mul(4_294_967));
            let wanted = half::bf16::from_f32(x);
            assert!(to_bf16(x) == wanted.to_bits() || x.is_nan() && half::bf16::from_bits(to_bf16(x)).is_nan(), "{x}");
        }
    }
}
