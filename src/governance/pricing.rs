//! What tokens cost: prices by model and class, their versions in time, and the one place where money is rounded.
//!
//! Prices are whole pico-dollars a token; a request's cost is rounded once, half to even, to whole nano-dollars, and that
//! integer is what ledger, counters and roll-ups add up. Reservations are rounded up, so that they always cover the cost.

use std::collections::HashMap;
use std::sync::Arc;

use super::records::Usage;

/// The model name whose price holds for every model without one of its own.
pub const ANY_MODEL: &str = "*";
/// The dearest price of a token in pico-dollars: a thousand dollars a million tokens. It keeps sums far from 64 bits.
pub const PRICE_MAX_PICO_USD: u64 = 1_000_000_000;
/// The most that one reservation may hold, in nano-dollars; beyond every limit there can be.
const COST_MAX_NANO_USD: u128 = 1 << 53;
/// Pico-dollars in a nano-dollar.
const PICO: u128 = 1000;
/// Nano-dollars in a dollar.
const NANO: u64 = 1_000_000_000;

/// What one token of each class costs.
///
/// # Units
/// Pico-dollars (10^-12 USD) a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Price {
    /// A prompt token that was computed.
    pub prompt_pico_usd: u64,
    /// A prompt token that came from the prefix cache.
    pub cached_pico_usd: u64,
    /// A token of the answer.
    pub completion_pico_usd: u64,
}

impl Price {
    /// What `usage` costs in nano-dollars, rounded once, half to even.
    pub fn cost_nano_usd(&self, usage: Usage) -> u64 {
        let cached = usage.cached_tokens.min(usage.prompt_tokens);
        let pico = product(usage.prompt_tokens - cached, self.prompt_pico_usd)
            + product(cached, self.cached_pico_usd)
            + product(usage.completion_tokens, self.completion_pico_usd);
        clamp(round_half_even(pico))
    }

    /// The most that so many tokens can cost in nano-dollars, rounded up: whatever turns out to be cached.
    pub fn ceiling_nano_usd(&self, prompt_tokens: u64, completion_tokens: u64) -> u64 {
        let pico = self.prompt_ceiling_pico(prompt_tokens) + product(completion_tokens, self.completion_pico_usd);
        clamp(pico.div_ceil(PICO))
    }

    /// The most that `tokens` of whichever class can cost in nano-dollars.
    pub fn dearest_nano_usd(&self, tokens: u64) -> u64 {
        self.ceiling_nano_usd(tokens, 0).max(self.ceiling_nano_usd(0, tokens))
    }

    /// How many completion tokens `left_nano_usd` pays for after `prompt_tokens`; all there are when they cost nothing.
    pub fn affordable_tokens(&self, left_nano_usd: u64, prompt_tokens: u64) -> u64 {
        if self.completion_pico_usd == 0 {
            return u64::MAX;
        }
        let left = (u128::from(left_nano_usd) * PICO).saturating_sub(self.prompt_ceiling_pico(prompt_tokens));
        u64::try_from(left / u128::from(self.completion_pico_usd)).unwrap_or(u64::MAX)
    }

    fn prompt_ceiling_pico(&self, prompt_tokens: u64) -> u128 {
        product(prompt_tokens, self.prompt_pico_usd.max(self.cached_pico_usd))
    }
}

fn product(tokens: u64, pico_usd: u64) -> u128 {
    u128::from(tokens) * u128::from(pico_usd)
}

fn clamp(nano: u128) -> u64 {
    u64::try_from(nano.min(COST_MAX_NANO_USD)).expect("the bound fits 64 bits")
}

fn round_half_even(pico: u128) -> u128 {
    let (whole, rest) = (pico / PICO, pico % PICO);
    let is_up = rest > PICO / 2 || (rest == PICO / 2 && !whole.is_multiple_of(2));
    whole + u128::from(is_up)
}

/// One version of the price of one model. Versions are never changed: ledger rows refer to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriceRecord {
    /// Counts up over all models.
    pub version: u64,
    /// For which model; [`ANY_MODEL`]: for all that have none.
    pub model: String,
    /// What tokens cost.
    pub price: Price,
    /// From when on, microseconds since the Unix epoch.
    pub effective_from_us: i64,
    /// When somebody set it.
    pub created_at_us: i64,
}

/// All versions of all prices.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PriceList {
    /// Each model's versions by the time they take effect, the newer one last among equals.
    by_model: HashMap<Arc<str>, Vec<PriceRecord>>,
    newest: u64,
}

impl PriceList {
    /// Sorts versions by model and time.
    pub fn new(records: Vec<PriceRecord>) -> Self {
        let mut list = Self::default();
        for record in records {
            list.newest = list.newest.max(record.version);
            list.by_model.entry(record.model.as_str().into()).or_default().push(record);
        }
        for versions in list.by_model.values_mut() {
            versions.sort_by_key(|record| (record.effective_from_us, record.version));
        }
        list
    }

    /// The price of `model` at `now_us`: its own, else that of [`ANY_MODEL`]; `None`: it costs nothing.
    pub fn at(&self, model: &str, now_us: i64) -> Option<&PriceRecord> {
        if self.by_model.is_empty() {
            return None;
        }
        self.own_at(model, now_us).or_else(|| self.own_at(ANY_MODEL, now_us))
    }

    /// The price that was set for exactly this name.
    pub fn own_at(&self, model: &str, now_us: i64) -> Option<&PriceRecord> {
        let versions = self.by_model.get(model)?;
        let after = versions.partition_point(|record| record.effective_from_us <= now_us);
        versions[..after].last()
    }

    /// A version by its number.
    pub fn version(&self, version: u64) -> Option<&PriceRecord> {
        self.all().find(|record| record.version == version)
    }

    /// Every version, in no order.
    pub fn all(&self) -> impl Iterator<Item = &PriceRecord> {
        self.by_model.values().flatten()
    }

    /// The highest version number; 0 when there is no price.
    pub fn newest(&self) -> u64 {
        self.newest
    }
}

/// Nano-dollars as dollars, exactly and without trailing zeros: `0.000123`, `20`.
pub fn usd(nano: u64) -> String {
    let (whole, rest) = (nano / NANO, nano % NANO);
    if rest == 0 {
        return whole.to_string();
    }
    let digits = format!("{rest:09}");
    format!("{whole}.{}", digits.trim_end_matches('0'))
}

/// Dollars with at most nine decimals as nano-dollars; `None` for anything else.
pub fn parse_usd(text: &str) -> Option<u64> {
    parse_decimal(text, 9)
}

/// A price of a million tokens in dollars, with at most six decimals, as pico-dollars a token.
pub fn parse_usd_per_million(text: &str) -> Option<u64> {
    parse_decimal(text, 6)
}

/// Pico-dollars a token as dollars a million tokens: `3000000` is `3`.
pub fn usd_per_million(pico: u64) -> String {
    const MICRO: u64 = 1_000_000;
    let (whole, rest) = (pico / MICRO, pico % MICRO);
    if rest == 0 {
        return whole.to_string();
    }
    format!("{whole}.{}", format!("{rest:06}").trim_end_matches('0'))
}

/// A plain decimal number times ten to the `decimals`.
fn parse_decimal(text: &str, decimals: usize) -> Option<u64> {
    let (whole, rest) = text.split_once('.').unwrap_or((text, "0"));
    let is_plain = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !is_plain(whole) || !is_plain(rest) || rest.len() > decimals {
        return None;
    }
    let scale = 10u64.pow(u32::try_from(decimals).ok()?);
    let rest: u64 = format!("{rest:0<decimals$}").parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(scale)?.checked_add(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PRICE: Price = Price { prompt_pico_usd: 150_000, cached_pico_usd: 75_000, completion_pico_usd: 600_000 };

    fn usage(prompt_tokens: u64, cached_tokens: u64, completion_tokens: u64) -> Usage {
        Usage { prompt_tokens, cached_tokens, completion_tokens }
    }

    #[test]
    fn a_request_costs_its_tokens_by_class() {
        assert_eq!(PRICE.cost_nano_usd(usage(1000, 0, 100)), 210_000);
        assert_eq!(PRICE.cost_nano_usd(usage(1000, 400, 100)), 180_000);
        assert_eq!(Price::default().cost_nano_usd(usage(1000, 400, 100)), 0);
    }

    #[test]
    fn the_cost_is_rounded_once_and_half_goes_to_even() {
        let price = |pico| Price { prompt_pico_usd: pico, ..Price::default() };
        let cost = |pico, tokens| price(pico).cost_nano_usd(usage(tokens, 0, 0));
        assert_eq!([cost(500, 1), cost(1500, 1), cost(2500, 1), cost(501, 1), cost(499, 1)], [0, 2, 2, 1, 0]);
        assert_eq!(cost(1, 1_000_000), 1000, "a sum of tiny prices is not a sum of zeros");
    }

    #[test]
    fn the_price_in_force_is_the_newest_that_has_begun_and_a_star_stands_in() {
        let record = |version, model: &str, from| PriceRecord {
            version,
            model: model.into(),
            price: Price { prompt_pico_usd: version, ..Price::default() },
            effective_from_us: from,
            created_at_us: 0,
        };
        let list = PriceList::new(vec![
            record(3, "a", 100),
            record(1, "a", 10),
            record(2, "a", 100),
            record(4, "*", 50),
            record(5, "b", 60),
        ]);
        let at = |model, now| list.at(model, now).map(|record| record.version);
        assert_eq!([at("a", 9), at("a", 10), at("a", 99), at("a", 100)], [None, Some(1), Some(1), Some(3)]);
        assert_eq!([at("b", 49), at("b", 59), at("b", 60), at("c", 1000)], [None, Some(4), Some(5), Some(4)]);
        assert_eq!((list.newest(), list.version(2).map(|record| record.effective_from_us)), (5, Some(100)));
        assert_eq!(PriceList::default().at("a", 0), None);
    }

    #[test]
    fn dollars_are_read_and_written_exactly() {
        for (nano, text) in [(0, "0"), (20_000_000_000, "20"), (1, "0.000000001"), (1_500_000_000, "1.5")] {
            assert_eq!((usd(nano).as_str(), parse_usd(text)), (text, Some(nano)));
        }
        for text in ["", ".", "1.", ".5", "-1", "+1", "1e3", "0.0000000001", "1,5", " 1", "99999999999"] {
            assert_eq!(parse_usd(text), None, "{text}");
        }
        assert_eq!((usd_per_million(3_000_000), usd_per_million(150_000)), ("3".into(), "0.15".into()));
        assert_eq!(parse_usd_per_million("0.15"), Some(150_000));
    }

    proptest! {
        #[test]
        fn a_reservation_covers_every_cost_and_what_is_affordable_is_exact(
            prompt in 0..100_000u64, cached in 0..100_000u64, completion in 0..100_000u64,
            prices in prop::array::uniform3(0..=PRICE_MAX_PICO_USD), left in 0..1_000_000_000_000u64,
        ) {
            let price = Price { prompt_pico_usd: prices[0], cached_pico_usd: prices[1], completion_pico_usd: prices[2] };
            prop_assert!(price.cost_nano_usd(usage(prompt, cached, completion)) <= price.ceiling_nano_usd(prompt, completion));
            prop_assert!(price.dearest_nano_usd(prompt + completion) >= price.ceiling_nano_usd(0, completion));
            let most = price.affordable_tokens(left, prompt);
            if most < u64::MAX && price.ceiling_nano_usd(prompt, 0) <= left {
                prop_assert!(price.ceiling_nano_usd(prompt, most) <= left);
                prop_assert!(price.ceiling_nano_usd(prompt, most + 1) > left);
            }
        }

        #[test]
        fn dollars_round_trip(nano in any::<u64>()) {
            prop_assert_eq!(parse_usd(&usd(nano)), Some(nano));
        }
    }
}
