//! What is saved of a balloon. The pages in it are the driver's business: here they are zeros like others.

use serde::{Deserialize, Serialize};

use crate::codec;

/// Version of the encoding.
const VERSION: u16 = 1;

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedBalloon {
    /// Pages that the driver shall give up.
    pub(super) target_pages: u32,
    /// Pages that it says to have given up.
    pub(super) actual_pages: u32,
    /// What its pages must hold.
    pub(super) poison: u32,
    /// The buffer of statistics that waits here for the next question, by its head.
    pub(super) held: Option<u16>,
}

impl SavedBalloon {
    /// Encodes it.
    ///
    /// # Errors
    /// Never: it is small.
    pub(super) fn to_bytes(self) -> Result<Vec<u8>, String> {
        codec::encode(&(VERSION, self)).map_err(|error| error.to_string())
    }

    /// Decodes what may be hostile; every value is one that a driver could have brought about.
    ///
    /// # Errors
    /// A sentence.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let (version, saved): (u16, Self) =
            codec::decode(bytes).map_err(|error| error.to_string())?;
        if version != VERSION {
            return Err(format!("its state has version {version}, this program knows {VERSION}"));
        }
        Ok(saved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_survives_its_bytes_and_nothing_else_does() {
        let saved = SavedBalloon { target_pages: 5, actual_pages: 3, poison: 9, held: Some(2) };
        let bytes = saved.to_bytes().unwrap();
        assert_eq!(SavedBalloon::from_bytes(&bytes), Ok(saved));
        for cut in 0..bytes.len() {
            assert!(SavedBalloon::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let mut newer = bytes;
        newer[0] = 2;
        let error = SavedBalloon::from_bytes(&newer).unwrap_err();
        assert_eq!(error, "its state has version 2, this program knows 1");
    }
}
