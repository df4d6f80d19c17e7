//! The saved state of a balloon. It does not list the pages in the balloon: the driver knows them,
//! and for the device they are pages of zeros like others.

use serde::{Deserialize, Serialize};

use super::SetBy;
use crate::codec;

/// Version of the encoding, for a balloon that has never requested hints.
const VERSION: u16 = 1;
/// Version that appends the id of the last command.
const VERSION_WITH_HINTS: u16 = 2;
/// Version that also appends who set the target; used if that is the optimizer.
const VERSION_WITH_SETTER: u16 = 3;

/// The saved state of a balloon; see the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedBalloon {
    /// Pages that the driver must give up.
    pub(super) target_pages: u32,
    /// Pages that the driver claims to have given up.
    pub(super) actual_pages: u32,
    /// Value with which the guest fills free pages.
    pub(super) poison: u32,
    /// Head of the statistics request that the device holds until it wants new statistics.
    pub(super) held: Option<u16>,
    /// Id of the last command for hints; 0 if there was none.
    #[serde(skip)]
    pub(super) hint_id: u32,
    /// Who set the target.
    #[serde(skip)]
    pub(super) set_by: SetBy,
}

impl SavedBalloon {
    /// Encodes the state.
    ///
    /// # Errors
    /// Never: the state is small.
    pub(super) fn to_bytes(self) -> Result<Vec<u8>, String> {
        let bytes = match (self.set_by, self.hint_id) {
            (SetBy::Operator, 0) => codec::encode(&(VERSION, self)),
            (SetBy::Operator, id) => codec::encode(&(VERSION_WITH_HINTS, self, id)),
            (by, id) => codec::encode(&(VERSION_WITH_SETTER, self, id, by)),
        };
        bytes.map_err(|error| error.to_string())
    }

    /// Decodes a state that may be hostile; a driver could have set any value that is accepted
    /// here.
    ///
    /// # Errors
    /// If the bytes cannot be decoded; the text says why.
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
