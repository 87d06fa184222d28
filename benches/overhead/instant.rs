//! A model that answers at once: always the same letter, no arithmetic.

use millgate::engine::fake::FakeModel;
use millgate_models::{Batch, Device, ForwardError, Model, ModelSpec};

/// Rows of logits that say `a`, as many as a batch asks for.
pub(crate) struct InstantModel {
    spec: ModelSpec,
    logits: Vec<f32>,
}

impl InstantModel {
    const ROWS: usize = 1024;

    pub(crate) fn new() -> Self {
        let spec = ModelSpec {
            architecture: "instant".to_owned(),
            device: Device::Cpu,
            vocab_size: FakeModel::VOCAB_SIZE,
            context_window: 512,
            num_layers: 1,
            kv_bytes_per_block: 1,
            num_blocks: 4 * Self::ROWS,
            max_step_tokens: 64 * Self::ROWS,
            max_output_rows: Self::ROWS,
            parameters: 0,
            weight_bytes: 0,
            gpu_memory: None,
        };
        let mut row = vec![-20.0; FakeModel::VOCAB_SIZE];
        row[usize::from(b'a')] = 0.0;
        Self { spec, logits: row.repeat(Self::ROWS) }
    }
}

impl Model for InstantModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&mut self, batch: &Batch) -> Result<&[f32], ForwardError> {
        Ok(&self.logits[..batch.output_rows.len() * FakeModel::VOCAB_SIZE])
    }

    fn copy_block(&mut self, _from: u32, _to: u32) {}
}
