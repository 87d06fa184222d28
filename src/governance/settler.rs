//! The task that settles what nobody waits for: permits that were dropped, and admissions that were cancelled.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::governor::Core;
use super::policy::Plan;
use super::ports::{Commit, Counters, JournalEntry};
use super::records::{Bill, LedgerRecord, Usage};

/// Something that must still be settled.
#[derive(Debug)]
pub(super) enum Unsettled {
    /// Charged, but no permit was ever handed out.
    Abandoned(Uuid),
    /// A permit was dropped.
    Row {
        /// Its row.
        row: Box<LedgerRecord>,
        /// What was last reported as used, charged or not.
        reported: Usage,
        /// The limits it was charged on.
        plan: Arc<Plan>,
    },
    /// Answers when everything before it is settled and on the disk.
    Flush(oneshot::Sender<()>),
}

/// The end of the queue that permits hold.
#[derive(Debug, Clone)]
pub(super) struct Settler(mpsc::UnboundedSender<Unsettled>);

/// How often a settlement is tried again while the counters cannot be reached.
const RETRY: Duration = Duration::from_millis(100);

impl Settler {
    /// A queue, and the task's end of it.
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<Unsettled>) {
        // Unbounded on purpose: dropping a permit must neither block nor lose it, and open requests are bounded elsewhere.
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    /// Never blocks. After shutdown nobody listens; a row is then recovered from the journal at the next start.
    pub(super) fn enqueue(&self, unsettled: Unsettled) {
        if self.0.send(unsettled).is_err() {
            tracing::warn!("a request ended after shutdown; it is settled at the next start");
        }
    }

    /// Returns when everything enqueued so far is on the disk.
    pub(super) async fn flush(&self) {
        let (sender, receiver) = oneshot::channel();
        self.enqueue(Unsettled::Flush(sender));
        let _ = receiver.await;
    }
}

/// Runs until it is told to stop.
pub(super) async fn run(mut queue: mpsc::UnboundedReceiver<Unsettled>, core: Arc<Core>) {
    let mut written: Vec<Commit> = Vec::new();
    loop {
        let next = tokio::select! {
            biased;
            next = queue.recv() => next,
            () = core.stop_settler.cancelled() => None,
        };
        match next {
            None => break,
            // It was admitted and its client left: the request unit stays spent.
            Some(Unsettled::Abandoned(id)) => {
                settle(&core.counters, id, Bill { requests: 1, ..Bill::default() }).await;
                core.meter.abandoned();
            }
            Some(Unsettled::Row { row, reported, plan }) => {
                settle(&core.counters, row.request.id, row.bill()).await;
                let request = row.request.clone();
                written.push(core.meter.finish(*row, reported, |row| core.records.submit(JournalEntry::Close(row))));
                core.notice(&plan, &request).await;
            }
            Some(Unsettled::Flush(done)) => {
                wait(&mut written).await;
                let _ = done.send(());
            }
        }
        if written.len() >= 256 {
            wait(&mut written).await;
        }
    }
    wait(&mut written).await;
}

async fn settle(counters: &Arc<dyn Counters>, id: Uuid, bill: Bill) {
    while let Err(error) = counters.settle(id, bill).await {
        tracing::error!(%error, request.id = %id, "cannot settle a request yet");
        tokio::time::sleep(RETRY).await;
    }
}

async fn wait(written: &mut Vec<Commit>) {
    for commit in written.drain(..) {
        if let Err(error) = commit.await {
            // The store owes the row and keeps trying.
            tracing::error!(%error, "a ledger row is not on the disk yet");
        }
    }
}
