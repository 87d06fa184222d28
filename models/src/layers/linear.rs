//! A weight matrix with its bias, if it has one.

use millgate_kernels::PackedMatrix;

use crate::weights::{Loader, WeightsError};

/// `y = x · wᵀ + bias`.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: PackedMatrix,
    pub(crate) bias: Option<Vec<f32>>,
}

impl Linear {
    /// Reads `{module}.weight` and, for biased modules, `{module}.bias`.
    pub(crate) fn load(
        loader: &Loader<'_>,
        module: &str,
        rows: usize,
        cols: usize,
        is_biased: bool,
    ) -> Result<Self, WeightsError> {
        let weight = loader.matrix(&format!("{module}.weight"), rows, cols)?;
        let bias = if is_biased { Some(loader.vector(&format!("{module}.bias"), rows)?) } else { None };
        Ok(Self { weight, bias })
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.weight.bytes() + self.bias.as_ref().map_or(0, |bias| bias.len() * size_of::<f32>())
    }
}
