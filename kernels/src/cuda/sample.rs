//! Drawing tokens where the logits are.

use super::launch::{Args, Cut, aligned};
use super::{Buffer, CudaError, Gpu, View, ViewMut};
use crate::KernelError;
use crate::error::{expect_below, expect_len};

/// Logits that one block of the first pass scans: `CHUNK` of `sample.cuh`.
const CHUNK: usize = 4096;
/// Threads that draw one token: `THREADS` of `sample_draw.cu`.
const DRAW_THREADS: usize = 512;
/// Most alternatives whose log probabilities are reported.
pub const MAX_TOP: usize = 20;
const NONE: u32 = u32::MAX;

/// How one token is drawn; [`DrawRow::words`] is what the kernels read.
///
/// Applied in this order: repetition, presence and frequency penalties; biases; bans; temperature; `top_k`; `top_p`;
/// `min_p`. Ties go to the lower token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DrawRow {
    /// Row of the logits.
    pub row: u32,
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f32,
    /// Keeps only this many of the likeliest tokens; 0 = off.
    pub top_k: u32,
    /// Keeps the smallest set of likeliest tokens whose probabilities reach this sum; 1 = off.
    pub top_p: f32,
    /// Keeps tokens at least this share as likely as the likeliest one; 0 = off.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that were seen; 1 = off.
    pub repetition: f32,
    /// Subtracted for every token that the completion holds.
    pub presence: f32,
    /// Subtracted once for each time that the completion holds the token.
    pub frequency: f32,
    /// Key of the random numbers.
    pub seed: u64,
    /// Index of the choice, part of the random numbers' counter.
    pub choice: u32,
    /// Position that the token will take, part of the counter.
    pub position: u32,
    /// Report log probabilities with this many alternatives, up to [`MAX_TOP`].
    pub logprobs: Option<u8>,
    /// First of this row's adjustments, and their number.
    pub adjustments: (u32, u32),
    /// Draw of the step before whose token is one more of the completion.
    pub pending: Option<u32>,
}

impl DrawRow {
    /// Words of a row.
    pub const WORDS: usize = 18;

    /// The row as `DrawRow` of `sample.cuh`.
    pub fn words(&self) -> [u32; Self::WORDS] {
        let has_penalties = self.repetition != 1.0 || self.presence != 0.0 || self.frequency != 0.0;
        let pending = self.pending.filter(|_| has_penalties);
        let is_adjusted = self.adjustments.1 > 0 || pending.is_some();
        // p >= min_p * p_max, solved for the logit.
        let offset = if self.min_p > 0.0 { self.temperature * self.min_p.ln() } else { f32::NEG_INFINITY };
        [
            self.row,
            self.temperature.to_bits(),
            self.top_k,
            self.top_p.to_bits(),
            offset.to_bits(),
            self.repetition.to_bits(),
            self.presence.to_bits(),
            self.frequency.to_bits(),
            self.seed as u32,
            (self.seed >> 32) as u32,
            self.choice,
            self.position,
            u32::from(self.logprobs.is_some()),
            u32::from(self.logprobs.unwrap_or(0)),
            self.adjustments.0,
            self.adjustments.1,
            pending.unwrap_or(NONE),
            u32::from(is_adjusted),
        ]
    }
}

/// What changes one token's logit in one row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogitAdjustment {
    /// The token; each at most once a row.
    pub token: u32,
    /// How often the completion holds it.
    pub count: u32,
    /// Added to its logit.
    pub bias: f32,
    /// Whether prompt or completion holds it.
    pub is_seen: bool,
    /// It must not be drawn.
    pub is_forbidden: bool,
}

impl LogitAdjustment {
    /// Words of an adjustment.
    pub const WORDS: usize = 4;

    /// Appends one row's adjustments, in the order that the kernels need.
    pub fn pack(row: impl IntoIterator<Item = Self>, words: &mut Vec<u32>) {
        let start = words.len();
        words.extend(row.into_iter().flat_map(|adjustment| {
            let flags = u32::from(adjustment.is_seen) | u32::from(adjustment.is_forbidden) << 1;
            [adjustment.token, adjustment.count, adjustment.bias.to_bits(), flags]
        }));
        words[start..].as_chunks_mut::<{ Self::WORDS }>().0.sort_unstable_by_key(|words| words[0]);
    }
}

/// What a draw gives.
#[derive(Debug, Clone, PartialEq)]
pub enum DrawOutcome {
    /// A token.
    Drawn {
        /// Its id.
        token: u32,
        /// Its log probability in the model's own distribution, when asked for; else 0.
        logprob: f32,
        /// The likeliest tokens in that distribution, likeliest first.
        top: Vec<(u32, f32)>,
    },
    /// The logits hold NaN, `+inf`, or nothing finite.
    NotANumber,
    /// Every token is ruled out.
    NothingLeft,
}

impl DrawOutcome {
    /// Words of an outcome.
    pub const WORDS: usize = 4 + 2 * MAX_TOP;

    /// Reads `DrawResult` of `sample.cuh`. Panics when `words` are not [`DrawOutcome::WORDS`].
    pub fn from_words(words: &[u32]) -> Self {
        assert_eq!(words.len(), Self::WORDS, "words of an outcome");
        let top = (words[3] as usize).min(MAX_TOP);
        let (tokens, logprobs) = words[4..].split_at(MAX_TOP);
        match words[1] {
            0 => Self::Drawn {
                token: words[0],
                logprob: f32::from_bits(words[2]),
                top: tokens.iter().copied().zip(logprobs.iter().map(|&bits| f32::from_bits(bits))).take(top).collect(),
            },
            2 => Self::NothingLeft,
            _ => Self::NotANumber,
        }
    }
}

/// Memory that draws need while they run.
pub struct SampleScratch {
    adjusted: Buffer<f32>,
    peaks: Buffer<u32>,
    vocab: usize,
}

impl SampleScratch {
    /// For up to `draws` draws from `vocab` logits.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`].
    pub fn new(gpu: &Gpu, draws: usize, vocab: usize) -> Result<Self, CudaError> {
        let peaks = gpu.alloc(draws * vocab.div_ceil(CHUNK) * 4)?;
        Ok(Self { adjusted: gpu.alloc(draws * vocab)?, peaks, vocab })
    }

    /// Words of 32 bits that it takes.
    pub fn len(draws: usize, vocab: usize) -> usize {
        draws * vocab.div_ceil(CHUNK) * 4 + draws * vocab
    }
}

/// What draws read.
#[derive(Clone, Copy)]
pub struct SampleInput<'a> {
    /// `[rows, vocab]`.
    pub logits: View<'a, f32>,
    /// Room for [`DrawRow::words`] of each draw.
    pub rows: View<'a, u32>,
    /// Number of draws that count now, one word.
    pub count: View<'a, u32>,
    /// The adjustments of all rows, as [`LogitAdjustment::pack`] leaves them.
    pub adjustments: View<'a, u32>,
    /// Tokens that the step before drew.
    pub previous: View<'a, u32>,
}

/// Draws a token from each row.
///
/// The launch depends on the sizes of the views only, so a graph that records it serves every step that fits into them.
/// A row's outcome depends on that row alone.
///
/// # Shapes
/// `tokens`: `[draws]`, the ids, `u32::MAX` where none could be drawn. `results`: [`DrawOutcome::WORDS`] a draw.
/// # Errors
/// [`KernelError::Shape`] or [`KernelError::Range`] when lengths do not fit; nothing is queued then.
pub fn sample(
    gpu: &Gpu,
    input: &SampleInput<'_>,
    scratch: &mut SampleScratch,
    tokens: ViewMut<'_, u32>,
    results: ViewMut<'_, u32>,
) -> Result<(), CudaError> {
    let vocab = scratch.vocab;
    let lengths = Lengths {
        logits: input.logits.len(),
        rows: input.rows.len(),
        adjusted: scratch.adjusted.len(),
        tokens: tokens.len(),
        results: results.len(),
    };
    let draws = check(vocab, &lengths)?;
    expect_len("sample", "count length", input.count.len(), 1)?;
    aligned("sample", &[input.logits])?;
    aligned("sample", &[input.adjustments])?;
    let chunks = vocab.div_ceil(CHUNK);
    let (adjusted, peaks) = (scratch.adjusted.view_mut(), scratch.peaks.view_mut());
    let args = Args::new().input(input.logits).output(&adjusted).input(input.rows).input(input.adjustments);
    let args = args.input(input.previous).output(&peaks).output(&tokens).output(&results).input(input.count);
    let args = args.int(vocab).int(chunks).int(input.logits.len() / vocab);
    let args = args.int(input.adjustments.len() / LogitAdjustment::WORDS).int(input.previous.len());
    // SAFETY: `check` saw that every draw has its row, its scratch and its results; what rows say is brought into the
    // bounds that go along.
    unsafe {
        gpu.launch(["sample_scan", "", ""], Cut::grid((chunks, draws, 1), 256), &args)?;
        gpu.launch(["sample_draw", "", ""], Cut::new(draws, DRAW_THREADS), &args)
    }
}

struct Lengths {
    logits: usize,
    rows: usize,
    adjusted: usize,
    tokens: usize,
    results: usize,
}

/// Returns the number of draws that there is room for.
fn check(vocab: usize, found: &Lengths) -> Result<usize, KernelError> {
    const OP: &str = "sample";
    // Tokens are ordered by 20 bits of their ids.
    expect_below(OP, "vocabulary", vocab, (1 << 20) + 1)?;
    if vocab == 0 || found.logits == 0 || !found.logits.is_multiple_of(vocab) {
        let what = "logits length (whole rows)";
        return Err(KernelError::Shape { op: OP, what, found: found.logits, wanted: vocab });
    }
    if !found.rows.is_multiple_of(DrawRow::WORDS) {
        let wanted = found.rows.next_multiple_of(DrawRow::WORDS);
        return Err(KernelError::Shape { op: OP, what: "rows length (whole rows)", found: found.rows, wanted });
    }
    let draws = found.rows / DrawRow::WORDS;
    expect_below(OP, "number of draws", draws * vocab, found.adjusted + 1)?;
    expect_len(OP, "tokens length", found.tokens, draws)?;
    expect_len(OP, "results length", found.results, draws * DrawOutcome::WORDS)?;
    Ok(draws)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREEDY: DrawRow = DrawRow {
        row: 3,
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition: 1.0,
        presence: 0.0,
        frequency: 0.0,
        seed: 0x1_0000_0002,
        choice: 0,
        position: 9,
        logprobs: None,
        adjustments: (0, 0),
        pending: Some(4),
    };

    #[test]
    fn a_row_is_adjusted_only_if_something_changes_a_logit() {
        let is_adjusted = |row: DrawRow| (row.words()[16], row.words()[17]);
        assert_eq!(is_adjusted(GREEDY), (NONE, 0));
        assert_eq!(is_adjusted(DrawRow { presence: 0.5, ..GREEDY }), (4, 1));
        assert_eq!(is_adjusted(DrawRow { presence: 0.5, pending: None, ..GREEDY }), (NONE, 0));
        assert_eq!(is_adjusted(DrawRow { adjustments: (7, 1), ..GREEDY }), (NONE, 1));
        assert_eq!(GREEDY.words()[8..10], [2, 1]);
    }

    #[test]
    fn adjustments_are_packed_in_order_of_their_tokens_row_by_row() {
        let one = |token, is_seen, is_forbidden| LogitAdjustment { token, count: 2, bias: 1.0, is_seen, is_forbidden };
        let mut words = Vec::new();
        LogitAdjustment::pack([one(9, true, false)], &mut words);
        LogitAdjustment::pack([one(7, false, true), one(3, true, true)], &mut words);
        let bias = 1.0f32.to_bits();
        assert_eq!(words, [9, 2, bias, 1, 3, 2, bias, 3, 7, 2, bias, 2]);
    }

    #[test]
    fn outcomes_are_read_as_the_kernel_writes_them() {
        let mut words = vec![NONE; DrawOutcome::WORDS];
        words[..6].copy_from_slice(&[5, 0, (-1.5f32).to_bits(), 2, 5, 8]);
        words[24..26].copy_from_slice(&[(-1.5f32).to_bits(), (-2.0f32).to_bits()]);
        let top = vec![(5, -1.5), (8, -2.0)];
        assert_eq!(DrawOutcome::from_words(&words), DrawOutcome::Drawn { token: 5, logprob: -1.5, top });
        words[1] = 1;
        assert_eq!(DrawOutcome::from_words(&words), DrawOutcome::NotANumber);
        words[1] = 2;
        assert_eq!(DrawOutcome::from_words(&words), DrawOutcome::NothingLeft);
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused_by_name() {
        let good = || Lengths { logits: 200, rows: 36, adjusted: 300, tokens: 2, results: 88 };
        assert_eq!(check(100, &good()), Ok(2));
        let text = |vocab, lengths: Lengths| check(vocab, &lengths).unwrap_err().to_string();
        assert_eq!(text(100, Lengths { tokens: 3, ..good() }), "sample: tokens length is 3, wanted 2");
        assert!(text(100, Lengths { adjusted: 199, ..good() }).contains("number of draws"));
        assert!(text(100, Lengths { rows: 35, ..good() }).contains("rows length"));
        assert!(text(100, Lengths { results: 87, ..good() }).contains("results length"));
        assert!(text(99, good()).contains("logits length"));
        assert!(text(2_000_000, good()).contains("vocabulary"));
    }
}
