//! What the guest does during a migration.

use clap::ValueEnum;

/// What the guest does during a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Load {
    /// Nothing but to spin.
    Idle,
    /// Rewrites 2,000 pages a second of 64 MiB.
    Slow,
    /// Rewrites 20,000 pages a second of 64 MiB.
    Fast,
    /// Rewrites 256 MiB as fast as it can.
    Hot,
    /// Changes 8 bytes of 20,000 pages a second of 2 GiB.
    Sparse,
}

impl Load {
    /// The command of the check program that sets this load.
    pub(crate) const fn command(self) -> u8 {
        match self {
            Self::Idle => b'0',
            Self::Slow => b'2',
            Self::Fast | Self::Sparse => b'h',
            Self::Hot => b'f',
        }
    }

    /// Whether the check program must be told when it starts that it changes a part of each page
    /// only.
    pub(crate) const fn is_sparse(self) -> bool {
        matches!(self, Self::Sparse)
    }

    /// The memory that is rewritten, in MiB, if the guest has as much.
    const fn working_set_mib(self) -> u64 {
        match self {
            Self::Idle => 0,
            Self::Slow | Self::Fast => 64,
            Self::Hot => 256,
            Self::Sparse => 2048,
        }
    }

    /// The load's name in the table, in a guest that has `filled_mib` MiB to write to.
    pub(crate) fn name(self, filled_mib: u64) -> String {
        let mib = self.working_set_mib().min(filled_mib);
        match self {
            Self::Idle => "idle".to_owned(),
            Self::Slow => format!("{mib} MiB at 2,000 pages/s"),
            Self::Fast => format!("{mib} MiB at 20,000 pages/s"),
            Self::Hot => format!("{mib} MiB as fast as it can"),
            Self::Sparse => format!("{mib} MiB at 20,000 pages/s, 8 bytes of each"),
        }
    }

    /// Options of the check program for guests with this load, and with the others that are like it
    /// in [`Self::is_sparse`].
    pub(crate) fn options(self) -> String {
        let rewritten = if self.is_sparse() { self } else { Self::Fast }.working_set_mib();
        let hot = Self::Hot.working_set_mib();
        let sparse = u8::from(self.is_sparse());
        format!("check.ws={rewritten} check.hot={hot} check.sparse={sparse} check.rate=0")
    }
}
