//! The one thread that writes: takes what has gathered, commits it as a group, answers everybody who waits.
//!
//! While one group is being synced to the disk the next one gathers, so the number of syncs does not grow with the load. A
//! thread of its own, because a commit is a handful of calls that block: nothing is handed from task to task in between.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use futures::executor::block_on;
use sqlx::{Connection, SqliteConnection};
use tokio::sync::oneshot;

use super::group::Group;
use super::journal::Journal;
use super::queue::{Order, Queue, Round};
use super::{keys, policy};
use crate::governance::ports::{Commit, Edit, JournalEntry, StoreError};
use crate::governance::records::{KeyId, LedgerRecord};

/// How long a group waits at most while company keeps coming: a group costs as much as ten of its rows. One client alone
/// never waits.
const LINGER: Duration = Duration::from_millis(1);
/// Entries of a group that show that more are on their way.
const COMPANY: usize = 8;
/// How long rows that could not be written wait when nobody else writes.
const OWED_RETRY: Duration = Duration::from_millis(250);

/// The way to the thread; when it is dropped the thread writes what is queued and ends.
#[derive(Debug)]
pub(super) struct Writer {
    queue: Arc<Queue>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    /// Starts the thread: `journal` for groups, `connection` for everything else.
    pub(super) fn start(journal: Journal, connection: SqliteConnection) -> Result<Self, std::io::Error> {
        let queue = Arc::new(Queue::default());
        let work = Work { journal, connection, owed: Vec::new(), queue: Arc::clone(&queue) };
        let thread = std::thread::Builder::new().name("ledger writer".to_owned()).spawn(move || work.run())?;
        Ok(Self { queue, thread: Mutex::new(Some(thread)) })
    }

    pub(super) fn submit(&self, entry: JournalEntry) -> Commit {
        self.queue.submit(entry)
    }

    pub(super) async fn change(&self, expected: u64, edit: Edit) -> Result<u64, StoreError> {
        self.order(|answer| Order::Change(expected, edit, answer)).await
    }

    pub(super) async fn touch(&self, used: Vec<(KeyId, i64)>) -> Result<(), StoreError> {
        self.order(|answer| Order::Touch(used, answer)).await
    }

    pub(super) async fn forget_ephemeral_keys(
        &self,
        ended_before_us: i64,
        limited_before_us: i64,
    ) -> Result<u64, StoreError> {
        self.order(|answer| Order::ForgetKeys { ended_before_us, limited_before_us, answer }).await
    }

    async fn order<T>(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Order,
    ) -> Result<T, StoreError> {
        let (answer, received) = oneshot::channel();
        self.queue.order(order(answer));
        received.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Returns when everything queued before is written and the thread has ended.
    pub(super) async fn close(&self) {
        self.queue.finish();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = tokio::task::spawn_blocking(move || drop(thread.join())).await;
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue.finish();
    }
}

/// What the thread owns.
struct Work {
    journal: Journal,
    connection: SqliteConnection,
    /// Rows that could not be written yet.
    owed: Vec<LedgerRecord>,
    queue: Arc<Queue>,
}

/// However the thread ends, nobody waits for it any more.
struct Leaving(Arc<Queue>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

impl Work {
    fn run(mut self) {
        let _leaving = Leaving(Arc::clone(&self.queue));
        let mut linger = Duration::ZERO;
        loop {
            let patience = (!self.owed.is_empty()).then_some(OWED_RETRY);
            let Round { entries, writing, orders, is_last } = self.queue.take(patience, linger);
            linger = if entries.len() >= COMPANY { LINGER } else { Duration::ZERO };
            writing.resolve(self.write_group(entries));
            for order in orders {
                self.obey(order);
            }
            if is_last {
                break;
            }
        }
        self.finish();
    }

    /// Commits all entries of a round, and what is owed, in one transaction.
    fn write_group(&mut self, entries: Vec<JournalEntry>) -> Result<(), StoreError> {
        let mut group = Group::default();
        entries.into_iter().for_each(|entry| group.add(entry));
        group.owe(std::mem::take(&mut self.owed));
        if group.is_empty() {
            return Ok(());
        }
        self.journal.write(&group).map_err(|error| {
            tracing::error!(%error, rows = group.closes.len(), "cannot write the ledger; the rows are kept and tried again");
            self.owed = group.closes;
            StoreError::Unavailable { operation: "write the ledger", message: error.to_string().into() }
        })
    }

    fn obey(&mut self, order: Order) {
        // Whoever asked may be gone; then nobody is told.
        match order {
            Order::Change(expected, edit, answer) => {
                let _ = answer.send(block_on(policy::change(&mut self.connection, expected, edit)));
            }
            Order::Touch(used, answer) => {
                let _ = answer.send(self.journal.touch(&used));
            }
            Order::ForgetKeys { ended_before_us, limited_before_us, answer } => {
                let forget = keys::forget_ephemeral(&mut self.connection, ended_before_us, limited_before_us);
                let _ = answer.send(block_on(forget));
            }
        }
    }

    fn finish(self) {
        if !self.owed.is_empty() {
            tracing::error!(
                rows = self.owed.len(),
                "ledger rows could not be written; the next start charges what was journalled"
            );
        }
        if let Err(error) = self.journal.close() {
            tracing::warn!(%error, "the database did not close cleanly");
        }
        if let Err(error) = block_on(self.connection.close()) {
            tracing::warn!(%error, "the database did not close cleanly");
        }
    }
}
