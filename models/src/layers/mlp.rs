//! The gated feed-forward layer: `down(silu(gate(x)) * up(x))`.

use millgate_kernels::Pool;

use crate::layers::Linear;
use crate::model::ForwardError;
use crate::ops;
use crate::weights::{Loader, WeightsError};
use crate::workspace::MlpSpace;

/// Weights of one feed-forward layer.
#[derive(Debug)]
pub(crate) struct Mlp {
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Mlp {
    /// Reads `{module}.gate_proj`, `up_proj` and `down_proj`.
    pub(crate) fn load(
        loader: &Loader<'_>,
        module: &str,
        hidden_size: usize,
        intermediate_size: usize,
        is_biased: bool,
    ) -> Result<Self, WeightsError> {
        let load = |name: &str, rows, cols| Linear::load(loader, &format!("{module}.{name}"), rows, cols, is_biased);
        Ok(Self {
            gate: load("gate_proj", intermediate_size, hidden_size)?,
            up: load("up_proj", intermediate_size, hidden_size)?,
            down: load("down_proj", hidden_size, intermediate_size)?,
        })
    }

    /// Computes the layer for every row of `x` into `out`.
    ///
    /// # Shapes
    /// `x`, `out`: `[rows, hidden]`.
    pub(crate) fn forward(
        &self,
        pool: &Pool,
        x: &[f32],
        space: &mut MlpSpace,
        out: &mut [f32],
    ) -> Result<(), ForwardError> {
        let rows = x.len() / self.gate.weight.cols();
        let width = rows * self.gate.weight.rows();
        let (gate, up, product) = (&mut space.gate[..width], &mut space.up[..width], &mut space.product[..width]);
        ops::linear_each(pool, x, [(&self.gate, gate), (&self.up, up)])?;
        ops::silu_mul(pool, gate, up, product)?;
        ops::linear(pool, product, &self.down, out)
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.gate.bytes() + self.up.bytes() + self.down.bytes()
    }
}
