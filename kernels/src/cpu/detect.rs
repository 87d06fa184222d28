//! Which instructions this machine has.

use crate::WeightFormat;
use crate::quant::BLOCK;

/// An instruction set for which there are implementations; a later one is faster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// No assumption: any machine.
    Scalar,
    /// AVX2 with fused multiply-add and half-precision conversion (x86 since about 2013).
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI (Intel since Ice Lake, AMD since Zen 4).
    Avx512,
    /// The same with bf16 dot products (Intel since Sapphire Rapids, AMD since Zen 4).
    Avx512Bf16,
    /// The same with tile registers for bytes and bf16 (Intel Xeon since Sapphire Rapids).
    Amx,
}

impl Level {
    /// All levels, slowest first.
    pub const ALL: [Level; 5] = [Self::Scalar, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Amx];

    /// The level expected to be fastest on this machine.
    ///
    /// Decided by what the processor says of itself, not by timing: the same machine always gives the same bits.
    pub fn of_this_machine() -> Self {
        let best = Self::ALL.into_iter().filter(|l| l.is_available()).max().unwrap_or(Self::Scalar);
        if best.dots_bf16() && !has_fast_bf16_dot() { Self::Avx512 } else { best }
    }

    /// Whether bf16 is multiplied in dot products of pairs (`vdpbf16ps`), and not widened to f32.
    ///
    /// Not where there are tiles, which are Intel's: its vectors have the instruction, but are faster with f32.
    pub(crate) fn dots_bf16(self) -> bool {
        self == Self::Avx512Bf16
    }

    /// Whether activations share a scale among 256 inputs where the weights do not ask for it, too.
    ///
    /// There a run of 32 takes an addition and a multiply-add a row, in place of two multiply-adds: a gain where additions
    /// have units of their own, which are AMD's.
    fn prefers_blocks(self) -> bool {
        self == Self::Avx512Bf16
    }

    /// Whether activations multiplied with a quantised matrix of `cols` columns have one scale for 256 inputs, runs of 32
    /// finer by powers of two, and not one for every run.
    pub fn takes_blocks(self, format: WeightFormat, cols: usize) -> bool {
        format.has_long_blocks() || format.is_quantised() && self.prefers_blocks() && cols.is_multiple_of(BLOCK)
    }

    /// Whether this machine has the level.
    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        use std::arch::is_x86_feature_detected as has;
        match self {
            Self::Scalar => true,
            Self::Avx2 => has!("avx2") && has!("fma") && has!("f16c"),
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && has!("avx512f")
                    && has!("avx512bw")
                    && has!("avx512dq")
                    && has!("avx512vl")
                    && has!("avx512vnni")
            }
            Self::Avx512Bf16 => Self::Avx512.is_available() && has!("avx512bf16"),
            Self::Amx => Self::Avx512Bf16.is_available() && super::amx::are_available(),
        }
    }

    /// Whether this machine has the level.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_available(self) -> bool {
        self == Self::Scalar
    }
}

/// Whether dot products of bf16 pairs do more than multiply-adds of f32: on AMD twice as much (Zen 4), on Intel half
/// (measured 119 against 239 GFLOP/s a core). Other makers are not known to have them.
#[cfg(target_arch = "x86_64")]
fn has_fast_bf16_dot() -> bool {
    let id = std::arch::x86_64::__cpuid(0);
    let vendor = [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes);
    vendor.as_flattened() == b"AuthenticAMD"
}

#[cfg(not(target_arch = "x86_64"))]
fn has_fast_bf16_dot() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_gets_a_level_it_has() {
        assert!(Level::of_this_machine().is_available());
        assert!(Level::Scalar.is_available());
    }

    #[test]
    fn bf16_dot_products_are_taken_only_where_they_are_faster_than_f32() {
        assert!(!Level::of_this_machine().dots_bf16() || has_fast_bf16_dot());
        assert_eq!(Level::ALL.map(Level::dots_bf16), [false, false, false, true, false]);
    }

    #[test]
    fn widths_of_whole_blocks_share_a_scale_where_the_format_or_the_level_wants_it() {
        assert!(Level::ALL.iter().all(|level| level.takes_blocks(WeightFormat::Q4K, 256)));
        let takes = |format, cols| Level::ALL.map(|level| level.takes_blocks(format, cols));
        assert_eq!(takes(WeightFormat::Q8_0, 512), [false, false, false, true, false]);
        assert_eq!(takes(WeightFormat::Q8_0, 320), [false; 5]);
        assert_eq!(takes(WeightFormat::Bf16, 512), [false; 5]);
    }
}
