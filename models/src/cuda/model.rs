//! A decoder on a GPU behind the engine's seam: steps go out in one upload, decode steps as recorded graphs.

use std::collections::{BTreeMap, VecDeque};

use millgate_kernels::cuda::{Activation, AttentionPlan, Buffer, CudaError, DrawOutcome, Graph, KvElement, Pinned};
use tracing::warn;

use super::decoder::{Decoder, Pass};
use super::draws;
use super::words::{self, Layout, Room};
use crate::batch::{Batch, PAD_SLOT, SequenceSpan};
use crate::draw::{Draw, DrawError, DrawingModel, Drawn, MAX_IN_FLIGHT, Output, Penalties, Step, StepOutput};
use crate::model::{ForwardError, Model, ModelSpec};

/// Numbers of rows that decode steps are recorded for; a step takes the next larger one.
const BUCKETS: [usize; 16] = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 384];
/// Words for adjustments: 256 rows that each penalise 2,048 different tokens. A step with more takes new memory, which ends
/// the recorded steps.
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
    graphs: BTreeMap<usize, Recorded>,
    /// Memory of the host for each step in flight, taken in turn.
    stages: [Stage; MAX_IN_FLIGHT],
    turn: usize,
    in_flight: VecDeque<Flight>,
    num_last_draws: usize,
    draws: Vec<Result<Drawn, DrawError>>,
    /// The step that `forward` makes of a batch.
    step: Step,
}

/// A decode step for a number of rows.
struct Recorded {
    layout: Layout,
    graph: Graph,
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
}

impl<T: Activation, C: KvElement> CudaModel<T, C> {
    /// Puts a decoder behind the seam. Its cache may be added later.
    pub(super) fn new(spec: ModelSpec, decoder: Decoder<T, C>) -> Result<Self, CudaError> {
        let gpu = decoder.gpu.clone();
        let rows = spec.max_output_rows;
        let tables = rows * spec.context_window.div_ceil(crate::BLOCK_TOKENS);
        let words =
            Layout::new(&decoder.decode_room(rows)).tail.start + 16 * spec.max_step_tokens + tables + TAIL_WORDS;
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
            graphs: BTreeMap::new(),
            turn: 0,
            in_flight: VecDeque::new(),
            num_last_draws: 0,
            draws: Vec::new(),
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
        self.queue(&step)?;
        self.decoder.gpu.synchronise()
    }

    /// Records the decode steps. Cache and activations must stay where they are from now on.
    pub(super) fn record(&mut self) -> Result<(), CudaError> {
        self.graphs.clear();
        let most = self.spec.max_output_rows;
        let sizes: Vec<usize> = BUCKETS.into_iter().filter(|&rows| rows < most).chain([most]).collect();
        // The largest first: no smaller one needs memory that it has not taken.
        for rows in sizes.into_iter().rev() {
            let step = idle_step(rows);
            let mut layout = Layout::new(&self.decoder.decode_room(rows));
            layout.tail.end = self.device_words.len();
            self.cut(&step)?;
            // Once eagerly: libraries choose their algorithms at the first call.
            self.upload(&step, &layout, &[])?;
            let Self { decoder, device_words, .. } = self;
            let pass = Pass { words: device_words, layout: &layout, tokens: rows, outputs: rows };
            decoder.run(pass)?;
            let gpu = decoder.gpu.clone();
            let graph = gpu.capture(|| decoder.run(pass))?;
            self.graphs.insert(rows, Recorded { layout, graph });
        }
        self.tell_fallbacks();
        self.decoder.gpu.synchronise()
    }

    /// Cuts the step's attention, orders its output rows, and makes room for both.
    fn cut(&mut self, step: &Step) -> Result<(), CudaError> {
        for (plan, sizes) in self.plans.iter_mut().zip(&self.decoder.sizes) {
            plan.fill(sizes, &step.batch.sequences);
        }
        draws::order(step, &mut self.order);
        if self.decoder.reserve_partial(&self.plans)? {
            // They write to the memory that was given up.
            self.graphs.clear();
        }
        Ok(())
    }

    /// Queues a step: as a graph where one was recorded for it, else operation by operation.
    fn queue(&mut self, step: &Step) -> Result<(), CudaError> {
        self.cut(step)?;
        let (tokens, outputs) = (step.batch.tokens.len(), step.batch.output_rows.len());
        let copies = std::mem::take(&mut self.copies);
        if copies.is_empty() && self.is_decode(step) {
            let found = self.graphs.range(tokens..).next().map(|(&bucket, recorded)| (bucket, recorded.layout.clone()));
            if let Some((bucket, layout)) = found
                && self.upload(step, &layout, &[])?
                && let Some(recorded) = self.graphs.get_mut(&bucket)
            {
                return recorded.graph.launch();
            }
        }
        let layout = self.exact_layout(step, copies.len());
        self.upload(step, &layout, &copies)?;
        let pass = Pass { words: &self.device_words, layout: &layout, tokens, outputs };
        self.decoder.copy_blocks(pass)?;
        if tokens > 0 { self.decoder.run(pass) } else { Ok(()) }
    }

    /// Sends a step's words to the device; `false` when they took new memory, and recorded steps are gone.
    fn upload(&mut self, step: &Step, layout: &Layout, copies: &[(u32, u32)]) -> Result<bool, CudaError> {
        words::write(&mut self.words, layout, step, &self.plans, &self.order, copies);
        let used = self.words.len();
        let fits = used <= self.device_words.len();
        if !fits {
            let gpu = self.decoder.gpu.clone();
            let room = used.next_power_of_two();
            self.graphs.clear();
            self.device_words = gpu.zeroed(room)?;
            for stage in &mut self.stages {
                stage.words = gpu.pinned(room)?;
            }
        }
        let staging = &mut self.stages[self.turn].words;
        staging.write()?[..used].copy_from_slice(&self.words);
        self.device_words.slice_mut(..used).copy_from_pinned(staging)?;
        Ok(fits)
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

    /// Queues a step and the copies of what comes of it.
    fn send(&mut self, step: &Step) -> Result<(), CudaError> {
        self.turn = (self.turn + 1) % self.stages.len();
        self.queue(step)?;
        self.tell_fallbacks();
        let vocab = self.spec.vocab_size;
        let draws =
            step.outputs.iter().filter_map(|output| if let Output::Draw(draw) = output { Some(draw) } else { None });
        let wants_scores: Vec<bool> = draws.map(|draw| draw.logprobs.is_some()).collect();
        let num_draws = wants_scores.len();
        let num_logits = step.outputs.len() - num_draws;
        let stage = &mut self.stages[self.turn];
        if num_draws > 0 {
            self.decoder.outcomes.slice(..num_draws * DrawOutcome::WORDS).copy_to_pinned(&mut stage.outcomes)?;
        }
        if num_logits > 0 {
            if stage.logits.len() < num_logits * vocab {
                stage.logits = self.decoder.gpu.pinned(num_logits * vocab)?;
            }
            let rows = num_draws * vocab..(num_draws + num_logits) * vocab;
            self.decoder.space.logits.slice(rows).copy_to_pinned(&mut stage.logits)?;
        }
        self.num_last_draws = num_draws;
        self.in_flight.push_back(Flight { stage: self.turn, wants_scores, num_logits });
        Ok(())
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
        Ok(StepOutput { logits, draws: &self.draws })
    }
}

impl<T: Activation, C: KvElement> Model for CudaModel<T, C> {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&mut self, batch: &Batch) -> Result<&[f32], ForwardError> {
        batch.check(&self.spec)?;
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
        step.check(&self.spec, self.num_last_draws)?;
        let in_flight = self.in_flight.len();
        if in_flight == MAX_IN_FLIGHT {
            return Err(ForwardError::Batch { what: "steps in flight", found: in_flight, limit: MAX_IN_FLIGHT - 1 });
        }
        self.send(step).map_err(|source| ForwardError::Gpu { source })
    }

    fn collect(&mut self) -> Result<StepOutput<'_>, ForwardError> {
        self.receive()
    }
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
