//! Opening the data directory: its lock, the database file, the migrations, the writer.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, SqlSafeStr, SqlitePool};

use super::journal::Journal;
use super::rows::failed;
use super::writer::Writer;
use crate::governance::ports::StoreError;

/// Settings of the SQLite store.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the database file and the lock lie; made when missing. Default: `millgate-data`.
    pub data_dir: PathBuf,
    /// Connections that read at the same time. Default: 4; reads are short and mostly cached above.
    pub readers: u32,
    /// How long a statement waits for a lock that another program holds on the file. Default: 5 s.
    pub busy_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { data_dir: "millgate-data".into(), readers: 4, busy_timeout: Duration::from_secs(5) }
    }
}

/// Users, keys, tiers, models, journal and ledger in one SQLite file.
///
/// The data directory is locked for as long as this lives: two processes never write one ledger.
pub struct SqliteRecords {
    pub(super) pool: SqlitePool,
    pub(super) writer: Writer,
    _lock: File,
}

/// The name of the database file in the data directory.
pub(super) const DATABASE: &str = "millgate.db";
/// The name of the lock file in the data directory.
const LOCK: &str = "lock";

impl SqliteRecords {
    /// Opens or makes the store in `config.data_dir`.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when another process has it; otherwise what the system or SQLite says.
    pub async fn open(config: &Config) -> Result<Self, StoreError> {
        let lock = lock(config)?;
        let database = config.data_dir.join(DATABASE);
        // SQLite gives its companions (`-wal`, `-shm`) the mode of the database.
        create_private(&database).map_err(|error| unusable(config, &error))?;
        let options = SqliteConnectOptions::new()
            .filename(database)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(config.busy_timeout)
            .disable_statement_logging();
        let mut connection = options.connect().await.map_err(failed("open the database"))?;
        migrations(MIGRATIONS).run_direct(None, &mut connection, false).await.map_err(|error| {
            StoreError::Unavailable { operation: "bring the database up to date", message: error.to_string().into() }
        })?;
        let pool = SqlitePoolOptions::new()
            .max_connections(config.readers.max(1))
            .connect_with(options)
            .await
            .map_err(failed("open the database"))?;
        let unusable = |message: String| StoreError::Unavailable {
            operation: "open the database for writing",
            message: message.into(),
        };
        let journal = Journal::open(&config.data_dir.join(DATABASE), config.busy_timeout);
        let journal = journal.map_err(|error| unusable(error.to_string()))?;
        let writer = Writer::start(journal, connection).map_err(|error| unusable(error.to_string()))?;
        Ok(Self { pool, writer, _lock: lock })
    }
}

fn lock(config: &Config) -> Result<File, StoreError> {
    make_private(&config.data_dir).map_err(|error| unusable(config, &error))?;
    let file = create_private(&config.data_dir.join(LOCK)).map_err(|error| unusable(config, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse(config.data_dir.display().to_string().into())),
        Err(TryLockError::Error(error)) => Err(unusable(config, &error)),
    }
}

fn unusable(config: &Config, error: &std::io::Error) -> StoreError {
    StoreError::Unavailable {
        operation: "use the data directory",
        message: format!("`{}`: {error}", config.data_dir.display()).into(),
    }
}

/// Opens a file for writing and makes it if it is missing, for its owner alone; one that is there keeps content and mode.
fn create_private(file: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(file)
}

/// Makes the data directory, and its parents, for its owner alone: it holds who asked what and when. One that is there
/// keeps the mode its owner gave it.
fn make_private(folder: &Path) -> std::io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

/// Every step of the schema, in order; a step that was released is never edited.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "start", include_str!("../migrations/0001_start.sql")),
    (2, "audit", include_str!("../migrations/0002_audit.sql")),
    (3, "keys", include_str!("../migrations/0003_keys.sql")),
    (4, "money", include_str!("../migrations/0004_money.sql")),
    (5, "tokens", include_str!("../migrations/0005_tokens.sql")),
    (7, "notices", include_str!("../migrations/0007_notices.sql")),
    (8, "former users", include_str!("../migrations/0008_former_users.sql")),
    (9, "fewer pages", include_str!("../migrations/0009_fewer_pages.sql")),
];

fn migrations(steps: &[(i64, &'static str, &'static str)]) -> Migrator {
    let migrations = steps.iter().map(|(number, name, sql)| {
        Migration::new(*number, (*name).into(), MigrationType::Simple, sql.into_sql_str(), false)
    });
    Migrator::with_migrations(migrations.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::governance::ports::Records;

    #[tokio::test]
    async fn changes_of_the_policy_are_synced_at_every_commit_to_a_write_ahead_log() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { data_dir: folder.path().into(), ..Config::default() };
        // Readers are opened like the connection that writes the policy.
        let records = SqliteRecords::open(&config).await.unwrap();
        let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(&records.pool).await.unwrap();
        let journal_mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&records.pool).await.unwrap();
        assert_eq!((synchronous, journal_mode.as_str()), (2, "wal"), "2 is FULL");
    }
    #[tokio::test]
    async fn rows_and_open_requests_of_an_older_database_are_still_there() {
        const ROWS: &str = "
            INSERT INTO attributions (id, member_groups, labels) VALUES ('a', '[\"staff\"]', '{}');
            INSERT INTO ledger (id, client_request_id, user_id, user_name, key_id, tier, model, endpoint, admitted_at_us,
                settled_at_us, prompt_tokens, cached_tokens, completion_tokens, status, charged, price_version, attribution_id, cost_nano_usd)
            VALUES ('00000000-0000-0000-0000-000000000001', 'theirs', '00000000-0000-0000-0000-000000000009', 'ann', 'k', 'free', 'm',
                'chat', 10, 90000010, 3, 2, 4, 'completed', '[{\"at_us\":10,\"requests\":1}]', 5, 'a', 6),
                ('00000000-0000-0000-0000-000000000002', NULL, '00000000-0000-0000-0000-000000000009', 'ann', NULL, 'free', 'm',
                'chat', 11, 12, 0, 0, 0, 'failed', '[]', NULL, '', 0);
            INSERT INTO reservations (id, client_request_id, user_id, user_name, key_id, tier, model, endpoint, admitted_at_us,
                extents, prompt_tokens, cached_tokens, completion_tokens, price_version, attribution_id)
            VALUES ('00000000-0000-0000-0000-000000000003', NULL, '00000000-0000-0000-0000-000000000009', 'ann', 'k', 'free', 'm',
                'chat', 13, '[{\"at_us\":13,\"requests\":1}]', 7, 0, 8, 5, 'a');";
        let folder = tempfile::tempdir().unwrap();
        let options = SqliteConnectOptions::new().filename(folder.path().join(DATABASE)).create_if_missing(true);
        let mut older = options.connect().await.unwrap();
        let steps: Vec<_> = MIGRATIONS.iter().copied().filter(|(number, ..)| *number < 9).collect();
        migrations(&steps).run_direct(None, &mut older, false).await.unwrap();
        sqlx::raw_sql(ROWS).execute(&mut older).await.unwrap();
        sqlx::Connection::close(older).await.unwrap();

        let records =
            SqliteRecords::open(&Config { data_dir: folder.path().into(), ..Config::default() }).await.unwrap();
        let rows = records.ledger_since(0).await.unwrap();
        let [failed, completed] = &rows[..] else { panic!("{rows:?}") };
        assert_eq!(
            (failed.request.admitted_at_us, failed.status.as_str(), failed.request.price_version),
            (11, "failed", None)
        );
        let request = &completed.request;
        assert_eq!((request.client_request_id.as_deref(), request.price_version), (Some("theirs"), Some(5)));
        assert_eq!((&request.attribution.groups[..], completed.cost_nano_usd), (&["staff".to_owned()][..], 6));
        assert_eq!(
            (completed.usage.prompt_tokens, completed.usage.cached_tokens, completed.usage.completion_tokens),
            (3, 2, 4)
        );
        assert_eq!(completed.charged[0].at_us, 10);
        let open = records.open_reservations().await.unwrap();
        assert_eq!((open.len(), open[0].request.admitted_at_us, open[0].progress.completion_tokens), (1, 13, 8));
        assert_eq!((open[0].extents[0].at_us, open[0].request.price_version), (13, Some(5)));
    }
}
