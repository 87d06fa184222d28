//! Maximum, exponential and normaliser over a row of logits, fast enough for a vocabulary of 150,000 tokens.

use millgate_models::DrawError;

/// The largest value; `-inf` for an empty row. NaN values are passed over.
pub(crate) fn max(values: &[f32]) -> f32 {
    // Eight independent maxima, so that the compiler can use vector registers.
    let mut lanes = [f32::NEG_INFINITY; 8];
    let chunks = values.chunks_exact(8);
    let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    lanes.into_iter().fold(rest, f32::max)
}

/// The largest value of a row that a model computed.
///
/// # Errors
/// [`DrawError::NotANumber`] for NaN, `+inf`, or a row without any finite value.
pub(crate) fn checked_max(logits: &[f32]) -> Result<f32, DrawError> {
    let has_nan = logits.iter().fold(false, |found, logit| found | logit.is_nan());
    let max = max(logits);
    if has_nan || !max.is_finite() { Err(DrawError::NotANumber) } else { Ok(max) }
}

/// `e^x` for `x <= 0`, to about one part in ten million; 0 below -87.
///
/// Our own, because the standard one is a call per element and differs between platforms: the same seed must draw the
/// same token everywhere.
pub(crate) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts: the first has few enough bits for exact products.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 0.0);
    let power = (clamped * LOG2_E - 0.5) as i32;
    let rest = clamped - power as f32 * LN2_HIGH - power as f32 * LN2_LOW;
    // Taylor series to the sixth power on |rest| <= 0.35: the next term is below 2e-7.
    let series = 1.0 / 720.0;
    let series = series * rest + 1.0 / 120.0;
    let series = series * rest + 1.0 / 24.0;
    let series = series * rest + 1.0 / 6.0;
    let series = series * rest + 0.5;
    let series = series * rest + 1.0;
    let series = series * rest + 1.0;
    let scale = f32::from_bits(((127 + power) as u32) << 23);
    if x < -87.0 { 0.0 } else { series * scale }
}

/// Logarithm of the sum of exponentials of a row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Normaliser {
    max: f32,
    log_sum: f64,
}

impl Normaliser {
    /// `max` is the row's largest value.
    pub(crate) fn new(logits: &[f32], max: f32) -> Self {
        let sum: f64 = logits.iter().map(|&logit| f64::from(exp(logit - max))).sum();
        Self { max, log_sum: sum.ln() }
    }

    /// Log probability of a token with this logit.
    pub(crate) fn logprob(&self, logit: f32) -> f32 {
        (f64::from(logit) - f64::from(self.max) - self.log_sum) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_right_to_a_few_units_in_the_last_place() {
        for step in 0..200_000 {
            let x = -(step as f32) * 4.3e-4;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 4e-7, "exp({x}) is off by {error}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-90.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn broken_rows_are_refused() {
        for broken in [f32::NAN, f32::INFINITY] {
            let mut row = vec![0.5; 21];
            row[17] = broken;
            assert_eq!(checked_max(&row), Err(DrawError::NotANumber));
        }
        assert_eq!(checked_max(&[f32::NEG_INFINITY; 3]), Err(DrawError::NotANumber));
        assert_eq!(checked_max(&[f32::NEG_INFINITY, -2.0]), Ok(-2.0));
    }

    #[test]
    fn log_probabilities_sum_to_one() {
        let row: Vec<f32> = (0..1001).map(|index| (index as f32 * 0.37).sin() * 9.0).collect();
        let normaliser = Normaliser::new(&row, max(&row));
        let sum: f64 = row.iter().map(|&logit| f64::from(normaliser.logprob(logit)).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
    }
}
