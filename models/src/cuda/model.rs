//! A decoder on a GPU behind the engine's seam: steps go out in one upload, decode steps as recorded graphs.

use std::collections::VecDeque;
use std::time::Duration;

use millgate_kernels::cuda::{
    Activation, AttentionPlan, AttentionSizes, Buffer, CudaError, DrawOutcome, Event, Gpu, KvElement, Pinned,
};
use tracing::{info, warn};

use super::decoder::{Decoder, Pass, decode_room};
use super::draws;
use super::recorded::Recordings;
use super::words::{self, Layout, Room};
use crate::batch::{Batch, PAD_SLOT, SequenceSpan};
use crate::draw::{Draw, DrawError, DrawingModel, Drawn, MAX_IN_FLIGHT, Output, Penalties, Step, StepOutput};
use crate::model::{ForwardError, Model, ModelSpec};

/// Words for adjustments: 256 rows that each penalise 2,048 different tokens. A step with more takes more memory, and the
/// decode steps are recorded anew.
const TAIL_WORDS: usize = 1 << 21;

/// A decoder ready to compute.
pub(super) struct CudaModel<T, C> {
    spec: ModelSpec,
    decoder: Decoder<T, C>,
    /// This step's numbers, on the host and on the device.
    words: Vec<u32>,
    device_words: Buffer<u32>,
    plans: Vec<AttentionPlan>,
    order: Vec<u32>,
    /// Block copies asked for since the last step.
    copies: Vec<(u32, u32)>,
    /// The recorded decode steps, once there is a cache.
    recorded: Option<Recordings>,
    /// They use memory that was given up since.
    is_stale: bool,
    /// Memory of the host for each step in flight, taken in turn.
    stages: [Stage; MAX_IN_FLIGHT],
    /// The stage of the step launched last.
    turn: usize,
    in_flight: VecDeque<Flight>,
    /// Draws of the step launched last that are on the device.
    num_last_draws: usize,
    draws: Vec<Result<Drawn, DrawError>>,
    is_timed: bool,
    /// The step that `forward` makes of a batch.
    step: Step,
}

/// What one step copies to the device and back.
struct Stage {
    words: Pinned<u32>,
    outcomes: Pinned<u32>,
    logits: Pinned<f32>,
}

/// A step in flight.
struct Flight {
    stage: usize,
    /// Of each draw: whether its log probabilities are wanted.
    wants_scores: Vec<bool>,
    num_logits: usize,
    /// Its begin and its end on the device.
    times: Option<(Event, Event)>,
}

impl<T: Activation, C: KvElement> CudaModel<T, C> {
    /// Puts a decoder behind the seam. Its cache may be added later.
    pub(super) fn new(spec: ModelSpec, decoder: Decoder<T, C>) -> Result<Self, CudaError> {
        let gpu = decoder.gpu.clone();
        let rows = spec.max_output_rows;
        let words = word_room(&decoder.sizes, rows, (spec.max_step_tokens, spec.context_window));
        let stage = || -> Result<Stage, CudaError> {
            Ok(Stage {
                words: gpu.pinned(words)?,
                outcomes: gpu.pinned(rows * DrawOutcome::WORDS)?,
                logits: gpu.pinned(spec.vocab_size)?,
            })
        };
        Ok(Self {
            stages: [stage()?, stage()?],
            device_words: gpu.zeroed(words)?,
            plans: decoder.sizes.iter().map(|_| AttentionPlan::default()).collect(),
            spec,
            decoder,
            words: Vec::new(),
            order: Vec::new(),
            copies: Vec::new(),
            recorded: None,
            is_stale: false,
            turn: 0,
            in_flight: VecDeque::new(),
            num_last_draws: 0,
            draws: Vec::new(),
            is_timed: false,
            step: Step::default(),
        })
    }

    pub(super) fn decoder(&mut self) -> &mut Decoder<T, C> {
        &mut self.decoder
    }

    pub(super) fn spec_mut(&mut self) -> &mut ModelSpec {
        &mut self.spec
    }

    /// Computes the largest step once, so that everything that takes memory at its first use has taken it.
    pub(super) fn rehearse(&mut self) -> Result<(), CudaError> {
        let tokens = self.spec.max_step_tokens.min(self.spec.context_window);
        let mut step = idle_step(1);
        let batch = &mut step.batch;
        batch.tokens = vec![0; tokens];
        batch.positions = (0..tokens as u32).collect();
        batch.slots = vec![PAD_SLOT; tokens];
        let blocks = tokens.div_ceil(crate::BLOCK_TOKENS);
        batch.tables = vec![0; blocks];
        let (query_len, table_len) = (tokens as u32, blocks as u32);
        batch.sequences =
            vec![SequenceSpan { query_start: 0, query_len, context_len: query_len, table_start: 0, table_len }];
        batch.output_rows = vec![0; self.spec.max_output_rows];
        step.outputs = vec![step.outputs[0]; self.spec.max_output_rows];
        self.queue(&step, self.turn)?;
        self.decoder.gpu.synchronise()
    }

    /// Records the decode steps. Cache and activations must stay where they are from now on.
    pub(super) fn record(&mut self) -> Result<(), CudaError> {
        let most = self.spec.max_output_rows;
        for rows in Recordings::sizes(most) {
            // Once eagerly: libraries choose their algorithms at the first call.
            let step = idle_step(rows);
            self.cut(&step)?;
            let layout = Recordings::layout(&self.decoder, &self.device_words, rows);
            words::write(&mut self.words, &layout, &step, &self.plans, &self.order, &[]);
            self.upload(self.turn)?;
            self.decoder.run(Pass { words: &self.device_words, layout: &layout, tokens: rows, outputs: rows })?;
        }
        self.recorded = Some(Recordings::record(&mut self.decoder, &self.device_words, most)?);
        self.is_stale = false;
        self.tell_fallbacks();
        self.decoder.gpu.synchronise()
    }

    /// Cuts the step's attention, orders its output rows, and makes room for both.
    fn cut(&mut self, step: &Step) -> Result<(), CudaError> {
        for (plan, sizes) in self.plans.iter_mut().zip(&self.decoder.sizes) {
            plan.fill(sizes, &step.batch.sequences);
        }
        draws::order(step, &mut self.order);
        self.is_stale |= self.decoder.reserve_partial(&self.plans)?;
        Ok(())
    }

    /// Queues a step: as a graph where one was recorded for it, else operation by operation.
    fn queue(&mut self, step: &Step, stage: usize) -> Result<(), CudaError> {
        self.cut(step)?;
        let (tokens, outputs) = (step.batch.tokens.len(), step.batch.output_rows.len());
        let copies = std::mem::take(&mut self.copies);
        let is_plain = copies.is_empty() && self.is_decode(step);
        let found = self.recorded.as_ref().filter(|_| is_plain).and_then(|recorded| recorded.find(tokens));
        let (size, layout) = match found {
            Some((size, layout)) => (Some(size), layout.clone()),
            None => (None, self.exact_layout(step, copies.len())),
        };
        words::write(&mut self.words, &layout, step, &self.plans, &self.order, &copies);
        self.make_room()?;
        self.upload(stage)?;
        // What the step before drew is overwritten from here on.
        self.num_last_draws = 0;
        if let (Some(size), Some(recorded)) = (size, &mut self.recorded) {
            return recorded.launch(size);
        }
        let pass = Pass { words: &self.device_words, layout: &layout, tokens, outputs };
        self.decoder.copy_blocks(pass)?;
        if tokens > 0 { self.decoder.run(pass) } else { Ok(()) }
    }

    /// Makes room for the words at hand, and records the decode steps anew when memory that they use was given up.
    fn make_room(&mut self) -> Result<(), CudaError> {
        let wanted = self.words.len();
        if wanted > self.device_words.len() {
            let gpu = self.decoder.gpu.clone();
            let room = wanted.next_power_of_two();
            // All of it, or everything stays as it is.
            let (on_device, on_host) = (gpu.zeroed(room)?, [gpu.pinned(room)?, gpu.pinned(room)?]);
            self.device_words = on_device;
            self.stages.iter_mut().zip(on_host).for_each(|(stage, words)| stage.words = words);
            self.is_stale = true;
        }
        if let Some(recorded) = self.recorded.as_mut().filter(|_| self.is_stale) {
            // The old ones first: they hold on to the memory that was given up.
            *recorded = Recordings::default();
            *recorded = Recordings::record(&mut self.decoder, &self.device_words, self.spec.max_output_rows)?;
            let kib = self.device_words.len() * size_of::<u32>() / 1024;
            info!(device = %self.spec.device, "a step outgrew its buffers: there is room for {kib} KiB of its lists now, and the decode steps were recorded again");
        }
        self.is_stale = false;
        Ok(())
    }

    /// Sends a step's words to the device.
    fn upload(&mut self, stage: usize) -> Result<(), CudaError> {
        let (used, staging) = (self.words.len(), &mut self.stages[stage].words);
        staging.write()?[..used].copy_from_slice(&self.words);
        self.device_words.slice_mut(..used).copy_from_pinned(staging)
    }

    /// A layout without room to spare.
    fn exact_layout(&self, step: &Step, num_copies: usize) -> Layout {
        let batch = &step.batch;
        let is_whole = self.order.len() == batch.tokens.len() && (0..).zip(&self.order).all(|(row, &at)| row == at);
        let plan = |plan: &AttentionPlan| [plan.decode.len() / 4, plan.combine.len() / 4, plan.prefill.len() / 4];
        Layout::new(&Room {
            tokens: batch.tokens.len(),
            sequences: batch.sequences.len(),
            gathered: if is_whole { 0 } else { batch.output_rows.len() },
            plans: self.plans.iter().map(plan).collect(),
            copies: num_copies,
            draws: step.num_draws(),
            tail: batch.tables.len().next_multiple_of(4) + 4 * step.adjustments.len(),
        })
    }

    /// Whether every sequence computes one token and draws from it, or gives its logits.
    fn is_decode(&self, step: &Step) -> bool {
        self.order.len() == step.batch.tokens.len()
            && step.batch.sequences.iter().all(|span| span.query_len == 1)
            && (0..).zip(&self.order).all(|(row, &output)| row == output)
    }

    /// Logs what is computed otherwise than wanted, once for each size.
    fn tell_fallbacks(&self) {
        for fallback in self.decoder.gpu.take_fallbacks() {
            warn!(device = %self.spec.device, "{fallback}");
        }
    }

    /// Puts a step in flight. When that fails nothing of it counts: not its draws, not its block copies.
    fn send(&mut self, step: &Step) -> Result<(), CudaError> {
        let stage = (self.turn + 1) % self.stages.len();
        let sent = self.queue_all(step, stage);
        self.tell_fallbacks();
        self.copies.clear();
        let flight = sent?;
        self.turn = stage;
        self.num_last_draws = flight.wants_scores.len();
        self.in_flight.push_back(flight);
        Ok(())
    }

    /// Queues a step and the copies of what comes of it.
    fn queue_all(&mut self, step: &Step, stage: usize) -> Result<Flight, CudaError> {
        let vocab = self.spec.vocab_size;
        let draws =
            step.outputs.iter().filter_map(|output| if let Output::Draw(draw) = output { Some(draw) } else { None });
        let wants_scores: Vec<bool> = draws.map(|draw| draw.logprobs.is_some()).collect();
        let num_draws = wants_scores.len();
        let num_logits = step.outputs.len() - num_draws;
        if self.stages[stage].logits.len() < num_logits * vocab {
            self.stages[stage].logits = self.decoder.gpu.pinned(num_logits * vocab)?;
        }
        let event = |is_timed: bool, gpu: &Gpu| -> Result<Option<Event>, CudaError> {
            let event = if is_timed { Some(Event::new(gpu)?) } else { None };
            event.as_ref().map_or(Ok(()), Event::record)?;
            Ok(event)
        };
        let begin = event(self.is_timed, &self.decoder.gpu)?;
        self.queue(step, stage)?;
        let times = begin.zip(event(self.is_timed, &self.decoder.gpu)?);
        let Stage { outcomes, logits, .. } = &mut self.stages[stage];
        if num_draws > 0 {
            self.decoder.outcomes.slice(..num_draws * DrawOutcome::WORDS).copy_to_pinned(outcomes)?;
        }
        if num_logits > 0 {
            let rows = num_draws * vocab..(num_draws + num_logits) * vocab;
            self.decoder.space.logits.slice(rows).copy_to_pinned(logits)?;
        }
        Ok(Flight { stage, wants_scores, num_logits, times })
    }

    /// Waits for the oldest step.
    fn receive(&mut self) -> Result<StepOutput<'_>, ForwardError> {
        let none = ForwardError::Batch { what: "steps in flight", found: 0, limit: 1 };
        let flight = self.in_flight.pop_front().ok_or(none)?;
        let stage = &self.stages[flight.stage];
        let gpu = |source| ForwardError::Gpu { source };
        self.draws.clear();
        if !flight.wants_scores.is_empty() {
            let len = flight.wants_scores.len() * DrawOutcome::WORDS;
            draws::read(&stage.outcomes.read().map_err(gpu)?[..len], &flight.wants_scores, &mut self.draws);
        }
        let len = flight.num_logits * self.spec.vocab_size;
        let logits: &[f32] = if len > 0 { &stage.logits.read().map_err(gpu)?[..len] } else { &[] };
        if flight.wants_scores.is_empty() && len == 0 {
            // Nothing was copied that could be waited for.
            self.decoder.gpu.synchronise().map_err(gpu)?;
        }
        let device_time = match flight.times {
            Some((begin, end)) => {
                end.wait().map_err(gpu)?;
                Some(Duration::from_secs_f32(end.ms_since(&begin).map_err(gpu)? / 1e3))
            }
            None => None,
        };
        Ok(StepOutput { logits, draws: &self.draws, device_time })
    }
}

impl<T: Activation, C: KvElement> Model for CudaModel<T, C> {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&mut self, batch: &Batch) -> Result<&[f32], ForwardError> {
        batch.check(&self.spec).inspect_err(|_| self.copies.clear())?;
        let mut step = std::mem::take(&mut self.step);
        step.clear();
        step.batch.clone_from(batch);
        step.outputs.resize(batch.output_rows.len(), Output::Logits);
        let sent = self.send(&step);
        self.step = step;
        sent.map_err(|source| ForwardError::Gpu { source })?;
        self.receive().map(|output| output.logits)
    }

    fn copy_block(&mut self, from: u32, to: u32) {
        self.copies.push((from, to));
    }

    fn drawing(&mut self) -> Option<&mut dyn DrawingModel> {
        Some(self)
    }
}

impl<T: Activation, C: KvElement> DrawingModel for CudaModel<T, C> {
    fn launch(&mut self, step: &Step) -> Result<(), ForwardError> {
        let found = self.in_flight.len();
        let is_full = found == MAX_IN_FLIGHT;
        let full = ForwardError::Batch { what: "steps in flight", found, limit: MAX_IN_FLIGHT - 1 };
        let checked = if is_full { Err(full) } else { step.check(&self.spec, self.num_last_draws) };
        // What is refused takes its block copies with it.
        checked.inspect_err(|_| self.copies.clear())?;
        self.send(step).map_err(|source| ForwardError::Gpu { source })
    }

    fn collect(&mut self) -> Result<StepOutput<'_>, ForwardError> {
        self.receive()
    }

    fn time_steps(&mut self) {
        self.is_timed = true;
    }
}

/// Words that a step may take before it needs more memory: output rows, tokens, and tokens of a sequence.
pub(super) fn word_room(sizes: &[AttentionSizes], rows: usize, (tokens, window): (usize, usize)) -> usize {
    let tables = rows * window.div_ceil(crate::BLOCK_TOKENS);
    Layout::new(&decode_room(sizes, rows, window)).tail.start + 16 * tokens + tables + TAIL_WORDS
}

/// A decode step of `rows` sequences of one token that stores nothing.
fn idle_step(rows: usize) -> Step {
    let span = |row: usize| SequenceSpan {
        query_start: row as u32,
        query_len: 1,
        context_len: 1,
        table_start: row as u32,
        table_len: 1,
    };
    let batch = Batch {
        tokens: vec![0; rows],
        positions: vec![0; rows],
        slots: vec![PAD_SLOT; rows],
        sequences: (0..rows).map(span).collect(),
        tables: vec![0; rows],
        output_rows: (0..rows as u32).collect(),
    };
    let greedy = Draw {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        penalties: Penalties { repetition: 1.0, presence: 0.0, frequency: 0.0 },
        seed: 0,
        choice: 0,
        position: 0,
        logprobs: None,
        adjustments_start: 0,
        adjustments_len: 0,
        pending: None,
    };
    Step { batch, outputs: vec![Output::Draw(greedy); rows], ..Step::default() }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
