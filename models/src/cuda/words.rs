//! The numbers of one step as they lie in the one buffer that is uploaded for it.

use std::ops::Range;

use millgate_kernels::SequenceSpan;
use millgate_kernels::cuda::{AttentionPlan, AttentionSizes, DRAWN, DrawRow};

use super::draws;

use crate::draw::Step;

/// Parts begin at multiples of this many words, so that kernels may load 16 bytes at once.
const ALIGN: usize = 4;

/// How many entries of each kind there is room for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) tokens: usize,
    pub(super) sequences: usize,
    /// Rows that are gathered before the head; none where every token is an output row, in order.
    pub(super) gathered: usize,
    /// Of each plan of attention: decode items, combinations, prefill items.
    pub(super) plans: Vec<[usize; 3]>,
    pub(super) copies: usize,
    pub(super) draws: usize,
    /// Words of block ids and adjustments.
    pub(super) tail: usize,
}

/// Where each part lies, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) ids: Range<usize>,
    pub(super) positions: Range<usize>,
    pub(super) slots: Range<usize>,
    pub(super) spans: Range<usize>,
    pub(super) gathered: Range<usize>,
    pub(super) plans: Vec<PlanLayout>,
    pub(super) copies: Range<usize>,
    /// Number of draws that count, one word.
    pub(super) num_draws: Range<usize>,
    pub(super) draws: Range<usize>,
    /// Block ids first, then adjustments: the two whose number differs from step to step.
    pub(super) tail: Range<usize>,
}

/// Where the lists of one plan of attention lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlanLayout {
    pub(super) counts: Range<usize>,
    pub(super) decode: Range<usize>,
    pub(super) combine: Range<usize>,
    pub(super) prefill: Range<usize>,
}

impl Layout {
    /// Lays the parts out one after the other.
    pub(super) fn new(room: &Room) -> Self {
        let mut next = 0;
        let mut take = |len: usize| {
            let start = next;
            next = (start + len).next_multiple_of(ALIGN);
            start..start + len
        };
        Self {
            ids: take(room.tokens),
            positions: take(room.tokens),
            slots: take(room.tokens),
            spans: take(5 * room.sequences),
            gathered: take(room.gathered),
            plans: room
                .plans
                .iter()
                .map(|[decode, combine, prefill]| PlanLayout {
                    counts: take(2),
                    decode: take(4 * decode),
                    combine: take(4 * combine),
                    prefill: take(4 * prefill),
                })
                .collect(),
            copies: take(2 * room.copies),
            num_draws: take(1),
            draws: take(DrawRow::WORDS * room.draws),
            tail: take(room.tail),
        }
    }
}

/// Writes a step into `words`, which end where the tail's unused room begins.
///
/// Rows beyond those of the step compute token 0 and store nothing. `order`: the output rows in the order in which their
/// logits are to lie.
pub(super) fn write(
    words: &mut Vec<u32>,
    layout: &Layout,
    step: &Step,
    plans: &[AttentionPlan],
    order: &[u32],
    copies: &[(u32, u32)],
) {
    let batch = &step.batch;
    words.clear();
    words.resize(layout.tail.start, 0);
    words[layout.slots.clone()].fill(millgate_kernels::PAD_SLOT);
    put(words, &layout.ids, &batch.tokens);
    for pending in &step.pending {
        words[layout.ids.start + pending.row as usize] = DRAWN | pending.draw;
    }
    put(words, &layout.positions, &batch.positions);
    put(words, &layout.slots, &batch.slots);
    for (span, to) in batch.sequences.iter().zip(words[layout.spans.clone()].as_chunks_mut().0) {
        *to = span_words(span);
    }
    if !layout.gathered.is_empty() {
        put(words, &layout.gathered, order);
    }
    for (plan, layout) in plans.iter().zip(&layout.plans) {
        put(words, &layout.counts, &plan.counts());
        put(words, &layout.decode, &plan.decode);
        put(words, &layout.combine, &plan.combine);
        put(words, &layout.prefill, &plan.prefill);
    }
    for (&(from, to), pair) in copies.iter().zip(words[layout.copies.clone()].as_chunks_mut().0) {
        *pair = [from, to];
    }
    words.extend(&batch.tables);
    words.resize(words.len().next_multiple_of(ALIGN), 0);
    words[layout.num_draws.start] = step.num_draws() as u32;
    draws::write(step, words, layout.draws.start, layout.tail.start);
}

/// Fills the front of a part.
fn put(words: &mut [u32], part: &Range<usize>, values: &[u32]) {
    words[part.start..part.start + values.len()].copy_from_slice(values);
}

fn span_words(span: &SequenceSpan) -> [u32; 5] {
    [span.query_start, span.query_len, span.context_len, span.table_start, span.table_len]
}

/// The attention sizes that differ between layers, each once, and which of them each layer has.
pub(super) fn distinct_windows(sizes: &AttentionSizes, windows: &[Option<u32>]) -> (Vec<AttentionSizes>, Vec<usize>) {
    let mut distinct: Vec<AttentionSizes> = Vec::new();
    let of_layer = windows.iter().map(|&window| {
        let own = AttentionSizes { window, ..*sizes };
        distinct.iter().position(|known| *known == own).unwrap_or_else(|| {
            distinct.push(own);
            distinct.len() - 1
        })
    });
    let of_layer = of_layer.collect();
    (distinct, of_layer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Batch;
    use crate::draw::PendingToken;

    #[test]
    fn parts_lie_one_after_the_other_at_multiples_of_sixteen_bytes_and_hold_the_step() {
        let span = |query_start, context_len, table_start| SequenceSpan {
            query_start,
            query_len: 1,
            context_len,
            table_start,
            table_len: 1,
        };
        let batch = Batch {
            tokens: vec![7, 0],
            positions: vec![3, 9],
            slots: vec![35, 41],
            sequences: vec![span(0, 4, 0), span(1, 10, 1)],
            tables: vec![1, 2],
            output_rows: vec![0, 1],
        };
        let pending = vec![PendingToken { row: 1, draw: 5 }];
        let step = Step { batch, pending, ..Step::default() };
        let sizes = AttentionSizes { heads: 2, kv_heads: 1, head_dim: 64, window: None, is_f32: false };
        let mut plan = AttentionPlan::default();
        plan.fill(&sizes, &step.batch.sequences);
        let room = Room { tokens: 3, sequences: 3, plans: vec![[3, 0, 0]], copies: 1, tail: 9, ..Room::default() };
        let layout = Layout::new(&room);
        let mut words = Vec::new();
        write(&mut words, &layout, &step, &[plan], &[], &[(4, 5)]);
        assert_eq!(words[layout.ids.clone()], [7, DRAWN | 5, 0]);
        assert_eq!(words[layout.positions.clone()], [3, 9, 0]);
        assert_eq!(words[layout.slots.clone()], [35, 41, millgate_kernels::PAD_SLOT]);
        assert_eq!(words[layout.spans.clone()], [0, 1, 4, 0, 1, 1, 1, 10, 1, 1, 0, 0, 0, 0, 0]);
        assert_eq!(words[layout.plans[0].counts.clone()], [2, 0]);
        assert_eq!(words[layout.copies.clone()], [4, 5]);
        assert_eq!(words[layout.tail.start..], [1, 2, 0, 0]);
        let starts = [layout.ids, layout.positions, layout.slots, layout.spans, layout.copies, layout.tail];
        assert!(starts.iter().all(|part| part.start.is_multiple_of(ALIGN)));
        assert!(starts.windows(2).all(|pair| pair[0].end <= pair[1].start));
    }

    #[test]
    fn layers_with_the_same_window_share_a_plan() {
        let sizes = AttentionSizes { heads: 2, kv_heads: 1, head_dim: 64, window: None, is_f32: false };
        let (distinct, of_layer) = distinct_windows(&sizes, &[None, Some(20), None, Some(20)]);
        assert_eq!(of_layer, [0, 1, 0, 1]);
        assert_eq!(distinct[1].window, Some(20));
        assert_eq!(distinct.len(), 2);
    }
}
