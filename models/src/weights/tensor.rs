//! The seam between weight files and models: tensors by their Hugging Face name, whatever the file.

use std::ops::Range;

use millgate_kernels::WeightFormat;

use crate::weights::format::{SUPPORTED_FORMATS, TensorFormat};
use crate::weights::{MappedBytes, WeightsError};

/// What a file says about one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorHeader {
    /// Sizes, rows first.
    pub shape: Vec<usize>,
    /// Element type.
    pub format: TensorFormat,
}

/// Which part of a tensor this process computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shard {
    /// All of it.
    Whole,
    /// The rows of part `index` of `count` equal ones.
    Rows {
        /// From 0.
        index: usize,
        /// At least 1, divides the number of rows.
        count: usize,
    },
}

/// Weight files under Hugging Face tensor names.
///
/// Implementations hand out bytes exactly as the model computes with them: row-major, in Hugging Face row order.
pub trait Weights: Send + Sync {
    /// What the files say about a tensor; `None` when it is not there.
    fn header(&self, name: &str) -> Option<TensorHeader>;

    /// The bytes of a tensor's shard; dropping them gives their pages back.
    ///
    /// # Errors
    /// [`WeightsError::Missing`] when it is not there, [`WeightsError::Format`] when its type has no known size.
    fn read(&self, name: &str, shard: Shard) -> Result<MappedBytes<'_>, WeightsError>;

    /// Hugging Face names of all tensors, sorted; those without one under their name in the file.
    fn names(&self) -> Vec<String>;

    /// The file that holds (or should hold) a tensor, and the tensor's name there, for messages.
    fn place(&self, name: &str) -> (String, String);

    /// Which state of which files this is: changes when a file does.
    fn stamp(&self) -> String;

    /// Checks that a tensor is there, with this shape, in a type that can be computed with.
    ///
    /// # Errors
    /// [`WeightsError::Missing`], [`WeightsError::Shape`] or [`WeightsError::Format`].
    fn require(&self, name: &str, wanted: &[usize]) -> Result<WeightFormat, WeightsError> {
        let place = || self.place(name);
        let Some(header) = self.header(name) else {
            let (file, name) = place();
            return Err(WeightsError::Missing { name, file });
        };
        if header.shape != wanted {
            let (file, name) = place();
            return Err(WeightsError::Shape { name, file, found: header.shape, wanted: wanted.to_vec() });
        }
        match header.format {
            TensorFormat::Known(format) => Ok(format),
            TensorFormat::Other(found) => {
                let (file, name) = place();
                Err(WeightsError::Format { name, file, found, supported: SUPPORTED_FORMATS })
            }
        }
    }
}

/// The part of a row-major tensor's `length` bytes that a shard covers.
pub(crate) fn shard_range(length: usize, shape: &[usize], shard: Shard) -> Range<usize> {
    match shard {
        Shard::Whole => 0..length,
        Shard::Rows { index, count } => {
            let rows = shape.first().copied().unwrap_or(1).max(1);
            let part = rows / count * (length / rows);
            index * part..(index + 1) * part
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_shards_follow_each_other_without_gaps() {
        assert_eq!(shard_range(24, &[4, 3], Shard::Whole), 0..24);
        assert_eq!(shard_range(24, &[4, 3], Shard::Rows { index: 0, count: 2 }), 0..12);
        assert_eq!(shard_range(24, &[4, 3], Shard::Rows { index: 1, count: 2 }), 12..24);
    }
}
