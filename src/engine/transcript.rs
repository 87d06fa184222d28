//! One choice's way from tokens to text: decoding, stop strings, and log probabilities that wait for their text.

use millgate_models::text::{ModelText, StopMatcher, StreamDecoder};

use super::request::{Request, TokenLogprob};

/// Text and log probabilities of one choice that may leave now.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Output {
    pub(crate) text: String,
    pub(crate) logprobs: Vec<TokenLogprob>,
}

impl Output {
    pub(crate) fn is_empty(&self) -> bool {
        self.text.is_empty() && self.logprobs.is_empty()
    }
}

/// The text side of a choice.
#[derive(Debug)]
pub(crate) struct Transcript {
    decoder: StreamDecoder,
    stop: StopMatcher,
    /// Bytes of text decoded and bytes let out; between them is what a stop string may still swallow.
    decoded: usize,
    emitted: usize,
    /// Log probabilities of tokens whose text is not out, with the byte at which each token's text begins.
    held: Vec<(usize, TokenLogprob)>,
}

impl Transcript {
    pub(crate) fn new(text: &ModelText, request: &Request) -> Self {
        let decoder = if request.continues_text {
            StreamDecoder::continuing(&text.tokenizer)
        } else {
            StreamDecoder::new(&text.tokenizer)
        };
        Self { decoder, stop: StopMatcher::new(&request.stop), decoded: 0, emitted: 0, held: Vec::new() }
    }

    /// Takes a token that belongs to the text. The flag says that a stop string was completed: nothing follows then.
    ///
    /// Stop strings are looked for when `may_stop`; text before that is let out as it is.
    pub(crate) fn push(&mut self, token: u32, logprob: Option<TokenLogprob>, may_stop: bool) -> (Output, bool) {
        let begin = self.decoded;
        let piece = self.decoder.push(token);
        self.decoded += piece.len();
        self.held.extend(logprob.map(|logprob| (begin, logprob)));
        if !may_stop {
            return (self.release(piece), false);
        }
        let emit = self.stop.push(&piece);
        let is_stopped = emit.stopped.is_some();
        let output = self.release(emit.text);
        if is_stopped {
            // What is left belongs to the stop string.
            self.held.clear();
        }
        (output, is_stopped)
    }

    /// Ends the text for another reason than a stop string: everything held back comes out.
    pub(crate) fn finish(&mut self) -> Output {
        let rest = self.decoder.finish();
        let mut text = self.stop.finish();
        // The rest is a replacement character or nothing; it can complete a stop string only in theory.
        text.push_str(&rest);
        let logprobs = self.held.drain(..).map(|(_, logprob)| logprob).collect();
        Output { text, logprobs }
    }

    /// Counts `text` as let out, with the log probabilities of the tokens it begins.
    fn release(&mut self, text: String) -> Output {
        self.emitted += text.len();
        let emitted = self.emitted;
        let ready = self.held.iter().take_while(|(begin, _)| *begin < emitted).count();
        let logprobs = self.held.drain(..ready).map(|(_, logprob)| logprob).collect();
        Output { text, logprobs }
    }
}
