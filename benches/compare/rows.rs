//! The questions: what is asked of both servers, which figure of the answer counts, and what was aimed at.

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

/// One line of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    /// Whether a larger figure is the better one.
    pub(crate) larger_wins: bool,
    pub(crate) work: Work,
    pub(crate) measure: Measure,
}

const fn decode(name: &'static str, streams: usize) -> Row {
    let work = Work { clients: streams, requests: streams, prompt_tokens: 32, output_tokens: 64, same_prefix: 0 };
    Row { name, unit: "tokens/s", larger_wins: true, work, measure: Measure::Report(Report::output_rate) }
}

const fn prefill(name: &'static str, requests: usize, prompt_tokens: usize) -> Row {
    let work = Work { clients: 1, requests, prompt_tokens, output_tokens: 1, same_prefix: 0 };
    Row { name, unit: "tokens/s", larger_wins: true, work, measure: Measure::Report(Report::prompt_rate) }
}

const fn long_decode(name: &'static str, prompt_tokens: usize) -> Row {
    let work = Work { clients: 1, requests: 1, prompt_tokens, output_tokens: 32, same_prefix: 0 };
    Row { name, unit: "tokens/s", larger_wins: true, work, measure: Measure::Report(Report::decode_rate) }
}

const ONE: Work = Work { clients: 1, requests: 2, prompt_tokens: 32, output_tokens: 64, same_prefix: 0 };
const SHARED: Work = Work { clients: 16, requests: 16, prompt_tokens: 2_048, output_tokens: 8, same_prefix: 2_000 };

/// All rows, in the order they are measured.
pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "decode 1 stream",
        unit: "tokens/s",
        larger_wins: true,
        work: ONE,
        measure: Measure::Report(Report::decode_rate),
    },
    decode("decode 8 streams", 8),
    decode("decode 16 streams", 16),
    decode("decode 32 streams", 32),
    prefill("prefill 512", 4, 512),
    prefill("prefill 4096", 1, 4_096),
    long_decode("decode at 8k context", 8_192),
    long_decode("decode at 16k context", 16_384),
    Row {
        name: "shared prompt of 2,000 tokens, 16 clients: TTFT p95",
        unit: "ms",
        larger_wins: false,
        work: SHARED,
        measure: Measure::Report(Report::ttft_p95),
    },
    Row { name: "start to first token", unit: "ms", larger_wins: false, work: ONE, measure: Measure::Start },
    Row { name: "memory, loaded", unit: "MB", larger_wins: false, work: ONE, measure: Measure::LoadedMemory },
    Row {
        name: "memory, 32 streams",
        unit: "MB",
        larger_wins: false,
        work: decode("", 32).work,
        measure: Measure::Memory,
    },
];
