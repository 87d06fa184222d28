//! A weight matrix, packed once at load time for the way [`crate::linear`] reads it.

use crate::error::{expect_below, expect_len};
use crate::memory::{Piece, WeightMemory};
use crate::panel_writer::write_panel;
use crate::panels::{panel_bytes, panel_rows, read_dense, read_run};
use crate::quant::{RUN, check, is_finite};
use crate::{KernelError, WeightFormat};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// A thread gets at least this many bytes to pack.
const SHARE_FROM_BYTES: usize = 1 << 20;
/// Bytes a thread packs before it takes more.
const PIECE_BYTES: usize = 256 << 10;

/// One matrix of several to be packed as one.
#[derive(Debug, Clone, Copy)]
pub struct PackedPart<'a> {
    /// Outputs of this part.
    pub rows: usize,
    /// Row-major bytes as on disk.
    pub source: &'a [u8],
}

/// Weights of `[rows = outputs, cols = inputs]`, in panels on huge pages.
#[derive(Debug)]
pub struct PackedMatrix {
    format: WeightFormat,
    rows: usize,
    cols: usize,
    panel_bytes: usize,
    data: Piece,
}

impl PackedMatrix {
    /// Packs a row-major matrix as found in safetensors files (dense) or GGUF files (blocks).
    ///
    /// # Errors
    /// [`KernelError::Format`] when `cols` is no whole number of blocks or [`crate::quant::check`] finds a value that is
    /// no number, [`KernelError::Shape`] when `source` has another length than the shape needs, [`KernelError::Alloc`]
    /// without memory.
    pub fn pack(format: WeightFormat, rows: usize, cols: usize, source: &[u8]) -> Result<Self, KernelError> {
        Self::stack(format, cols, &[PackedPart { rows, source }])
    }

    /// As [`PackedMatrix::pack`], in memory shared with a model's other matrices.
    ///
    /// # Errors
    /// As [`PackedMatrix::pack`].
    pub fn pack_in(
        memory: &WeightMemory,
        format: WeightFormat,
        (rows, cols): (usize, usize),
        source: &[u8],
    ) -> Result<Self, KernelError> {
        Self::packed(format, cols, &[PackedPart { rows, source }], &|len| memory.piece(len))
    }

    /// Packs several matrices with the same inputs as one whose outputs follow each other (q/k/v, gate/up).
    ///
    /// # Errors
    /// As [`PackedMatrix::pack`], for any of the parts.
    pub fn stack(format: WeightFormat, cols: usize, parts: &[PackedPart]) -> Result<Self, KernelError> {
        Self::packed(format, cols, parts, &Piece::alone)
    }

    fn packed(
        format: WeightFormat,
        cols: usize,
        parts: &[PackedPart],
        reserve: &dyn Fn(usize) -> Result<Piece, KernelError>,
    ) -> Result<Self, KernelError> {
        let row_bytes = format.bytes_for(1, cols).ok_or_else(|| KernelError::Format {
            format: format.name(),
            problem: format!("{cols} columns are no whole number of blocks of {}", format.block_weights()),
        })?;
        let mut sources = Vec::new();
        for part in parts {
            let wanted = row_bytes.checked_mul(part.rows).ok_or(KernelError::Alloc { bytes: usize::MAX })?;
            expect_len("pack", "source bytes", part.source.len(), wanted)?;
            // A matrix without inputs has rows without bytes: nothing to write.
            sources.extend(part.source.chunks_exact(row_bytes.max(1)));
        }
        let rows = parts.iter().map(|p| p.rows).sum::<usize>();
        let overflow = KernelError::Alloc { bytes: usize::MAX };
        let panel_bytes = panel_bytes(format, cols).ok_or(overflow.clone())?;
        let bytes = panel_bytes.checked_mul(rows.div_ceil(panel_rows(format))).ok_or(overflow)?;
        let mut data = reserve(bytes)?;
        if panel_bytes > 0 && !write_panels(format, &sources, panel_bytes, data.bytes_mut()) {
            parts.iter().try_for_each(|part| check(format, part.source))?;
        }
        Ok(Self { format, rows, cols, panel_bytes, data })
    }

    /// Number of outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        self.data.bytes().len()
    }

    /// The format the weights came in.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// Bytes from one panel to the next.
    pub(crate) fn panel_bytes(&self) -> usize {
        self.panel_bytes
    }

    /// All panels, one after the other.
    pub(crate) fn panels(&self) -> &[u8] {
        self.data.bytes()
    }

    /// Writes row `index` as floats: the embedding look-up, also of tied heads.
    ///
    /// # Errors
    /// [`KernelError::Range`] for a row that is not there, [`KernelError::Shape`] when `out` is not `cols` long.
    pub fn row(&self, index: usize, out: &mut [f32]) -> Result<(), KernelError> {
        expect_below("row", "row", index, self.rows)?;
        expect_len("row", "out length", out.len(), self.cols)?;
        let (panel, lane) = (index / panel_rows(self.format), index % panel_rows(self.format));
        let panel = &self.panels()[panel * self.panel_bytes..(panel + 1) * self.panel_bytes];
        if self.format.is_quantised() {
            let runs = self.cols / RUN;
            for (run, out) in out.chunks_exact_mut(RUN).enumerate() {
                let raw = read_run(self.format, panel, lane, run, runs);
                out.copy_from_slice(&raw.decoded(self.format).weights());
            }
        } else {
            for (input, out) in out.iter_mut().enumerate() {
                *out = read_dense(self.format, panel, lane, input);
            }
        }
        Ok(())
    }
}

/// Writes all panels, shared among threads; whether all values are finite.
fn write_panels(format: WeightFormat, sources: &[&[u8]], panel_bytes: usize, data: &mut [u8]) -> bool {
    let rows = panel_rows(format);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let threads = threads.min(data.len().div_ceil(SHARE_FROM_BYTES));
    let panels_a_piece = (PIECE_BYTES / panel_bytes).max(1);
    let pieces = data.chunks_mut(panels_a_piece * panel_bytes).zip(sources.chunks(panels_a_piece * rows));
    let (pieces, are_finite) = (Mutex::new(pieces), AtomicBool::new(true));
    let next = || pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some((panels, sources)) = next() {
            for (panel, sources) in panels.chunks_exact_mut(panel_bytes).zip(sources.chunks(rows)) {
                // Looked at just before they move, while one read of memory serves both.
                if !sources.iter().all(|row| is_finite(format, row)) {
                    are_finite.store(false, Ordering::Relaxed);
                }
                write_panel(format, panel, sources);
            }
        }
    };
    std::thread::scope(|scope| {
        (1..threads).for_each(|_| drop(scope.spawn(work)));
        work();
    });
    are_finite.into_inner()
}
