//! What an operation can refuse: shapes that do not fit, bytes that are no weights, memory that is not there.

/// Why an operation did nothing. Outputs are untouched whenever one of these is returned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// A length does not fit the other lengths of the call.
    #[error("{op}: {what} is {found}, wanted {wanted}")]
    Shape {
        /// The operation that refused.
        op: &'static str,
        /// The length in question.
        what: &'static str,
        /// What was passed.
        found: usize,
        /// What would have fitted.
        wanted: usize,
    },
    /// An index (position, block id, slot, row) lies outside of what it points into.
    #[error("{op}: {what} {found} is out of range, the limit is {limit}")]
    Range {
        /// The operation that refused.
        op: &'static str,
        /// The index in question.
        what: &'static str,
        /// What was passed.
        found: usize,
        /// The first value that is too large.
        limit: usize,
    },
    /// The weight bytes cannot be used in this format.
    #[error("{format} weights: {problem}")]
    Format {
        /// Name of the weight format.
        format: &'static str,
        /// What is wrong with the bytes.
        problem: String,
    },
    /// The operating system gave no memory.
    #[error("cannot allocate {bytes} bytes")]
    Alloc {
        /// How much was asked for; `usize::MAX` when the size itself overflowed.
        bytes: usize,
    },
}

/// Refuses unless `found == wanted`.
pub(crate) fn expect_len(op: &'static str, what: &'static str, found: usize, wanted: usize) -> Result<(), KernelError> {
    if found == wanted { Ok(()) } else { Err(KernelError::Shape { op, what, found, wanted }) }
}

/// Refuses unless `found < limit`.
pub(crate) fn expect_below(
    op: &'static str,
    what: &'static str,
    found: usize,
    limit: usize,
) -> Result<(), KernelError> {
    if found < limit { Ok(()) } else { Err(KernelError::Range { op, what, found, limit }) }
}
