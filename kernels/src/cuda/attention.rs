//! Attention over the paged cache: one query a sequence, or many.

use super::attention_plan::{AttentionSizes, tile_rows};
use super::launch::{Args, Cut, aligned};
use super::{Activation, CudaError, Gpu, KvCache, KvElement, View, ViewMut};
use crate::KernelError;
use crate::error::{expect_below, expect_len};

/// Words of a span, an item and a combination.
const SPAN_WORDS: usize = 5;
const ITEM_WORDS: usize = 4;
/// Query heads that one block of the decode kernel takes: `TILE` of `attention_decode.cu`.
const DECODE_HEADS: usize = 16;
const DECODE_TILE: usize = 16;
const DECODE_STAGES: usize = 2;
/// Warps of a block of `attention_plain.cu`.
const PLAIN_WARPS: usize = 4;

/// What both kinds of attention read.
#[derive(Clone, Copy)]
pub struct AttentionInput<'a, T> {
    /// The model's sizes; `is_f32` says what `T` is.
    pub sizes: AttentionSizes,
    /// Query heads of each token, the next token's `q_stride` elements on: `[tokens, q_stride]`, the last row may end
    /// after its heads.
    pub q: View<'a, T>,
    /// Elements from one token's queries to the next one's.
    pub q_stride: usize,
    /// `SequenceSpan`s, five words each.
    pub spans: View<'a, u32>,
    /// Block ids of all sequences.
    pub tables: View<'a, u32>,
    /// Multiplies every score; above 0.
    pub scale: f32,
}

/// The work of [`decode_attention`]: lists of an [`super::AttentionPlan`] in memory that may be larger.
pub struct DecodeWork<'a> {
    /// Room for `AttentionPlan::decode`.
    pub items: View<'a, u32>,
    /// Room for `AttentionPlan::combine`; empty if no sequence is ever split.
    pub combines: View<'a, u32>,
    /// `AttentionPlan::counts`: how much of the two lists counts now.
    pub counts: View<'a, u32>,
    /// Room for partial results: `AttentionSizes::partial_len`.
    pub partial: ViewMut<'a, f32>,
}

/// Attention of sequences with one query each, split over their context; in f32 of any queries.
///
/// The launch depends on the sizes of the views only, so a graph that records it serves every step that fits into them.
/// What spans, items and tables say beyond their bounds is skipped.
///
/// # Shapes
/// `out`: `[tokens, heads, head_dim]`; rows that no item names are left untouched.
/// # Errors
/// [`KernelError::Shape`] or [`KernelError::Range`] when lengths do not fit; nothing is queued then.
/// [`CudaError::Driver`] when there is no kernel for `T` with `C`: there is for `T` itself and [`super::Fp8`].
pub fn decode_attention<T: Activation, C: KvElement>(
    gpu: &Gpu,
    input: &AttentionInput<'_, T>,
    work: &DecodeWork<'_>,
    cache: &KvCache<C>,
    out: ViewMut<'_, T>,
) -> Result<(), CudaError> {
    const OP: &str = "decode_attention";
    let tokens = check(OP, input, cache, out.len())?;
    expect_len(OP, "counts length", work.counts.len(), 2)?;
    let slots = work.partial.len() / input.sizes.slot_len();
    let items = work.items.len() / ITEM_WORDS;
    aligned(OP, &[work.items, work.combines])?;
    aligned(OP, &[work.partial.view()])?;
    let sizes = &input.sizes;
    let cut = if sizes.is_f32 {
        let blocks = (items, sizes.heads.div_ceil(PLAIN_WARPS), 1);
        Cut::grid(blocks, 32 * PLAIN_WARPS).shared(4 * PLAIN_WARPS * sizes.head_dim)
    } else {
        decode_cut(sizes, items, size_of::<C>(), gpu.info().multiprocessors as usize)
    };
    let lists = (work.items, Some(work.combines), Some(work.counts));
    let args = arguments(input, cache, &out, lists, Some((&work.partial, slots)), tokens);
    let name = if sizes.is_f32 { ["attention_plain", T::SUFFIX, C::SUFFIX] } else { decode_name::<T, C>(sizes) };
    // SAFETY: the sizes of all views go along, and the kernel skips what lies outside of them.
    unsafe { gpu.launch(name, cut, &args)? };
    let combines = work.combines.len() / ITEM_WORDS;
    if sizes.is_f32 || slots == 0 {
        return Ok(());
    }
    let cut = Cut::grid((combines, sizes.heads, 1), 128);
    // SAFETY: as above.
    unsafe { gpu.launch(["attention_combine", T::SUFFIX, ""], cut, &args) }
}

/// Attention of sequences with many queries each, on tensor cores; causal.
///
/// # Shapes
/// `items`: exactly `AttentionPlan::prefill`. `out` as in [`decode_attention`].
/// # Errors
/// As [`decode_attention`]; [`KernelError::Shape`] for f32, whose queries are all decode work.
pub fn prefill_attention<T: Activation, C: KvElement>(
    gpu: &Gpu,
    input: &AttentionInput<'_, T>,
    items: View<'_, u32>,
    cache: &KvCache<C>,
    out: ViewMut<'_, T>,
) -> Result<(), CudaError> {
    const OP: &str = "prefill_attention";
    let tokens = check(OP, input, cache, out.len())?;
    if input.sizes.is_f32 {
        return Err(KernelError::Shape { op: OP, what: "bytes of a query's element", found: 4, wanted: 2 }.into());
    }
    aligned(OP, &[items])?;
    let cut = prefill_cut(&input.sizes, items.len() / ITEM_WORDS);
    let args = arguments(input, cache, &out, (items, None, None), None, tokens);
    // SAFETY: as in `decode_attention`.
    unsafe { gpu.launch(prefill_name::<T, C>(&input.sizes), cut, &args) }
}

type Lists<'a> = (View<'a, u32>, Option<View<'a, u32>>, Option<View<'a, u32>>);

/// The parameters that all attention kernels share: `ATTENTION_PARAMETERS` of `attention.cuh`.
fn arguments<'a, T: Activation, C: KvElement>(
    input: &AttentionInput<'a, T>,
    cache: &'a KvCache<C>,
    out: &ViewMut<'a, T>,
    (items, combines, counts): Lists<'a>,
    partial: Option<(&ViewMut<'a, f32>, usize)>,
    tokens: usize,
) -> Args<'a> {
    let sizes = &input.sizes;
    let args = Args::new().output(out).input(input.q).input(cache.keys.view()).input(cache.values.view());
    let args = args.input(input.spans).input(input.tables).input(items).optional(combines).optional(counts);
    let args = match partial {
        Some((partial, _)) => args.output(partial),
        None => args.optional::<f32>(None),
    };
    let slots = partial.map_or(0, |(_, slots)| slots);
    let args = args.int(tokens).int(input.spans.len() / SPAN_WORDS).int(input.tables.len()).int(cache.num_blocks());
    let args = args.int(items.len() / ITEM_WORDS).int(combines.map_or(0, |list| list.len() / ITEM_WORDS)).int(slots);
    let args = args.int(sizes.heads).int(sizes.kv_heads).int(sizes.head_dim).int(input.q_stride);
    // Weights are powers of two.
    args.int(sizes.window.unwrap_or(0) as usize).float(input.scale * std::f32::consts::LOG2_E)
}

fn decode_cut(sizes: &AttentionSizes, items: usize, cell_bytes: usize, multiprocessors: usize) -> Cut {
    let dim = kernel_dim(sizes.head_dim);
    let warps = if dim > 128 { 2 } else { 4 };
    let wide = DECODE_TILE * tile_stride(dim) * 2;
    let ring =
        if cell_bytes == 1 { 2 * DECODE_STAGES * DECODE_TILE * dim + 2 * wide } else { 2 * DECODE_STAGES * wide };
    let heads = sizes.kv_heads * (sizes.heads / sizes.kv_heads).div_ceil(DECODE_HEADS);
    // Twice what fits on the device at once; blocks take further items in turn.
    let blocks = items.min((6 * multiprocessors).div_ceil(heads));
    Cut::grid((blocks, heads, 1), 32 * warps).shared(wide + warps * ring)
}

fn prefill_cut(sizes: &AttentionSizes, items: usize) -> Cut {
    let dim = kernel_dim(sizes.head_dim);
    let stages = if dim > 128 { 2 } else { 3 };
    let shared = (tile_rows(dim) + 2 * stages * crate::BLOCK_TOKENS) * tile_stride(dim) * 2;
    Cut::grid((items, sizes.kv_heads, 1), 128).shared(shared)
}

/// Two-byte elements of a row in shared memory: `TILE_STRIDE` of `attention.cuh`.
fn tile_stride(dim: usize) -> usize {
    if dim.is_multiple_of(64) { dim } else { dim + 8 }
}

/// The size that there is a kernel for; rows are filled up with zeros on the way.
fn kernel_dim(head_dim: usize) -> usize {
    [64, 96, 128].into_iter().find(|&dim| head_dim <= dim).unwrap_or(256)
}

fn dim_name(sizes: &AttentionSizes, names: [&'static str; 4]) -> &'static str {
    match kernel_dim(sizes.head_dim) {
        64 => names[0],
        96 => names[1],
        128 => names[2],
        _ => names[3],
    }
}

fn decode_name<T: Activation, C: KvElement>(sizes: &AttentionSizes) -> [&'static str; 3] {
    let names = ["attention_decode_64", "attention_decode_96", "attention_decode_128", "attention_decode_256"];
    [dim_name(sizes, names), T::SUFFIX, C::SUFFIX]
}

fn prefill_name<T: Activation, C: KvElement>(sizes: &AttentionSizes) -> [&'static str; 3] {
    let names = ["attention_prefill_64", "attention_prefill_96", "attention_prefill_128", "attention_prefill_256"];
    [dim_name(sizes, names), T::SUFFIX, C::SUFFIX]
}

/// Returns the number of tokens.
fn check<T: Activation, C: KvElement>(
    op: &'static str,
    input: &AttentionInput<'_, T>,
    cache: &KvCache<C>,
    out: usize,
) -> Result<usize, KernelError> {
    let sizes = &input.sizes;
    expect_len(op, "kv_heads", sizes.kv_heads, cache.kv_heads())?;
    expect_len(op, "head_dim", sizes.head_dim, cache.head_dim())?;
    // Ids of blocks are brought into the cache, which therefore needs one.
    expect_below(op, "block", 0, cache.num_blocks())?;
    let is_f32 = size_of::<T>() == 4;
    expect_len(op, "bytes of a query's element", size_of::<T>(), if sizes.is_f32 { 4 } else { size_of::<T>().min(2) })?;
    expect_len(op, "is_f32", usize::from(sizes.is_f32), usize::from(is_f32))?;
    check_row_bytes(op, sizes, size_of::<C>())?;
    aligned(op, &[input.q])?;
    aligned(op, &[input.spans, input.tables])?;
    check_sizes(op, sizes, &Lengths { q: input.q.len(), q_stride: input.q_stride, out, scale: input.scale })
}

/// The kernels of 16-bit activations load a head's row of the cache 16 bytes at a time.
fn check_row_bytes(op: &'static str, sizes: &AttentionSizes, element_bytes: usize) -> Result<(), KernelError> {
    if sizes.is_f32 || (sizes.head_dim * element_bytes).is_multiple_of(16) {
        return Ok(());
    }
    let (found, wanted) = (sizes.head_dim, 16 / element_bytes);
    Err(KernelError::Shape { op, what: "head_dim with this cache (a multiple)", found, wanted })
}

struct Lengths {
    q: usize,
    q_stride: usize,
    out: usize,
    scale: f32,
}

fn check_sizes(op: &'static str, sizes: &AttentionSizes, found: &Lengths) -> Result<usize, KernelError> {
    if sizes.kv_heads == 0 || sizes.heads == 0 || !sizes.heads.is_multiple_of(sizes.kv_heads) {
        let what = "heads (a multiple of kv_heads)";
        return Err(KernelError::Shape { op, what, found: sizes.heads, wanted: sizes.kv_heads });
    }
    let row = sizes.heads * sizes.head_dim;
    expect_below(op, "elements of a row of heads", row, 1 << 30)?;
    if !found.out.is_multiple_of(row) {
        let wanted = found.out.next_multiple_of(row);
        return Err(KernelError::Shape { op, what: "out length (whole rows)", found: found.out, wanted });
    }
    let tokens = found.out / row;
    if found.q_stride < row || !found.q_stride.is_multiple_of(8) {
        let what = "q_stride (a multiple of 8, at least a row)";
        return Err(KernelError::Shape { op, what, found: found.q_stride, wanted: row });
    }
    if tokens > 0 {
        expect_below(op, "q length needed", (tokens - 1) * found.q_stride + row, found.q + 1)?;
    }
    if sizes.window == Some(0) {
        return Err(KernelError::Shape { op, what: "window (at least)", found: 0, wanted: 1 });
    }
    if !(found.scale > 0.0 && found.scale.is_finite()) {
        return Err(KernelError::Shape { op, what: "sign of the scale", found: 0, wanted: 1 });
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: AttentionSizes = AttentionSizes { heads: 8, kv_heads: 2, head_dim: 80, window: None, is_f32: false };

    #[test]
    fn rows_of_an_eight_bit_cache_that_are_no_whole_loads_are_refused() {
        let odd = AttentionSizes { head_dim: 24, ..SIZES };
        assert!(check_row_bytes("attention", &odd, 1).unwrap_err().to_string().contains("24"));
        assert_eq!(check_row_bytes("attention", &odd, 2), Ok(()));
        assert_eq!(check_row_bytes("attention", &SIZES, 1), Ok(()));
        assert_eq!(check_row_bytes("attention", &AttentionSizes { is_f32: true, ..odd }, 1), Ok(()));
    }

    #[test]
    fn what_no_kernel_can_read_is_refused_by_name() {
        let good = || Lengths { q: 3 * 1000, q_stride: 1000, out: 3 * 640, scale: 0.1 };
        assert_eq!(check_sizes("op", &SIZES, &good()), Ok(3));
        let shorter = Lengths { q: 2 * 1000 + 640, ..good() };
        assert_eq!(check_sizes("op", &SIZES, &shorter), Ok(3));
        let text =
            |sizes: AttentionSizes, lengths: Lengths| check_sizes("op", &sizes, &lengths).unwrap_err().to_string();
        assert_eq!(
            text(SIZES, Lengths { q: 2639, ..good() }),
            "op: q length needed 2640 is out of range, the limit is 2640"
        );
        assert_eq!(text(SIZES, Lengths { out: 641, ..good() }), "op: out length (whole rows) is 641, wanted 1280");
        assert!(text(SIZES, Lengths { q_stride: 636, ..good() }).contains("q_stride"));
        assert!(text(SIZES, Lengths { q_stride: 1001, ..good() }).contains("q_stride"));
        assert!(text(AttentionSizes { heads: 7, ..SIZES }, good()).contains("heads"));
        assert!(text(AttentionSizes { window: Some(0), ..SIZES }, good()).contains("window"));
        assert!(text(SIZES, Lengths { scale: f32::NAN, ..good() }).contains("scale"));
    }

    #[test]
    fn blocks_fit_the_shared_memory_of_every_supported_card() {
        for head_dim in [8, 64, 80, 96, 128, 192, 256] {
            let sizes = AttentionSizes { head_dim, ..SIZES };
            let cuts = [decode_cut(&sizes, 10, 1, 132), decode_cut(&sizes, 10, 2, 132), prefill_cut(&sizes, 10)];
            for cut in cuts {
                // 99 KiB a block on compute capability 8.6, less the static part.
                assert!(cut.shared_bytes <= 99 * 1024 - 1024, "{head_dim}: {}", cut.shared_bytes);
            }
        }
    }

    #[test]
    fn few_items_make_few_blocks_and_many_share_them() {
        assert_eq!(decode_cut(&SIZES, 3, 2, 132).grid, (3, 2, 1));
        assert_eq!(decode_cut(&SIZES, 4096, 2, 132).grid, (396, 2, 1));
        let many = AttentionSizes { heads: 40, ..SIZES };
        assert_eq!(decode_cut(&many, 4096, 2, 132).grid, (198, 4, 1));
    }
}
