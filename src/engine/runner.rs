//! Turns planned steps into work for the model, keeps those in flight, and finds each sequence's rows in the answers.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;

use millgate_models::{BLOCK_TOKENS, DrawError, Drawn, ForwardError, Model, Output, PendingToken, SequenceSpan, Step};

use super::asking::{Adjuster, History, draw_of};
use super::generation::Generation;
use super::scheduler::{Item, Plan, Scheduler};
use super::sequence::{Sequence, SequenceId};

/// Owns the model and the memory of its batches.
pub(crate) struct Runner {
    model: Box<dyn Model>,
    draws_itself: bool,
    step: Step,
    adjuster: Adjuster,
    /// Which draw of the step launched last gives a sequence's newest token.
    last_draws: HashMap<SequenceId, u32>,
    /// Oldest first.
    in_flight: VecDeque<Flight>,
}

/// What draws of the model depend on besides the sequences.
#[derive(Clone, Copy)]
pub(crate) struct Wishes<'a> {
    pub(crate) generations: &'a BTreeMap<u64, Generation>,
    pub(crate) end_tokens: &'a [u32],
}

/// A step that was launched.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) items: Vec<Item>,
    /// Of each item.
    pub(crate) rows: Vec<ItemRows>,
    num_logits: usize,
    num_draws: usize,
}

/// Where an item's rows are in the answer: among the logits first the ones that score prompt tokens, then the one that
/// tokens are drawn from, then one for each guess; or a token among those that the model drew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ItemRows {
    /// Prompt positions scored.
    pub(crate) scored: Range<usize>,
    /// Index of the first row of logits.
    pub(crate) first_row: usize,
    /// The model's draw.
    pub(crate) draw: Option<u32>,
}

impl ItemRows {
    /// Index of the row of logits that tokens are drawn from.
    pub(crate) fn draw_row(&self) -> usize {
        self.first_row + self.scored.len()
    }
}

/// What came of a step.
pub(crate) struct Answer<'a> {
    logits: &'a [f32],
    vocab_size: usize,
    draws: &'a [Result<Drawn, DrawError>],
}

impl Answer<'_> {
    pub(crate) fn row(&self, index: usize) -> &[f32] {
        &self.logits[index * self.vocab_size..][..self.vocab_size]
    }

    pub(crate) fn drawn(&self, index: u32) -> Result<Drawn, DrawError> {
        self.draws[index as usize].clone()
    }
}

impl Runner {
    pub(crate) fn new(mut model: Box<dyn Model>) -> Self {
        Self {
            draws_itself: model.drawing().is_some(),
            model,
            step: Step::default(),
            adjuster: Adjuster::default(),
            last_draws: HashMap::new(),
            in_flight: VecDeque::new(),
        }
    }

    /// Whether steps may be launched before the last one has landed.
    pub(crate) fn can_run_ahead(&self) -> bool {
        self.draws_itself
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Launches a step and returns its items, which are given back when that fails.
    ///
    /// # Errors
    /// The model's own; nothing of the step counts as computed then.
    pub(crate) fn launch(
        &mut self,
        plan: Plan,
        scheduler: &Scheduler,
        wishes: Wishes<'_>,
    ) -> Result<&[Item], (Vec<Item>, ForwardError)> {
        for &(from, to) in &plan.copies {
            self.model.copy_block(from, to);
        }
        let rows = self.fill(&plan.items, scheduler, wishes);
        if let Some(model) = self.model.drawing()
            && let Err(failure) = model.launch(&self.step)
        {
            return Err((plan.items, failure));
        }
        self.last_draws = drawn_by(&plan.items, &rows);
        let num_draws = self.step.num_draws();
        let num_logits = self.step.batch.output_rows.len() - num_draws;
        self.in_flight.push_back(Flight { items: plan.items, rows, num_logits, num_draws });
        Ok(self.in_flight.back().map_or(&[], |flight| &flight.items))
    }

    /// Waits for the oldest step in flight; one of a model that does not draw is computed now.
    pub(crate) fn land(&mut self) -> Option<(Flight, Result<Answer<'_>, ForwardError>)> {
        let flight = self.in_flight.pop_front()?;
        let vocab_size = self.model.spec().vocab_size;
        let answer = if self.draws_itself {
            let model = self.model.drawing().expect("a model that draws goes on drawing");
            model.collect().map(|output| Answer { logits: output.logits, vocab_size, draws: output.draws })
        } else {
            self.model.forward(&self.step.batch).map(|logits| Answer { logits, vocab_size, draws: &[] })
        };
        let answer = answer.and_then(|answer| {
            let fault = |what, found, limit| Err(ForwardError::Batch { what, found, limit });
            let wanted = flight.num_logits * vocab_size;
            match (answer.logits.len(), answer.draws.len()) {
                (found, _) if found != wanted => fault("logits returned", found, wanted),
                (_, found) if found != flight.num_draws => fault("draws returned", found, flight.num_draws),
                _ => Ok(answer),
            }
        });
        Some((flight, answer))
    }

    /// Writes the step of a plan and returns each item's rows.
    fn fill(&mut self, items: &[Item], scheduler: &Scheduler, wishes: Wishes<'_>) -> Vec<ItemRows> {
        self.step.clear();
        let mut rows = Vec::with_capacity(items.len());
        let (mut num_logits, mut num_draws) = (0, 0);
        for item in items {
            let sequence = scheduler.sequence(item.id).expect("planned sequences live until the step is over");
            let start = self.step.batch.tokens.len();
            self.add_tokens(item, sequence);
            let outputs = &mut self.step.batch.output_rows;
            let scored = sequence.score_positions(item.first, item.count);
            outputs.extend(scored.clone().map(|position| narrow(start + position - item.first)));
            self.step.outputs.extend(scored.clone().map(|_| Output::Logits));
            let first_row = num_logits;
            num_logits += scored.len();
            let mut draw = None;
            if item.draws > 0 {
                let last = start + item.count - 1;
                outputs.extend((last..=last + item.drafts).map(narrow));
                if self.draws_itself && !item.needs_host {
                    draw = Some(num_draws);
                    num_draws += 1;
                    self.add_draw(item, sequence, wishes);
                } else {
                    num_logits += 1 + item.drafts;
                    self.step.outputs.extend((0..=item.drafts).map(|_| Output::Logits));
                }
            }
            rows.push(ItemRows { scored, first_row, draw });
        }
        rows
    }

    /// Adds an item's tokens, their places in the cache and the span that they make.
    fn add_tokens(&mut self, item: &Item, sequence: &Sequence) {
        let batch = &mut self.step.batch;
        let (start, end) = (batch.tokens.len(), item.first + item.count + item.drafts);
        let most = item.first + item.count;
        let known = most.min(sequence.known.len());
        batch.tokens.extend(&sequence.known[item.first.min(known)..known]);
        for _ in item.first.max(known)..most {
            let draw = self.last_draws[&item.id];
            self.step.pending.push(PendingToken { row: narrow(batch.tokens.len()), draw });
            batch.tokens.push(0);
        }
        batch.tokens.extend(&sequence.guesser.tokens()[..item.drafts]);
        batch.positions.extend((item.first..end).map(narrow));
        let slot = |position: usize| {
            sequence.table[position / BLOCK_TOKENS] * narrow(BLOCK_TOKENS) + narrow(position % BLOCK_TOKENS)
        };
        batch.slots.extend((item.first..end).map(slot));
        let blocks = end.div_ceil(BLOCK_TOKENS);
        batch.sequences.push(SequenceSpan {
            query_start: narrow(start),
            query_len: narrow(item.count + item.drafts),
            context_len: narrow(end),
            table_start: narrow(batch.tables.len()),
            table_len: narrow(blocks),
        });
        batch.tables.extend(&sequence.table[..blocks]);
    }

    /// Adds the draw that follows from an item's last row.
    fn add_draw(&mut self, item: &Item, sequence: &Sequence, wishes: Wishes<'_>) {
        let generation = &wishes.generations[&item.id.request];
        let sampled = sequence.output().len() + sequence.awaited;
        let history = History {
            prompt: &sequence.known[..sequence.prompt_len],
            output: sequence.output(),
            forbidden: generation.forbidden(sampled, wishes.end_tokens),
        };
        let first = self.step.adjustments.len();
        let vocab_size = self.model.spec().vocab_size;
        self.adjuster.list(&generation.sampling, &history, vocab_size, &mut self.step.adjustments);
        let mut draw = draw_of(&generation.sampling, item.id.choice, item.first + item.count);
        draw.adjustments_start = narrow(first);
        draw.adjustments_len = narrow(self.step.adjustments.len() - first);
        draw.pending = (sequence.awaited > 0).then(|| self.last_draws[&item.id]);
        self.step.outputs.push(Output::Draw(draw));
    }
}

fn drawn_by(items: &[Item], rows: &[ItemRows]) -> HashMap<SequenceId, u32> {
    items.iter().zip(rows).filter_map(|(item, rows)| Some((item.id, rows.draw?))).collect()
}

fn narrow(value: usize) -> u32 {
    u32::try_from(value).expect("a batch is far smaller than 2^32")
}
