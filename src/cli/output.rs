//! Where commands write: standard output for results, tables or JSON; standard error for everything else.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// Writes text as it is, and flushes it so that a reader of a pipe sees it at once.
pub(super) fn text(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    ignore_closed_pipe(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Writes one line.
pub(super) fn line(line: &str) -> Result<()> {
    text(&format!("{line}\n"))
}

/// Writes a value as indented JSON.
pub(super) fn json(value: &impl Serialize) -> Result<()> {
    line(&serde_json::to_string_pretty(value).context("cannot write the result as JSON")?)
}

/// Writes rows under a header, as wide as the terminal allows; `empty` says what it means that there are none.
pub(super) fn table(header: &[&str], rows: Vec<Vec<String>>, empty: &str) -> Result<()> {
    if rows.is_empty() {
        return line(empty);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_header(header);
    table.add_rows(rows);
    line(&table.trim_fmt())
}

/// A moment as people read it: an RFC 3339 text or epoch seconds becomes `2026-11-23 05:16`; nothing becomes `-`.
pub(super) fn moment(value: &serde_json::Value) -> String {
    let seconds = || value.as_i64().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    let time = value.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok()).or_else(seconds);
    time.map_or_else(|| "-".into(), |time| time.strftime("%Y-%m-%d %H:%M").to_string())
}

/// A number with its thousands apart: `1,048,576`.
pub(super) fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Writes a note for people to standard error.
pub(super) fn note(line: &str) {
    // Nothing is left to do when even standard error is gone.
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// A reader such as `head` may leave early; that is its right and no failure of ours.
fn ignore_closed_pipe(written: io::Result<()>) -> Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn moments_and_numbers_are_readable() {
        assert_eq!(moment(&json!("2026-11-23T05:16:07.123456Z")), "2026-11-23 05:16");
        assert_eq!(moment(&json!(0)), "1970-01-01 00:00");
        assert_eq!(moment(&json!(null)), "-");
        assert_eq!([0, 999, 1000, 1_048_576].map(number), ["0", "999", "1,000", "1,048,576"]);
    }
}
