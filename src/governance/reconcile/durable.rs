//! What is on the disk, held against itself: each row's charges are its usage and its price's cost, each roll-up is the sum of
//! its rows.
//!
//! Windows are rebuilt at a start from the charges of rows, calendar counters from their sums; both agree when rows do.

use async_trait::async_trait;
use uuid::Uuid;

use super::meter::Sums;
use crate::governance::ports::{Records, RowRange, StoreError};
use crate::governance::pricing::PriceList;
use crate::governance::records::{LedgerRecord, Usage};

/// Rows read at a time.
const CHUNK: u32 = 1000;
/// Findings told one by one.
const FINDINGS_MAX: usize = 100;

/// A roll-up that is not the sum of its rows: roll-up minus rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RollUpDifference {
    /// `1m`, `1h` or `1d`.
    pub bucket: &'static str,
    /// The start of its stretch of time.
    pub start_us: i64,
    /// Whose, in which tier and for which model.
    pub subject: String,
    /// Requests too many, or too few.
    pub requests: i64,
    /// Requests that failed.
    pub failures: i64,
    /// Prompt tokens.
    pub prompt_tokens: i64,
    /// Cached tokens.
    pub cached_tokens: i64,
    /// Completion tokens.
    pub completion_tokens: i64,
    /// Money.
    pub cost_nano_usd: i64,
}

/// The ledger as a check reads it: through a store, or from a data directory.
#[async_trait]
pub trait Books: Send + Sync {
    /// Ledger rows by admission and id.
    async fn rows(&self, range: RowRange) -> Result<Vec<LedgerRecord>, StoreError>;
    /// Roll-ups that differ from their rows, of `[from_us, to_us)` widened to whole days.
    async fn roll_up_differences(&self, from_us: i64, to_us: i64) -> Result<Vec<RollUpDifference>, StoreError>;
}

/// A store's books.
pub struct OnDisk<'a>(pub &'a dyn Records);

#[async_trait]
impl Books for OnDisk<'_> {
    async fn rows(&self, range: RowRange) -> Result<Vec<LedgerRecord>, StoreError> {
        self.0.ledger_between(range).await
    }

    async fn roll_up_differences(&self, from_us: i64, to_us: i64) -> Result<Vec<RollUpDifference>, StoreError> {
        self.0.roll_up_differences(from_us, to_us).await
    }
}

/// A row that contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which request.
    pub request: Uuid,
    /// What does not fit.
    pub what: String,
}

/// What was found on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DurableReport {
    /// Rows looked at.
    pub rows: u64,
    /// What they charge.
    pub ledger: Sums,
    /// Rows that contradict themselves, the first of them.
    pub findings: Vec<Finding>,
    /// How many there are.
    pub findings_count: u64,
    /// Roll-ups that are not the sum of their rows, the first of them.
    pub roll_ups: Vec<RollUpDifference>,
    /// Tokens by which rows and their charges differ.
    pub charges_apart: u64,
}

impl DurableReport {
    /// True when nothing differs.
    pub fn is_equal(&self) -> bool {
        self.findings_count == 0 && self.roll_ups.is_empty()
    }

    /// Tokens by which the roll-ups told differ from their rows.
    pub fn roll_ups_apart(&self) -> u64 {
        let of = |one: &RollUpDifference| one.prompt_tokens.unsigned_abs() + one.completion_tokens.unsigned_abs();
        self.roll_ups.iter().filter(|one| one.bucket == "1m").map(of).sum()
    }
}

/// Checks rows admitted in `[from_us, to_us)` and the roll-ups of their days.
///
/// # Errors
/// The ledger cannot be read.
pub async fn check_books(
    books: &dyn Books,
    prices: &PriceList,
    from_us: i64,
    to_us: i64,
) -> Result<DurableReport, StoreError> {
    let mut report =
        DurableReport { roll_ups: books.roll_up_differences(from_us, to_us).await?, ..DurableReport::default() };
    let mut after = None;
    loop {
        let rows = books.rows(RowRange { from_us, to_us, after, limit: CHUNK }).await?;
        for row in &rows {
            report.rows += 1;
            report.ledger = report.ledger.plus(Sums::of(row));
            let charged = charged(row);
            report.charges_apart += charged.tokens_apart(Sums::of(row));
            if let Some(what) = contradiction(row, charged, prices) {
                report.findings_count += 1;
                if report.findings.len() < FINDINGS_MAX {
                    report.findings.push(Finding { request: row.request.id, what });
                }
            }
        }
        if rows.len() < CHUNK as usize {
            return Ok(report);
        }
        after = rows.last().map(|row| (row.request.admitted_at_us, row.request.id));
    }
}

fn charged(row: &LedgerRecord) -> Sums {
    row.charged.iter().fold(Sums::default(), |sum, extent| {
        sum.plus(Sums {
            requests: extent.requests,
            prompt_tokens: extent.prompt_tokens,
            completion_tokens: extent.completion_tokens,
            cost_nano_usd: extent.cost_nano_usd,
        })
    })
}

/// What in a row does not fit together, in words.
fn contradiction(row: &LedgerRecord, charged: Sums, prices: &PriceList) -> Option<String> {
    let sums = Sums::of(row);
    if !row.status.is_charged() && row.usage != Usage::default() {
        return Some("it failed and is charged all the same".into());
    }
    if row.usage.cached_tokens > row.usage.prompt_tokens {
        return Some("more prompt tokens are cached than there are".into());
    }
    let parts = [
        ("requests", sums.requests, charged.requests),
        ("prompt tokens", sums.prompt_tokens, charged.prompt_tokens),
        ("completion tokens", sums.completion_tokens, charged.completion_tokens),
        ("nano-dollars", sums.cost_nano_usd, charged.cost_nano_usd),
    ];
    if let Some((what, ledger, limiter)) = parts.iter().find(|(_, ledger, limiter)| ledger != limiter) {
        return Some(format!("the row has {ledger} {what}, its limits were charged {limiter}"));
    }
    let price = row.request.price_version.and_then(|version| prices.version(version))?;
    let cost = price.price.cost_nano_usd(row.usage);
    (cost != row.cost_nano_usd)
        .then(|| format!("the row costs {} nano-dollars, its price makes {cost}", row.cost_nano_usd))
}
