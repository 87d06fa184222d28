//! What this machine can do at most: measured, because shared machines differ from their data sheets.

use millgate_kernels::{Level, Pool};
use std::hint::black_box;

use crate::clock::Clock;

/// Limits in 10⁹ bytes or operations a second, all threads together; 0 where the instruction is missing.
pub(crate) struct Peaks {
    pub(crate) read: f64,
    pub(crate) f32: f64,
    pub(crate) bf16: f64,
    pub(crate) int8: f64,
    /// Tiles of 16 x 16 sums over 32 inputs.
    pub(crate) bf16_tiles: f64,
}

impl Peaks {
    pub(crate) fn measure(pool: &Pool) -> Self {
        Self {
            read: read(pool),
            f32: rate(pool, f32_sums, 32.0),
            bf16: rate(pool, bf16_sums, 64.0),
            int8: rate(pool, int8_sums, 128.0),
            bf16_tiles: rate(pool, tile_sums, 16_384.0),
        }
    }
}

const STEPS: usize = 2_000_000;
/// Independent sums, enough to hide the latency of a step.
const SUMS: usize = 16;

/// Best of five rounds of `work` on every thread; `operations`: of one instruction.
fn rate(pool: &Pool, work: fn(Level) -> bool, operations: f64) -> f64 {
    let mut best = 0.0f64;
    for _ in 0..5 {
        let clock = Clock::start(pool);
        pool.run(pool.threads() * 4, &|_| {
            black_box(work(pool.level()));
        });
        let calls = (pool.threads() * 4 * STEPS * SUMS) as f64;
        best = best.max(calls * operations / clock.elapsed().as_secs_f64() / 1e9);
    }
    if work(pool.level()) { best } else { 0.0 }
}

/// Best of five rounds over 1 GiB on huge pages.
fn read(pool: &Pool) -> f64 {
    const LEN: usize = 1 << 30;
    const PARTS: usize = 256;
    let layout = std::alloc::Layout::from_size_align(LEN, 2 << 20).expect("a fixed size");
    // SAFETY: the layout is not empty; the memory is written before it is read, and released once, below.
    let memory = unsafe {
        let memory = std::alloc::alloc(layout);
        assert!(!memory.is_null(), "no memory for the bandwidth test");
        #[cfg(target_os = "linux")]
        libc::madvise(memory.cast(), LEN, libc::MADV_HUGEPAGE);
        memory.write_bytes(1, LEN);
        std::slice::from_raw_parts(memory, LEN)
    };
    let mut best = 0.0f64;
    for _ in 0..5 {
        let clock = Clock::start(pool);
        pool.run(PARTS, &|part| {
            let part = &memory[part * (LEN / PARTS)..][..LEN / PARTS];
            if read_vectors(pool.level(), part) {
                return;
            }
            let (words, _) = part.as_chunks::<8>();
            let mut sums = [0u64; 64];
            for words in words.chunks_exact(64) {
                for (sum, word) in sums.iter_mut().zip(words) {
                    *sum ^= u64::from_ne_bytes(*word);
                }
            }
            black_box(sums);
        });
        best = best.max(LEN as f64 / clock.elapsed().as_secs_f64() / 1e9);
    }
    // SAFETY: allocated above with this layout; `memory` is not used any more.
    unsafe { std::alloc::dealloc(memory.as_ptr().cast_mut(), layout) };
    best
}

#[cfg(not(target_arch = "x86_64"))]
use no_vectors::{bf16_sums, f32_sums, int8_sums, read_vectors, tile_sums};
#[cfg(target_arch = "x86_64")]
use vectors::{bf16_sums, f32_sums, int8_sums, read_vectors, tile_sums};

#[cfg(not(target_arch = "x86_64"))]
mod no_vectors {
    use millgate_kernels::Level;
    pub(super) fn f32_sums(_: Level) -> bool {
        false
    }
    pub(super) fn bf16_sums(_: Level) -> bool {
        false
    }
    pub(super) fn int8_sums(_: Level) -> bool {
        false
    }
    pub(super) fn tile_sums(_: Level) -> bool {
        false
    }
    pub(super) fn read_vectors(_: Level, _: &[u8]) -> bool {
        false
    }
}

#[cfg(target_arch = "x86_64")]
mod vectors {
    use super::{STEPS, SUMS, black_box};
    use millgate_kernels::Level;
    use std::arch::asm;
    use std::arch::x86_64::*;

    pub(super) fn f32_sums(level: Level) -> bool {
        #[target_feature(enable = "avx512f")]
        fn run() {
            let x = _mm512_set1_ps(black_box(1.0));
            let mut sums = [x; SUMS];
            for _ in 0..STEPS {
                for sum in &mut sums {
                    *sum = _mm512_fmadd_ps(*sum, x, x);
                }
            }
            black_box(sums);
        }
        if level < Level::Avx512 {
            return false;
        }
        // SAFETY: the level includes AVX-512 F.
        unsafe { run() };
        true
    }

    pub(super) fn bf16_sums(level: Level) -> bool {
        #[target_feature(enable = "avx512f,avx512bf16")]
        fn run() {
            // SAFETY: both types are 512 plain bits.
            let x = unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi16(black_box(0x3f80))) };
            let mut sums = [_mm512_set1_ps(black_box(0.0)); SUMS];
            for _ in 0..STEPS {
                for sum in &mut sums {
                    *sum = _mm512_dpbf16_ps(*sum, x, x);
                }
            }
            black_box(sums);
        }
        if level < Level::Avx512Bf16 {
            return false;
        }
        // SAFETY: the level includes AVX-512 BF16.
        unsafe { run() };
        true
    }

    pub(super) fn int8_sums(level: Level) -> bool {
        #[target_feature(enable = "avx512f,avx512vnni")]
        fn run() {
            let x = _mm512_set1_epi8(black_box(1));
            let mut sums = [_mm512_set1_epi32(black_box(0)); SUMS];
            for _ in 0..STEPS {
                for sum in &mut sums {
                    *sum = _mm512_dpbusd_epi32(*sum, x, x);
                }
            }
            black_box(sums);
        }
        if level < Level::Avx512 {
            return false;
        }
        // SAFETY: the level includes AVX-512 VNNI.
        unsafe { run() };
        true
    }

    /// Reads all of `bytes` with the widest loads, asking for lines ahead of the machine's own guesses.
    pub(super) fn read_vectors(level: Level, bytes: &[u8]) -> bool {
        /// How far ahead: as many bytes as arrive while one line is on its way.
        const AHEAD: usize = 4 << 10;
        #[target_feature(enable = "avx512f")]
        fn run(bytes: &[u8]) {
            let mut sums = [_mm512_setzero_si512(); 8];
            for lines in bytes.as_chunks::<512>().0 {
                for (sum, line) in sums.iter_mut().zip(lines.as_chunks::<64>().0) {
                    // SAFETY: a line has the bytes of a register; a prefetch may name any address.
                    let line = unsafe {
                        _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().wrapping_add(AHEAD).cast());
                        _mm512_loadu_si512(line.as_ptr().cast())
                    };
                    *sum = _mm512_xor_si512(*sum, line);
                }
            }
            black_box(sums);
        }
        if level < Level::Avx512 {
            return false;
        }
        // SAFETY: the level includes AVX-512 F.
        unsafe { run(bytes) };
        true
    }

    pub(super) fn tile_sums(level: Level) -> bool {
        /// Palette 1: eight tiles of 16 rows of 64 bytes.
        #[repr(align(64))]
        struct Shapes([u8; 64]);
        if level < Level::Amx {
            return false;
        }
        let mut shapes = Shapes([0; 64]);
        shapes.0[0] = 1;
        for tile in 0..8 {
            shapes.0[16 + 2 * tile] = 64;
            shapes.0[48 + tile] = 16;
        }
        // SAFETY: the level includes tiles; nothing is stored.
        unsafe {
            asm!(
                "ldtilecfg [{shapes}]",
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {n}",
                "jnz 2b",
                "tilerelease",
                shapes = in(reg) &raw const shapes, n = inout(reg) STEPS * SUMS / 4 => _, options(nostack),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            );
        }
        true
    }
}
