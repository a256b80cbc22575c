//! Packing of codes of 1 to 8 bits without gaps.
//!
//! The packed bytes are one stream of bits, least significant first: code `i` of `b` bits occupies the bits
//! `i·b .. (i + 1)·b`, so eight codes take exactly `b` bytes. Read as little-endian words of 32 bits, the same
//! stream serves kernels that work on words.
//!
//! # Memory
//! `n` codes of `b` bits take ⌈n·b / 8⌉ bytes; the unused high bits of the last byte are zero.
//!
//! # Example
//! ```
//! use breakers_backend::bits;
//!
//! let codes = [5, 0, 7, 3, 1];
//! let packed = bits::pack(&codes, 3).unwrap();
//! assert_eq!(packed.len(), bits::packed_len(codes.len(), 3).unwrap());
//!
//! let mut unpacked = [0; 5];
//! bits::unpack(&packed, 3, &mut unpacked).unwrap();
//! assert_eq!(unpacked, codes);
//! assert_eq!(bits::get(&packed, 3, 2), Ok(7));
//! ```

use crate::{Error, Result};

/// Codes that fill whole bytes at any width.
const GROUP: usize = 8;

/// Calls `$function::<BITS>` with `bits` as a constant, so that each width has its own unrolled loop.
macro_rules! with_width {
    ($bits:expr, $function:ident($($argument:expr),*)) => {
        match $bits {
            1 => $function::<1>($($argument),*),
            2 => $function::<2>($($argument),*),
            3 => $function::<3>($($argument),*),
            4 => $function::<4>($($argument),*),
            5 => $function::<5>($($argument),*),
            6 => $function::<6>($($argument),*),
            7 => $function::<7>($($argument),*),
            _ => $function::<8>($($argument),*),
        }
    };
}
/// Bytes that `n_codes` codes of `bits` bits take.
///
/// # Errors
/// [`Error::BitWidth`] unless `bits` is 1 to 8.
pub fn packed_len(n_codes: usize, bits: u32) -> Result<usize> {
    let bits = width(bits)?;
    // In parts, so that no count overflows.
    Ok(n_codes / GROUP * bits + (n_codes % GROUP * bits).div_ceil(8))
}

/// The codes, packed.
///
/// # Errors
/// As [`pack_into`].
pub fn pack(codes: &[u8], bits: u32) -> Result<Vec<u8>> {
    let mut packed = vec![0; packed_len(codes.len(), bits)?];
    pack_into(codes, bits, &mut packed)?;
    Ok(packed)
}

/// Packs the codes into `packed`, which is overwritten.
///
/// # Errors
/// [`Error::BitWidth`] unless `bits` is 1 to 8; [`Error::Length`] unless `packed` has
/// [`packed_len`]`(codes.len(), bits)` bytes; [`Error::CodeRange`] if a code has more than `bits` bits.
pub fn pack_into(codes: &[u8], bits: u32, packed: &mut [u8]) -> Result<()> {
    check_len("packed", packed, packed_len(codes.len(), bits)?)?;
    // One pass that vectorizes; the search for the culprit is rare.
    if codes.iter().fold(0, |all, code| all | code) >> (bits - 1) > 1 {
        let too_large = |(_, code): &(usize, &u8)| **code >> (bits - 1) > 1;
        if let Some((index, code)) = codes.iter().enumerate().find(too_large) {
            return Err(Error::CodeRange { code: *code, index, bits });
        }
    }
    with_width!(bits, pack_width(codes, packed));
    Ok(())
}

/// Unpacks as many codes as `codes` has room for.
///
/// # Errors
/// [`Error::BitWidth`] unless `bits` is 1 to 8; [`Error::Length`] unless `packed` has
/// [`packed_len`]`(codes.len(), bits)` bytes.
pub fn unpack(packed: &[u8], bits: u32, codes: &mut [u8]) -> Result<()> {
    check_len("packed", packed, packed_len(codes.len(), bits)?)?;
    with_width!(bits, unpack_width(packed, codes));
    Ok(())
}

/// One code of the stream.
///
/// # Errors
/// [`Error::BitWidth`] unless `bits` is 1 to 8; [`Error::Length`] if the stream ends before the code does.
pub fn get(packed: &[u8], bits: u32, index: usize) -> Result<u8> {
    let width = width(bits)?;
    let first = index / GROUP * width + index % GROUP * width / 8;
    let shift = index % GROUP * width % 8;
    let last = first + (shift + width - 1) / 8;
    let byte = |at: usize| packed.get(at).copied().map(u16::from);
    let (Some(low), Some(high)) = (byte(first), byte(last)) else {
        return Err(Error::Length { what: "packed", expected: last + 1, found: packed.len() });
    };
    let word = low | high << 8;
    Ok((word >> shift) as u8 & mask(width))
}

fn width(bits: u32) -> Result<usize> {
    if (1..=8).contains(&bits) { Ok(bits as usize) } else { Err(Error::BitWidth { bits }) }
}

const fn mask(width: usize) -> u8 {
    (0xFF_u16 >> (8 - width)) as u8
}

fn check_len(what: &'static str, slice: &[u8], expected: usize) -> Result<()> {
    if slice.len() == expected { Ok(()) } else { Err(Error::Length { what, expected, found: slice.len() }) }
}

/// Packs eight codes at a time through one 64-bit word.
fn pack_width<const BITS: usize>(codes: &[u8], packed: &mut [u8]) {
    let join = |codes: &[u8]| {
        codes.iter().enumerate().fold(0u64, |word, (i, code)| word | u64::from(*code) << (i * BITS))
    };
    let (groups, rest) = codes.as_chunks::<GROUP>();
    let (whole, tail) = packed.split_at_mut(groups.len() * BITS);
    for (group, bytes) in groups.iter().zip(whole.chunks_exact_mut(BITS)) {
        bytes.copy_from_slice(&join(group).to_le_bytes()[..BITS]);
    }
    let n_tail = tail.len();
    tail.copy_from_slice(&join(rest).to_le_bytes()[..n_tail]);
}

fn unpack_width<const BITS: usize>(packed: &[u8], codes: &mut [u8]) {
    let split = |bytes: &[u8], codes: &mut [u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        let word = u64::from_le_bytes(word);
        for (i, code) in codes.iter_mut().enumerate() {
            *code = (word >> (i * BITS)) as u8 & mask(BITS);
        }
    };
    let (groups, rest) = codes.as_chunks_mut::<GROUP>();
    let (whole, tail) = packed.split_at(groups.len() * BITS);
    for (bytes, group) in whole.chunks_exact(BITS).zip(groups) {
        split(bytes, group);
    }
    split(tail, rest);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_stream_is_least_significant_bit_first() {
        let check = |codes: &[u8], bits, expected: &[u8]| assert_eq!(pack(codes, bits).unwrap(), expected);
        check(&[], 3, &[]);
        check(&[1, 0, 1, 1], 1, &[0b1101]);
        check(&[1, 2, 3], 2, &[0b11_10_01]);
        check(&[0xA, 0xB, 0xC], 4, &[0xBA, 0x0C]);
        // 5, 0, 7: 101 000 111 from the lowest bit on.
        check(&[5, 0, 7], 3, &[0b1100_0101, 0b1]);
        check(&[0xFF, 0x01], 8, &[0xFF, 0x01]);
    }

    #[test]
    fn bad_arguments_are_named() {
        for bits in [0, 9, u32::MAX] {
            let error = Error::BitWidth { bits };
            assert_eq!(packed_len(1, bits), Err(error.clone()));
            assert_eq!(pack(&[0], bits), Err(error.clone()));
            assert_eq!(unpack(&[0], bits, &mut [0]), Err(error.clone()));
            assert_eq!(get(&[0], bits, 0), Err(error));
        }
        assert_eq!(pack(&[0, 1, 8], 3), Err(Error::CodeRange { code: 8, index: 2, bits: 3 }));
        let wrong = |expected, found| Err(Error::Length { what: "packed", expected, found });
        assert_eq!(pack_into(&[0; 9], 3, &mut [0; 3]), wrong(4, 3));
        assert_eq!(unpack(&[0; 5], 3, &mut [0; 9]), wrong(4, 5));
        assert_eq!(get(&[0; 3], 3, 8).map(|_| ()), wrong(4, 3));
        assert_eq!(get(&[], 8, 0).map(|_| ()), wrong(1, 0));
        assert_eq!(packed_len(usize::MAX, 8), Ok(usize::MAX));
    }

    proptest! {
        #[test]
        fn packing_round_trips(
            (bits, codes) in (1u32..=8).prop_flat_map(|bits| {
                (Just(bits), prop::collection::vec(0..=mask(bits as usize), 0..200))
            })
        ) {
            let packed = pack(&codes, bits).unwrap();
            prop_assert_eq!(packed.len(), (codes.len() * bits as usize).div_ceil(8));
            let mut unpacked = vec![0; codes.len()];
            unpack(&packed, bits, &mut unpacked).unwrap();
            prop_assert_eq!(&unpacked, &codes);
            for (index, code) in codes.iter().enumerate() {
                prop_assert_eq!(get(&packed, bits, index), Ok(*code));
            }
        }

        #[test]
        fn unused_bits_are_zero(bits in 1u32..=8, n in 1usize..30) {
            let packed = pack(&vec![mask(bits as usize); n], bits).unwrap();
            let ones: u32 = packed.iter().map(|byte| byte.count_ones()).sum();
            prop_assert_eq!(ones, bits * n as u32);
        }
    }
}
