//! Speed of every operation, each checked against the reference before it is timed, as a share of what this machine
//! was measured to do in the same run.
//!
//! `cargo bench -p millgate-kernels [-- word…]` runs the lines that contain one of the words; `--threads N` sets the
//! number of threads, `--level avx2` takes slower instructions than the machine has. One thread is timed by the CPU time it got, so that a busy machine matters less.

mod clock;
mod peaks;
#[path = "../tests/random.rs"]
#[expect(dead_code, reason = "shared with the tests, which use all of it")]
mod random;

use millgate_kernels::reference::{self, Matrix};
use millgate_kernels::{
    AttentionBatch, KvDtype, KvLayer, KvShape, Level, PackedMatrix, Pool, RopeStore, RopeTable, SequenceSpan,
    WeightFormat, linear, paged_attention, rms_norm, rope_store, silu_mul,
};
use random::{Random, assert_close};
use std::io::Write;
use std::time::{Duration, Instant};

use clock::Clock;

/// Bytes of weights of the one-row products: beyond what caches keep.
const BIG_BYTES: usize = 512 << 20;

struct Bench {
    pool: Pool,
    words: Vec<String>,
    peaks: peaks::Peaks,
    random: Random,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let after = |flag: &str| arguments.iter().position(|a| a == flag).and_then(|i| arguments.get(i + 1));
    let threads = after("--threads").and_then(|n| n.parse().ok());
    let threads = threads.unwrap_or_else(|| Pool::for_this_machine().threads());
    let level = after("--level").map_or(Level::of_this_machine(), |name| {
        let named = Level::ALL.into_iter().find(|level| format!("{level:?}").eq_ignore_ascii_case(name));
        named.unwrap_or_else(|| panic!("--level {name}: one of {:?}", Level::ALL))
    });
    let pool = Pool::with_level(threads, level).unwrap_or_else(|| panic!("this machine has no {level:?}"));
    say(&format!("{:?}, {} threads", pool.level(), pool.threads()));
    let peaks = peaks::Peaks::measure(&pool);
    say(&format!(
        "peaks: read {:.1} GB/s, f32 {:.0} GFLOP/s, bf16 dot {:.0} GFLOP/s, int8 dot {:.0} GOP/s, bf16 tiles {:.0} \
         GFLOP/s",
        peaks.read, peaks.f32, peaks.bf16, peaks.int8, peaks.bf16_tiles
    ));
    let mut words = arguments;
    while let Some(flag) = words.iter().position(|a| a == "--threads" || a == "--level") {
        words.drain(flag..(flag + 2).min(words.len()));
    }
    words.retain(|word| !word.starts_with("--"));
    let mut bench = Bench { pool, words, peaks, random: Random(1) };
    bench.decode();
    bench.batches();
    bench.attention();
    bench.rows();
}

fn say(line: &str) {
    writeln!(std::io::stdout(), "{line}").expect("standard output takes lines");
}

/// The median time of a call, over at least five calls and about half a second.
fn median(pool: &Pool, mut work: impl FnMut()) -> Duration {
    work();
    let (begin, mut times) = (Instant::now(), Vec::new());
    while times.len() < 5 || begin.elapsed() < Duration::from_millis(500) {
        let clock = Clock::start(pool);
        work();
        times.push(clock.elapsed());
    }
    times.sort();
    times[times.len() / 2]
}

impl Bench {
    fn is_wanted(&self, name: &str) -> bool {
        self.words.is_empty() || self.words.iter().any(|w| name.contains(w.as_str()))
    }

    fn report(&self, name: &str, time: Duration, (amount, unit, peak): (f64, &str, f64)) {
        let rate = amount / time.as_secs_f64() / 1e9;
        say(&format!(
            "{name:<32} {:>10.1} µs {rate:>8.1} {unit} {:>4.0} %",
            time.as_secs_f64() * 1e6,
            rate / peak * 100.0
        ));
    }

    /// The peak of the dot product that fits a format.
    fn fitting_peak(&self, format: WeightFormat) -> f64 {
        match format {
            WeightFormat::F32 | WeightFormat::F16 => self.peaks.f32,
            WeightFormat::Bf16 => match self.pool.level() {
                Level::Amx => self.peaks.bf16_tiles,
                Level::Avx512Bf16 => self.peaks.bf16,
                Level::Scalar | Level::Avx2 | Level::Avx512 => self.peaks.f32,
            },
            _ => self.peaks.int8,
        }
    }

    fn check_linear(&mut self, format: WeightFormat, m: usize) {
        let (rows, cols) = (70, 512);
        let source = self.random.weights(format, rows, cols);
        let x = self.random.floats(m * cols);
        let (mut found, mut wanted) = (vec![0.0; m * rows], vec![0.0; m * rows]);
        let w = PackedMatrix::pack(format, rows, cols, &source).expect("the shape fits");
        linear(&self.pool, &x, &w, None, &mut found).expect("the shapes fit");
        let matrix = Matrix { format, rows, cols, bytes: &source };
        reference::linear(self.pool.level(), &x, &matrix, None, &mut wanted);
        assert_close(&found, &wanted, 2e-6, format.name());
    }

    fn decode(&mut self) {
        for format in WeightFormat::ALL {
            let name = |m: usize| {
                let rows = if m > 1 { format!(" {m} rows") } else { String::new() };
                format!("decode {}{rows}", format.name())
            };
            let counts: Vec<usize> = [1, 8, 16, 32].into_iter().filter(|m| self.is_wanted(&name(*m))).collect();
            if counts.is_empty() {
                continue;
            }
            let cols = 2048;
            let row_bytes = format.bytes_for(1, cols).expect("whole blocks");
            let rows = BIG_BYTES / row_bytes;
            let piece = self.random.weights(format, 64, cols);
            let source: Vec<u8> = piece.iter().copied().cycle().take(rows * row_bytes).collect();
            let clock = Clock::start(&self.pool);
            let w = PackedMatrix::pack(format, rows, cols, &source).expect("the shape fits");
            let packing = BIG_BYTES as f64 / clock.elapsed().as_secs_f64() / 1e9;
            drop(source);
            for m in counts {
                self.check_linear(format, m);
                let (x, mut y) = (self.random.floats(m * cols), vec![0.0; m * rows]);
                let time = median(&self.pool, || linear(&self.pool, &x, &w, None, &mut y).expect("the shapes fit"));
                self.report(&name(m), time, (w.bytes() as f64, "GB/s", self.peaks.read));
            }
            say(&format!("    packed at {packing:.2} GB/s"));
        }
    }

    fn batches(&mut self) {
        for format in WeightFormat::ALL {
            let (rows, cols) = (8192, 2048);
            let source = self.random.weights(format, rows, cols);
            let w = PackedMatrix::pack(format, rows, cols, &source).expect("the shape fits");
            for m in [1, 4, 8, 16, 32, 512] {
                let name = format!("linear {} m={m}", format.name());
                if !self.is_wanted(&name) {
                    continue;
                }
                self.check_linear(format, m);
                let (x, mut y) = (self.random.floats(m * cols), vec![0.0; m * rows]);
                let time = median(&self.pool, || linear(&self.pool, &x, &w, None, &mut y).expect("the shapes fit"));
                let operations = 2.0 * (m * rows * cols) as f64;
                self.report(&name, time, (operations, "GOP/s", self.fitting_peak(format)));
            }
        }
    }

    fn attention(&mut self) {
        for dtype in [KvDtype::F32, KvDtype::Bf16] {
            for (sequences, queries, context) in [(1, 1, 4096), (16, 1, 1024), (1, 512, 512), (1, 512, 4096)] {
                let name = format!("attention {dtype:?} {sequences}x{queries} of {context}");
                if self.is_wanted(&name) {
                    self.attend(&name, dtype, (sequences, queries, context));
                }
            }
        }
    }

    fn attend(&mut self, name: &str, dtype: KvDtype, (sequences, queries, context): (usize, usize, usize)) {
        let (kv_heads, heads, head_dim) = (8, 32, 128);
        let blocks = context / 32;
        let mut kv = KvLayer::new(KvShape { kv_heads, head_dim, dtype }, sequences * blocks).expect("memory");
        let len = sequences * context;
        let (k, v) = (self.random.floats(len * kv_heads * head_dim), self.random.floats(len * kv_heads * head_dim));
        let (positions, slots): (Vec<u32>, Vec<u32>) = (0..len as u32).map(|t| (t % context as u32, t)).unzip();
        let rope = RopeTable::new(&[0.5; 64], 1.0, context);
        let input = RopeStore { k: &k, v: &v, positions: &positions, slots: &slots, rope: &rope, qk_norm: None };
        rope_store(&self.pool, &mut k.clone(), &input, &mut kv).expect("the shapes fit");
        let tables: Vec<u32> = (0..(sequences * blocks) as u32).collect();
        let span = |i: usize| SequenceSpan {
            query_start: (i * queries) as u32,
            query_len: queries as u32,
            context_len: context as u32,
            table_start: (i * blocks) as u32,
            table_len: blocks as u32,
        };
        let spans: Vec<_> = (0..sequences).map(span).collect();
        let batch = AttentionBatch { sequences: &spans, tables: &tables, scale: 0.088, window: None };
        let q = self.random.floats(sequences * queries * heads * head_dim);
        let (mut out, mut wanted) = (vec![0.0; q.len()], vec![0.0; q.len()]);
        paged_attention(&self.pool, &q, &kv, &batch, &mut out).expect("the shapes fit");
        // One sequence's last query is enough for the slow reference.
        let last = SequenceSpan { query_start: (queries - 1) as u32, query_len: 1, ..spans[0] };
        reference::paged_attention(&q, &kv, &AttentionBatch { sequences: &[last], ..batch }, heads, &mut wanted);
        let row = (queries - 1) * heads * head_dim..queries * heads * head_dim;
        let rounds = self.pool.level() >= Level::Avx512Bf16 && dtype == KvDtype::Bf16;
        assert_close(&out[row.clone()], &wanted[row], if rounds { 0.02 } else { 1e-5 }, name);
        let time =
            median(&self.pool, || paged_attention(&self.pool, &q, &kv, &batch, &mut out).expect("the shapes fit"));
        if queries == 1 {
            let bytes = sequences * blocks * kv.shape().bytes_per_block();
            self.report(name, time, (bytes as f64, "GB/s", self.peaks.read));
        } else {
            let pairs = queries * context - queries * (queries - 1) / 2;
            let peak = if rounds { self.fitting_peak(WeightFormat::Bf16) } else { self.peaks.f32 };
            self.report(name, time, (4.0 * (pairs * heads * head_dim) as f64, "GOP/s", peak));
        }
    }

    fn rows(&mut self) {
        let (rows, width) = (512, 8192);
        let (x, weight) = (self.random.floats(rows * width), self.random.floats(width));
        let (mut out, mut wanted) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let bytes = 8.0 * x.len() as f64;
        if self.is_wanted("rms_norm") {
            rms_norm(&self.pool, &x, &weight, 1e-6, &mut out).expect("the shapes fit");
            reference::rms_norm(&x, &weight, 1e-6, &mut wanted);
            assert_close(&out, &wanted, 2e-5, "rms_norm");
            let time =
                median(&self.pool, || rms_norm(&self.pool, &x, &weight, 1e-6, &mut out).expect("the shapes fit"));
            self.report("rms_norm 512 x 8192", time, (bytes, "GB/s", self.peaks.read));
        }
        if self.is_wanted("silu_mul") {
            silu_mul(&self.pool, &x, &x, &mut out).expect("the shapes fit");
            reference::silu_mul(&x, &x, &mut wanted);
            assert_close(&out, &wanted, 2e-6, "silu_mul");
            let time = median(&self.pool, || silu_mul(&self.pool, &x, &x, &mut out).expect("the shapes fit"));
            self.report("silu_mul 512 x 8192", time, (bytes, "GB/s", self.peaks.read));
        }
        let mut q = x;
        let (k, v) = (self.random.floats(512 * 1024), self.random.floats(512 * 1024));
        let (positions, slots): (Vec<u32>, Vec<u32>) = (0..512).map(|t| (t, t)).unzip();
        let rope = RopeTable::new(&[0.5; 64], 1.0, 512);
        let input = RopeStore { k: &k, v: &v, positions: &positions, slots: &slots, rope: &rope, qk_norm: None };
        if self.is_wanted("rope_store") {
            let shape = KvShape { kv_heads: 8, head_dim: 128, dtype: KvDtype::Bf16 };
            let mut kv = KvLayer::new(shape, 16).expect("memory");
            let time = median(&self.pool, || rope_store(&self.pool, &mut q, &input, &mut kv).expect("the shapes fit"));
            let bytes = 8.0 * q.len() as f64 + 6.0 * (k.len() + v.len()) as f64;
            self.report("rope_store 512 tokens", time, (bytes, "GB/s", self.peaks.read));
        }
    }
}
