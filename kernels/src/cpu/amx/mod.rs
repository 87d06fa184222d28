//! AMX: a register is a tile of 16 rows, one instruction multiplies two tiles.
//!
//! Used for bf16 weights. Quantised ones stay with the vectors: a run's scale must be multiplied in after every 32 inputs,
//! and taking the sums out of the tiles for that costs more than the tiles save.

mod product;
mod tiles;

pub(crate) use product::{PAIR_BYTES, STRETCH, Sums, TileProduct, multiply};
pub(super) use tiles::are_available;
pub(crate) use tiles::{release, shape};
