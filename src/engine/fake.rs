//! The tests' own model: its logits are a function of the tokens that it finds through its paged cache.
//!
//! A second implementation of the [`Model`] seam, small enough to run by the thousand. It knows nothing of a sequence
//! but its block table, so an error in tables, copies, prefix hits or recomputation shows as wrong text.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use millgate_models::text::{ChatTemplate, ModelText, Tokenizer};
use millgate_models::{
    Adjustment, BLOCK_TOKENS, Batch, Device, Draw, DrawError, DrawingModel, Drawn, ForwardError, MAX_IN_FLIGHT, Model,
    ModelSpec, Output, PAD_SLOT, SequenceSpan, Step, StepOutput,
};

use super::sampler::Sampler;

/// Sizes and manners of a [`FakeModel`].
#[derive(Debug, Clone)]
pub struct FakeOptions {
    /// Blocks of the cache.
    pub num_blocks: usize,
    /// Longest sequence, in tokens.
    pub context_window: usize,
    /// Most tokens in a batch.
    pub max_step_tokens: usize,
    /// Most output rows in a batch.
    pub max_output_rows: usize,
    /// Logit of the end token; letters have -2 to 6. Minus infinity: answers never end by themselves.
    pub end_logit: f32,
    /// Added to the logit of the token that stands [`FakeModel::ECHO`] places back: from some 5 on, texts repeat themselves.
    pub echo_logit: f32,
    /// Time that every step takes at least.
    pub step_delay: Duration,
    /// Time that each output row adds.
    pub row_delay: Duration,
    /// Time that each further token of the batch adds.
    pub prompt_token_delay: Duration,
    /// Lets steps through one by one; none: they run freely.
    pub gate: Option<Arc<Gate>>,
    /// Draw tokens like a model on a device of its own: everything launched is done when it is collected, no sooner.
    pub draws: bool,
}

/// Stands before each step of a [`FakeModel`] until it is let through, for tests that count steps.
#[derive(Debug, Default)]
pub struct Gate {
    allowed: Mutex<u64>,
    changed: Condvar,
}

impl Gate {
    /// Lets so many more steps through.
    pub fn allow(&self, steps: u64) {
        let mut allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        *allowed = allowed.saturating_add(steps);
        self.changed.notify_all();
    }

    fn pass(&self) {
        let allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut allowed =
            self.changed.wait_while(allowed, |allowed| *allowed == 0).unwrap_or_else(PoisonError::into_inner);
        *allowed -= 1;
    }
}

impl Default for FakeOptions {
    /// Room for 64 sequences; answers end by themselves after some dozens of tokens.
    fn default() -> Self {
        Self {
            num_blocks: 512,
            context_window: 2048,
            max_step_tokens: 512,
            max_output_rows: 64,
            end_logit: 3.0,
            echo_logit: 0.0,
            step_delay: Duration::ZERO,
            row_delay: Duration::ZERO,
            prompt_token_delay: Duration::ZERO,
            gate: None,
            draws: false,
        }
    }
}

/// What a cache slot holds: a token and its position.
type Cell = Option<(u32, u32)>;

/// A model without weights.
#[derive(Debug)]
pub struct FakeModel {
    spec: ModelSpec,
    options: FakeOptions,
    cells: Vec<Cell>,
    logits: Vec<f32>,
    device: Queue,
}

/// What a model that draws holds besides.
#[derive(Debug, Default)]
struct Queue {
    queue: VecDeque<Job>,
    sampler: Sampler,
    /// Of the step collected last.
    draws: Vec<Result<Drawn, DrawError>>,
    wanted_logits: Vec<f32>,
}

#[derive(Debug)]
enum Job {
    Copy { from: u32, to: u32 },
    Step(Box<Step>),
}

impl FakeModel {
    /// Ends an answer.
    pub const END_TOKEN: u32 = 256;
    /// As the last token of a context it makes the logits NaN.
    pub const NAN_TOKEN: u32 = 270;
    /// Anywhere in a batch it makes the forward pass fail.
    pub const ERROR_TOKEN: u32 = 271;
    /// Anywhere in a batch it makes the forward pass panic.
    pub const PANIC_TOKEN: u32 = 272;
    /// How far back the token is whose logit [`FakeOptions::echo_logit`] raises.
    pub const ECHO: usize = 9;
    /// Rows of logits; more than the tokenizer has tokens, as in real models.
    pub const VOCAB_SIZE: usize = 288;

    /// A model with an empty cache.
    pub fn new(options: FakeOptions) -> Self {
        let spec = ModelSpec {
            architecture: "fake".to_owned(),
            device: Device::Cpu,
            vocab_size: Self::VOCAB_SIZE,
            context_window: options.context_window,
            num_layers: 1,
            kv_bytes_per_block: BLOCK_TOKENS * size_of::<Cell>(),
            num_blocks: options.num_blocks,
            max_step_tokens: options.max_step_tokens,
            max_output_rows: options.max_output_rows,
            parameters: 0,
            weight_bytes: 0,
            gpu_memory: None,
        };
        Self {
            spec,
            cells: vec![None; options.num_blocks * BLOCK_TOKENS],
            options,
            logits: Vec::new(),
            device: Queue::default(),
        }
    }

    /// The tokenizer that goes with the model: ids 0 to 255 are bytes, then three control tokens.
    pub fn text() -> ModelText {
        let tokenizer = Tokenizer::from_json(tokenizer_json().to_string().as_bytes())
            .expect("the tokenizer is a constant, and the tests load it");
        let template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>";
        let chat_template = ChatTemplate::new(template, None, None).expect("the template is a constant");
        ModelText { tokenizer, chat_template: Some(chat_template), end_tokens: vec![Self::END_TOKEN] }
    }

    /// The logits after a context, computed without any cache: what the model must give when all books are right.
    pub fn logits_after(context: &[u32], options: &FakeOptions) -> Vec<f32> {
        let cells = (0..).zip(context).map(|(position, &token)| Some((token, position)));
        let mut logits = Vec::new();
        let echo = context.len().checked_sub(Self::ECHO).map(|at| context[at]);
        append_logits(context_hash(cells), [context.last().copied(), echo], options, &mut logits);
        logits
    }

    fn cell(&self, span: &SequenceSpan, tables: &[u32], position: u32) -> Cell {
        let (block, offset) = (position as usize / BLOCK_TOKENS, position as usize % BLOCK_TOKENS);
        self.cells[tables[span.table_start as usize + block] as usize * BLOCK_TOKENS + offset]
    }
}

impl Model for FakeModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&mut self, batch: &Batch) -> Result<&[f32], ForwardError> {
        assert!(!self.options.draws, "a model that draws is asked for tokens");
        self.compute(batch)?;
        Ok(&self.logits)
    }

    fn copy_block(&mut self, from: u32, to: u32) {
        if self.options.draws {
            self.device.queue.push_back(Job::Copy { from, to });
        } else {
            self.copy_now(from, to);
        }
    }

    fn drawing(&mut self) -> Option<&mut dyn DrawingModel> {
        self.options.draws.then_some(self)
    }
}

impl DrawingModel for FakeModel {
    fn launch(&mut self, step: &Step) -> Result<(), ForwardError> {
        let steps =
            || self.device.queue.iter().filter_map(|job| if let Job::Step(step) = job { Some(step) } else { None });
        let previous_draws = steps().next_back().map_or(self.device.draws.len(), |step| step.num_draws());
        step.check(&self.spec, previous_draws)?;
        let in_flight = steps().count();
        if in_flight == MAX_IN_FLIGHT {
            return Err(ForwardError::Batch { what: "steps in flight", found: in_flight, limit: MAX_IN_FLIGHT - 1 });
        }
        self.device.queue.push_back(Job::Step(Box::new(step.clone())));
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput<'_>, ForwardError> {
        loop {
            match self.device.queue.pop_front() {
                Some(Job::Copy { from, to }) => self.copy_now(from, to),
                Some(Job::Step(step)) => {
                    self.run(&step)?;
                    return Ok(StepOutput {
                        logits: &self.device.wanted_logits,
                        draws: &self.device.draws,
                        device_time: None,
                    });
                }
                None => return Err(ForwardError::Batch { what: "steps in flight", found: 0, limit: 1 }),
            }
        }
    }
}

impl FakeModel {
    /// Computes a step with the tokens that the one before drew, and draws its own.
    fn run(&mut self, step: &Step) -> Result<(), ForwardError> {
        let before = std::mem::take(&mut self.device.draws);
        // A draw that failed gives some token; nobody looks at what comes of it.
        let token_of =
            |draw: u32| before.get(draw as usize).and_then(|drawn| drawn.as_ref().ok()).map_or(0, |drawn| drawn.token);
        let mut batch = step.batch.clone();
        for pending in &step.pending {
            batch.tokens[pending.row as usize] = token_of(pending.draw);
        }
        self.device.wanted_logits.clear();
        self.compute(&batch)?;
        for (output, logits) in step.outputs.iter().zip(self.logits.chunks(Self::VOCAB_SIZE)) {
            match output {
                Output::Logits => self.device.wanted_logits.extend_from_slice(logits),
                Output::Draw(draw) => {
                    let adjustments = with_pending(step.adjustments_of(draw).to_vec(), draw, token_of);
                    let drawn = self.device.sampler.draw_adjusted(logits, draw, &adjustments);
                    self.device.draws.push(drawn);
                }
            }
        }
        Ok(())
    }

    fn copy_now(&mut self, from: u32, to: u32) {
        let from = from as usize * BLOCK_TOKENS;
        self.cells.copy_within(from..from + BLOCK_TOKENS, to as usize * BLOCK_TOKENS);
    }

    fn compute(&mut self, batch: &Batch) -> Result<(), ForwardError> {
        batch.check(&self.spec)?;
        let FakeOptions { step_delay, row_delay, prompt_token_delay, gate, .. } = &self.options;
        if let Some(gate) = gate {
            gate.pass();
        }
        let rows = u32::try_from(batch.output_rows.len()).unwrap_or(u32::MAX);
        let others = u32::try_from(batch.tokens.len()).unwrap_or(u32::MAX).saturating_sub(rows);
        std::thread::sleep(*step_delay + *row_delay * rows + *prompt_token_delay * others);
        if batch.tokens.contains(&Self::ERROR_TOKEN) {
            return Err(ForwardError::Batch { what: "token that fails on purpose", found: 1, limit: 0 });
        }
        assert!(!batch.tokens.contains(&Self::PANIC_TOKEN), "this token panics on purpose");
        let mut written = std::collections::HashSet::new();
        for ((&slot, &token), &position) in batch.slots.iter().zip(&batch.tokens).zip(&batch.positions) {
            if slot != PAD_SLOT {
                assert!(written.insert(slot), "two tokens of one batch share slot {slot}");
                self.cells[slot as usize] = Some((token, position));
            }
        }
        let mut logits = std::mem::take(&mut self.logits);
        logits.clear();
        for &row in &batch.output_rows {
            let span = batch.sequences.iter().find(|span| row - span.query_start.min(row) < span.query_len);
            let span = span.ok_or(ForwardError::Batch { what: "sequence of a row", found: row as usize, limit: 0 })?;
            let position = batch.positions[row as usize];
            let cells = (0..=position).map(|position| self.cell(span, &batch.tables, position));
            let last = batch.tokens[row as usize];
            let echo = (position as usize + 1)
                .checked_sub(Self::ECHO)
                .and_then(|at| self.cell(span, &batch.tables, u32::try_from(at).expect("a position is 32 bits wide")));
            let ends = [Some(last), echo.map(|(token, _)| token)];
            append_logits(context_hash(cells), ends, &self.options, &mut logits);
        }
        self.logits = logits;
        Ok(())
    }
}

/// The adjustments of a draw once the newest token of its completion is known.
fn with_pending(mut adjustments: Vec<Adjustment>, draw: &Draw, token_of: impl Fn(u32) -> u32) -> Vec<Adjustment> {
    let Some(token) = draw.pending.map(token_of).filter(|_| draw.penalties.are_on()) else { return adjustments };
    let place = adjustments.iter().position(|entry| entry.token == token).unwrap_or_else(|| {
        adjustments.push(Adjustment::none(token));
        adjustments.len() - 1
    });
    let entry = &mut adjustments[place];
    (entry.is_seen, entry.count) = (true, entry.count + 1);
    adjustments
}

/// A number that depends on every token and on its being where it belongs.
fn context_hash(cells: impl Iterator<Item = Cell>) -> u64 {
    (0_u32..).zip(cells).fold(0, |hash, (position, cell)| match cell {
        Some((token, at)) if at == position => mix(hash ^ u64::from(token)),
        // A slot that was never written, or holds another position: the answer goes wrong visibly.
        _ => mix(!hash),
    })
}

/// The logits of a context with that hash, that last token, and that token some places back.
fn append_logits(hash: u64, [last, echo]: [Option<u32>; 2], options: &FakeOptions, logits: &mut Vec<f32>) {
    if last == Some(FakeModel::NAN_TOKEN) {
        logits.extend([f32::NAN; FakeModel::VOCAB_SIZE]);
        return;
    }
    for token in 0..FakeModel::VOCAB_SIZE as u32 {
        let noise = (mix(hash ^ u64::from(token) << 32) >> 40) as f32 / (1_u32 << 24) as f32 * 8.0;
        let echoed = if echo == Some(token) { options.echo_logit } else { 0.0 };
        logits.push(
            echoed
                + match token {
                    FakeModel::END_TOKEN => options.end_logit,
                    // Space and small letters are likely; bytes of longer characters come up now and then.
                    0x20 | 0x61..=0x7a => noise - 2.0,
                    0xc3 | 0xa4..=0xbc => noise - 4.0,
                    0..=255 => noise - 7.0,
                    _ => f32::NEG_INFINITY,
                },
        );
    }
}

/// The finaliser of SplitMix64: every input bit reaches every output bit.
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

fn tokenizer_json() -> serde_json::Value {
    // The usual spelling of bytes as characters: printable ones stand for themselves, the rest is moved to U+0100 up.
    let is_plain = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut moved = 0x100..;
    let mut spell = |byte: u32| if is_plain(byte) { Some(byte) } else { moved.next() }.and_then(char::from_u32);
    let vocab: serde_json::Map<String, serde_json::Value> =
        (0..256).filter_map(|byte| Some((spell(byte)?.to_string(), byte.into()))).collect();
    let added = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"];
    let added: Vec<serde_json::Value> = (256..)
        .zip(added)
        .map(|(id, content)| {
            serde_json::json!({ "id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false })
        })
        .collect();
    let byte_level = serde_json::json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
        "use_regex": false });
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": [] },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tokenizer_spells_every_byte() {
        let text = FakeModel::text();
        let sample = "Grüße, 漢字 \n\u{7f}";
        let ids = text.tokenizer.encode(sample).unwrap();
        assert_eq!(ids, sample.bytes().map(u32::from).collect::<Vec<_>>());
        assert_eq!(text.tokenizer.decode(&ids, true), sample);
        assert_eq!(text.tokenizer.encode_rendered("<|user|>a").unwrap(), [257, 97]);
        assert_eq!(text.tokenizer.token_id("<|end|>"), Some(FakeModel::END_TOKEN));
    }

    #[test]
    fn a_slot_with_the_wrong_content_changes_the_answer() {
        let mut model = FakeModel::new(FakeOptions::default());
        let mut batch = Batch {
            tokens: vec![5, 6, 7],
            positions: vec![0, 1, 2],
            slots: vec![0, 1, 2],
            sequences: vec![SequenceSpan {
                query_start: 0,
                query_len: 3,
                context_len: 3,
                table_start: 0,
                table_len: 1,
            }],
            tables: vec![0],
            output_rows: vec![2],
        };
        assert_eq!(model.forward(&batch).unwrap(), FakeModel::logits_after(&[5, 6, 7], &FakeOptions::default()));
        batch.tables = vec![1];
        assert_ne!(model.forward(&batch).unwrap(), FakeModel::logits_after(&[5, 6, 7], &FakeOptions::default()));
        model.copy_block(0, 1);
        assert_eq!(model.forward(&batch).unwrap(), FakeModel::logits_after(&[5, 6, 7], &FakeOptions::default()));
    }
}
