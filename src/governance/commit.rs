//! Waiting for the disk: entries that are written together become durable together, so all who wait for them share one cell.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::ports::StoreError;

/// Resolves when the journal entry is on the disk; every clone resolves alike.
///
/// # Cancel
/// Dropping it changes nothing: the entry is written all the same.
#[derive(Debug)]
pub struct Commit {
    group: Arc<Group>,
    /// Where this one's waker stands among those that wait.
    seat: Option<usize>,
}

/// The end that resolves the commits of one group; dropped without a word it resolves them to [`StoreError::Closed`].
#[derive(Debug, Default)]
pub struct Writing(Arc<Group>);

#[derive(Debug, Default)]
struct Group(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    result: Option<Result<(), StoreError>>,
    waiting: Vec<Waker>,
}

impl Group {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn resolve(&self, result: Result<(), StoreError>) {
        let mut state = self.lock();
        if state.result.is_some() {
            return;
        }
        state.result = Some(result);
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl Writing {
    /// A wait for this group.
    pub fn commit(&self) -> Commit {
        Commit { group: Arc::clone(&self.0), seat: None }
    }

    /// Tells everybody who waits how it ended.
    pub fn resolve(self, result: Result<(), StoreError>) {
        self.0.resolve(result);
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.resolve(Err(StoreError::Closed));
    }
}

impl Clone for Commit {
    fn clone(&self) -> Self {
        Self { group: Arc::clone(&self.group), seat: None }
    }
}

impl Future for Commit {
    type Output = Result<(), StoreError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let group = Arc::clone(&self.group);
        let mut state = group.lock();
        if let Some(result) = &state.result {
            return Poll::Ready(result.clone());
        }
        match self.seat {
            Some(seat) => state.waiting[seat].clone_from(context.waker()),
            None => {
                self.seat = Some(state.waiting.len());
                state.waiting.push(context.waker().clone());
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everybody_who_waits_for_a_group_is_told_the_same() {
        let writing = Writing::default();
        let (early, late) = (writing.commit(), writing.commit());
        let (told, ()) = futures::join!(early, async { writing.resolve(Ok(())) });
        assert!(told.is_ok() && late.clone().await.is_ok() && late.await.is_ok());
    }

    #[tokio::test]
    async fn a_writer_that_is_gone_leaves_nobody_waiting() {
        let writing = Writing::default();
        let commit = writing.commit();
        drop(writing);
        assert!(matches!(commit.await, Err(StoreError::Closed)));
    }
}
