//! What the engine thread and the reader of one request share: pending events, usage, and the reader's wishes.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::request::{Event, Failure, TokenUsage};

/// Events of one request on their way to its reader.
///
/// Posting never blocks and never drops. The buffer stays small however slow the reader is: text of the same choice is
/// joined, and a notice replaces an older one of its kind, so a request holds at most its own text and a few events.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    inner: Mutex<Inner>,
    granted: AtomicU64,
    queued_us: AtomicU64,
    is_ended_for_limit: AtomicBool,
    is_cancelled: AtomicBool,
}

#[derive(Debug, Default)]
struct Inner {
    events: VecDeque<Event>,
    usage: TokenUsage,
    is_closed: bool,
    /// Wakes the reader when it waits.
    reader: Option<Waker>,
}

impl Mailbox {
    /// Adds events and replaces the usage, in one step for the reader.
    pub(crate) fn post(&self, events: impl IntoIterator<Item = Event>, usage: TokenUsage) {
        let mut inner = self.lock();
        inner.usage = usage;
        let mut reader = None;
        for event in events {
            inner.push(event);
            reader = reader.or_else(|| inner.reader.take());
        }
        drop(inner);
        reader.into_iter().for_each(Waker::wake);
    }

    /// Ends the request with `Failed` and the usage known so far, unless it has ended already.
    pub(crate) fn fail(&self, failure: Failure) {
        let usage = self.usage();
        self.post([Event::Failed(failure, usage)], usage);
    }

    /// Notes how long the request waited for its place in the batch.
    pub(crate) fn left_queue(&self, after: Duration) {
        self.queued_us.store(u64::try_from(after.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How long the request waited for its place in the batch; zero while it waits.
    pub(crate) fn queued_for(&self) -> Duration {
        Duration::from_micros(self.queued_us.load(Ordering::Relaxed))
    }

    /// The next event, if one is waiting.
    #[cfg(test)]
    pub(crate) fn take(&self) -> Option<Event> {
        self.lock().events.pop_front()
    }

    /// The next event; `None` once the terminal event was taken. There is one reader: a later poll replaces an earlier one.
    pub(crate) fn poll_next(&self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        let mut inner = self.lock();
        if let Some(event) = inner.events.pop_front() {
            return Poll::Ready(Some(event));
        }
        if inner.is_closed {
            return Poll::Ready(None);
        }
        match &mut inner.reader {
            Some(reader) => reader.clone_from(context.waker()),
            None => inner.reader = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    pub(crate) fn usage(&self) -> TokenUsage {
        self.lock().usage
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Adds to the allowance; the engine thread picks it up before its next step.
    pub(crate) fn grant(&self, tokens: u32) {
        self.granted.fetch_add(u64::from(tokens), Ordering::Release);
    }

    /// All grants since the start.
    pub(crate) fn granted(&self) -> u64 {
        self.granted.load(Ordering::Acquire)
    }

    pub(crate) fn end_for_limit(&self) {
        self.is_ended_for_limit.store(true, Ordering::Release);
    }

    pub(crate) fn is_ended_for_limit(&self) -> bool {
        self.is_ended_for_limit.load(Ordering::Acquire)
    }

    pub(crate) fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Release);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Acquire)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // The state is whole between any two statements under the lock, so a panic elsewhere cannot have broken it.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Inner {
    // INVARIANT: nothing enters after a terminal event, so a reader sees exactly one.
    fn push(&mut self, event: Event) {
        if self.is_closed {
            return;
        }
        self.is_closed = event.is_terminal();
        match event {
            Event::Text { choice, text, logprobs } => self.push_text(choice, text, logprobs),
            Event::AllowanceLow { .. } => {
                self.events.retain(|waiting| !matches!(waiting, Event::AllowanceLow { .. }));
                self.events.push_back(event);
            }
            Event::Parked => {
                self.events.retain(|waiting| !matches!(waiting, Event::Parked));
                self.events.push_back(event);
            }
            other => self.events.push_back(other),
        }
    }

    fn push_text(&mut self, new_choice: u32, new_text: String, new_logprobs: Vec<super::request::TokenLogprob>) {
        for waiting in self.events.iter_mut().rev() {
            if let Event::Text { choice, text, logprobs } = waiting
                && *choice == new_choice
            {
                text.push_str(&new_text);
                logprobs.extend(new_logprobs);
                return;
            }
        }
        self.events.push_back(Event::Text { choice: new_choice, text: new_text, logprobs: new_logprobs });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::request::FinishReason;

    async fn next(mailbox: &Mailbox) -> Option<Event> {
        std::future::poll_fn(|context| mailbox.poll_next(context)).await
    }

    fn text(choice: u32, text: &str) -> Event {
        Event::Text { choice, text: text.into(), logprobs: Vec::new() }
    }

    #[test]
    fn a_slow_reader_gets_the_text_of_a_choice_at_once_and_in_order() {
        let mailbox = Mailbox::default();
        for part in ["a", "b", "c"] {
            mailbox.post([text(0, part), text(1, &part.to_uppercase())], TokenUsage::default());
        }
        mailbox.post([Event::ChoiceDone { choice: 0, reason: FinishReason::Stop }], TokenUsage::default());
        assert_eq!(mailbox.take(), Some(text(0, "abc")));
        assert_eq!(mailbox.take(), Some(text(1, "ABC")));
        assert_eq!(mailbox.take(), Some(Event::ChoiceDone { choice: 0, reason: FinishReason::Stop }));
        assert_eq!(mailbox.take(), None);
    }

    #[test]
    fn the_buffer_does_not_grow_with_the_number_of_posts() {
        let mailbox = Mailbox::default();
        for _ in 0..10_000 {
            mailbox.post([text(0, "x"), Event::AllowanceLow { remaining: 1 }, Event::Parked], TokenUsage::default());
        }
        assert_eq!(mailbox.lock().events.len(), 3);
    }

    #[tokio::test]
    async fn only_the_first_terminal_event_arrives_and_nothing_follows_it() {
        let mailbox = Mailbox::default();
        let usage = TokenUsage { prompt_tokens: 3, cached_tokens: 0, completion_tokens: 2 };
        mailbox.post([Event::Done(usage)], usage);
        mailbox.fail(Failure::Cancelled);
        mailbox.post([text(0, "late")], usage);
        assert_eq!(next(&mailbox).await, Some(Event::Done(usage)));
        assert_eq!(next(&mailbox).await, None);
        assert_eq!(next(&mailbox).await, None);
    }
}
