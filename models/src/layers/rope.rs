//! Rotary position frequencies and the ways in which models stretch them over longer contexts.

use std::f64::consts::PI;

/// How a model scales its rotary frequencies.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum RopeScaling {
    /// As they are.
    None,
    /// All divided by one factor.
    Linear {
        /// At least 1 in every published model.
        factor: f64,
    },
    /// Long wavelengths divided by a factor, short ones kept, those between interpolated.
    Llama3 {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// Wavelengths longer than `original_context / low_frequency_factor` are divided whole.
        low_frequency_factor: f64,
        /// Wavelengths shorter than `original_context / high_frequency_factor` are kept.
        high_frequency_factor: f64,
        /// Context window before the stretch, in tokens.
        original_context: f64,
    },
    /// Each divided by its own factor, as GGUF files carry the Llama 3 scaling in a tensor.
    Factors(Vec<f32>),
}

impl RopeScaling {
    /// A word or two for summaries.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::None => "default".into(),
            Self::Linear { factor } => format!("linear x{factor}"),
            Self::Llama3 { factor, original_context, .. } => format!("llama3 x{factor} over {original_context}"),
            Self::Factors(_) => "factors from the file".into(),
        }
    }
}

/// The frequency of each rotated pair, in radians a token.
///
/// # Source
/// arXiv:2104.09864 for the plain frequencies, arXiv:2306.15595 for linear scaling, the Llama 3.1 model card for
/// `llama3`. The plain ones are computed in f32 as the reference implementation does, because long contexts multiply
/// a rounding difference by the position.
pub(crate) fn inverse_frequencies(theta: f64, head_dim: usize, scaling: &RopeScaling) -> Vec<f32> {
    let half = head_dim / 2;
    let plain = (0..half).map(|pair| {
        let exponent = (2 * pair) as f32 / head_dim as f32;
        1.0 / (theta as f32).powf(exponent)
    });
    match scaling {
        RopeScaling::None => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|frequency| frequency / *factor as f32).collect(),
        RopeScaling::Factors(factors) => plain.zip(factors).map(|(frequency, factor)| frequency / factor).collect(),
        RopeScaling::Llama3 { factor, low_frequency_factor, high_frequency_factor, original_context } => plain
            .map(|frequency| {
                let wavelength = 2.0 * PI / f64::from(frequency);
                let turns = original_context / wavelength;
                let kept = if turns > *high_frequency_factor {
                    1.0
                } else if turns < *low_frequency_factor {
                    0.0
                } else {
                    (turns - low_frequency_factor) / (high_frequency_factor - low_frequency_factor)
                };
                let frequency = f64::from(frequency);
                ((1.0 - kept) * frequency / factor + kept * frequency) as f32
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let plain = inverse_frequencies(10_000.0, 16, &RopeScaling::None);
        let scaled = inverse_frequencies(10_000.0, 16, &RopeScaling::Linear { factor: 4.0 });
        assert_eq!(plain[0], 1.0);
        assert!(plain.iter().zip(&scaled).all(|(plain, scaled)| *scaled == plain / 4.0));
    }

    #[test]
    fn llama3_scaling_keeps_short_waves_and_stretches_long_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_context: 8192.0,
        };
        let plain = inverse_frequencies(500_000.0, 128, &RopeScaling::None);
        let scaled = inverse_frequencies(500_000.0, 128, &scaling);
        assert_eq!(plain[0], scaled[0]);
        assert!((plain[63] / 8.0 - scaled[63]).abs() < 1e-12);
        assert!(scaled.windows(2).all(|pair| pair[0] > pair[1]));
    }
}
