//! Copies cached keys and values to floats for tiles of many rows, which read each of them many times.

use crate::cpu::by_level;
use crate::kv::KvDtype;

/// Rows of elements as stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored<'a> {
    pub(super) dtype: KvDtype,
    /// From the first row's first wanted element on.
    pub(super) bytes: &'a [u8],
    /// Elements from one row to the next.
    pub(super) stride: usize,
    /// Wanted elements of a row, at most 32.
    pub(super) cols: usize,
}

by_level! {
    /// Fills `target`, `[rows][32]`, with the elements as floats; what it has beyond `cols` becomes zero.
    pub(super) fn widen(stored: Stored<'_>, target: &mut [f32]) = widen_rows
}

#[inline(always)]
fn widen_rows(stored: Stored<'_>, target: &mut [f32]) {
    let Stored { dtype, bytes, stride, cols } = stored;
    let (target, _) = target.as_chunks_mut::<32>();
    for (target, row) in target.iter_mut().zip(bytes.chunks(stride * dtype.bytes())) {
        let row = &row[..cols * dtype.bytes()];
        match dtype {
            KvDtype::F32 => convert(target, row.as_chunks().0, f32::from_ne_bytes),
            KvDtype::Bf16 => {
                convert(target, row.as_chunks().0, |v| f32::from_bits(u32::from(u16::from_ne_bytes(v)) << 16));
            }
        }
    }
}

#[inline(always)]
fn convert<const N: usize>(target: &mut [f32; 32], stored: &[[u8; N]], float: impl Fn([u8; N]) -> f32) {
    // Two loops, so that the usual one has a known length.
    if let Ok(stored) = <&[[u8; N]; 32]>::try_from(stored) {
        for (t, s) in target.iter_mut().zip(stored) {
            *t = float(*s);
        }
        return;
    }
    target.fill(0.0);
    for (t, s) in target.iter_mut().zip(stored) {
        *t = float(*s);
    }
}
