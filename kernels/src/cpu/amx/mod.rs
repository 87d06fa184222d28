//! AMX: a register is a tile of 16 rows, one instruction multiplies two tiles.
//!
//! Used for bf16 weights, for attention over keys and values in bf16, and for quantised weights with enough rows: their
//! scales must be multiplied in after every 32 inputs, by vectors, which takes longer than the products.

mod bytes;
mod product;
mod strided;
mod tiles;

pub(crate) use crate::cpu::tile::ROW_RUN_WORDS;
pub(crate) use bytes::{BYTE_ROW_COUNTS, ByteProduct, multiply_bytes};
pub(crate) use product::{PAIR_BYTES, STRETCH, Sums, TileProduct, multiply};
pub(crate) use strided::{Rows, STRETCH_BYTES, Stretch, add_up};
pub(super) use tiles::are_available;
pub(crate) use tiles::{MOST_ROWS, release, shape, shape_for_bytes};
