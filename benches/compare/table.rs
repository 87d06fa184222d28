//! What came out, for people and for programs.

use serde_json::{Value, json};

use super::arm::Arm;
use super::rows::Row;

/// A row and the rounds of both.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) row: Row,
    /// How many times better Millgate is wanted to be.
    pub(crate) bar: f64,
    pub(crate) ours: Vec<f64>,
    pub(crate) rival: Vec<f64>,
}

impl Outcome {
    /// Where an arm's rounds go.
    pub(crate) fn of(&mut self, arm: &Arm) -> &mut Vec<f64> {
        match arm {
            Arm::Millgate { .. } => &mut self.ours,
            Arm::Rival { .. } => &mut self.rival,
        }
    }

    /// How many times better Millgate's median is; below 1 it is the worse one.
    fn ratio(&self) -> f64 {
        let (ours, rival) = (median(&self.ours), median(&self.rival));
        if self.row.larger_wins() { ours / rival } else { rival / ours }
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn range(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &value| (low.min(value), high.max(value)))
}

/// The table for people.
pub(crate) fn text(outcomes: &[Outcome]) -> String {
    let cell = |values: &[f64]| {
        let (low, high) = range(values);
        format!("{:.1} ({low:.1} to {high:.1})", median(values))
    };
    let mut text =
        format!("{:<52}{:>10}{:>30}{:>30}{:>8}{:>8}\n", "work", "unit", "millgate", "llama-server", "ratio", "bar");
    for outcome in outcomes {
        let (row, ratio) = (&outcome.row, outcome.ratio());
        let (ours, rival) = (cell(&outcome.ours), cell(&outcome.rival));
        let (bar, verdict) = (outcome.bar, if ratio >= outcome.bar { "holds" } else { "missed" });
        text += &format!("{:<52}{:>10}{ours:>30}{rival:>30}{ratio:>8.2}{bar:>8.2} {verdict}\n", row.name, row.unit);
    }
    text
}

/// The same for programs.
pub(crate) fn json(outcomes: &[Outcome]) -> Value {
    let arm = |values: &[f64]| json!({"median": median(values), "rounds": values});
    let rows = outcomes.iter().map(|outcome| {
        json!({
            "work": outcome.row.name, "unit": outcome.row.unit, "ratio": outcome.ratio(), "bar": outcome.bar,
            "millgate": arm(&outcome.ours), "llama_server": arm(&outcome.rival),
        })
    });
    rows.collect()
}
