//! Batches of made-up tokens for the programs that time whole steps.

use millgate_models::{BLOCK_TOKENS, Batch, SequenceSpan};

/// Blocks that so many tokens of a stream take.
pub(crate) fn blocks(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_TOKENS)
}

/// Adds `count` tokens, from position `from` on, of a stream whose blocks follow each other from `first_block` on.
pub(crate) fn add(batch: &mut Batch, first_block: usize, from: usize, count: usize) {
    let (start, end) = (batch.tokens.len(), from + count);
    batch.sequences.push(SequenceSpan {
        query_start: start as u32,
        query_len: count as u32,
        context_len: end as u32,
        table_start: batch.tables.len() as u32,
        table_len: blocks(end) as u32,
    });
    batch.tables.extend((first_block..first_block + blocks(end)).map(|block| block as u32));
    for at in from..end {
        batch.tokens.push((3 + at * 7 % 1000) as u32);
        batch.positions.push(at as u32);
        batch.slots.push((first_block * BLOCK_TOKENS + at) as u32);
    }
}
