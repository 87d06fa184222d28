//! How much of a GPU's memory becomes KV cache.

/// Blocks below which a cache is of no use: 512 tokens.
const LEAST_BLOCKS: usize = 16;
/// Share of the free memory, in percent, that is left alone: cuBLAS and the driver take some as shapes come up.
const SPARE_PERCENT: u64 = 5;
/// And this much at least.
const LEAST_SPARE_BYTES: u64 = 256 << 20;

/// Blocks of the cache for a GPU with `free` bytes left, or the bytes that the smallest useful one needs.
///
/// `wanted_bytes`: what was set for it. `most`: blocks that can ever be used.
pub(super) fn cache_blocks(
    free: u64,
    total: u64,
    block_bytes: u64,
    wanted_bytes: Option<u64>,
    most: usize,
) -> Result<usize, u64> {
    let block_bytes = block_bytes.max(1);
    // Small devices, and tests with an emulated one, keep the same share.
    let spare = (free / 100 * SPARE_PERCENT).max(LEAST_SPARE_BYTES.min(total / 100));
    let room = free.saturating_sub(spare) / block_bytes;
    let wanted = wanted_bytes.map_or(u64::MAX, |bytes| bytes / block_bytes);
    let blocks = usize::try_from(room.min(wanted)).unwrap_or(usize::MAX).min(most);
    let least = LEAST_BLOCKS.min(most);
    let asks_for_too_much = wanted_bytes.is_some() && wanted > room && most as u64 > room;
    if blocks < least || asks_for_too_much {
        let needed = if asks_for_too_much { wanted.min(most as u64) } else { least as u64 };
        return Err(needed.saturating_mul(block_bytes));
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_cache_takes_what_is_free_but_for_a_spare_and_no_more_than_can_be_used() {
        let block = 4 << 20;
        assert_eq!(
            cache_blocks(64 * GIB, 80 * GIB, block, None, usize::MAX),
            Ok((64 * GIB / 100 * 95 / block) as usize)
        );
        assert_eq!(cache_blocks(64 * GIB, 80 * GIB, block, None, 100), Ok(100));
        assert_eq!(cache_blocks(64 * GIB, 80 * GIB, block, Some(GIB), usize::MAX), Ok(256));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_is_needed() {
        let block = 4 << 20;
        assert_eq!(cache_blocks(32 << 20, 80 * GIB, block, None, usize::MAX), Err(16 * block));
        assert_eq!(cache_blocks(GIB, 80 * GIB, block, Some(2 * GIB), usize::MAX), Err(2 * GIB));
        assert_eq!(cache_blocks(0, 80 * GIB, block, None, 2), Err(2 * block));
    }
}
