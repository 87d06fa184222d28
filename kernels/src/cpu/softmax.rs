//! Queries, and weights of one row of scores, rounded to bf16 to be multiplied in pairs.

use super::lanes::{LANES, exp2_below_zero, sum, to_bf16};
use super::{Level, bf16_pair};

/// Writes `2^(score - largest score)` rounded to bf16; returns the largest score and the sum of what was written.
///
/// Without scores these are negative infinity and zero. A NaN among them makes the sum one.
pub(crate) fn weigh_in_bf16(level: Level, scores: &[[f32; LANES]], weights: &mut [[u16; LANES]]) -> (f32, f32) {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512Bf16 {
        // SAFETY: a pool is only built with a level this machine has; these have bf16 instructions.
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

/// Lays a query out as pairs of bf16, multiplied by `scale`.
pub(crate) fn scale_to_pairs(level: Level, q: &[f32], scale: f32, words: &mut [u32]) {
    assert_eq!(q.len(), 2 * words.len(), "two elements a word");
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512Bf16 {
        // SAFETY: a pool is only built with a level this machine has; these have bf16 instructions.
        return unsafe { super::avx512::scale_to_pairs(q, scale, words) };
    }
    let _ = level;
    scale_plainly(q, scale, words);
}

fn scale_plainly(q: &[f32], scale: f32, words: &mut [u32]) {
    for (word, [a, b]) in words.iter_mut().zip(q.as_chunks::<2>().0) {
        *word = bf16_pair(a * scale, b * scale);
    }
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
    fn queries_have_the_same_bits_on_every_level() {
        for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
            for len in [0, 2, 8, 16, 40, 128] {
                let q: Vec<f32> = (0..len).map(|i| (i * i % 23) as f32 * 0.37 - 4.1).collect();
                let (mut found, mut wanted) = (vec![7; len / 2], vec![9; len / 2]);
                scale_to_pairs(level, &q, 0.3, &mut found);
                scale_plainly(&q, 0.3, &mut wanted);
                assert_eq!(found, wanted, "{level:?}");
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
