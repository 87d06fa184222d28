"""A plain quantiser for the K formats of GGUF, whose official Python package can only read them.

Round-to-nearest within each sub-block: good enough for tests, not meant to compete with tuned quantisers.
"""

import numpy as np

BLOCK = 256


def _blocks(rows: np.ndarray) -> np.ndarray:
    assert rows.shape[-1] % BLOCK == 0, f"rows of {rows.shape[-1]} values are not whole blocks of {BLOCK}"
    return rows.astype(np.float32).reshape(-1, BLOCK)


def _half_bytes(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).reshape(-1, 1).view(np.uint8)


def _divide(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    return np.where(by == 0, 0, values / np.where(by == 0, 1, by))


def _affine(blocks: np.ndarray, levels: int):
    """Scales, minima and codes of 8 sub-blocks of 32: x is about d * scale * code - dmin * minimum."""
    sub = blocks.reshape(-1, 8, 32)
    lowest = np.minimum(sub.min(axis=2), 0)
    span = (sub.max(axis=2) - lowest) / levels
    d = (span.max(axis=1) / 63).astype(np.float16).astype(np.float32)[:, None]
    dmin = (-lowest.min(axis=1) / 63).astype(np.float16).astype(np.float32)[:, None]
    scales = np.clip(np.round(_divide(span, d)), 0, 63)
    minima = np.clip(np.round(_divide(-lowest, dmin)), 0, 63)
    codes = np.round(_divide(sub + (dmin * minima)[..., None], (d * scales)[..., None]))
    codes = np.clip(codes, 0, levels).astype(np.uint8)
    return d, dmin, scales.astype(np.uint8), minima.astype(np.uint8), codes


def _pack_scales(scales: np.ndarray, minima: np.ndarray) -> np.ndarray:
    """Eight 6-bit scales and eight 6-bit minima in 12 bytes."""
    low = (scales[:, :4] & 63) | ((scales[:, 4:] >> 4) << 6)
    high = (minima[:, :4] & 63) | ((minima[:, 4:] >> 4) << 6)
    rest = (scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4)
    return np.concatenate([low, high, rest], axis=1)


def _pack_nibbles(codes: np.ndarray) -> np.ndarray:
    """Sub-block 2i in the low halves and 2i + 1 in the high halves of 32 bytes."""
    pairs = (codes & 15).reshape(-1, 4, 2, 32)
    return (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(-1, 128)


def q4_k(rows: np.ndarray) -> np.ndarray:
    d, dmin, scales, minima, codes = _affine(_blocks(rows), 15)
    parts = [_half_bytes(d), _half_bytes(dmin), _pack_scales(scales, minima), _pack_nibbles(codes)]
    return np.concatenate(parts, axis=1).reshape(rows.shape[0], -1)


def q5_k(rows: np.ndarray) -> np.ndarray:
    d, dmin, scales, minima, codes = _affine(_blocks(rows), 31)
    shifts = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    fifth_bits = ((codes >> 4) << shifts).sum(axis=1).astype(np.uint8)
    parts = [_half_bytes(d), _half_bytes(dmin), _pack_scales(scales, minima), fifth_bits, _pack_nibbles(codes)]
    return np.concatenate(parts, axis=1).reshape(rows.shape[0], -1)


def q6_k(rows: np.ndarray) -> np.ndarray:
    sub = _blocks(rows).reshape(-1, 16, 16)
    spans = np.abs(sub).max(axis=2) / 31
    d = (spans.max(axis=1) / 127).astype(np.float16).astype(np.float32)[:, None]
    scales = np.clip(np.round(_divide(spans, d)), 0, 127)
    codes = np.clip(np.round(_divide(sub, (d * scales)[..., None])), -32, 31)
    codes = (codes + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low = (codes & 15).reshape(-1, 2, 2, 64)
    low = (low[:, :, 0] | (low[:, :, 1] << 4)).reshape(-1, 128)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8).reshape(1, 1, 4, 1)
    high = ((codes >> 4) << shifts).sum(axis=2).astype(np.uint8).reshape(-1, 64)
    parts = [low, high, scales.astype(np.int8).view(np.uint8), _half_bytes(d)]
    return np.concatenate(parts, axis=1).reshape(rows.shape[0], -1)
