//! Codes of quantised weights as signed bytes, which tile registers multiply.

use super::codes::{Codes, Q4_0, Q4K, Q5K, Q6K, Q8_0};
use super::quantised::fetch;
use crate::WeightFormat;
use crate::panels::{QUANT_ROWS, quant_layout};
use crate::quant::{RUN, offset};
use std::arch::x86_64::*;

/// Bytes of the signed codes of a panel and run: `[8][16][4]`, as the panel has those of eight bits.
pub(crate) const SIGNED_RUN_BYTES: usize = RUN * QUANT_ROWS;

/// Writes the codes of a panel, less what a code of weight zero is, to `signed`.
///
/// # Safety
/// The machine has [`Level::Avx512`](crate::Level::Avx512); `panel` is one of a quantised format with `runs` runs; `signed`
/// has room for [`SIGNED_RUN_BYTES`] a run.
pub(crate) unsafe fn sign_codes(format: WeightFormat, panel: *const u8, runs: usize, signed: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe {
        match format {
            WeightFormat::Q8_0 => sign::<Q8_0>(panel, runs, signed),
            WeightFormat::Q4_0 => sign::<Q4_0>(panel, runs, signed),
            WeightFormat::Q4K => sign::<Q4K>(panel, runs, signed),
            WeightFormat::Q5K => sign::<Q5K>(panel, runs, signed),
            WeightFormat::Q6K => sign::<Q6K>(panel, runs, signed),
            WeightFormat::F32 | WeightFormat::F16 | WeightFormat::Bf16 => unreachable!("dense formats have no codes"),
        }
    }
}

/// # Safety
/// As [`sign_codes`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn sign<F: Codes>(panel: *const u8, runs: usize, signed: *mut u8) {
    let code_bytes = const { quant_layout(F::FORMAT).code_bytes };
    let offset = _mm512_set1_epi8(const { offset(F::FORMAT) }.cast_signed());
    for run in 0..runs {
        // SAFETY: the caller's promise: both have this run.
        unsafe {
            let (w, signed) = (panel.add(run * code_bytes), signed.add(run * SIGNED_RUN_BYTES));
            fetch(w, code_bytes);
            for g in 0..RUN / 4 {
                _mm512_storeu_si512(signed.add(64 * g).cast(), _mm512_sub_epi8(F::codes(w, g), offset));
            }
        }
    }
}
