//! Drawing a token from a row of logits, in the plainest way: everything sorted, every sum in double precision.

/// How a token is drawn. Ties go to the lower token throughout.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drawing {
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f32,
    /// Keeps only this many of the likeliest tokens; 0 = off.
    pub top_k: u32,
    /// Keeps the smallest set of likeliest tokens whose share of those that `top_k` keeps reaches this; 1 = off.
    pub top_p: f32,
    /// Keeps tokens at least this share as likely as the likeliest one; 0 = off.
    pub min_p: f32,
    /// Key of the random numbers.
    pub seed: u64,
    /// First part of their counter.
    pub choice: u32,
    /// Second part of their counter.
    pub position: u32,
}

/// Draws among the kept tokens in order of their ids. `None` when no logit is above `-inf`.
pub fn draw(logits: &[f32], how: &Drawing) -> Option<u32> {
    let ranked = ranked(logits);
    let peak = logits[*ranked.first()? as usize];
    if how.temperature == 0.0 {
        return Some(ranked[0]);
    }
    let weight = |token: u32| f64::from((logits[token as usize] - peak) / how.temperature).exp();
    let top_k = if how.top_k == 0 { ranked.len() } else { ranked.len().min(how.top_k as usize) };
    let total: f64 = ranked[..top_k].iter().map(|&token| weight(token)).sum();
    let mut share = 0.0;
    let mut kept: Vec<u32> = Vec::new();
    for &token in &ranked[..top_k] {
        let is_in_nucleus = how.top_p >= 1.0 || kept.is_empty() || share < total * f64::from(how.top_p);
        let is_likely = how.min_p == 0.0 || logits[token as usize] >= peak + how.temperature * how.min_p.ln();
        if !is_in_nucleus || !is_likely {
            break;
        }
        share += weight(token);
        kept.push(token);
    }
    kept.sort_unstable();
    let mut target = uniform(how.seed, how.choice, how.position) * share;
    let last = *kept.last()?;
    for token in kept {
        target -= weight(token);
        if target < 0.0 {
            return Some(token);
        }
    }
    Some(last)
}

/// Tokens above `-inf`, the likeliest first.
pub fn ranked(logits: &[f32]) -> Vec<u32> {
    let mut tokens: Vec<u32> =
        (0..).zip(logits).filter(|&(_, &logit)| logit > f32::NEG_INFINITY).map(|(token, _)| token).collect();
    let order = |&a: &u32, &b: &u32| {
        let by_logit = logits[b as usize].partial_cmp(&logits[a as usize]).unwrap_or(std::cmp::Ordering::Equal);
        by_logit.then(a.cmp(&b))
    };
    tokens.sort_by(order);
    tokens
}

/// Log probability of every token.
pub fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let peak = f64::from(logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b)));
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - peak).exp()).sum();
    logits.iter().map(|&logit| (f64::from(logit) - peak - sum.ln()) as f32).collect()
}

/// A number in [0, 1) that is a function of its arguments.
///
/// # Source
/// Philox 4x32 with 10 rounds: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
pub fn uniform(seed: u64, choice: u32, position: u32) -> f64 {
    let words = philox([position, choice, 0, 0], [seed as u32, (seed >> 32) as u32]);
    let bits = u64::from(words[0]) << 32 | u64::from(words[1]);
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let left = 0xD251_1F53_u64 * u64::from(counter[0]);
        let right = 0xCD9E_8D57_u64 * u64::from(counter[2]);
        counter = [
            (right >> 32) as u32 ^ counter[1] ^ key[0],
            right as u32,
            (left >> 32) as u32 ^ counter[3] ^ key[1],
            left as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Drawing =
        Drawing { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 7, choice: 0, position: 0 };

    #[test]
    fn philox_gives_the_published_answers() {
        // Known answers of the authors' own test file (Random123, kat_vectors, philox 4x32 10).
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn cuts_keep_the_likeliest_and_ties_go_to_the_lower_token() {
        let logits = [1.0, 3.0, 3.0, 0.0, f32::NEG_INFINITY];
        let drawn = |how: Drawing| -> Vec<u32> {
            let mut all: Vec<u32> =
                (0..400).map(|position| draw(&logits, &Drawing { position, ..how }).unwrap()).collect();
            all.sort_unstable();
            all.dedup();
            all
        };
        assert_eq!(drawn(PLAIN), [0, 1, 2, 3]);
        assert_eq!(drawn(Drawing { temperature: 0.0, ..PLAIN }), [1]);
        assert_eq!(drawn(Drawing { top_k: 1, ..PLAIN }), [1]);
        assert_eq!(drawn(Drawing { top_k: 3, ..PLAIN }), [0, 1, 2]);
        assert_eq!(drawn(Drawing { top_p: 0.0, ..PLAIN }), [1]);
        assert_eq!(drawn(Drawing { top_p: 0.6, ..PLAIN }), [1, 2]);
        assert_eq!(drawn(Drawing { min_p: 0.1, ..PLAIN }), [0, 1, 2]);
        assert_eq!(draw(&[f32::NEG_INFINITY; 3], &PLAIN), None);
    }

    #[test]
    fn log_probabilities_sum_to_one() {
        let logits: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin() * 5.0).collect();
        let sum: f32 = log_softmax(&logits).iter().map(|v| v.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-5);
    }
}
