//! A weight matrix, packed once at load time for the way [`crate::linear`] reads it.

use crate::error::{expect_below, expect_len};
use crate::{KernelError, WeightFormat, quant};

/// One matrix of several to be packed as one.
#[derive(Debug, Clone, Copy)]
pub struct PackedPart<'a> {
    /// Outputs of this part.
    pub rows: usize,
    /// Row-major bytes as on disk.
    pub source: &'a [u8],
}

/// Weights of `[rows = outputs, cols = inputs]`.
#[derive(Debug)]
pub struct PackedMatrix {
    format: WeightFormat,
    rows: usize,
    cols: usize,
    data: Vec<u8>,
}

impl PackedMatrix {
    /// Packs a row-major matrix as found in safetensors files (dense) or GGUF files (blocks).
    ///
    /// # Errors
    /// [`KernelError::Format`] when `cols` is no whole number of blocks, [`KernelError::Shape`] when `source` has
    /// another length than the shape needs.
    pub fn pack(format: WeightFormat, rows: usize, cols: usize, source: &[u8]) -> Result<Self, KernelError> {
        Self::stack(format, cols, &[PackedPart { rows, source }])
    }

    /// Packs several matrices with the same inputs as one whose outputs follow each other (q/k/v, gate/up).
    ///
    /// # Errors
    /// As [`PackedMatrix::pack`], for any of the parts.
    pub fn stack(format: WeightFormat, cols: usize, parts: &[PackedPart]) -> Result<Self, KernelError> {
        let mut data = Vec::new();
        let mut rows = 0;
        for part in parts {
            let wanted = format.bytes_for(part.rows, cols).ok_or_else(|| KernelError::Format {
                format: format.name(),
                problem: format!("{cols} columns are no whole number of blocks of {}", format.block_weights()),
            })?;
            expect_len("pack", "source bytes", part.source.len(), wanted)?;
            rows += part.rows;
            data.extend_from_slice(part.source);
        }
        Ok(Self { format, rows, cols, data })
    }

    /// Number of outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// The format the weights came in.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    pub(crate) fn data(&self) -> &[u8] {
        &self.data
    }

    /// Writes row `index` as floats: the embedding look-up, also of tied heads.
    ///
    /// # Errors
    /// [`KernelError::Range`] for a row that is not there, [`KernelError::Shape`] when `out` is not `cols` long.
    pub fn row(&self, index: usize, out: &mut [f32]) -> Result<(), KernelError> {
        expect_below("row", "row", index, self.rows)?;
        expect_len("row", "out length", out.len(), self.cols)?;
        let size = self.format.bytes_for(1, self.cols).expect("checked when packed");
        quant::dequantise_row(self.format, &self.data[index * size..(index + 1) * size], out)
    }
}
