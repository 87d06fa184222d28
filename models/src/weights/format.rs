//! Element types of tensors in files: those we compute with, and the names of all others for messages.

use millgate_kernels::WeightFormat;
use safetensors::Dtype;

/// The element type of a tensor in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TensorFormat {
    /// One that the kernels compute with.
    Known(WeightFormat),
    /// Any other, by the name its file format gives it.
    Other(String),
}

/// For messages: what `Known` can be.
pub(crate) const SUPPORTED_FORMATS: &str = "F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q5_K, Q6_K";

impl TensorFormat {
    /// The type of a tensor in a safetensors file.
    pub fn of_safetensors(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::Known(WeightFormat::F32),
            Dtype::F16 => Self::Known(WeightFormat::F16),
            Dtype::BF16 => Self::Known(WeightFormat::Bf16),
            other => Self::Other(format!("{other:?}")),
        }
    }

    /// The type behind a GGUF type number.
    ///
    /// # Source
    /// The `ggml_type` enumeration of the GGUF specification.
    pub fn of_gguf(number: u32) -> Self {
        let other = match number {
            0 => return Self::Known(WeightFormat::F32),
            1 => return Self::Known(WeightFormat::F16),
            2 => return Self::Known(WeightFormat::Q4_0),
            8 => return Self::Known(WeightFormat::Q8_0),
            12 => return Self::Known(WeightFormat::Q4K),
            13 => return Self::Known(WeightFormat::Q5K),
            14 => return Self::Known(WeightFormat::Q6K),
            30 => return Self::Known(WeightFormat::Bf16),
            3 => "Q4_1",
            6 => "Q5_0",
            7 => "Q5_1",
            9 => "Q8_1",
            10 => "Q2_K",
            11 => "Q3_K",
            15 => "Q8_K",
            16 => "IQ2_XXS",
            17 => "IQ2_XS",
            18 => "IQ3_XXS",
            19 => "IQ1_S",
            20 => "IQ4_NL",
            21 => "IQ3_S",
            22 => "IQ2_S",
            23 => "IQ4_XS",
            24 => "I8",
            25 => "I16",
            26 => "I32",
            27 => "I64",
            28 => "F64",
            29 => "IQ1_M",
            34 => "TQ1_0",
            35 => "TQ2_0",
            39 => "MXFP4",
            unknown => return Self::Other(format!("number {unknown}")),
        };
        Self::Other(other.to_owned())
    }

    /// Bytes that a row-major tensor of this shape takes in a file; `None` when its rows are not whole blocks or the
    /// figure overflows.
    pub(crate) fn file_bytes(format: WeightFormat, shape: &[usize]) -> Option<usize> {
        let cols = shape.last().copied().unwrap_or(1);
        let rows = shape.iter().rev().skip(1).try_fold(1_usize, |product, &size| product.checked_mul(size))?;
        format.bytes_for(rows, cols)
    }

    /// The name users know the type by.
    pub fn name(&self) -> &str {
        match self {
            Self::Known(WeightFormat::F32) => "F32",
            Self::Known(WeightFormat::F16) => "F16",
            Self::Known(WeightFormat::Bf16) => "BF16",
            Self::Known(WeightFormat::Q8_0) => "Q8_0",
            Self::Known(WeightFormat::Q4_0) => "Q4_0",
            Self::Known(WeightFormat::Q4K) => "Q4_K",
            Self::Known(WeightFormat::Q5K) => "Q5_K",
            Self::Known(WeightFormat::Q6K) => "Q6_K",
            Self::Other(name) => name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_bytes_refuse_ragged_blocks_and_overflow() {
        assert_eq!(TensorFormat::file_bytes(WeightFormat::Q4K, &[3, 512]), Some(3 * 2 * 144));
        assert_eq!(TensorFormat::file_bytes(WeightFormat::Q8_0, &[3, 40]), None);
        assert_eq!(TensorFormat::file_bytes(WeightFormat::F32, &[usize::MAX, 2]), None);
        assert_eq!(TensorFormat::file_bytes(WeightFormat::F32, &[]), Some(4));
    }
}
