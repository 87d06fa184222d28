//! The types of numbers that lie in device memory.

use half::{bf16, f16};

/// An eight-bit float of the cache: four bits of exponent, three of mantissa, largest value 448, no infinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Fp8(pub u8);

impl Fp8 {
    /// Rounds to nearest even and saturates at 448; NaN stays NaN.
    pub fn from_f32(value: f32) -> Self {
        let sign = if value.is_sign_negative() { 0x80 } else { 0 };
        let magnitude = value.abs();
        if value.is_nan() {
            return Self(sign | 0x7f);
        }
        if magnitude >= 448.0 {
            return Self(sign | 0x7e);
        }
        // The exponent of the largest power of two within, but not below that of the subnormals.
        let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(-6);
        let steps = (magnitude / f32::powi(2.0, exponent - 3)).round_ties_even() as i32;
        Self(sign | (((exponent + 6) << 3) + steps) as u8)
    }

    /// The exact value.
    pub fn to_f32(self) -> f32 {
        let (exponent, mantissa) = (i32::from(self.0 >> 3 & 15), f32::from(self.0 & 7));
        let magnitude = match self.0 & 0x7f {
            0x7f => f32::NAN,
            _ if exponent == 0 => mantissa * f32::powi(2.0, -9),
            _ => (8.0 + mantissa) * f32::powi(2.0, exponent - 10),
        };
        if self.0 & 0x80 == 0 { magnitude } else { -magnitude }
    }
}

mod sealed {
    pub trait Sealed {}
}

/// What a [`super::Buffer`] holds: plain numbers, of which every pattern of bits is one.
pub trait Element: sealed::Sealed + Copy + Send + Sync + 'static {}

/// A type of activations and weights; kernels exist for each under the suffix.
pub trait Activation: Element + KvElement {
    /// The widest load in elements: widths of rows are multiples of it.
    const LANES: usize = 16 / size_of::<Self>();
    /// cuBLAS's name of the type.
    #[doc(hidden)]
    const BLAS_TYPE: u32;
    /// Rounds to nearest.
    fn from_f32(value: f32) -> Self;
    /// The exact value.
    fn to_f32(self) -> f32;
}

/// A type of cached keys and values.
pub trait KvElement: Element {
    /// The end of the kernels' names.
    const SUFFIX: &'static str;
}

macro_rules! elements {
    ($($t:ty),*) => { $(impl sealed::Sealed for $t {} impl Element for $t {})* };
}
elements!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64, bf16, f16, Fp8);

macro_rules! activations {
    ($($t:ty, $suffix:literal, $blas:expr, $from:expr, $to:expr;)*) => { $(
        impl KvElement for $t {
            const SUFFIX: &'static str = $suffix;
        }
        impl Activation for $t {
            const BLAS_TYPE: u32 = $blas as u32;
            fn from_f32(value: f32) -> Self {
                $from(value)
            }
            fn to_f32(self) -> f32 {
                $to(self)
            }
        }
    )* };
}
use cudarc::cublas::sys::cudaDataType_t as Blas;
activations! {
    f32, "f32", Blas::CUDA_R_32F, |v| v, |v| v;
    bf16, "bf16", Blas::CUDA_R_16BF, bf16::from_f32, bf16::to_f32;
    f16, "f16", Blas::CUDA_R_16F, f16::from_f32, f16::to_f32;
}

impl KvElement for Fp8 {
    const SUFFIX: &'static str = "fp8";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fp8_comes_back_and_halves_round_to_even() {
        for bits in (0..=255u8).filter(|bits| bits & 0x7f != 0x7f) {
            assert_eq!(Fp8::from_f32(Fp8(bits).to_f32()), Fp8(bits));
        }
        assert_eq!(Fp8::from_f32(1.0625).to_f32(), 1.0);
        assert_eq!(Fp8::from_f32(1.1875).to_f32(), 1.25);
        assert_eq!(Fp8::from_f32(1e9).to_f32(), 448.0);
        assert_eq!(Fp8::from_f32(-463.0).to_f32(), -448.0);
        assert_eq!(Fp8::from_f32(f32::powi(2.0, -10)).to_f32(), 0.0);
        assert!(Fp8::from_f32(f32::NAN).to_f32().is_nan());
    }
}
