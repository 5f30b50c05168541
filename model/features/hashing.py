"""The hash of values: 64 bits of which rows of tables are made.

In: strings as Arrow has them, and a seed for each field. Out: hashes; 0 stands for a missing value.

Shapes: B events, F fields.
"""

import numpy as np

from niwaki.model.jit import inlined, kernel


@kernel("uint64(uint64)")
def mix_bits(h: np.uint64) -> np.uint64:
    """The finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014): every input bit reaches every
    output bit."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return max(h ^ (h >> np.uint64(31)), np.uint64(1))  # 0 is kept for "missing"


@kernel("int64(Array(uint8, 1, 'C', readonly=True), int64, int64)")
def _end_of_name(text: np.ndarray, start: np.int64, stop: np.int64) -> np.int64:
    """The place after a string's last byte that counts: without ".0" where all before it are
    digits, since pandas writes an integer id so when others are missing."""
    if stop - start < 3 or text[stop - 1] != 48 or text[stop - 2] != 46:
        return stop
    first = start + 1 if text[start] == 45 and stop - start > 3 else start
    for at in range(first, stop - 2):
        if text[at] < 48 or text[at] > 57:
            return stop
    return stop - 2


@inlined
def hash_text(text: np.ndarray, start: int, stop: int, seed: np.uint64) -> np.uint64:
    """The hash of the string at `text[start:stop]`, from its length and its bytes, eight at a time;
    "4711.0" has the hash of "4711"."""
    end = int(_end_of_name(text, np.int64(start), np.int64(stop)))
    h = mix_bits(seed ^ np.uint64(end - start))
    for at in range(start, end, 8):
        word = np.uint64(0)
        for j in range(min(8, end - at)):
            word |= np.uint64(text[at + j]) << np.uint64(8 * j)
        h = mix_bits(h ^ word)
    return h


@kernel(
    "void(Array(uint8, 1, 'C', readonly=True), Array(int32, 1, 'C', readonly=True),"
    " Array(uint8, 1, 'C', readonly=True), int64, uint64[::1], uint64[:,::1])"
)
def hash_strings(
    valid: np.ndarray,
    offsets: np.ndarray,
    text: np.ndarray,
    first: int,
    seeds_F: np.ndarray,
    hashes_BF: np.ndarray,
) -> None:
    """Write the hash of each string of an Arrow array; 0 where it is null.

    `valid`, `offsets`, `text`: the array's buffers, the first empty where nothing is null. `first`:
    the array's offset. The array holds B strings of the first field, then B of the second, and so
    on.
    """
    events = len(hashes_BF)
    for f in range(len(seeds_F)):
        for b in range(events):
            i = first + f * events + b
            if len(valid) and not valid[i >> 3] >> (i & 7) & 1:
                hashes_BF[b, f] = 0
                continue
            start = int(offsets[i])
            hashes_BF[b, f] = hash_text(text, start, int(offsets[i + 1]), seeds_F[f])
