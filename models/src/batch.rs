//! What one forward pass computes: a flat, ragged batch of tokens of several sequences.

pub use millgate_kernels::{BLOCK_TOKENS, PAD_SLOT, SequenceSpan};

use crate::model::{ForwardError, ModelSpec};

/// One step's work: the tokens of all scheduled sequences one after the other, and where their keys and values live.
///
/// # Shapes
/// `tokens`, `positions`, `slots`: `[tokens]`. `sequences`: one span a sequence, in the order of its tokens, without
/// gaps. `tables`: the block ids of all sequences; a span names its part. `output_rows`: indices into `tokens` whose
/// logits are wanted, in the order in which the logits come back.
/// # Units
/// A slot is `block_id * BLOCK_TOKENS + offset`, in tokens. Rows with `PAD_SLOT` store nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Absolute position of each token in its sequence, from 0.
    pub positions: Vec<u32>,
    /// Cache slot that takes each token's key and value.
    pub slots: Vec<u32>,
    /// Which tokens belong to which sequence, and how long its context is including them.
    pub sequences: Vec<SequenceSpan>,
    /// Block ids, indexed by the spans' `table_start` and `table_len`.
    pub tables: Vec<u32>,
    /// Indices into `tokens` whose logits are wanted.
    pub output_rows: Vec<u32>,
}

impl Batch {
    /// Empties the batch and keeps its memory for the next step.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.slots.clear();
        self.sequences.clear();
        self.tables.clear();
        self.output_rows.clear();
    }

    /// Checks that a model of this `spec` can compute the batch without touching memory that is not its own.
    ///
    /// # Errors
    /// [`ForwardError::Batch`] naming the first thing that does not fit.
    pub fn check(&self, spec: &ModelSpec) -> Result<(), ForwardError> {
        let tokens = self.tokens.len();
        at_most("tokens in a step", tokens, spec.max_step_tokens)?;
        at_most("output rows", self.output_rows.len(), spec.max_output_rows)?;
        equal("positions", self.positions.len(), tokens)?;
        equal("slots", self.slots.len(), tokens)?;
        below("token id", &self.tokens, spec.vocab_size)?;
        below("position", &self.positions, spec.context_window)?;
        below("block id", &self.tables, spec.num_blocks)?;
        below("output row", &self.output_rows, tokens)?;
        let num_slots = spec.num_blocks.saturating_mul(BLOCK_TOKENS);
        if let Some(&slot) = self.slots.iter().find(|&&slot| slot != PAD_SLOT && slot as usize >= num_slots) {
            return Err(ForwardError::Batch { what: "slot", found: slot as usize, limit: num_slots });
        }
        let mut next = 0;
        for span in &self.sequences {
            equal("start of a sequence's tokens", span.query_start as usize, next)?;
            next += span.query_len as usize;
            at_most("new tokens of a sequence", span.query_len as usize, span.context_len as usize)?;
            at_most("context of a sequence", span.context_len as usize, spec.context_window)?;
            let blocks = (span.context_len as usize).div_ceil(BLOCK_TOKENS);
            at_most("blocks that a context needs", blocks, span.table_len as usize)?;
            let table_end = span.table_start as usize + span.table_len as usize;
            at_most("end of a block table", table_end, self.tables.len())?;
        }
        equal("tokens of all sequences", next, tokens)
    }
}

fn at_most(what: &'static str, found: usize, limit: usize) -> Result<(), ForwardError> {
    if found <= limit { Ok(()) } else { Err(ForwardError::Batch { what, found, limit }) }
}

fn equal(what: &'static str, found: usize, limit: usize) -> Result<(), ForwardError> {
    if found == limit { Ok(()) } else { Err(ForwardError::Batch { what, found, limit }) }
}

fn below(what: &'static str, values: &[u32], limit: usize) -> Result<(), ForwardError> {
    match values.iter().find(|&&value| value as usize >= limit) {
        Some(&value) => Err(ForwardError::Batch { what, found: value as usize, limit }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ModelSpec {
        ModelSpec {
            architecture: "test".into(),
            device: crate::Device::Cpu,
            vocab_size: 10,
            context_window: 64,
            num_layers: 1,
            kv_bytes_per_block: 1,
            num_blocks: 2,
            max_step_tokens: 4,
            max_output_rows: 2,
            parameters: 1,
            weight_bytes: 1,
            gpu_memory: None,
        }
    }

    fn good() -> Batch {
        Batch {
            tokens: vec![1, 2, 3],
            positions: vec![0, 1, 5],
            slots: vec![0, 1, 37],
            sequences: vec![
                SequenceSpan { query_start: 0, query_len: 2, context_len: 2, table_start: 0, table_len: 1 },
                SequenceSpan { query_start: 2, query_len: 1, context_len: 6, table_start: 1, table_len: 1 },
            ],
            tables: vec![0, 1],
            output_rows: vec![1, 2],
        }
    }

    #[test]
    fn a_well_formed_batch_passes() {
        good().check(&spec()).unwrap();
    }

    #[test]
    fn every_index_that_points_outside_is_refused_by_name() {
        type Damage = fn(&mut Batch);
        let broken: [(&str, Damage); 8] = [
            ("token id", |b| b.tokens[0] = 10),
            ("position", |b| b.positions[0] = 64),
            ("slot", |b| b.slots[0] = 64),
            ("block id", |b| b.tables[0] = 2),
            ("output row", |b| b.output_rows[0] = 3),
            ("end of a block table", |b| b.sequences[1].table_len = 2),
            ("blocks that a context needs", |b| b.sequences[0].context_len = 33),
            ("tokens of all sequences", |b| b.sequences[1].query_len = 0),
        ];
        for (name, damage) in broken {
            let mut batch = good();
            damage(&mut batch);
            match batch.check(&spec()) {
                Err(ForwardError::Batch { what, .. }) => assert_eq!(what, name),
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}
