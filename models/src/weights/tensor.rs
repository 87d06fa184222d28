//! The seam between weight files and models: tensors by their Hugging Face name, whatever the file.

use std::borrow::Cow;

use millgate_kernels::WeightFormat;

use crate::weights::WeightsError;
use crate::weights::format::{SUPPORTED_FORMATS, TensorFormat};

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

    /// The bytes of a tensor's shard.
    ///
    /// # Errors
    /// [`WeightsError::Missing`] when it is not there, [`WeightsError::Format`] when its type has no known size.
    fn read(&self, name: &str, shard: Shard) -> Result<Cow<'_, [u8]>, WeightsError>;

    /// Says that a tensor has been read for good.
    fn release(&self, name: &str);

    /// Hugging Face names of all tensors, sorted; those without one under their name in the file.
    fn names(&self) -> Vec<String>;

    /// The file that holds (or should hold) a tensor, and the tensor's name there, for messages.
    fn place(&self, name: &str) -> (String, String);

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

/// The part of a row-major tensor's bytes that a shard covers.
pub(crate) fn shard_of<'a>(bytes: &'a [u8], shape: &[usize], shard: Shard) -> &'a [u8] {
    match shard {
        Shard::Whole => bytes,
        Shard::Rows { index, count } => {
            let rows = shape.first().copied().unwrap_or(1).max(1);
            let row_bytes = bytes.len() / rows;
            let part = rows / count * row_bytes;
            &bytes[index * part..(index + 1) * part]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_shards_together_are_the_whole() {
        let bytes: Vec<u8> = (0..24).collect();
        let halves = [0, 1].map(|index| shard_of(&bytes, &[4, 3], Shard::Rows { index, count: 2 }));
        assert_eq!(halves.concat(), shard_of(&bytes, &[4, 3], Shard::Whole));
    }
}
