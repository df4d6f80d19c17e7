//! The only place where typed state is encoded to bytes and decoded: bincode with fixed-size
//! little-endian integers, and always with a limit, since the bytes may come from a peer or a file.

use bincode::config;
use bincode::error::{DecodeError, EncodeError};
use serde::{Serialize, de::DeserializeOwned};

/// Default limit on an encoded value, in bytes.
pub(crate) const ENCODED_BYTES_MAX: usize = 1 << 20;

/// Encodes `value`.
///
/// # Errors
/// If the encoded value is larger than [`ENCODED_BYTES_MAX`].
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, EncodeError> {
    encode_within::<ENCODED_BYTES_MAX, T>(value)
}

/// Encodes `value` in at most `MAX` bytes.
///
/// # Errors
/// If the encoded value is larger.
pub(crate) fn encode_within<const MAX: usize, T: Serialize>(
    value: &T,
) -> Result<Vec<u8>, EncodeError> {
    let mut bytes = Vec::with_capacity(16 << 10);
    bincode::serde::encode_into_std_write(value, &mut bytes, config::<MAX>())?;
    // bincode's own limit applies to decoding only.
    if bytes.len() > MAX {
        let text = format!("{} bytes, of which {MAX} are allowed", bytes.len());
        return Err(EncodeError::OtherString(text));
    }
    Ok(bytes)
}

/// Decodes a value that fills `bytes` exactly. Memory use is bounded by [`ENCODED_BYTES_MAX`].
///
/// # Errors
/// If the bytes do not encode such a value, are followed by others, or claim lengths beyond the
/// limit.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    decode_within::<ENCODED_BYTES_MAX, T>(bytes)
}

/// Decodes a value that fills `bytes`, of at most `MAX`, exactly. Memory use is bounded by `MAX`.
///
/// # Errors
/// As [`decode`].
pub(crate) fn decode_within<const MAX: usize, T: DeserializeOwned>(
    bytes: &[u8],
) -> Result<T, DecodeError> {
    if bytes.len() > MAX {
        return Err(DecodeError::LimitExceeded);
    }
    // The only permitted call: `config` sets the limit.
    #[expect(clippy::disallowed_methods)]
    let (value, used) = bincode::serde::decode_from_slice(bytes, config::<MAX>())?;
    if used != bytes.len() {
        return Err(DecodeError::OtherString(format!("{} bytes left over", bytes.len() - used)));
    }
    Ok(value)
}

fn config<const MAX: usize>() -> impl config::Config {
    config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<MAX>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_length_is_refused_without_allocating() {
        let mut bytes = (1u64 << 36).to_le_bytes().to_vec();
        bytes.extend([0; 64]);
        assert!(decode::<Vec<u8>>(&bytes).is_err());
    }

    #[test]
    fn what_could_not_be_decoded_is_not_encoded() {
        // The vector's length takes the other eight bytes.
        let largest = vec![7_u8; ENCODED_BYTES_MAX - 8];
        let bytes = encode(&largest).unwrap();
        assert_eq!(decode::<Vec<u8>>(&bytes).unwrap(), largest);
        let refused = encode(&vec![7_u8; ENCODED_BYTES_MAX - 7]).unwrap_err().to_string();
        assert!(refused.contains("1048577 bytes"), "{refused}");
    }

    #[test]
    fn left_over_bytes_are_refused() {
        let mut bytes = encode(&7u32).unwrap();
        bytes.push(0);
        assert!(decode::<u32>(&bytes).is_err());
    }
}
