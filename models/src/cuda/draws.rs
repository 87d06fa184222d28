//! Draws as the device's sampling kernel reads and writes them.

use millgate_kernels::cuda::{DrawOutcome, DrawRow, LogitAdjustment};

use crate::draw::{Draw, DrawError, Drawn, Output, Scores, Step};

/// The draws of a step in the order of their rows, and the output rows: those that draw first, then those for the host.
pub(super) fn order(step: &Step, into: &mut Vec<u32>) {
    into.clear();
    let rows = || step.batch.output_rows.iter().zip(&step.outputs);
    into.extend(rows().filter(|(_, output)| matches!(output, Output::Draw(_))).map(|(&row, _)| row));
    into.extend(rows().filter(|(_, output)| matches!(output, Output::Logits)).map(|(&row, _)| row));
}

/// Appends the adjustments of all draws to `words`, whose tail begins at `tail_start`, and writes the draws from
/// `draws_start` on, each naming its part of the tail.
pub(super) fn write(step: &Step, words: &mut Vec<u32>, draws_start: usize, tail_start: usize) {
    let draws =
        step.outputs.iter().filter_map(|output| if let Output::Draw(draw) = output { Some(draw) } else { None });
    for (row, draw) in (0..).zip(draws) {
        let first = (words.len() - tail_start) / LogitAdjustment::WORDS;
        let adjustments = step.adjustments_of(draw);
        let packed = adjustments.iter().map(|adjustment| LogitAdjustment {
            token: adjustment.token,
            count: adjustment.count,
            bias: adjustment.bias,
            is_seen: adjustment.is_seen,
            is_forbidden: adjustment.is_forbidden,
        });
        LogitAdjustment::pack(packed, words);
        let start = draws_start + row as usize * DrawRow::WORDS;
        let words_of_row = draw_row(draw, row, (first as u32, adjustments.len() as u32)).words();
        words[start..start + DrawRow::WORDS].copy_from_slice(&words_of_row);
    }
}

fn draw_row(draw: &Draw, row: u32, adjustments: (u32, u32)) -> DrawRow {
    DrawRow {
        row,
        temperature: draw.temperature,
        top_k: draw.top_k,
        top_p: draw.top_p,
        min_p: draw.min_p,
        repetition: draw.penalties.repetition,
        presence: draw.penalties.presence,
        frequency: draw.penalties.frequency,
        seed: draw.seed,
        choice: draw.choice,
        position: draw.position,
        logprobs: draw.logprobs,
        adjustments,
        pending: draw.pending,
    }
}

/// What came of `draws`, one outcome after the other in `words`.
pub(super) fn read(words: &[u32], wants_scores: &[bool], into: &mut Vec<Result<Drawn, DrawError>>) {
    into.clear();
    into.extend(words.chunks_exact(DrawOutcome::WORDS).zip(wants_scores).map(|(words, &wants_scores)| {
        match DrawOutcome::from_words(words) {
            DrawOutcome::Drawn { token, logprob, top } => {
                Ok(Drawn { token, scores: wants_scores.then_some(Scores { logprob, top }) })
            }
            DrawOutcome::NotANumber => Err(DrawError::NotANumber),
            DrawOutcome::NothingLeft => Err(DrawError::NothingLeft),
        }
    }));
}
