//! Turns a planned step into a batch for the model and finds each sequence's rows in the answer.

use std::ops::Range;

use millgate_models::{BLOCK_TOKENS, Batch, ForwardError, Model, SequenceSpan};

use super::scheduler::{Plan, Scheduler};

/// Owns the model and the batch's memory.
pub(crate) struct Runner {
    model: Box<dyn Model>,
    batch: Batch,
}

/// Logits of a step.
pub(crate) struct Logits<'a> {
    values: &'a [f32],
    vocab_size: usize,
}

/// Where an item's rows are: first the ones that score prompt tokens, then the one that tokens are drawn from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ItemRows {
    /// Prompt positions scored.
    pub(crate) scored: Range<usize>,
    /// Index of the first row.
    pub(crate) first_row: usize,
}

impl ItemRows {
    /// Index of the row that tokens are drawn from.
    pub(crate) fn draw_row(&self) -> usize {
        self.first_row + self.scored.len()
    }
}

impl Logits<'_> {
    pub(crate) fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.vocab_size..][..self.vocab_size]
    }
}

impl Runner {
    pub(crate) fn new(model: Box<dyn Model>) -> Self {
        Self { model, batch: Batch::default() }
    }

    /// Computes a step.
    ///
    /// # Errors
    /// The model's own; nothing of the step counts as computed then.
    pub(crate) fn run(
        &mut self,
        plan: &Plan,
        scheduler: &Scheduler,
    ) -> Result<(Logits<'_>, Vec<ItemRows>), ForwardError> {
        for &(from, to) in &plan.copies {
            self.model.copy_block(from, to);
        }
        let rows = fill(&mut self.batch, plan, scheduler);
        let vocab_size = self.model.spec().vocab_size;
        let values = self.model.forward(&self.batch)?;
        let wanted = self.batch.output_rows.len() * vocab_size;
        if values.len() != wanted {
            return Err(ForwardError::Batch { what: "logits returned", found: values.len(), limit: wanted });
        }
        Ok((Logits { values, vocab_size }, rows))
    }
}

/// Writes the batch of a plan and returns each item's rows.
fn fill(batch: &mut Batch, plan: &Plan, scheduler: &Scheduler) -> Vec<ItemRows> {
    batch.clear();
    let mut rows = Vec::with_capacity(plan.items.len());
    for item in &plan.items {
        let sequence = scheduler.sequence(item.id).expect("planned sequences live until the step is over");
        let end = item.first + item.count;
        let start = batch.tokens.len();
        batch.tokens.extend(&sequence.known[item.first..end]);
        batch.positions.extend((item.first..end).map(narrow));
        let slot = |position: usize| {
            sequence.table[position / BLOCK_TOKENS] * narrow(BLOCK_TOKENS) + narrow(position % BLOCK_TOKENS)
        };
        batch.slots.extend((item.first..end).map(slot));
        let blocks = end.div_ceil(BLOCK_TOKENS);
        batch.sequences.push(SequenceSpan {
            query_start: narrow(start),
            query_len: narrow(item.count),
            context_len: narrow(end),
            table_start: narrow(batch.tables.len()),
            table_len: narrow(blocks),
        });
        batch.tables.extend(&sequence.table[..blocks]);
        let scored = sequence.score_positions(item.first, item.count);
        rows.push(ItemRows { scored: scored.clone(), first_row: batch.output_rows.len() });
        batch.output_rows.extend(scored.map(|position| narrow(start + position - item.first)));
        if item.draws > 0 {
            batch.output_rows.push(narrow(start + item.count - 1));
        }
    }
    rows
}

fn narrow(value: usize) -> u32 {
    u32::try_from(value).expect("a batch is far smaller than 2^32")
}
