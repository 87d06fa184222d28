//! Products, norms, gates, rotations: what a layer does for each row whatever its context.

use half::bf16;
use millgate_kernels::cuda::{self, CudaError, Gpu, KvCache, MatMul, RopeStore};

use crate::{CACHE_BYTES, Card, Cost, Shape, median_seconds, noise, report};

pub(crate) fn products(gpu: &Gpu, card: &Card, shape: &Shape, rows: usize) -> Result<(), CudaError> {
    let qkv = (shape.heads + 2 * shape.kv_heads) * shape.dim;
    let sizes = [
        ("qkv", shape.hidden, qkv),
        ("attention output", shape.heads * shape.dim, shape.hidden),
        ("gate and up", shape.hidden, 2 * shape.mlp),
        ("down", shape.mlp, shape.hidden),
        ("head", shape.hidden, shape.vocab),
    ];
    for (name, inputs, outputs) in sizes {
        // Logits are wanted for few rows only.
        let rows = if name == "head" { rows.min(128) } else { rows };
        let x = noise(gpu, rows * inputs)?;
        // Weights in turn, more than the cards' caches hold: as in a model, they come from memory.
        let copies = (CACHE_BYTES / (2 * inputs * outputs)).clamp(1, 64);
        let weights = (0..copies).map(|_| noise(gpu, inputs * outputs)).collect::<Result<Vec<_>, _>>()?;
        let mut turn = weights.iter().cycle();
        let mut y = gpu.alloc::<bf16>(rows * outputs)?;
        let size = MatMul::dense(rows, inputs, outputs);
        let seconds = median_seconds(gpu, || {
            let w = turn.next().expect("at least one copy");
            cuda::matmul(gpu, x.view(), w.view(), y.view_mut(), size)
        })?;
        let bytes = 2 * (rows * inputs + inputs * outputs + rows * outputs);
        report(card, name, rows, seconds, &Cost { bytes, flops: 2 * rows * inputs * outputs });
    }
    Ok(())
}

pub(crate) fn others(gpu: &Gpu, card: &Card, shape: &Shape, rows: usize) -> Result<(), CudaError> {
    let (width, heads) = (shape.hidden, shape.heads + 2 * shape.kv_heads);
    let (x, weight) = (noise(gpu, rows * width)?, noise(gpu, width)?);
    let (mut residual, mut out) = (noise(gpu, rows * width)?, gpu.alloc::<bf16>(rows * width)?);
    let norm = || cuda::add_rms_norm(gpu, x.view(), residual.view_mut(), weight.view(), 1e-5, out.view_mut());
    let seconds = median_seconds(gpu, norm)?;
    report(card, "residual and norm", rows, seconds, &Cost { bytes: 8 * rows * width, flops: 0 });

    let (gate_up, mut gated) = (noise(gpu, rows * 2 * shape.mlp)?, gpu.alloc::<bf16>(rows * shape.mlp)?);
    let seconds = median_seconds(gpu, || cuda::silu_mul(gpu, gate_up.view(), shape.mlp, gated.view_mut()))?;
    report(card, "gate", rows, seconds, &Cost { bytes: 6 * rows * shape.mlp, flops: 0 });

    let blocks = rows.div_ceil(32);
    let mut cache = KvCache::<bf16>::new(gpu, shape.kv_heads, shape.dim, blocks)?;
    let numbers: Vec<u32> = (0..rows as u32).collect();
    let (numbers, table) = (gpu.upload(&numbers)?, gpu.zeroed::<f32>(rows * shape.dim)?);
    let mut qkv = noise(gpu, rows * heads * shape.dim)?;
    let input = RopeStore {
        heads: shape.heads,
        positions: numbers.view(),
        slots: numbers.view(),
        table: table.view(),
        pairs: shape.dim / 2,
        qk_norm: None,
    };
    let seconds = median_seconds(gpu, || cuda::rope_store(gpu, qkv.view_mut(), &input, &mut cache))?;
    report(card, "rotation and store", rows, seconds, &Cost { bytes: 4 * rows * heads * shape.dim, flops: 0 });
    Ok(())
}
