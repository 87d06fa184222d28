//! Usage reports: pieces of time read from roll-ups or from ledger rows, and put together by group.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures::TryStreamExt;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Sqlite, SqlitePool};

use super::rows::{self, column, failed};
use crate::governance::UserId;
use crate::governance::attribution::Attribution;
use crate::governance::ports::{StoreError, UsageGroup, UsageQuery, UsageSum};
use crate::governance::records::KeyId;
use crate::governance::usage::{BucketLength, LINES_MAX, Piece, PieceSource};

const WHAT: &str = "usage sum";
const READ: &str = "read the ledger";

/// Adds up what `asked` names, by stretch of time and group.
pub(super) async fn report(pool: &SqlitePool, asked: &UsageQuery) -> Result<Vec<UsageSum>, StoreError> {
    // One snapshot for all pieces: a row must not move from one to another while they are read.
    let mut snapshot = pool.begin().await.map_err(failed(READ))?;
    let mut lines = Lines { asked, sums: BTreeMap::new(), names: HashMap::new(), attributions: HashMap::new() };
    if asked.group_by.iter().any(|group| matches!(group, UsageGroup::Group | UsageGroup::Label(_))) {
        let select = sqlx::query("SELECT id, member_groups, labels FROM attributions");
        let mut found = select.fetch(&mut *snapshot);
        while let Some(row) = found.try_next().await.map_err(failed(READ))? {
            let id: String = column(&row, WHAT, "id")?;
            lines.attributions.insert(id, Arc::new(rows::attribution(&row, WHAT)?.unwrap_or_default()));
        }
    }
    for piece in asked.pieces() {
        for select in selects(&piece) {
            let mut query = QueryBuilder::new("");
            select.build(asked, &piece, &mut query);
            let mut found = query.build().fetch(&mut *snapshot);
            while let Some(row) = found.try_next().await.map_err(failed(READ))? {
                lines.add(&row)?;
            }
        }
    }
    snapshot.rollback().await.map_err(failed(READ))?;
    Ok(lines.finish())
}

/// One statement over one table.
#[derive(Debug, Clone, Copy)]
struct Select {
    /// Where rows are, and the column that says when.
    table: &'static str,
    time: &'static str,
    key: &'static str,
    /// The roll-ups' length; `None` for ledger rows.
    bucket: Option<BucketLength>,
    sums: &'static str,
    /// A further condition.
    only: &'static str,
}

const ROLLED_UP: &str = "CAST(SUM(requests) AS BIGINT) AS requests, CAST(SUM(failures) AS BIGINT) AS failures, \
    CAST(SUM(prompt_tokens) AS BIGINT) AS prompt_tokens, CAST(SUM(cached_tokens) AS BIGINT) AS cached_tokens, \
    CAST(SUM(completion_tokens) AS BIGINT) AS completion_tokens, CAST(SUM(cost_nano_usd) AS BIGINT) AS cost_nano_usd, \
    CAST(SUM(refusals) AS BIGINT) AS refusals";
const FROM_ROWS: &str = "CAST(SUM(CASE WHEN status = 'failed' THEN 0 ELSE 1 END) AS BIGINT) AS requests, \
    CAST(SUM(CASE WHEN status = 'failed' THEN 1 ELSE 0 END) AS BIGINT) AS failures, \
    CAST(SUM(prompt_tokens) AS BIGINT) AS prompt_tokens, CAST(SUM(cached_tokens) AS BIGINT) AS cached_tokens, \
    CAST(SUM(completion_tokens) AS BIGINT) AS completion_tokens, CAST(SUM(cost_nano_usd) AS BIGINT) AS cost_nano_usd, \
    CAST(0 AS BIGINT) AS refusals";
const REFUSALS_ALONE: &str = "CAST(0 AS BIGINT) AS requests, CAST(0 AS BIGINT) AS failures, \
    CAST(0 AS BIGINT) AS prompt_tokens, CAST(0 AS BIGINT) AS cached_tokens, CAST(0 AS BIGINT) AS completion_tokens, \
    CAST(0 AS BIGINT) AS cost_nano_usd, CAST(SUM(refusals) AS BIGINT) AS refusals";

/// The statements that read `piece`: refusals are known by the minute only, so single rows need a second one.
fn selects(piece: &Piece) -> Vec<Select> {
    let rolled_up = |bucket, sums, only| Select {
        table: "usage_rollups",
        time: "start_us",
        key: "key_id",
        bucket: Some(bucket),
        sums,
        only,
    };
    match piece.source {
        PieceSource::RollUps(bucket) => vec![rolled_up(bucket, ROLLED_UP, "")],
        PieceSource::Rows => {
            let rows = Select {
                table: "ledger",
                time: "admitted_at_us",
                key: "COALESCE(key_id, '')",
                bucket: None,
                sums: FROM_ROWS,
                only: "",
            };
            vec![rows, rolled_up(BucketLength::Minute, REFUSALS_ALONE, " AND refusals > 0")]
        }
    }
}

impl Select {
    fn build(&self, asked: &UsageQuery, piece: &Piece, query: &mut QueryBuilder<Sqlite>) {
        let mut groups: Vec<&'static str> = Vec::new();
        query.push("SELECT ");
        match (&asked.buckets, self.bucket, piece.source) {
            (Some(_), Some(_), PieceSource::RollUps(_)) => {
                query.push("start_us AS at_us, ");
                groups.push("start_us");
            }
            // The whole piece lies in one stretch of the report.
            _ => {
                query.push("CAST(").push_bind(piece.start_us).push(" AS BIGINT) AS at_us, ");
            }
        }
        for group in &asked.group_by {
            let column = match group {
                UsageGroup::User => {
                    query.push("MAX(user_name) AS user_name, ");
                    "user_id"
                }
                UsageGroup::Key => self.key,
                UsageGroup::Tier => "tier",
                UsageGroup::Model => "model",
                UsageGroup::Group | UsageGroup::Label(_) => "attribution_id",
            };
            if !groups.contains(&column) {
                query.push(column).push(" AS ").push(name_of(group)).push(", ");
                groups.push(column);
            }
        }
        query.push(self.sums).push(", COUNT(*) AS found FROM ").push(self.table).push(" WHERE ").push(self.time);
        query.push(" >= ").push_bind(piece.start_us).push(" AND ").push(self.time).push(" < ").push_bind(piece.end_us);
        if let Some(bucket) = self.bucket {
            query.push(" AND bucket = ").push_bind(bucket.as_str());
        }
        query.push(self.only);
        let filters = [
            ("user_id", asked.user.map(|user| user.to_string())),
            ("key_id", asked.key.as_ref().map(KeyId::to_string)),
            ("tier", asked.tier.clone()),
            ("model", asked.model.clone()),
        ];
        for (column, value) in filters {
            if let Some(value) = value {
                query.push(" AND ").push(column).push(" = ").push_bind(value);
            }
        }
        if !groups.is_empty() {
            query.push(" GROUP BY ").push(groups.join(", "));
        }
    }
}

/// The name under which a column of [`Select`] comes back.
fn name_of(group: &UsageGroup) -> &'static str {
    match group {
        UsageGroup::User => "by_user",
        UsageGroup::Key => "by_key",
        UsageGroup::Tier => "by_tier",
        UsageGroup::Model => "by_model",
        UsageGroup::Group | UsageGroup::Label(_) => "by_attribution",
    }
}

/// The lines of a report while it is put together.
struct Lines<'a> {
    asked: &'a UsageQuery,
    /// By stretch of time and group; users by id.
    sums: BTreeMap<((i64, i64), Vec<String>), UsageSum>,
    names: HashMap<String, String>,
    attributions: HashMap<String, Arc<Attribution>>,
}

impl Lines<'_> {
    fn add(&mut self, row: &SqliteRow) -> Result<(), StoreError> {
        if rows::count(row, WHAT, "found")? == 0 {
            return Ok(());
        }
        let (start_us, end_us) = self.asked.bucket_of(column(row, WHAT, "at_us")?);
        let mut groups = vec![Vec::new()];
        for group in &self.asked.group_by {
            let values = self.values(group, row)?;
            groups = groups
                .into_iter()
                .flat_map(|before: Vec<String>| {
                    values.iter().map(move |value| {
                        let mut group = before.clone();
                        group.push(value.clone());
                        group
                    })
                })
                .collect();
        }
        for group in groups {
            let sum = self.sums.entry(((start_us, end_us), group)).or_default();
            sum.requests += rows::count(row, WHAT, "requests")?;
            sum.failures += rows::count(row, WHAT, "failures")?;
            let usage = rows::usage(row, WHAT)?;
            sum.usage.prompt_tokens += usage.prompt_tokens;
            sum.usage.cached_tokens += usage.cached_tokens;
            sum.usage.completion_tokens += usage.completion_tokens;
            sum.cost_nano_usd += rows::count(row, WHAT, "cost_nano_usd")?;
            sum.refusals += rows::count(row, WHAT, "refusals")?;
        }
        if self.sums.len() > LINES_MAX {
            return Err(StoreError::TooMany { most: LINES_MAX });
        }
        Ok(())
    }

    /// What a row counts under: one value, or one for each group of the user.
    fn values(&mut self, group: &UsageGroup, row: &SqliteRow) -> Result<Vec<String>, StoreError> {
        let value: String = column(row, WHAT, name_of(group))?;
        Ok(match group {
            UsageGroup::User => {
                self.names.insert(value.clone(), column(row, WHAT, "user_name")?);
                vec![value]
            }
            UsageGroup::Key | UsageGroup::Tier | UsageGroup::Model => vec![value],
            UsageGroup::Group => match self.attributions.get(&value) {
                Some(attribution) if !attribution.groups.is_empty() => attribution.groups.clone(),
                _ => vec![String::new()],
            },
            UsageGroup::Label(name) => {
                let label = self.attributions.get(&value).and_then(|attribution| attribution.labels.get(name));
                vec![label.cloned().unwrap_or_default()]
            }
        })
    }

    /// The lines in order: by time, then by what people read.
    fn finish(self) -> Vec<UsageSum> {
        let Self { asked, sums, names, .. } = self;
        if asked.group_by.is_empty() && asked.buckets.is_none() && sums.is_empty() {
            return vec![UsageSum { start_us: asked.start_us, end_us: asked.end_us, ..UsageSum::default() }];
        }
        let line = |(((start_us, end_us), mut group), sum): (((i64, i64), Vec<String>), UsageSum)| {
            let mut user = None;
            for (by, value) in asked.group_by.iter().zip(&mut group) {
                if *by == UsageGroup::User {
                    user = value.parse().ok().map(UserId);
                    *value = names.get(value.as_str()).cloned().unwrap_or_default();
                }
            }
            UsageSum { start_us, end_us, group, user, ..sum }
        };
        let mut lines: Vec<UsageSum> = sums.into_iter().map(line).collect();
        lines.sort_by(|a, b| (a.start_us, &a.group, a.user).cmp(&(b.start_us, &b.group, b.user)));
        lines
    }
}
