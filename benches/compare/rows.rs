//! The questions: what is asked of both servers, which figure of the answer counts, and what was aimed at.

use millgate_kernels::WeightFormat;

use super::ask::Report;

/// What the clients of a row do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    pub(crate) clients: usize,
    pub(crate) requests: usize,
    pub(crate) prompt_tokens: usize,
    pub(crate) output_tokens: usize,
    /// Words at the beginning that all prompts share.
    pub(crate) same_prefix: usize,
}

impl Work {
    /// Tokens of context a sequence needs, the chat template and words that came out longer included.
    pub(crate) fn context(&self) -> usize {
        self.prompt_tokens + self.prompt_tokens / 8 + self.output_tokens + 64
    }
}

/// Which figure a row shows.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Measure {
    /// One of the client's figures.
    Report(fn(&Report) -> f64),
    /// Milliseconds from starting the process to the first token of an answer.
    Start,
    /// Resident megabytes after one short answer.
    LoadedMemory,
    /// Resident megabytes after the row's work.
    Memory,
}

/// How many times better than the rival a row is wanted to be, by the format of most weights.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bar {
    q8_0: f64,
    q4_k: f64,
    dense: f64,
}

impl Bar {
    const fn of(q8_0: f64, q4_k: f64, dense: f64) -> Self {
        Self { q8_0, q4_k, dense }
    }

    const fn any(bar: f64) -> Self {
        Self::of(bar, bar, bar)
    }

    /// The one for weights of this format.
    pub(crate) fn for_format(self, format: WeightFormat) -> f64 {
        match format {
            WeightFormat::F32 | WeightFormat::F16 | WeightFormat::Bf16 => self.dense,
            WeightFormat::Q8_0 => self.q8_0,
            _ => self.q4_k,
        }
    }
}

/// One line of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) work: Work,
    pub(crate) measure: Measure,
    pub(crate) bar: Bar,
}

impl Row {
    /// Whether a larger figure is the better one: of rates it is, of times and sizes the smaller.
    pub(crate) fn larger_wins(&self) -> bool {
        self.unit == "tokens/s"
    }
}

const fn row(name: &'static str, unit: &'static str, work: Work, measure: Measure, bar: Bar) -> Row {
    Row { name, unit, work, measure, bar }
}

const fn decode(name: &'static str, streams: usize) -> Row {
    let work = Work { clients: streams, requests: streams, prompt_tokens: 32, output_tokens: 64, same_prefix: 0 };
    row(name, "tokens/s", work, Measure::Report(Report::output_rate), Bar::of(3.0, 3.0, 2.0))
}

const fn prefill(name: &'static str, requests: usize, prompt_tokens: usize) -> Row {
    let work = Work { clients: 1, requests, prompt_tokens, output_tokens: 1, same_prefix: 0 };
    row(name, "tokens/s", work, Measure::Report(Report::prompt_rate), Bar::of(4.0, 2.5, 1.7))
}

const fn long_decode(name: &'static str, streams: usize, prompt_tokens: usize) -> Row {
    let work = Work { clients: streams, requests: streams, prompt_tokens, output_tokens: 32, same_prefix: 0 };
    row(name, "tokens/s", work, Measure::Report(Report::decode_rate), Bar::any(1.5))
}

const ONE: Work = Work { clients: 1, requests: 2, prompt_tokens: 32, output_tokens: 64, same_prefix: 0 };
const MANY: Work = Work { clients: 32, requests: 32, ..ONE };
const SHARED: Work = Work { clients: 16, requests: 16, prompt_tokens: 2_048, output_tokens: 8, same_prefix: 2_000 };

/// All rows, in the order they are measured.
pub(crate) const ROWS: &[Row] = &[
    row("decode 1 stream", "tokens/s", ONE, Measure::Report(Report::decode_rate), Bar::of(1.25, 1.25, 1.1)),
    decode("decode 8 streams", 8),
    decode("decode 16 streams", 16),
    decode("decode 32 streams", 32),
    prefill("prefill 512", 4, 512),
    prefill("prefill 4096", 1, 4_096),
    long_decode("8k context, decode 1 stream", 1, 8_192),
    long_decode("16k context, decode 1 stream", 1, 16_384),
    long_decode("8k context, decode 8 streams", 8, 8_192),
    long_decode("16k context, decode 8 streams", 8, 16_384),
    row(
        "shared prompt of 2,000 tokens, 16 clients: TTFT p95",
        "ms",
        SHARED,
        Measure::Report(Report::ttft_p95),
        Bar::any(3.0),
    ),
    row("start to first token", "ms", ONE, Measure::Start, Bar::any(1.0)),
    row("memory, loaded", "MB", ONE, Measure::LoadedMemory, Bar::any(1.0)),
    row("memory, 32 streams", "MB", MANY, Measure::Memory, Bar::any(1.0)),
];
