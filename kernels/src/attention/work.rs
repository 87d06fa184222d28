//! Cuts a batch into tiles and shares them among the threads.

use super::AttentionBatch;
use super::tile::{Products, Tile, TileSizes};
use crate::share::{Line, Shared, with_scratch};
use crate::{BLOCK_TOKENS, KvLayer, Pool};
use std::cell::Cell;

/// Blocks after which running sums start anew: 512 positions.
pub(super) const SEGMENT_BLOCKS: usize = 16;
/// Tiles of no more query rows are not made smaller for the sake of sharing.
const FEWEST_ROWS: usize = 48;
/// With fewer tiles a thread than this, tiles are made smaller, and then shared out a segment at a time.
const TILES_A_THREAD: usize = 2;

thread_local! {
    /// Of the thread that computes a tile.
    static TILE_SCRATCH: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
    /// Of the calling thread: results of segments before they are merged.
    static SEGMENT_RESULTS: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// What attention reads.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) q: &'a [f32],
    pub(super) kv: &'a KvLayer,
    pub(super) batch: &'a AttentionBatch<'a>,
    /// Query heads.
    pub(super) heads: usize,
}

impl Inputs<'_> {
    /// Query heads of one key/value head.
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv.shape().kv_heads
    }
}

/// Computes the whole batch.
pub(super) fn run(pool: &Pool, inputs: &Inputs, out: &mut [f32]) {
    let mut rows = Products::of(pool.level(), inputs.kv.shape()).most_rows();
    let mut tiles = cut(pool, inputs, rows);
    // Threads that wait for the last tile cost more than what larger tiles save.
    while tiles.len() < TILES_A_THREAD * pool.threads() && rows > FEWEST_ROWS {
        rows /= 2;
        tiles = cut(pool, inputs, rows);
    }
    let out = Shared::new(out);
    let segments: usize = tiles.iter().map(Tile::num_segments).sum();
    if tiles.len() < TILES_A_THREAD * pool.threads() && segments > tiles.len() && pool.threads() > 1 {
        return run_by_segment(pool, inputs, &tiles, out);
    }
    pool.run(tiles.len(), &|index| {
        // The last tile of a prompt has the longest context: begun first, it does not end last.
        let tile = &tiles[tiles.len() - 1 - index];
        with_scratch(&TILE_SCRATCH, tile.sizes.scratch(), |scratch| {
            let mut work = tile.sizes.divide(scratch);
            tile.start(inputs, &mut work);
            for segment in tile.segments() {
                tile.attend(inputs, segment, &mut work);
                tile.sizes.merge(&mut work.total, &work.segment);
            }
            // SAFETY: tiles cover disjoint rows and heads of an output as long as the queries.
            unsafe { tile.finish(inputs, &work.total, out) };
        });
    });
}

fn run_by_segment(pool: &Pool, inputs: &Inputs, tiles: &[Tile], out: Shared<f32>) {
    let jobs: Vec<(&Tile, usize)> = tiles.iter().flat_map(|t| t.segments().map(move |s| (t, s))).collect();
    let stride = tiles.iter().map(|t| t.sizes.result()).max().unwrap_or(0);
    with_scratch(&SEGMENT_RESULTS, jobs.len() * stride, |results| {
        let shared = Shared::new(results);
        pool.run(jobs.len(), &|index| {
            let (tile, segment) = jobs[index];
            with_scratch(&TILE_SCRATCH, tile.sizes.scratch(), |scratch| {
                let mut work = tile.sizes.divide(scratch);
                tile.start(inputs, &mut work);
                tile.attend(inputs, segment, &mut work);
                // SAFETY: one stretch a job.
                let result = unsafe { shared.piece(index * stride, tile.sizes.result()) };
                work.segment.copy_to(result);
            });
        });
        let mut results = results.chunks_exact_mut(stride);
        for tile in tiles {
            with_scratch(&TILE_SCRATCH, tile.sizes.scratch(), |scratch| {
                let mut work = tile.sizes.divide(scratch);
                work.total.reset();
                for _ in tile.segments() {
                    let result = results.next().expect("one result was made for every segment");
                    tile.sizes.merge(&mut work.total, &tile.sizes.sums(&mut result[..tile.sizes.result()]));
                }
                // SAFETY: nobody else writes any more.
                unsafe { tile.finish(inputs, &work.total, out) };
            });
        }
    });
}

/// Tiles of at most `rows` rows (or one query), in order of sequence, key/value head and position.
fn cut(pool: &Pool, inputs: &Inputs, rows: usize) -> Vec<Tile> {
    let queries = (rows / inputs.group()).max(1);
    let mut tiles = Vec::new();
    for span in inputs.batch.sequences {
        let first_position = (span.context_len - span.query_len) as usize;
        for kv_head in 0..inputs.kv.shape().kv_heads {
            for from in (0..span.query_len as usize).step_by(queries) {
                let num_queries = queries.min(span.query_len as usize - from);
                let position = first_position + from;
                let window = inputs.batch.window.map_or(usize::MAX, |w| w as usize);
                tiles.push(Tile {
                    first_row: span.query_start as usize + from,
                    num_queries,
                    position,
                    kv_head,
                    table_start: span.table_start as usize,
                    first_block: (position + 1).saturating_sub(window) / BLOCK_TOKENS,
                    last_block: (position + num_queries - 1) / BLOCK_TOKENS,
                    window,
                    sizes: TileSizes::of(pool.level(), inputs, num_queries),
                });
            }
        }
    }
    tiles
}
