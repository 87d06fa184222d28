//! A usage report as it leaves: JSON, and CSV that a spreadsheet may open, because no cell is ever taken for a formula.
use std::borrow::Cow;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::query::Asked;
use crate::governance::limits::Zone;
use crate::governance::pricing::usd;
use crate::governance::usage::{UsageGroup, UsageSum};

/// The report as a JSON document.
pub(crate) fn to_json(asked: &Asked, sums: &[UsageSum]) -> Value {
    json!({
        "object": "list",
        "data": sums.iter().map(|sum| line(asked, sum)).collect::<Vec<_>>(),
        "has_more": false,
        "next_cursor": null,
        "start": local(asked.query.start_us, &asked.zone),
        "end": local(asked.query.end_us, &asked.zone),
        "group_by": asked.query.group_by.iter().map(name_of).collect::<Vec<_>>(),
        // Then lines add up to more than the whole.
        "counts_once_per_group": asked.query.group_by.contains(&UsageGroup::Group),
    })
}

fn line(asked: &Asked, sum: &UsageSum) -> Value {
    let mut line = json!({
        "object": "usage",
        "start": local(sum.start_us, &asked.zone),
        "end": local(sum.end_us, &asked.zone),
        "requests": sum.requests,
        "failed_requests": sum.failures,
        "prompt_tokens": sum.usage.prompt_tokens,
        "cached_tokens": sum.usage.cached_tokens,
        "completion_tokens": sum.usage.completion_tokens,
        "cost": usd(sum.cost_nano_usd),
        "refusals": sum.refusals,
    });
    for (group, value) in asked.query.group_by.iter().zip(&sum.group) {
        line[name_of(group)] = value.as_str().into();
    }
    line
}

/// The report as CSV with a header.
pub(crate) fn to_csv(asked: &Asked, sums: &[UsageSum]) -> Result<Vec<u8>, csv::Error> {
    const FIGURES: [&str; 7] =
        ["requests", "failed_requests", "prompt_tokens", "cached_tokens", "completion_tokens", "cost_usd", "refusals"];
    let mut writer = csv::Writer::from_writer(Vec::new());
    let mut header: Vec<String> = vec!["start".into(), "end".into()];
    header.extend(asked.query.group_by.iter().map(|group| harmless(&name_of(group)).into_owned()));
    header.extend(FIGURES.map(str::to_owned));
    writer.write_record(&header)?;
    for sum in sums {
        let usage = &sum.usage;
        let mut record = vec![local(sum.start_us, &asked.zone), local(sum.end_us, &asked.zone)];
        record.extend(sum.group.iter().map(|value| harmless(value).into_owned()));
        let counts = [sum.requests, sum.failures, usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens];
        record.extend(counts.map(|count| count.to_string()));
        record.extend([usd(sum.cost_nano_usd), sum.refusals.to_string()]);
        writer.write_record(&record)?;
    }
    writer.into_inner().map_err(|error| error.into_error().into())
}

/// How a group is called in answers.
fn name_of(group: &UsageGroup) -> String {
    match group {
        UsageGroup::User => "user".into(),
        UsageGroup::Key => "key".into(),
        UsageGroup::Tier => "tier".into(),
        UsageGroup::Model => "model".into(),
        UsageGroup::Group => "group".into(),
        UsageGroup::Label(name) => format!("label:{name}"),
    }
}

/// A moment in the zone of the report, RFC 3339 with its offset.
fn local(us: i64, zone: &Zone) -> String {
    let time = Timestamp::from_microsecond(us).unwrap_or(Timestamp::MAX);
    match TimeZone::get(zone.name()) {
        Ok(tz) if zone.name() != "UTC" => time.display_with_offset(tz.to_offset(time)).to_string(),
        _ => time.to_string(),
    }
}

/// Spreadsheets run cells that begin like a formula; an apostrophe before it makes them text.
fn harmless(cell: &str) -> Cow<'_, str> {
    // Where the comma is for decimals, a semicolon begins a cell, whatever quotes stand around it.
    if !cell.split(';').any(is_formula) {
        return cell.into();
    }
    let parts: Vec<String> =
        cell.split(';').map(|part| if is_formula(part) { format!("'{part}") } else { part.to_owned() }).collect();
    parts.join(";").into()
}

fn is_formula(cell: &str) -> bool {
    // Some skip blanks before they look, visible or not, and take the wide forms of East Asian fonts for the signs.
    const SIGNS: &str = "=+-@|%\t\r\n\u{ff1d}\u{ff0b}\u{ff0d}\u{ff20}";
    let is_blank =
        |c: char| matches!(c, ' ' | '"' | '\u{feff}' | '\u{200b}'..='\u{200f}') || c.is_whitespace() && !c.is_control();
    cell.trim_start_matches(is_blank).starts_with(|c| SIGNS.contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_that_begin_like_a_formula_are_made_text() {
        for cell in [
            "=1+1",
            "+1",
            "-1",
            "@SUM(A1)",
            "\t=1",
            " =cmd",
            "\r",
            "|calc",
            "\u{a0}=1",
            "\u{feff}=1",
            "\u{3000}\u{200b}=1",
            "\u{ff1d}1",
            "\"=1",
        ] {
            assert_eq!(harmless(cell), format!("'{cell}"));
        }
        for cell in ["", "ann", "a=b", "team-1", "é", "a;b", "a,=b"] {
            assert_eq!(harmless(cell), cell);
        }
        assert_eq!(harmless("a; =1;b;@x"), "a;' =1;b;'@x", "a semicolon may begin a cell");
    }

    #[test]
    fn times_are_shown_where_they_are_lived() {
        assert_eq!(local(1_700_000_000_000_000, &"Europe/Paris".parse().unwrap()), "2023-11-14T23:13:20+01:00");
        assert_eq!(local(1_700_000_000_000_000, &Zone::utc()), "2023-11-14T22:13:20Z");
    }
}
