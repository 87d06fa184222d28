//! Drives a loaded model as the engine does: sequences in scattered blocks, prompts in chunks, several at a time.

use std::path::PathBuf;
use std::sync::Arc;

use millgate_kernels::Pool;
use millgate_models::{
    BLOCK_TOKENS, Batch, Checkpoint, GpuReserve, KvDtypeChoice, LoadOptions, Model, SequenceSpan, Silent, Source,
};

/// A loaded model and its free blocks.
pub(crate) struct Rig {
    pub(crate) model: Box<dyn Model>,
    free: Vec<u32>,
}

/// Tokens of one sequence and where their keys and values lie.
#[derive(Clone, Default)]
pub(crate) struct Sequence {
    pub(crate) tokens: Vec<u32>,
    pub(crate) computed: usize,
    pub(crate) blocks: Vec<u32>,
}

/// The next tokens of one sequence to compute, and whether all rows or only the last are wanted.
pub(crate) struct Part<'a> {
    pub(crate) sequence: &'a mut Sequence,
    pub(crate) tokens: usize,
    pub(crate) all_rows: bool,
}

/// A file of the test data. Cargo names the package's folder; so does who runs the tests in another checkout than theirs.
pub(crate) fn testdata(name: &str) -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    PathBuf::from(package).join("testdata").join(name)
}

pub(crate) fn source(name: &str) -> Source {
    testdata(name).display().to_string().parse().unwrap()
}

pub(crate) fn options() -> LoadOptions {
    LoadOptions {
        device: millgate_models::Device::Cpu,
        kv_bytes: None,
        reserve: GpuReserve::default(),
        deterministic: true,
        pool: Arc::new(Pool::new(2)),
        num_blocks: 32,
        max_step_tokens: 160,
        max_output_rows: 160,
        kv_dtype: KvDtypeChoice::Auto,
        context_window: None,
    }
}

impl Rig {
    /// Loads a checkpoint of the test data.
    pub(crate) fn open(name: &str) -> Self {
        Self::open_with(name, &options())
    }

    pub(crate) fn open_with(name: &str, options: &LoadOptions) -> Self {
        let checkpoint = Checkpoint::open_local(&source(name)).unwrap();
        Self::of(checkpoint.load(options, &Silent).unwrap())
    }

    pub(crate) fn of(model: Box<dyn Model>) -> Self {
        // Scattered, so that a sequence's blocks are neither in order nor side by side.
        let num_blocks = model.spec().num_blocks as u32;
        let free = (0..num_blocks).map(|index| index * 7 % num_blocks).collect();
        Self { model, free }
    }

    /// Computes one step and returns each part's logits, a row each.
    pub(crate) fn step(&mut self, parts: &mut [Part<'_>]) -> Vec<Vec<Vec<f32>>> {
        let mut batch = Batch::default();
        let mut rows = Vec::new();
        for part in parts.iter_mut() {
            rows.push(self.add(&mut batch, part));
        }
        let vocab_size = self.model.spec().vocab_size;
        let logits = self.model.forward(&batch).unwrap();
        assert_eq!(logits.len(), batch.output_rows.len() * vocab_size);
        let mut logits = logits.chunks(vocab_size).map(<[f32]>::to_vec);
        rows.into_iter().map(|count| logits.by_ref().take(count).collect()).collect()
    }

    fn add(&mut self, batch: &mut Batch, part: &mut Part<'_>) -> usize {
        let Sequence { tokens, computed, blocks } = &mut *part.sequence;
        let (start, end) = (*computed, *computed + part.tokens);
        while blocks.len() * BLOCK_TOKENS < end {
            blocks.push(self.free.pop().unwrap());
        }
        let query_start = batch.tokens.len() as u32;
        for position in start..end {
            batch.tokens.push(tokens[position]);
            batch.positions.push(position as u32);
            let slot = blocks[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + position % BLOCK_TOKENS;
            batch.slots.push(slot as u32);
        }
        batch.sequences.push(SequenceSpan {
            query_start,
            query_len: part.tokens as u32,
            context_len: end as u32,
            table_start: batch.tables.len() as u32,
            table_len: blocks.len() as u32,
        });
        batch.tables.extend(blocks.iter());
        *computed = end;
        let last = batch.tokens.len() as u32;
        let first = if part.all_rows { query_start } else { last - 1 };
        batch.output_rows.extend(first..last);
        (last - first) as usize
    }

    /// Returns a sequence's blocks.
    pub(crate) fn free(&mut self, sequence: Sequence) {
        self.free.extend(sequence.blocks);
    }

    /// Logits at every position, the tokens given in chunks of at most `chunk`.
    pub(crate) fn all_logits(&mut self, tokens: &[u32], chunk: usize) -> Vec<Vec<f32>> {
        let mut sequence = Sequence { tokens: tokens.to_vec(), ..Default::default() };
        let mut logits = Vec::new();
        while sequence.computed < tokens.len() {
            let count = chunk.min(tokens.len() - sequence.computed);
            let part = Part { sequence: &mut sequence, tokens: count, all_rows: true };
            logits.extend(self.step(&mut [part]).remove(0));
        }
        self.free(sequence);
        logits
    }

    /// The prompt's greedy continuation and the logits it was chosen from.
    pub(crate) fn greedy(&mut self, prompt: &[u32], count: usize) -> (Vec<u32>, Vec<Vec<f32>>) {
        let mut sequence = Sequence { tokens: prompt.to_vec(), ..Default::default() };
        let mut rows = Vec::new();
        for _ in 0..count {
            let tokens = sequence.tokens.len() - sequence.computed;
            let part = Part { sequence: &mut sequence, tokens, all_rows: false };
            let row = self.step(&mut [part]).remove(0).remove(0);
            sequence.tokens.push(argmax(&row));
            rows.push(row);
        }
        let greedy = sequence.tokens[prompt.len()..].to_vec();
        self.free(sequence);
        (greedy, rows)
    }
}

pub(crate) fn argmax(row: &[f32]) -> u32 {
    let best = row.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b)).unwrap();
    best.0 as u32
}

/// Natural logarithms of the probabilities that logits stand for.
pub(crate) fn logprobs(logits: &[f32]) -> Vec<f64> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - highest).exp()).sum();
    logits.iter().map(|&logit| f64::from(logit - highest) - sum.ln()).collect()
}

/// Bits of logits, for comparisons that allow no difference.
pub(crate) fn bits(rows: &[Vec<f32>]) -> Vec<Vec<u32>> {
    rows.iter().map(|row| row.iter().map(|value| value.to_bits()).collect()).collect()
}
