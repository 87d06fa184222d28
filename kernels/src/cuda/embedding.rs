//! Rows by number: embeddings of tokens, and the rows whose logits are wanted.

use super::launch::{Args, Cut, aligned, packs};
use super::{Activation, CudaError, Gpu, View, ViewMut};
use crate::KernelError;
use crate::error::expect_len;

/// Set in an id that names a draw of the step before and not a token.
pub const DRAWN: u32 = 1 << 31;

/// `out[i] = table[ids[i]]`, or `table[previous[ids[i] without DRAWN]]` for an id with [`DRAWN`] set.
///
/// Ids that are out of range, drawn ones included, count as token 0.
///
/// # Shapes
/// `table`: `[vocab, width]`, `out`: `[ids, width]`.
/// # Errors
/// [`KernelError::Shape`] when lengths do not fit; nothing is queued then.
pub fn embed<T: Activation>(
    gpu: &Gpu,
    ids: View<'_, u32>,
    previous: View<'_, u32>,
    table: View<'_, T>,
    width: usize,
    out: ViewMut<'_, T>,
) -> Result<(), CudaError> {
    const OP: &str = "embed";
    aligned(OP, &[table, out.view()])?;
    let cut = check(OP, ids.len(), table.len(), width, out.len(), T::LANES)?;
    if table.is_empty() {
        return Err(KernelError::Shape { op: OP, what: "table length", found: 0, wanted: width }.into());
    }
    let args = Args::new().input(ids).input(previous).input(table).output(&out);
    let args = args.int(previous.len()).int(table.len() / width).int(width);
    // SAFETY: `out` has a row for each id, and the kernel brings every id into the table.
    unsafe { gpu.launch(["embedding", T::SUFFIX, ""], cut, &args) }
}

/// `out[i] = x[rows[i]]`; zeros for a row that is not there.
///
/// # Shapes
/// `x`: `[any, width]`, `out`: `[rows, width]`.
/// # Errors
/// [`KernelError::Shape`] when lengths do not fit; nothing is queued then.
pub fn gather_rows<T: Activation>(
    gpu: &Gpu,
    x: View<'_, T>,
    rows: View<'_, u32>,
    width: usize,
    out: ViewMut<'_, T>,
) -> Result<(), CudaError> {
    const OP: &str = "gather_rows";
    aligned(OP, &[x, out.view()])?;
    let cut = check(OP, rows.len(), x.len(), width, out.len(), T::LANES)?;
    let args = Args::new().input(x).input(rows).output(&out).int(x.len() / width).int(width);
    // SAFETY: `out` has a row for each number, and the kernel reads only rows that are there.
    unsafe { gpu.launch(["gather_rows", T::SUFFIX, ""], cut, &args) }
}

fn check(
    op: &'static str,
    rows: usize,
    from: usize,
    width: usize,
    out: usize,
    lanes: usize,
) -> Result<Cut, KernelError> {
    let packs = packs(op, width, lanes)?;
    if !from.is_multiple_of(width) {
        return Err(KernelError::Shape { op, what: "width (must divide the source)", found: width, wanted: from });
    }
    expect_len(op, "out length", out, rows * width)?;
    Ok(Cut::new(rows, packs.next_multiple_of(32).min(256)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_do_not_fit_are_refused_by_name() {
        assert!(check("embed", 3, 640, 64, 192, 8).is_ok());
        let text = |result: Result<Cut, KernelError>| result.unwrap_err().to_string();
        assert_eq!(text(check("embed", 3, 640, 64, 190, 8)), "embed: out length is 190, wanted 192");
        assert_eq!(text(check("embed", 3, 640, 0, 0, 8)), "embed: width (a multiple of 16 bytes) is 0, wanted 8");
        assert_eq!(text(check("embed", 1, 650, 64, 64, 8)), "embed: width (must divide the source) is 64, wanted 650");
    }
}
