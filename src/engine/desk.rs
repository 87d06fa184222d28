//! Settles what came of a step, sequence by sequence: books what was computed, appends tokens, ends choices.

use millgate_models::text::ModelText;
use millgate_models::{DrawError, Drawn, Scores};

use super::asking::History;
use super::generation::Generation;
use super::handle::EngineTotals;
use super::request::{FinishReason, TokenLogprob};
use super::runner::{Answer, ItemRows};
use super::sampler::{Row, Sampler};
use super::scheduler::{Item, Scheduler};
use super::sequence::SequenceId;

/// What settling needs of the engine.
pub(crate) struct Desk<'a> {
    pub(crate) text: &'a ModelText,
    pub(crate) scheduler: &'a mut Scheduler,
    pub(crate) sampler: &'a mut Sampler,
    pub(crate) totals: &'a mut EngineTotals,
}

impl Desk<'_> {
    /// Books what an item computed, and takes the tokens that follow from it.
    ///
    /// # Errors
    /// [`DrawError`] when there is no next token; the request must end then.
    pub(crate) fn settle(
        &mut self,
        item: &Item,
        rows: &ItemRows,
        answer: &Answer<'_>,
        generation: &mut Generation,
    ) -> Result<(), DrawError> {
        if self.scheduler.sequence(item.id).is_none() {
            // The choice ended on the token before, and this row was computed in vain.
            return Ok(());
        }
        let computed = item.first + item.count;
        self.totals.prompt_tokens += u64::from(generation.count_prompt(computed));
        self.score_prompt(item, rows, answer, generation)?;
        if generation.has_started {
            return if item.draws > 0 { self.draw_run(item, rows, answer, generation) } else { Ok(()) };
        }
        if computed < generation.prompt_len {
            return Ok(());
        }
        generation.start();
        if generation.max_tokens == 0 {
            generation.finish_all(FinishReason::Length);
            return Ok(());
        }
        self.scheduler.fork(item.id.request);
        for choice in 0..u32::try_from(generation.choices.len()).expect("choices are counted in 32 bits") {
            let id = SequenceId { choice, ..item.id };
            if choice < item.draws {
                self.draw(id, rows, 0, answer, generation)?;
            } else {
                // The allowance did not reach this far: the row is computed again when there is more.
                self.scheduler.roll_back(id);
            }
        }
        Ok(())
    }

    /// Takes the next tokens of a choice: one, and after each guess that it turns out to be one more. A row behind a guess is
    /// the row that a step of its own would have computed, so the tokens are the same as without guesses.
    fn draw_run(
        &mut self,
        item: &Item,
        rows: &ItemRows,
        answer: &Answer<'_>,
        generation: &mut Generation,
    ) -> Result<(), DrawError> {
        let mut accepted = 0;
        loop {
            let token = self.draw(item.id, rows, accepted, answer, generation)?;
            let Some(sequence) = self.scheduler.sequence(item.id) else { break };
            if accepted == item.drafts || sequence.guesser.tokens()[accepted] != token {
                break;
            }
            accepted += 1;
        }
        self.scheduler.accept(item.id, accepted);
        self.totals.drafts += u64::from(item.drafts > 0);
        self.totals.draft_tokens += item.drafts as u64;
        self.totals.accepted_tokens += accepted as u64;
        Ok(())
    }

    /// Takes the next token of a choice: the model's own draw, or one of ours from its logits, so many rows behind the first.
    fn draw(
        &mut self,
        id: SequenceId,
        rows: &ItemRows,
        offset: usize,
        answer: &Answer<'_>,
        generation: &mut Generation,
    ) -> Result<u32, DrawError> {
        let drawn = match rows.draw {
            Some(draw) => answer.drawn(draw)?,
            None => self.draw_from(id, answer.row(rows.draw_row() + offset), generation)?,
        };
        let token = drawn.token;
        self.take(id, drawn, generation);
        Ok(token)
    }

    fn draw_from(&mut self, id: SequenceId, logits: &[f32], generation: &Generation) -> Result<Drawn, DrawError> {
        let sequence = self.scheduler.sequence(id).expect("sequences of an open choice live");
        let history = History {
            prompt: &sequence.known[..sequence.prompt_len],
            output: sequence.output(),
            forbidden: generation.forbidden(sequence.output().len(), &self.text.end_tokens),
        };
        self.sampler.draw(&Row { logits, params: &generation.sampling, history, choice: id.choice })
    }

    /// Appends a token to a choice, and ends the choice where it must.
    fn take(&mut self, id: SequenceId, drawn: Drawn, generation: &mut Generation) {
        self.scheduler.append(id, drawn.token);
        generation.usage.completion_tokens += 1;
        self.totals.completion_tokens += 1;
        let choice = &mut generation.choices[id.choice as usize];
        choice.sampled += 1;
        let is_end = !generation.ignore_eos && self.text.end_tokens.contains(&drawn.token);
        let mut has_hit_stop_string = false;
        if !is_end {
            let logprob = drawn.scores.map(|scores| self.spell(drawn.token, scores));
            let may_stop = choice.sampled >= generation.min_tokens;
            let (output, is_stopped) = choice.transcript.push(drawn.token, logprob, may_stop);
            has_hit_stop_string = is_stopped;
            generation.write(id.choice, output);
        }
        let is_full = generation.choices[id.choice as usize].sampled >= generation.max_tokens;
        if is_end || has_hit_stop_string || is_full {
            let reason = if is_end || has_hit_stop_string { FinishReason::Stop } else { FinishReason::Length };
            generation.finish(id.choice, reason, has_hit_stop_string);
            self.scheduler.remove(id);
        }
    }

    /// Keeps the log probabilities of the prompt tokens that this step's rows predict.
    fn score_prompt(
        &mut self,
        item: &Item,
        rows: &ItemRows,
        answer: &Answer<'_>,
        generation: &mut Generation,
    ) -> Result<(), DrawError> {
        let Some(top) = generation.prompt_top else { return Ok(()) };
        if generation.prompt_logprobs.is_empty() {
            generation.prompt_logprobs.push(None);
        }
        for (row, position) in (rows.first_row..).zip(rows.scored.clone()) {
            let sequence = self.scheduler.sequence(item.id).expect("planned sequences live");
            let token = sequence.known[position + 1];
            let scores = self.sampler.score(answer.row(row), token, top)?;
            generation.prompt_logprobs.push(Some(self.spell(token, scores)));
        }
        self.scheduler.scored(item.id, rows.scored.end);
        Ok(())
    }

    fn spell(&self, token: u32, scores: Scores) -> TokenLogprob {
        let bytes = |token| self.text.tokenizer.token_bytes(token).unwrap_or_default().to_vec();
        let top = scores.top.into_iter().map(|(token, logprob)| (token, bytes(token), logprob)).collect();
        TokenLogprob { token, bytes: bytes(token), logprob: scores.logprob, top }
    }
}
