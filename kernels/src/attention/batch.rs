//! What attention is asked for, and the checks before it starts.

use super::work;
use crate::error::{expect_below, expect_len};
use crate::{BLOCK_TOKENS, KernelError, KvLayer, Pool};

/// The queries of one sequence in this step, and where its context lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceSpan {
    /// Row of the first query.
    pub query_start: u32,
    /// Number of queries: the last `query_len` tokens of the context.
    pub query_len: u32,
    /// Tokens of context, these queries included.
    pub context_len: u32,
    /// Where this sequence's block ids start in `tables`.
    pub table_start: u32,
    /// Number of its block ids; covers the context.
    pub table_len: u32,
}

/// What one call of [`paged_attention`] computes.
#[derive(Debug, Clone, Copy)]
pub struct AttentionBatch<'a> {
    /// One entry a sequence; query rows in no span are left untouched.
    pub sequences: &'a [SequenceSpan],
    /// Block ids of all sequences.
    pub tables: &'a [u32],
    /// Multiplies every score.
    pub scale: f32,
    /// A query sees this many latest positions, itself included; `None` sees all.
    pub window: Option<u32>,
}

/// Attention of every query over its sequence's cached keys and values.
///
/// # Shapes
/// `q`, `out`: `[tokens, heads, head_dim]`; `heads` a multiple of the cache's `kv_heads`.
/// # Errors
/// [`KernelError::Shape`] or [`KernelError::Range`] when lengths, rows or block ids do not fit, or when spans overlap;
/// `out` is then untouched.
/// # Rounding
/// With keys and values in bf16 and a level that multiplies bf16 in pairs (in tiles only heads of whole 32 elements),
/// queries and weights are rounded to bf16, as a model in bf16 has them: next to exact weights of exactly representable queries, a result is off by at most 2⁻⁸ of the
/// largest value.
/// # Source
/// Paged blocks as in arXiv:2309.06180; running softmax as in arXiv:2205.14135.
pub fn paged_attention(
    pool: &Pool,
    q: &[f32],
    kv: &KvLayer,
    batch: &AttentionBatch,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let heads = check(q.len(), kv, batch, out.len())?;
    if heads > 0 {
        work::run(pool, &work::Inputs { q, kv, batch, heads }, out);
    }
    Ok(())
}

/// Returns the number of query heads.
fn check(q_len: usize, kv: &KvLayer, batch: &AttentionBatch, out_len: usize) -> Result<usize, KernelError> {
    const OP: &str = "paged_attention";
    expect_len(OP, "out length", out_len, q_len)?;
    let tokens = batch.sequences.iter().map(|s| u64::from(s.query_start) + u64::from(s.query_len)).max().unwrap_or(0);
    let shape = kv.shape();
    let row = shape.kv_heads * shape.head_dim;
    let tokens = usize::try_from(tokens).unwrap_or(usize::MAX);
    if tokens == 0 {
        return Ok(0);
    }
    if row == 0 || q_len == 0 || !q_len.is_multiple_of(row) || !(q_len / row).is_multiple_of(tokens) {
        let wanted = tokens.saturating_mul(row);
        return Err(KernelError::Shape { op: OP, what: "q length (a multiple)", found: q_len, wanted });
    }
    if batch.window == Some(0) {
        return Err(KernelError::Shape { op: OP, what: "window (at least)", found: 0, wanted: 1 });
    }
    let mut next_free = 0;
    for span in batch.sequences {
        // Ascending and disjoint, so that no two parts of the work write the same row.
        if (span.query_start as usize) < next_free {
            let found = span.query_start as usize;
            return Err(KernelError::Shape { op: OP, what: "query_start (at least)", found, wanted: next_free });
        }
        next_free = span.query_start as usize + span.query_len as usize;
        expect_below(OP, "query_len", span.query_len as usize, span.context_len as usize + 1)?;
        let blocks = (span.context_len as usize).div_ceil(BLOCK_TOKENS);
        expect_below(OP, "context blocks", blocks, span.table_len as usize + 1)?;
        let table_end = span.table_start as usize + span.table_len as usize;
        expect_below(OP, "table end", table_end, batch.tables.len() + 1)?;
        for &block in &batch.tables[span.table_start as usize..][..blocks] {
            expect_below(OP, "block", block as usize, kv.num_blocks())?;
        }
    }
    Ok(q_len / row / tokens * shape.kv_heads)
}
