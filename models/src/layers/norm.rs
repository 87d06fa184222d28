//! The weights of a root-mean-square norm.

use crate::weights::{Loader, WeightsError};

/// `x / sqrt(mean(x²) + eps) * weight`.
#[derive(Debug)]
pub(crate) struct RmsNorm {
    pub(crate) weight: Vec<f32>,
    pub(crate) eps: f32,
}

impl RmsNorm {
    /// Reads `{module}.weight`.
    pub(crate) fn load(loader: &Loader<'_>, module: &str, width: usize, eps: f32) -> Result<Self, WeightsError> {
        Ok(Self { weight: loader.vector(&format!("{module}.weight"), width)?, eps })
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.weight.len() * size_of::<f32>()
    }
}
