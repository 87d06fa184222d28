//! Operations of the forward pass over the workspace: kernels called with our layers, errors named by operation.

use millgate_kernels::{self as kernels, AttentionBatch, KernelError, KvLayer, PackedMatrix, Pool, Product, RopeStore};

use crate::layers::{Linear, RmsNorm};
use crate::model::ForwardError;

fn named(operation: &'static str) -> impl Fn(KernelError) -> ForwardError {
    move |source| ForwardError::Kernel { operation, source }
}

/// Looks up the embedding row of every token.
///
/// # Shapes
/// `out`: `[tokens, hidden]`.
pub(crate) fn embed(tokens: &[u32], embedding: &PackedMatrix, out: &mut [f32]) -> Result<(), ForwardError> {
    // On one thread: even a full prefill step copies less than its first matmul reads.
    for (&token, row) in tokens.iter().zip(out.chunks_exact_mut(embedding.cols())) {
        embedding.row(token as usize, row).map_err(named("embedding"))?;
    }
    Ok(())
}

/// `y = x · wᵀ + bias`.
pub(crate) fn linear(pool: &Pool, x: &[f32], layer: &Linear, y: &mut [f32]) -> Result<(), ForwardError> {
    kernels::linear(pool, x, &layer.weight, layer.bias.as_deref(), y).map_err(named("linear"))
}

/// The same for several layers that read the same rows.
pub(crate) fn linear_each<const N: usize>(
    pool: &Pool,
    x: &[f32],
    layers: [(&Linear, &mut [f32]); N],
) -> Result<(), ForwardError> {
    let mut products = layers.map(|(layer, y)| Product { weight: &layer.weight, bias: layer.bias.as_deref(), y });
    kernels::linear_each(pool, x, &mut products).map_err(named("linear"))
}

/// Logits of hidden rows.
pub(crate) fn head(pool: &Pool, x: &[f32], head: &PackedMatrix, logits: &mut [f32]) -> Result<(), ForwardError> {
    kernels::linear(pool, x, head, None, logits).map_err(named("output head"))
}

/// `out = norm(x)`.
pub(crate) fn rms_norm(pool: &Pool, x: &[f32], norm: &RmsNorm, out: &mut [f32]) -> Result<(), ForwardError> {
    kernels::rms_norm(pool, x, &norm.weight, norm.eps, out).map_err(named("norm"))
}

/// `residual += x; out = norm(residual)`.
pub(crate) fn add_rms_norm(
    pool: &Pool,
    residual: &mut [f32],
    x: &[f32],
    norm: &RmsNorm,
    out: &mut [f32],
) -> Result<(), ForwardError> {
    kernels::add_rms_norm(pool, residual, x, &norm.weight, norm.eps, out).map_err(named("norm with residual"))
}

/// `out = silu(gate) * up`.
pub(crate) fn silu_mul(pool: &Pool, gate: &[f32], up: &[f32], out: &mut [f32]) -> Result<(), ForwardError> {
    kernels::silu_mul(pool, gate, up, out).map_err(named("gate"))
}

/// Rotates queries and keys, and stores keys and values in their slots.
pub(crate) fn rope_store(
    pool: &Pool,
    query: &mut [f32],
    input: &RopeStore<'_>,
    kv: &mut KvLayer,
) -> Result<(), ForwardError> {
    kernels::rope_store(pool, query, input, kv).map_err(named("rotary positions"))
}

/// Attends with every query over its sequence's cached keys and values.
pub(crate) fn paged_attention(
    pool: &Pool,
    query: &[f32],
    kv: &KvLayer,
    batch: &AttentionBatch<'_>,
    out: &mut [f32],
) -> Result<(), ForwardError> {
    kernels::paged_attention(pool, query, kv, batch, out).map_err(named("attention"))
}

/// Copies the named rows of `from` one after the other.
///
/// # Shapes
/// `from`: `[any, width]`, `out`: `[rows.len(), width]`.
pub(crate) fn gather(rows: &[u32], width: usize, from: &[f32], out: &mut [f32]) {
    for (&row, out) in rows.iter().zip(out.chunks_exact_mut(width)) {
        let start = row as usize * width;
        out.copy_from_slice(&from[start..start + width]);
    }
}
