//! Weights of one row of scores, rounded to bf16 to be multiplied in pairs.

use super::Level;
use super::lanes::{LANES, exp2_below_zero, sum, to_bf16};

/// Writes `2^(score - largest score)` rounded to bf16; returns the largest score and the sum of what was written.
///
/// Without scores these are negative infinity and zero. A NaN among them makes the sum one.
pub(crate) fn weigh_in_bf16(level: Level, scores: &[[f32; LANES]], weights: &mut [[u16; LANES]]) -> (f32, f32) {
    #[cfg(target_arch = "x86_64")]
    if level.dots_bf16() {
        // SAFETY: a pool is only built with a level this machine has; this one has bf16 instructions.
        return unsafe { super::avx512::weigh_in_bf16(scores, weights) };
    }
    let _ = level;
    plainly(scores, weights)
}

fn plainly(scores: &[[f32; LANES]], weights: &mut [[u16; LANES]]) -> (f32, f32) {
    let larger = |a: f32, b: &f32| if a > *b { a } else { *b };
    let peak = scores.iter().flatten().fold(f32::NEG_INFINITY, larger);
    let mut partial = [0.0f32; LANES];
    for (scores, weights) in scores.iter().zip(weights) {
        for i in 0..LANES {
            weights[i] = to_bf16(exp2_below_zero(scores[i] - peak));
            partial[i] += f32::from_bits(u32::from(weights[i]) << 16);
        }
    }
    (peak, sum(partial))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_have_the_same_bits_on_every_level() {
        for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
            for len in 0..=9 {
                let score = |i: usize| match i % 37 {
                    36 => f32::NEG_INFINITY,
                    step => (step * step % 23) as f32 * -7.3 + i as f32 * 0.01,
                };
                let scores: Vec<[f32; LANES]> =
                    (0..len).map(|register| std::array::from_fn(|i| score(register * LANES + i))).collect();
                let (mut found, mut wanted) = (vec![[7; LANES]; len], vec![[9; LANES]; len]);
                let sums = weigh_in_bf16(level, &scores, &mut found);
                assert_eq!(sums, plainly(&scores, &mut wanted), "{level:?}");
                assert_eq!(found, wanted, "{level:?}");
                assert!(len > 0 || sums == (f32::NEG_INFINITY, 0.0));
            }
        }
    }

    #[test]
    fn a_score_that_is_no_number_makes_the_sum_none() {
        for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
            let mut scores = [[1.0; LANES]; 5];
            scores[3][9] = f32::NAN;
            assert!(weigh_in_bf16(level, &scores, &mut [[0; LANES]; 5]).1.is_nan(), "{level:?}");
        }
    }
}
