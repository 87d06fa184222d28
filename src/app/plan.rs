//! The memory planner: a fixed share for each model before any is loaded, or a refusal with the figures.

use std::fmt;

use millgate_models::BLOCK_TOKENS;

/// Blocks below which a cache is of no use: 512 tokens.
const LEAST_BLOCKS: usize = 16;
/// What a cache gets at most when nobody set a size: more is seldom used on one machine, and the memory is the user's.
const MOST_UNASKED_BYTES: u64 = 4 << 30;

/// What one model needs and wants, in bytes and tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// The model's name, for messages.
    pub name: String,
    /// Resident weights.
    pub weight_bytes: u64,
    /// Activations of one step.
    pub workspace_bytes: u64,
    /// One block of the cache over all layers.
    pub block_bytes: u64,
    /// Longest sequence, in tokens.
    pub context_window: usize,
    /// Sequences computed at the same time.
    pub max_running: usize,
    /// The cache's size if it was set.
    pub kv_bytes: Option<u64>,
}

/// One model's share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Blocks of the cache.
    pub num_blocks: usize,
    /// Weights, activations and cache.
    pub total_bytes: u64,
}

/// Why the models do not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Weights, activations and the smallest useful caches exceed the bound.
    #[error(
        "the models need at least {} but only {} may be used ({}); serve fewer or smaller models, or raise `memory.limit`",
        Bytes(*needed_bytes), Bytes(*bound_bytes), Each(needs)
    )]
    TooLarge {
        /// Least that all models need.
        needed_bytes: u64,
        /// What may be used.
        bound_bytes: u64,
        /// Least that each model needs.
        needs: Vec<(String, u64)>,
    },
    /// One more model does not fit beside those that are loaded.
    #[error(
        "model `{name}` needs at least {} but only {} of {} are left ({}); unload a model, choose a smaller file, \
         `kv_memory` or `context_window`, or raise `memory.limit`",
        Bytes(*need_bytes), Bytes(*left_bytes), Bytes(*bound_bytes), Holders(held)
    )]
    NoRoom {
        /// Which model.
        name: String,
        /// The least that it needs.
        need_bytes: u64,
        /// What is left.
        left_bytes: u64,
        /// What all models may use.
        bound_bytes: u64,
        /// What each loaded model holds.
        held: Vec<(String, u64)>,
    },
    /// A cache size that was set is too small to serve anybody.
    #[error(
        "the KV cache of model `{name}` is set to {}, which holds {tokens} tokens; give it at least {}",
        Bytes(*kv_bytes), Bytes(*least_bytes)
    )]
    CacheTooSmall {
        /// Which model.
        name: String,
        /// What was set.
        kv_bytes: u64,
        /// What that holds.
        tokens: usize,
        /// The least that makes sense.
        least_bytes: u64,
    },
}

/// Divides `bound_bytes` among the models: what each must have first, sizes that were set next, equal parts of the rest last.
///
/// # Errors
/// [`PlanError`] with the figures of every model.
pub fn share_memory(wishes: &[Wish], bound_bytes: u64) -> Result<Vec<Share>, PlanError> {
    for wish in wishes {
        check_set_size(wish)?;
    }
    let needs: Vec<u64> = wishes.iter().map(least_bytes).collect();
    let needed_bytes = needs.iter().fold(0u64, |sum, need| sum.saturating_add(*need));
    if needed_bytes > bound_bytes {
        let needs = wishes.iter().map(|wish| wish.name.clone()).zip(needs).collect();
        return Err(PlanError::TooLarge { needed_bytes, bound_bytes, needs });
    }
    let unset = wishes.iter().filter(|wish| wish.kv_bytes.is_none()).count() as u64;
    let spare = (bound_bytes - needed_bytes).checked_div(unset).unwrap_or(0);
    Ok(wishes.iter().map(|wish| share_of(wish, spare)).collect())
}

/// A share for one more model, out of what the others leave; theirs stay as they are.
///
/// # Errors
/// [`PlanError`] with the figures.
pub fn share_of_rest(wish: &Wish, bound_bytes: u64, held: &[(String, u64)]) -> Result<Share, PlanError> {
    check_set_size(wish)?;
    let taken = held.iter().fold(0u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
    let (left_bytes, need_bytes) = (bound_bytes.saturating_sub(taken), least_bytes(wish));
    match left_bytes.checked_sub(need_bytes) {
        Some(spare) => Ok(share_of(wish, spare)),
        None => {
            let (name, held) = (wish.name.clone(), held.to_vec());
            Err(PlanError::NoRoom { name, need_bytes, left_bytes, bound_bytes, held })
        }
    }
}

fn check_set_size(wish: &Wish) -> Result<(), PlanError> {
    let least = wish.block_bytes.saturating_mul(LEAST_BLOCKS as u64);
    match wish.kv_bytes {
        Some(kv_bytes) if kv_bytes < least => Err(PlanError::CacheTooSmall {
            name: wish.name.clone(),
            kv_bytes,
            tokens: blocks_in(kv_bytes, wish.block_bytes).saturating_mul(BLOCK_TOKENS),
            least_bytes: least,
        }),
        _ => Ok(()),
    }
}

fn least_bytes(wish: &Wish) -> u64 {
    let cache = wish.kv_bytes.unwrap_or_else(|| wish.block_bytes.saturating_mul(LEAST_BLOCKS as u64));
    wish.weight_bytes.saturating_add(wish.workspace_bytes).saturating_add(cache)
}

fn share_of(wish: &Wish, spare: u64) -> Share {
    let num_blocks = match wish.kv_bytes {
        Some(kv_bytes) => blocks_in(kv_bytes, wish.block_bytes),
        None => {
            let least = wish.block_bytes.saturating_mul(LEAST_BLOCKS as u64);
            let room = blocks_in(least.saturating_add(spare).min(MOST_UNASKED_BYTES), wish.block_bytes);
            let useful = wish.context_window.div_ceil(BLOCK_TOKENS).saturating_mul(wish.max_running);
            room.min(useful).max(LEAST_BLOCKS)
        }
    };
    let cache = wish.block_bytes.saturating_mul(num_blocks as u64);
    Share { num_blocks, total_bytes: wish.weight_bytes.saturating_add(wish.workspace_bytes).saturating_add(cache) }
}

fn blocks_in(bytes: u64, block_bytes: u64) -> usize {
    usize::try_from(bytes / block_bytes.max(1)).unwrap_or(usize::MAX)
}

/// Bytes as people read them.
pub(super) struct Bytes(pub(super) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", indicatif::BinaryBytes(self.0))
    }
}

/// Who holds how much, or that nobody does.
struct Holders<'a>(&'a [(String, u64)]);

impl fmt::Display for Holders<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("nothing is loaded") } else { write!(f, "loaded: {}", Each(self.0)) }
    }
}

struct Each<'a>(&'a [(String, u64)]);

impl fmt::Display for Each<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, (name, bytes)) in self.0.iter().enumerate() {
            let comma = if nth == 0 { "" } else { ", " };
            write!(f, "{comma}`{name}` {}", Bytes(*bytes))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(name: &str, weight_bytes: u64, kv_bytes: Option<u64>) -> Wish {
        Wish {
            name: name.into(),
            weight_bytes,
            workspace_bytes: 1 << 20,
            block_bytes: 64 << 10,
            context_window: 2048,
            max_running: 256,
            kv_bytes,
        }
    }

    #[test]
    fn a_small_model_takes_no_more_cache_than_it_can_ever_use() {
        let shares = share_memory(&[wish("demo", 8 << 20, None)], 64 << 30).unwrap();
        assert_eq!(shares[0].num_blocks, 64 * 256);
    }

    #[test]
    fn models_that_do_not_fit_are_refused_with_what_each_needs() {
        let error = share_memory(&[wish("big", 6 << 30, None), wish("small", 1 << 30, None)], 4 << 30).unwrap_err();
        let text = error.to_string();
        for part in ["at least 7.00 GiB", "only 4.00 GiB", "`big` 6.00 GiB", "`small` 1.00 GiB", "memory.limit"] {
            assert!(text.contains(part), "no `{part}` in: {text}");
        }
    }

    #[test]
    fn a_set_size_is_kept_and_the_others_divide_the_rest() {
        let wishes = [wish("set", 1 << 20, Some(32 << 20)), wish("a", 1 << 20, None), wish("b", 1 << 20, None)];
        let bound = 138 << 20;
        let shares = share_memory(&wishes, bound).unwrap();
        assert_eq!(shares[0].num_blocks, 512);
        assert_eq!(shares[1], shares[2]);
        assert!(shares.iter().map(|share| share.total_bytes).sum::<u64>() <= bound);
        assert!(shares[1].num_blocks > 700, "{:?}", shares[1]);
    }

    #[test]
    fn one_more_model_gets_what_the_others_leave_or_is_told_the_figures() {
        let held = [("a".to_owned(), 3 << 30)];
        let share = share_of_rest(&wish("b", 512 << 20, None), 4 << 30, &held).unwrap();
        assert!(share.total_bytes <= 1 << 30, "{share:?}");
        assert!(share.num_blocks > LEAST_BLOCKS);
        let error = share_of_rest(&wish("c", 2 << 30, None), 4 << 30, &held).unwrap_err().to_string();
        for part in ["`c` needs at least 2.00 GiB", "only 1.00 GiB of 4.00 GiB", "loaded: `a` 3.00 GiB", "memory.limit"]
        {
            assert!(error.contains(part), "no `{part}` in: {error}");
        }
        assert!(share_of_rest(&wish("d", 5 << 30, None), 4 << 30, &[]).unwrap_err().to_string().contains("nothing"));
    }

    #[test]
    fn a_cache_that_serves_nobody_is_refused_before_anything_is_loaded() {
        let error = share_memory(&[wish("tiny", 1, Some(100 << 10))], 1 << 30).unwrap_err();
        assert!(error.to_string().contains("holds 32 tokens"), "{error}");
    }

    #[test]
    fn absurd_figures_saturate_instead_of_overflowing() {
        let huge = Wish { weight_bytes: u64::MAX, block_bytes: u64::MAX, ..wish("huge", 0, None) };
        assert!(matches!(share_memory(&[huge], u64::MAX - 1), Err(PlanError::TooLarge { .. })));
    }
}
