//! Why a migration failed, as a label.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a migration failed: a bounded set, for metrics and programs.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // see `crate::error::Failure`
pub enum Reason {
    Version,
    Refused,
    Cancelled,
    Timeout,
    NoAnswer,
    ConnectionLost,
    Protocol,
    Data,
    Guest,
    GuestStopped,
    Record,
    InDoubt,
    Operator,
    Downtime,
    UnknownHost,
    Unreachable,
    UnknownAuthority,
    WrongName,
    CertificateExpired,
    CertificateRefused,
    Stalled,
    /// A reason that this release does not know, on the wire or in a report.
    #[serde(other)]
    Other,
}

impl Reason {
    /// All reasons; the position of a reason is its [`Reason::code`].
    pub const ALL: [Self; 22] = [
        Self::Other,
        Self::Version,
        Self::Refused,
        Self::Cancelled,
        Self::Timeout,
        Self::NoAnswer,
        Self::ConnectionLost,
        Self::Protocol,
        Self::Data,
        Self::Guest,
        Self::GuestStopped,
        Self::Record,
        Self::InDoubt,
        Self::Operator,
        Self::Downtime,
        Self::UnknownHost,
        Self::Unreachable,
        Self::UnknownAuthority,
        Self::WrongName,
        Self::CertificateExpired,
        Self::CertificateRefused,
        Self::Stalled,
    ];

    /// Returns the name of the reason, which is also its metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Refused => "refused",
            Self::Cancelled => "cancelled",
            Self::Timeout => "timeout",
            Self::NoAnswer => "no_answer",
            Self::ConnectionLost => "connection_lost",
            Self::Protocol => "protocol",
            Self::Data => "data",
            Self::Guest => "guest",
            Self::GuestStopped => "guest_stopped",
            Self::Record => "record",
            Self::InDoubt => "in_doubt",
            Self::Operator => "operator",
            Self::Downtime => "downtime",
            Self::UnknownHost => "unknown_host",
            Self::Unreachable => "unreachable",
            Self::UnknownAuthority => "unknown_authority",
            Self::WrongName => "wrong_name",
            Self::CertificateExpired => "certificate_expired",
            Self::CertificateRefused => "certificate_refused",
            Self::Stalled => "stalled",
            Self::Other => "other",
        }
    }

    /// Returns the number of the reason on the wire.
    pub fn code(self) -> u16 {
        Self::ALL.iter().position(|&reason| reason == self).map_or(0, |at| at as u16)
    }

    /// Returns the reason with this number; [`Reason::Other`] if there is none.
    pub fn from_code(code: u16) -> Self {
        Self::ALL.get(usize::from(code)).copied().unwrap_or(Self::Other)
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_survives_the_wire() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_code(reason.code()), reason);
        }
        assert_eq!(Reason::from_code(999), Reason::Other);
    }

    #[test]
    fn every_reason_is_in_reports_by_its_name_and_one_of_a_later_release_is_read() {
        let read = |text: &str| serde_json::from_str::<Reason>(text).unwrap();
        for reason in Reason::ALL {
            assert_eq!(serde_json::to_string(&reason).unwrap(), format!("\"{reason}\""));
            assert_eq!(read(&format!("\"{reason}\"")), reason);
        }
        assert_eq!(read("\"of_tomorrow\""), Reason::Other);
    }
}
