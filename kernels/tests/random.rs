//! Repeatable random numbers, random weights in every format, and the pools under test.

use millgate_kernels::{Level, Pool, WeightFormat};
use std::sync::OnceLock;

/// A small generator (splitmix64): the same numbers on every machine, others with another `MILLGATE_TEST_SEED`.
pub(crate) struct Random(pub(crate) u64);

/// What `MILLGATE_TEST_SEED` holds: a whole number, or nothing for the usual numbers.
#[expect(clippy::disallowed_methods, reason = "tests have no configuration file")]
fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| {
        let text = std::env::var("MILLGATE_TEST_SEED").unwrap_or_default();
        let wrong = || panic!("MILLGATE_TEST_SEED is `{text}`, which is no whole number");
        if text.is_empty() { 0 } else { text.parse().unwrap_or_else(|_| wrong()) }
    })
}

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0 ^ seed();
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.bits() % limit as u64) as usize
    }

    /// Roughly normal, mean 0, deviation 1.
    pub(crate) fn float(&mut self) -> f32 {
        let uniform = |r: &mut Self| (r.bits() >> 40) as f32 / (1u32 << 24) as f32;
        (0..4).map(|_| uniform(self)).sum::<f32>() * 1.732 - 3.464
    }

    pub(crate) fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }

    /// Bytes of a random matrix as on disk: any codes, scales of a size that gives weights around one.
    pub(crate) fn weights(&mut self, format: WeightFormat, rows: usize, cols: usize) -> Vec<u8> {
        let half = |r: &mut Self, size: f32| half::f16::from_f32(r.float() * size).to_le_bytes();
        let mut bytes: Vec<u8> =
            (0..format.bytes_for(rows, cols).expect("whole blocks")).map(|_| self.bits().to_le_bytes()[3]).collect();
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            match format {
                WeightFormat::F32 => block.copy_from_slice(&self.float().to_le_bytes()),
                WeightFormat::F16 => block.copy_from_slice(&half(self, 1.0)),
                WeightFormat::Bf16 => block.copy_from_slice(&half::bf16::from_f32(self.float()).to_le_bytes()),
                WeightFormat::Q8_0 => block[..2].copy_from_slice(&half(self, 1.0 / 64.0)),
                WeightFormat::Q4_0 => block[..2].copy_from_slice(&half(self, 1.0 / 4.0)),
                WeightFormat::Q4K | WeightFormat::Q5K => {
                    block[..2].copy_from_slice(&half(self, 1.0 / 256.0));
                    block[2..4].copy_from_slice(&half(self, 1.0 / 32.0));
                }
                WeightFormat::Q6K => block[208..].copy_from_slice(&half(self, 1.0 / 1024.0)),
            }
        }
        bytes
    }
}

/// One pool for every instruction set this machine has; the others are named aloud.
pub(crate) fn pools(threads: usize) -> Vec<Pool> {
    Level::ALL
        .iter()
        .filter_map(|&level| {
            let pool = Pool::with_level(threads, level);
            if pool.is_none() {
                #[expect(clippy::print_stderr, reason = "a test that cannot run here says so")]
                {
                    eprintln!("this machine has no {level:?}: not tested");
                }
            }
            pool
        })
        .collect()
}

/// Outputs start as NaN, so that one never written is seen.
pub(crate) fn poison(len: usize) -> Vec<f32> {
    vec![f32::NAN; len]
}

/// Fails unless every element agrees to `tolerance`, measured against the largest wanted magnitude.
pub(crate) fn assert_close(found: &[f32], wanted: &[f32], tolerance: f32, context: &str) {
    assert_eq!(found.len(), wanted.len(), "{context}");
    let size = wanted.iter().fold(1e-6f32, |a, b| a.max(b.abs()));
    for (i, (f, w)) in found.iter().zip(wanted).enumerate() {
        // Negated, so that NaN fails.
        assert!((f - w).abs() <= tolerance * size, "{context}: element {i} is {f}, wanted {w} (largest {size})");
    }
}

/// Fails unless every element has the same bits.
pub(crate) fn assert_same_bits(found: &[f32], wanted: &[f32], context: &str) {
    assert_eq!(found.len(), wanted.len(), "{context}");
    for (i, (f, w)) in found.iter().zip(wanted).enumerate() {
        assert_eq!(f.to_bits(), w.to_bits(), "{context}: element {i} is {f}, wanted {w}");
    }
}
