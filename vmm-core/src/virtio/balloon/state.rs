//! What is saved of a balloon. The pages in it are the driver's business: here they are zeros like
//! others.

use serde::{Deserialize, Serialize};

use super::SetBy;
use crate::codec;

/// Version of the encoding of a balloon that has never asked for hints.
const VERSION: u16 = 1;
/// The same with the last command's id behind.
const VERSION_WITH_HINTS: u16 = 2;
/// The same with who has set the target behind, when that is the optimizer.
const VERSION_WITH_SETTER: u16 = 3;

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
    /// Id of the last command for hints; 0 when there was none.
    #[serde(skip)]
    pub(super) hint_id: u32,
    /// Who has set the target.
    #[serde(skip)]
    pub(super) set_by: SetBy,
}

impl SavedBalloon {
    /// Encodes it.
    ///
    /// # Errors
    /// Never: it is small.
    pub(super) fn to_bytes(self) -> Result<Vec<u8>, String> {
        let bytes = match (self.set_by, self.hint_id) {
            (SetBy::Operator, 0) => codec::encode(&(VERSION, self)),
            (SetBy::Operator, id) => codec::encode(&(VERSION_WITH_HINTS, self, id)),
            (by, id) => codec::encode(&(VERSION_WITH_SETTER, self, id, by)),
        };
        bytes.map_err(|error| error.to_string())
    }

    /// Decodes what may be hostile; every value is one that a driver could have brought about.
    ///
    /// # Errors
    /// A sentence.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let version = bytes.first_chunk().ok_or_else(|| "its state is empty".to_owned())?;
        let saved = match u16::from_le_bytes(*version) {
            VERSION => codec::decode(bytes).map(|(_, saved): (u16, Self)| saved),
            VERSION_WITH_HINTS => codec::decode(bytes)
                .map(|(_, saved, hint_id): (u16, Self, u32)| Self { hint_id, ..saved }),
            VERSION_WITH_SETTER => {
                codec::decode(bytes).map(|(_, saved, hint_id, set_by): (u16, Self, u32, SetBy)| {
                    Self { hint_id, set_by, ..saved }
                })
            }
            version => {
                return Err(format!(
                    "its state has version {version}, this program knows {VERSION_WITH_SETTER}"
                ));
            }
        };
        saved.map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_survives_its_bytes_and_nothing_else_does() {
        let setters = [(0, SetBy::Operator), (1 << 31, SetBy::Operator), (0, SetBy::Optimizer)];
        for (hint_id, set_by) in setters {
            let (target_pages, actual_pages, poison) = (5, 3, 9);
            let held = Some(2);
            let saved = SavedBalloon { target_pages, actual_pages, poison, held, hint_id, set_by };
            let bytes = saved.to_bytes().unwrap();
            assert_eq!(SavedBalloon::from_bytes(&bytes), Ok(saved));
            for cut in 0..bytes.len() {
                assert!(SavedBalloon::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
            }
            let mut newer = bytes;
            newer[0] = 4;
            let error = SavedBalloon::from_bytes(&newer).unwrap_err();
            assert_eq!(error, "its state has version 4, this program knows 3");
        }
    }
}
