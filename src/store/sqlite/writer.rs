//! The one task that writes: takes what has queued up, commits it as a group, answers everybody who waits.
//!
//! While one group is being synced to the disk the next one gathers, so the number of syncs does not grow with the load.

use std::time::Duration;

use sqlx::{Connection, SqliteConnection};
use tokio::sync::{mpsc, oneshot};

use super::group::Group;
use super::journal::Known;
use super::rows::{failed, shared};
use super::{journal, keys, policy};
use crate::governance::ports::{Commit, Edit, JournalEntry, StoreError};
use crate::governance::records::{KeyId, LedgerRecord};

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// Something to write.
enum Command {
    Journal(JournalEntry, Answer<()>),
    Change(u64, Edit, Answer<u64>),
    Touch(Vec<(KeyId, i64)>, Answer<()>),
    ForgetKeys { ended_before_us: i64, limited_before_us: i64, answer: Answer<u64> },
    Close(oneshot::Sender<()>),
}

/// The end of the queue that everybody else holds.
#[derive(Debug, Clone)]
pub(super) struct Writer(mpsc::UnboundedSender<Command>);

pub(super) struct Queue(mpsc::UnboundedReceiver<Command>);

/// Commands taken into one round at most.
const ROUND: usize = 1024;
/// How long rows that could not be written wait when nobody else writes.
const OWED_RETRY: Duration = Duration::from_millis(250);

impl Writer {
    pub(super) fn new() -> (Self, Queue) {
        // Unbounded on purpose: settling must neither block nor be lost, and open requests are bounded at admission.
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), Queue(receiver))
    }

    pub(super) fn submit(&self, entry: JournalEntry) -> Commit {
        let (answer, commit) = Commit::pending();
        // A writer that is gone drops the answer, and the commit resolves to `Closed`.
        let _ = self.0.send(Command::Journal(entry, answer));
        commit
    }

    pub(super) async fn change(&self, expected: u64, edit: Edit) -> Result<u64, StoreError> {
        let (answer, received) = oneshot::channel();
        let _ = self.0.send(Command::Change(expected, edit, answer));
        received.await.unwrap_or(Err(StoreError::Closed))
    }

    pub(super) async fn touch(&self, used: Vec<(KeyId, i64)>) -> Result<(), StoreError> {
        let (answer, received) = oneshot::channel();
        let _ = self.0.send(Command::Touch(used, answer));
        received.await.unwrap_or(Err(StoreError::Closed))
    }

    pub(super) async fn forget_ephemeral_keys(
        &self,
        ended_before_us: i64,
        limited_before_us: i64,
    ) -> Result<u64, StoreError> {
        let (answer, received) = oneshot::channel();
        let _ = self.0.send(Command::ForgetKeys { ended_before_us, limited_before_us, answer });
        received.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Returns when everything queued before is written and the writer has ended.
    pub(super) async fn close(&self) {
        let (done, received) = oneshot::channel();
        let _ = self.0.send(Command::Close(done));
        let _ = received.await;
    }
}

/// Runs until it is closed or every [`Writer`] is gone.
pub(super) async fn run(mut connection: SqliteConnection, mut queue: Queue) {
    let mut owed: Vec<LedgerRecord> = Vec::new();
    let mut known = Known::default();
    let mut commands = Vec::with_capacity(ROUND);
    loop {
        let received = if owed.is_empty() {
            queue.0.recv_many(&mut commands, ROUND).await
        } else {
            tokio::time::timeout(OWED_RETRY, queue.0.recv_many(&mut commands, ROUND)).await.unwrap_or(usize::MAX)
        };
        let (others, closing) = write_journal(&mut connection, commands.drain(..), &mut owed, &mut known).await;
        for command in others {
            write_other(&mut connection, command).await;
        }
        if received == 0 || closing.is_some() {
            finish(connection, &owed, closing).await;
            return;
        }
    }
}

/// Commits all journal entries of a round in one transaction; gives back the rest.
async fn write_journal(
    connection: &mut SqliteConnection,
    commands: impl Iterator<Item = Command>,
    owed: &mut Vec<LedgerRecord>,
    known: &mut Known,
) -> (Vec<Command>, Option<oneshot::Sender<()>>) {
    let (mut group, mut waiting, mut others, mut closing) = (Group::default(), Vec::new(), Vec::new(), None);
    for command in commands {
        match command {
            Command::Journal(entry, answer) => {
                group.add(entry);
                waiting.push(answer);
            }
            Command::Close(done) => closing = Some(done),
            other => others.push(other),
        }
    }
    group.owe(std::mem::take(owed));
    let written = if group.is_empty() { Ok(()) } else { journal::write(connection, &group, known).await };
    let answer = match written {
        Ok(()) => Ok(()),
        Err(error) => {
            tracing::error!(%error, rows = group.closes.len(), "cannot write the ledger; the rows are kept and tried again");
            *owed = group.closes;
            Err(shared(&error, "write the ledger"))
        }
    };
    for waiter in waiting {
        let _ = waiter.send(answer.clone());
    }
    (others, closing)
}

async fn write_other(connection: &mut SqliteConnection, command: Command) {
    match command {
        Command::Change(expected, edit, answer) => {
            let _ = answer.send(policy::change(connection, expected, edit).await);
        }
        Command::Touch(used, answer) => {
            let written = journal::touch(connection, &used).await.map_err(failed("note when keys were last used"));
            let _ = answer.send(written);
        }
        Command::ForgetKeys { ended_before_us, limited_before_us, answer } => {
            let _ = answer.send(keys::forget_ephemeral(connection, ended_before_us, limited_before_us).await);
        }
        Command::Journal(..) | Command::Close(_) => {}
    }
}

async fn finish(connection: SqliteConnection, owed: &[LedgerRecord], closing: Option<oneshot::Sender<()>>) {
    if !owed.is_empty() {
        tracing::error!(
            rows = owed.len(),
            "ledger rows could not be written; the next start charges what was journalled"
        );
    }
    if let Err(error) = connection.close().await {
        tracing::warn!(%error, "the database did not close cleanly");
    }
    if let Some(done) = closing {
        let _ = done.send(());
    }
}
