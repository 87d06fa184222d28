//! How much of a GPU's memory becomes KV cache, and what a model needs of it at least.

use crate::options::GpuReserve;

/// Blocks below which a cache is of no use: 512 tokens.
const LEAST_BLOCKS: usize = 16;
/// Share of the free memory, in percent, that is left alone: cuBLAS and the driver take some as shapes come up.
const SPARE_PERCENT: u64 = 5;
/// And this much at least.
const LEAST_SPARE_BYTES: u64 = 256 << 20;

/// Memory of a GPU, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) free: u64,
    pub(super) total: u64,
}

/// A cache that was or was not given a size.
#[derive(Debug, Clone, Copy)]
pub(super) struct CacheWish {
    /// One block over all layers.
    pub(super) block_bytes: u64,
    /// What was set for it.
    pub(super) set_bytes: Option<u64>,
    /// Blocks that can ever be used.
    pub(super) most: usize,
}

impl Room {
    /// What stays free. Small devices, and tests with an emulated one, keep a smaller share.
    pub(super) fn spare(self) -> u64 {
        (self.free / 100 * SPARE_PERCENT).max(LEAST_SPARE_BYTES.min(self.total / 100))
    }
}

impl CacheWish {
    /// The smallest cache that will do: what was set, else a few blocks.
    pub(super) fn least_bytes(&self) -> u64 {
        let most = u64::try_from(self.most).unwrap_or(u64::MAX);
        let set = self.set_bytes.map_or(0, |bytes| bytes / self.block_bytes.max(1));
        set.max(LEAST_BLOCKS as u64).min(most).saturating_mul(self.block_bytes)
    }
}

/// Blocks of the cache in a GPU's memory, or the bytes that the smallest one that will do needs.
///
/// What models loaded later need at least is left to them, and what remains then is shared with those of them whose cache
/// was given no size.
pub(super) fn cache_blocks(room: Room, wish: CacheWish, later: GpuReserve) -> Result<usize, u64> {
    let (least, block_bytes) = (wish.least_bytes(), wish.block_bytes.max(1));
    let free = room.free.saturating_sub(room.spare());
    if least > free {
        return Err(least);
    }
    let bytes = match wish.set_bytes {
        Some(_) => least,
        None => least + (free - least).saturating_sub(later.bytes) / (1 + later.caches),
    };
    Ok(usize::try_from(bytes / block_bytes).unwrap_or(usize::MAX).min(wish.most))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const BLOCK: u64 = 4 << 20;
    const ALONE: GpuReserve = GpuReserve { bytes: 0, caches: 0 };

    fn room(free: u64) -> Room {
        Room { free, total: 80 * GIB }
    }

    fn wish(set_bytes: Option<u64>, most: usize) -> CacheWish {
        CacheWish { block_bytes: BLOCK, set_bytes, most }
    }

    #[test]
    fn the_cache_takes_what_is_free_but_for_a_spare_and_no_more_than_can_be_used() {
        let whole = (64 * GIB / 100 * 95 / BLOCK) as usize;
        assert_eq!(cache_blocks(room(64 * GIB), wish(None, usize::MAX), ALONE), Ok(whole));
        assert_eq!(cache_blocks(room(64 * GIB), wish(None, 100), ALONE), Ok(100));
        assert_eq!(cache_blocks(room(64 * GIB), wish(Some(GIB), usize::MAX), ALONE), Ok(256));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_is_needed() {
        assert_eq!(cache_blocks(room(32 << 20), wish(None, usize::MAX), ALONE), Err(16 * BLOCK));
        assert_eq!(cache_blocks(room(GIB), wish(Some(2 * GIB), usize::MAX), ALONE), Err(2 * GIB));
        assert_eq!(cache_blocks(room(0), wish(None, 2), ALONE), Err(2 * BLOCK));
    }

    #[test]
    fn models_that_are_still_to_come_keep_what_they_need_and_an_equal_part_of_the_rest() {
        let free = 64 * GIB - 64 * GIB / 100 * 5;
        let later = GpuReserve { bytes: 20 * GIB, caches: 2 };
        let blocks = cache_blocks(room(64 * GIB), wish(None, usize::MAX), later).unwrap() as u64;
        let equal = (free - 20 * GIB - 16 * BLOCK) / 3;
        assert!((16 * BLOCK + equal).abs_diff(blocks * BLOCK) <= BLOCK, "{blocks} blocks");
        // Never less than the smallest cache that will do: the later one is refused then, with its figures.
        let all = GpuReserve { bytes: 100 * GIB, caches: 0 };
        assert_eq!(cache_blocks(room(64 * GIB), wish(None, usize::MAX), all), Ok(16));
        assert_eq!(cache_blocks(room(64 * GIB), wish(Some(GIB), usize::MAX), all), Ok(256));
    }
}
