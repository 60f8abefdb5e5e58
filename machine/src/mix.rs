//! Hashing of states. What is hashed here are small numbers that lie close together, so each is multiplied before it
//! meets another, zero is no fixed point, and the result is finalised (a search that prunes by a hash with `f(0) = 0`
//! once lost the very executions that had read only zeros).

/// Folds `value` into `hash`; the order matters.
#[inline]
pub(crate) fn fold(hash: u64, value: u64) -> u64 {
    let mut x = hash.rotate_left(23) ^ value.wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xff51_afd7_ed55_8ccd);
    x = x.wrapping_add(0x2545_f491_4f6c_dd1d);
    x ^= x >> 32;
    x.wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// A term for `value` at `id`, for hashes that are sums over places.
#[inline]
pub(crate) fn term(id: u64, value: u64) -> u64 {
    let x = fold(id.wrapping_add(1).wrapping_mul(0xc4ce_b9fe_1a85_ec53), value);
    x ^ x >> 29
}
