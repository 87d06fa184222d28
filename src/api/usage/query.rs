//! What a usage report is asked for, from the part of the address after the question mark.
use crate::api::error::ApiError;
use crate::api::input::Query;
use crate::governance::KeyId;
use crate::governance::calendar;
use crate::governance::limits::{Period, Zone};
use crate::governance::usage::{BucketLength, Buckets, UsageGroup, UsageQuery};

/// Groups of one report at most.
const GROUPS_MAX: usize = 6;

/// How the answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Csv,
}

/// A report that was asked for; the user is still a name.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) query: UsageQuery,
    pub(crate) user: Option<String>,
    pub(crate) format: Format,
    pub(crate) zone: Zone,
}

/// Reads `start`, `end`, `bucket`, `tz`, `group_by`, `key`, `model`, `tier`, `format`, and for administrators `user`.
pub(crate) fn parse(query: Option<&str>, is_admin: bool, now_us: i64) -> Result<Asked, ApiError> {
    let mut query = Query::parse(query)?;
    let zone = take_zone(&mut query)?;
    let start_us = match query.take_moment("start")? {
        Some(start_us) => start_us,
        None => calendar::bounds(Period::Month, &zone, now_us).start_us,
    };
    // Up to and with this very moment.
    let end_us = query.take_moment("end")?.unwrap_or(now_us + 1);
    if start_us >= end_us {
        return Err(ApiError::invalid(Some("start"), "`start` must be before `end`"));
    }
    let buckets = match query.take("bucket") {
        None => None,
        Some(text) => Some(cut(parse_bucket(&text, "bucket")?, &zone, start_us, end_us)?),
    };
    let asked = Asked {
        query: UsageQuery {
            start_us,
            end_us,
            buckets,
            group_by: take_groups(&mut query)?,
            key: query.take("key").map(|id| KeyId::from(id.as_str())),
            tier: query.take("tier"),
            model: query.take("model"),
            ..UsageQuery::default()
        },
        user: if is_admin { query.take("user") } else { None },
        format: match query.take("format").as_deref() {
            None | Some("json") => Format::Json,
            Some("csv") => Format::Csv,
            Some(_) => return Err(ApiError::invalid(Some("format"), "`format` must be `json` or `csv`")),
        },
        zone,
    };
    query.refuse_unknown()?;
    Ok(asked)
}

fn take_zone(query: &mut Query) -> Result<Zone, ApiError> {
    match query.take("tz") {
        None => Ok(Zone::utc()),
        Some(name) => name.parse().map_err(|error| ApiError::invalid(Some("tz"), format!("`tz` is wrong: {error}"))),
    }
}

/// `1m`, `1h`, `1d`.
pub(super) fn parse_bucket(text: &str, param: &str) -> Result<BucketLength, ApiError> {
    [BucketLength::Minute, BucketLength::Hour, BucketLength::Day]
        .into_iter()
        .find(|length| length.as_str() == text)
        .ok_or_else(|| ApiError::invalid(Some(param), format!("`{param}` must be `1m`, `1h` or `1d`")))
}

fn cut(length: BucketLength, zone: &Zone, start_us: i64, end_us: i64) -> Result<Buckets, ApiError> {
    Buckets::new(length, zone, start_us, end_us).ok_or_else(|| {
        let (most, length) = (length.most(), length.as_str());
        let message =
            format!("at most {most} buckets of `{length}` fit one report: ask for a shorter time or longer buckets");
        ApiError::invalid(Some("bucket"), message)
    })
}

fn take_groups(query: &mut Query) -> Result<Vec<UsageGroup>, ApiError> {
    let text = query.take("group_by").unwrap_or_default();
    let mut groups = Vec::new();
    for word in text.split(',').filter(|word| !word.is_empty()) {
        let group = parse_group(word)?;
        if groups.contains(&group) {
            return Err(ApiError::invalid(Some("group_by"), format!("`{word}` is there twice")));
        }
        groups.push(group);
    }
    if groups.len() > GROUPS_MAX {
        return Err(ApiError::invalid(Some("group_by"), format!("`group_by` must name at most {GROUPS_MAX} things")));
    }
    Ok(groups)
}

fn parse_group(word: &str) -> Result<UsageGroup, ApiError> {
    Ok(match word {
        "user" => UsageGroup::User,
        "key" => UsageGroup::Key,
        "tier" => UsageGroup::Tier,
        "model" => UsageGroup::Model,
        "group" => UsageGroup::Group,
        other => match other.strip_prefix("label:").filter(|name| !name.is_empty()) {
            Some(name) => UsageGroup::Label(name.to_owned()),
            None => {
                let message = "`group_by` must be a list of `user`, `key`, `tier`, `model`, `group`, `label:NAME`";
                return Err(ApiError::invalid(Some("group_by"), message));
            }
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_US: i64 = 1_700_000_000_000_000;

    fn wrong(query: &str) -> Option<String> {
        parse(Some(query), false, NOW_US).unwrap_err().param().map(str::to_owned)
    }

    #[test]
    fn a_report_without_words_is_this_month_as_one_line() {
        let asked = parse(None, false, NOW_US).unwrap();
        assert_eq!(asked.query.start_us, 1_698_796_800_000_000, "the first of November");
        assert_eq!((asked.query.end_us, asked.query.buckets, asked.format), (NOW_US + 1, None, Format::Json));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (query, param) in [
            ("start=soon", "start"),
            ("start=5&end=5", "start"),
            ("bucket=2m", "bucket"),
            ("start=0&bucket=1m", "bucket"),
            ("tz=Mars/Olympus", "tz"),
            ("group_by=colour", "group_by"),
            ("group_by=label:", "group_by"),
            ("group_by=user,user", "group_by"),
            ("format=xml", "format"),
            ("user=ann", "user"),
        ] {
            assert_eq!(wrong(query).as_deref(), Some(param), "{query}");
        }
        assert_eq!(parse(Some("user=ann"), true, NOW_US).unwrap().user.as_deref(), Some("ann"));
    }
}
