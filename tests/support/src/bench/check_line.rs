//! The lines that the guest's check program prints (`tests/guest/check/`).

/// One line: what the guest says about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckLine {
    /// Turns of its loop.
    pub ticks: u64,
    /// Pages rewritten.
    pub written: u64,
    /// Bad pages.
    pub errors: u64,
    /// Full checks that were asked for and are done.
    pub verified: u64,
    /// How often the longest gap was forgotten.
    pub epoch: u64,
    /// Longest time in which the program did not run, microseconds.
    pub gap_us: u64,
    /// Longest time that its own output took, microseconds.
    pub output_us: u64,
    /// Pages of its disk read through a mapping; 0 where it has none.
    pub read: u64,
    /// Sum over what is mapped, when it was checked last; 0 where it has none.
    pub sum: u64,
    /// Expiries of its 100 ms timer.
    pub timers: u64,
    /// Expiries that its clock makes it expect.
    pub expected: u64,
}

impl CheckLine {
    /// Reads a whole line; `None` for anything else, also for a line cut in two by a migration.
    pub fn parse(line: &str) -> Option<Self> {
        let fields = line.trim().strip_prefix("check ")?;
        let value = |name: &str| {
            let field = fields.split(' ').find_map(|field| field.strip_prefix(name));
            field?.strip_prefix('=')?.parse().ok()
        };
        Some(Self {
            ticks: value("tick")?,
            written: value("written")?,
            errors: value("errors")?,
            verified: value("verified")?,
            epoch: value("epoch")?,
            gap_us: value("gap_us")?,
            read: value("read").unwrap_or(0),
            sum: value("sum").unwrap_or(0),
            // The last field: a line that has it is whole.
            output_us: value("output_us")?,
            timers: value("timers")?,
            expected: value("expected")?,
        })
    }
}
