//! The weight formats this package can multiply with, and their sizes.

/// How the weights of one matrix are stored on disk: plain floats, or GGUF blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single: 8 exponent bits, 7 mantissa bits.
    Bf16,
    /// Blocks of 32: one f16 scale, 32 signed bytes.
    Q8_0,
    /// Blocks of 32: one f16 scale, 32 four-bit codes around 8.
    Q4_0,
    /// Blocks of 256 with eight 6-bit scales and minima, four-bit codes.
    Q4K,
    /// As `Q4K`, with five-bit codes.
    Q5K,
    /// Blocks of 256 with sixteen 8-bit scales, six-bit codes around 32.
    Q6K,
}

impl WeightFormat {
    /// Every format, for tests and tables.
    pub const ALL: [WeightFormat; 8] =
        [Self::F32, Self::F16, Self::Bf16, Self::Q8_0, Self::Q4_0, Self::Q4K, Self::Q5K, Self::Q6K];

    /// The name used in messages and configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
        }
    }

    /// Weights in one block; a row holds whole blocks only.
    pub const fn block_weights(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of one block on disk.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Whether the format's blocks of 256 weights have small integer scales of their runs (the K formats).
    pub const fn has_long_blocks(self) -> bool {
        self.block_weights() == 256
    }

    /// Whether runs of 32 weights have minima.
    pub(crate) const fn has_minima(self) -> bool {
        matches!(self, Self::Q4K | Self::Q5K)
    }

    /// Whether the format stores integer codes with scales.
    pub fn is_quantised(self) -> bool {
        self.block_weights() > 1
    }

    /// Bytes on disk of a `[rows, cols]` matrix; `None` when `cols` is no whole number of blocks or the size overflows.
    pub fn bytes_for(self, rows: usize, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_weights()) {
            return None;
        }
        (cols / self.block_weights()).checked_mul(self.block_bytes())?.checked_mul(rows)
    }
}
