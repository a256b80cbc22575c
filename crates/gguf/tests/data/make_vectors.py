"""Writes the test vectors of the row decoders: random packed blocks and what they decode to.

The values come from `gguf.quants` (PyPI package `gguf`), a decoder in numpy that shares no code with
ours. Run it as `python make_vectors.py` with `gguf` and `numpy` installed; the output is the same each
time. Each file holds the packed bytes of a row, then its values as little-endian f32.
"""

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

# Blocks in the row, and where in a block half-precision scales stand.
FORMATS = {
    "F32": (48, []),
    "F16": (48, [0]),
    "BF16": (48, []),
    "Q4_0": (5, [0]),
    "Q4_1": (5, [0, 2]),
    "Q5_0": (5, [0]),
    "Q5_1": (5, [0, 2]),
    "Q8_0": (5, [0]),
    "Q2_K": (3, [80, 82]),
    "Q3_K": (3, [108]),
    "Q4_K": (3, [0, 2]),
    "Q5_K": (3, [0, 2]),
    "Q6_K": (3, [208]),
    "IQ4_NL": (5, [0]),
    "MXFP4": (8, []),
}


def main() -> None:
    folder = Path(__file__).parent
    for name, (n_blocks, halves) in FORMATS.items():
        rng = np.random.default_rng(sum(name.encode()))
        kind = GGMLQuantizationType[name]
        _, block_bytes = GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (n_blocks, block_bytes), dtype=np.uint8)
        # No infinity and no NaN: an exponent of all ones loses its lowest bit.
        for at in halves:
            high = blocks[:, at + 1]
            blocks[:, at + 1] = np.where(high & 0x7C == 0x7C, high & ~np.uint8(0x04), high)
        if name in ("F32", "BF16"):
            blocks[:, -1] &= ~np.uint8(0x40)
        if name == "MXFP4":
            # The two subnormal scales, the first normal one, one, the largest without overflow; random ones.
            blocks[:5, 0] = [0, 1, 2, 127, 250]
        packed = blocks.reshape(1, -1)
        values = quants.dequantize(packed, kind).astype("<f4").reshape(-1)
        assert np.isfinite(values).all(), name
        (folder / f"{name.lower()}.bin").write_bytes(packed.tobytes() + values.tobytes())


if __name__ == "__main__":
    main()
