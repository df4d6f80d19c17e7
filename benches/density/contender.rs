//! Who takes part.

/// Who decides what is merged, and how fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    /// `lighter density apply`.
    Lighter,
    /// ksmd as the kernel sets it: 100 pages, 20 ms.
    Default,
    /// ksmtuned's law.
    Ksmtuned,
    /// oVirt MoM's law.
    Mom,
    /// ksmd over all memory, as fast as lighter lets it run.
    Fast,
}

impl Contender {
    /// In the order in which they take their turns.
    pub(crate) const ALL: [Self; 5] =
        [Self::Lighter, Self::Default, Self::Ksmtuned, Self::Mom, Self::Fast];

    /// As it is chosen on the command line.
    pub(crate) const fn option(self) -> &'static str {
        match self {
            Self::Lighter => "lighter",
            Self::Default => "default",
            Self::Ksmtuned => "ksmtuned",
            Self::Mom => "mom",
            Self::Fast => "fast",
        }
    }

    /// As it stands in the table.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Lighter => "lighter",
            Self::Default => "ksmd, the kernel's defaults",
            Self::Ksmtuned => "ksmd, ksmtuned's law",
            Self::Mom => "ksmd, MoM's law",
            Self::Fast => "ksmd, as fast as lighter's",
        }
    }
}
