//! Prices: administrators add versions; nobody changes one that ledger rows refer to.

use std::sync::Arc;

use super::commit::{ATTEMPTS, busy, check_text, require_admin};
use crate::governance::error::ServiceError;
use crate::governance::governor::Governor;
use crate::governance::policy::Principal;
use crate::governance::ports::{Change, PolicyTables};
use crate::governance::pricing::{ANY_MODEL, PRICE_MAX_PICO_USD, Price, PriceList, PriceRecord};

/// A price to set; classes left out keep what they cost.
///
/// # Units
/// Pico-dollars a token.
#[derive(Debug, Clone, Default)]
pub struct NewPrice {
    /// For which model, or `*` for all that have none of their own; it need not exist yet.
    pub model: String,
    /// A prompt token.
    pub prompt_pico_usd: Option<u64>,
    /// A prompt token from the prefix cache; at first as much as any other.
    pub cached_pico_usd: Option<u64>,
    /// A token of the answer.
    pub completion_pico_usd: Option<u64>,
    /// From when on, microseconds since the Unix epoch; now when absent.
    pub effective_from_us: Option<i64>,
}

/// Prices set in one go at most.
const AT_ONCE: usize = 1000;

impl Governor {
    /// All versions of all prices, for administrators.
    ///
    /// # Errors
    /// `Forbidden`, the store.
    pub async fn prices(&self, actor: &Principal) -> Result<Arc<PriceList>, ServiceError> {
        require_admin(actor)?;
        Ok(self.tables().await?.prices.clone())
    }

    /// Adds a version of each price, all or none; what is admitted from then on is priced by it, what runs is not.
    ///
    /// # Errors
    /// `Forbidden`, `Invalid`, the store.
    pub async fn set_prices(&self, actor: &Principal, new: &[NewPrice]) -> Result<Vec<PriceRecord>, ServiceError> {
        require_admin(actor)?;
        if new.is_empty() || new.len() > AT_ONCE {
            return Err(ServiceError::invalid("prices", format!("`prices` must have 1 to {AT_ONCE} entries")));
        }
        for _ in 0..ATTEMPTS {
            let tables = self.tables().await?;
            let now_us = self.0.clock.now_us();
            let mut records: Vec<PriceRecord> = Vec::with_capacity(new.len());
            for price in new {
                if records.iter().any(|record| record.model == price.model) {
                    return Err(ServiceError::invalid("prices", format!("`{}` is there twice", price.model)));
                }
                let version = tables.prices.newest() + 1 + records.len() as u64;
                records.push(new_version(&tables, price, version, now_us)?);
            }
            let changes = records.iter().cloned().map(Change::AddPrice).collect();
            if self.commit(actor.author(), &tables, changes).await? {
                return Ok(records);
            }
        }
        Err(busy())
    }
}

fn new_version(tables: &PolicyTables, new: &NewPrice, version: u64, now_us: i64) -> Result<PriceRecord, ServiceError> {
    check_text("model", &new.model, 253)?;
    if new.model.contains('*') && new.model != ANY_MODEL {
        let message = format!("`{}` is no model: `*` alone stands for every model without a price", new.model);
        return Err(ServiceError::invalid("model", message));
    }
    let effective_from_us = new.effective_from_us.unwrap_or(now_us);
    if effective_from_us < now_us {
        let message = "`effective_from` is in the past: what was used keeps its price; leave it out for `from now on`";
        return Err(ServiceError::invalid("effective_from", message));
    }
    let before = tables.prices.own_at(&new.model, effective_from_us).map(|record| record.price);
    let class = |param: &'static str, given: Option<u64>, before: Option<u64>| {
        let price = given.or(before).ok_or_else(|| {
            ServiceError::invalid(param, format!("`{param}` is required: `{}` has no price yet", new.model))
        })?;
        if price > PRICE_MAX_PICO_USD {
            let message = format!("`{param}` must be at most {PRICE_MAX_PICO_USD} pico-dollars a token");
            return Err(ServiceError::invalid(param, message));
        }
        Ok(price)
    };
    let prompt_pico_usd = class("prompt", new.prompt_pico_usd, before.map(|price| price.prompt_pico_usd))?;
    let cached = before.map_or(prompt_pico_usd, |price| price.cached_pico_usd);
    let price = Price {
        prompt_pico_usd,
        cached_pico_usd: class("cached", new.cached_pico_usd, Some(cached))?,
        completion_pico_usd: class(
            "completion",
            new.completion_pico_usd,
            before.map(|price| price.completion_pico_usd),
        )?,
    };
    Ok(PriceRecord { version, model: new.model.clone(), price, effective_from_us, created_at_us: now_us })
}
