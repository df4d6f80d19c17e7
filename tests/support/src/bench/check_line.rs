//! Parses the lines that the guest's check program prints (`tests/guest/check/`).

/// One line of the check program: the guest's report about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckLine {
    /// Iterations of the program's loop.
    pub ticks: u64,
    /// Pages that the program has rewritten.
    pub written: u64,
    /// Pages with wrong content.
    pub errors: u64,
    /// Full checks that were requested and are complete.
    pub verified: u64,
    /// How often the longest gap was reset.
    pub epoch: u64,
    /// Longest time during which the program did not run, in microseconds.
    pub gap_us: u64,
    /// The longest of the other such times, in microseconds.
    pub next_gap_us: u64,
    /// Sum of such times of a millisecond and more, in microseconds.
    pub stalled_us: u64,
    /// Longest time that the program's own output took, in microseconds.
    pub output_us: u64,
    /// Pages of the guest's disk read through a mapping; 0 for a guest without one.
    pub read: u64,
    /// Checksum of the mapped pages as of their last check; 0 for a guest without a mapping.
    pub sum: u64,
    /// Expiries of the program's 100 ms timer.
    pub timers: u64,
    /// Expiries to be expected according to the guest's clock.
    pub expected: u64,
}

impl CheckLine {
    /// Parses a whole line; `None` for anything else, also for a line that a migration cut in two.
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
            next_gap_us: value("gap2_us")?,
            stalled_us: value("stalled_us")?,
            read: value("read").unwrap_or(0),
            sum: value("sum").unwrap_or(0),
            // The program prints this field last: a line that has it is whole.
            output_us: value("output_us")?,
            timers: value("timers")?,
            expected: value("expected")?,
        })
    }
}
