//! Decode steps recorded as graphs, one for each of a few numbers of rows.

use std::collections::BTreeMap;

use millgate_kernels::cuda::{Activation, Buffer, CudaError, Graph, KvElement};

use super::decoder::{Decoder, Pass};
use super::words::Layout;

/// Numbers of rows that decode steps are recorded for; a step takes the next larger one.
const BUCKETS: [usize; 16] = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 384];

/// Recorded steps by their number of rows.
#[derive(Default)]
pub(super) struct Recordings(BTreeMap<usize, Recorded>);

/// A decode step for a number of rows.
struct Recorded {
    layout: Layout,
    graph: Graph,
}

impl Recordings {
    /// The numbers of rows, up to `most`, the largest first: no smaller one needs memory that it has not taken.
    pub(super) fn sizes(most: usize) -> Vec<usize> {
        let smaller = BUCKETS.into_iter().rev().filter(|&rows| rows < most);
        std::iter::once(most).chain(smaller).collect()
    }

    /// Where a recorded step of this many rows finds its words.
    pub(super) fn layout<T: Activation, C: KvElement>(
        decoder: &Decoder<T, C>,
        words: &Buffer<u32>,
        rows: usize,
    ) -> Layout {
        let mut layout = Layout::new(&decoder.decode_room(rows));
        layout.tail.end = words.len();
        layout
    }

    /// Records steps of all sizes, which read their words from `words`. Each must have run once before.
    pub(super) fn record<T: Activation, C: KvElement>(
        decoder: &mut Decoder<T, C>,
        words: &Buffer<u32>,
        most: usize,
    ) -> Result<Self, CudaError> {
        let gpu = decoder.gpu.clone();
        let record = |rows| {
            let layout = Self::layout(decoder, words, rows);
            let pass = Pass { words, layout: &layout, tokens: rows, outputs: rows };
            let graph = gpu.capture(|| decoder.run(pass))?;
            Ok((rows, Recorded { layout, graph }))
        };
        Self::sizes(most).into_iter().map(record).collect::<Result<_, _>>().map(Self)
    }

    /// The smallest recorded step for at least this many rows: its size and where its words lie.
    pub(super) fn find(&self, rows: usize) -> Option<(usize, &Layout)> {
        self.0.range(rows..).next().map(|(&size, recorded)| (size, &recorded.layout))
    }

    /// Queues the step of this size.
    pub(super) fn launch(&mut self, size: usize) -> Result<(), CudaError> {
        self.0
            .get_mut(&size)
            .expect("the size was found, and what replaced the recordings has all of them")
            .graph
            .launch()
    }
}
