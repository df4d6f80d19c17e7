//! Layout of the pages in guest RAM that the workload guest and its host share, compiled into both.
//!
//! Every structure is a sequence of little-endian `u64` words. The host writes [`ParamsPage`] once
//! and [`ControlPage`] at any time. Each vCPU writes its own report page, double-buffered (see
//! [`REPORT_TURN_WORD`]) so that a reader finds a complete report even in a paused guest.

/// First word of the parameter page.
pub const MAGIC: u64 = u64::from_le_bytes(*b"lightrWL");
/// Layout version of everything in this module and of [`super::stamp`].
pub const ABI_VERSION: u64 = 2;

/// Guest pages are 4 KiB.
pub const PAGE_BYTES: u64 = 4096;
/// Most vCPUs that the layout has room for.
pub const VCPUS_MAX: u64 = 8;

/// Load and entry address of the image. Below it, RAM belongs to the VMM (page and descriptor
/// tables).
pub const IMAGE_GPA: u64 = 0x10_0000;
/// Address of the page with the parameters, a [`ParamsPage`].
pub const PARAMS_GPA: u64 = 0x20_0000;
/// Address of the page with the host's commands, a [`ControlPage`].
pub const CONTROL_GPA: u64 = 0x20_1000;
/// Report page of vCPU 0; the others follow page by page.
pub const REPORTS_GPA: u64 = 0x20_2000;
/// Stack of vCPU 0, [`STACK_BYTES`] long; the others follow.
pub const STACKS_GPA: u64 = 0x21_0000;
/// Size of one vCPU's stack.
pub const STACK_BYTES: u64 = 0x1_0000;
/// Start of the ledger, one `u32` sequence per page of working memory; working memory follows it.
pub const LEDGER_GPA: u64 = 0x40_0000;

/// Port that the guest writes a 32-bit doorbell value to: `vcpu << 8 | code`.
pub const DOORBELL_PORT: u16 = 0x4c0;
/// Doorbell: this vCPU has filled its part of memory and starts to work.
pub const BELL_FILLED: u8 = 1;
/// Doorbell: a full verification has finished (the report has its result).
pub const BELL_VERIFIED: u8 = 2;
/// Doorbell: this vCPU has obeyed the stop command and only spins from now on.
pub const BELL_STOPPED: u8 = 3;
/// Doorbell: the first bad page was found (rung once per vCPU).
pub const BELL_FAULT: u8 = 4;
/// Doorbell: the guest program panicked, or was started with unknown parameters.
pub const BELL_PANIC: u8 = 5;

/// Word of a report page that counts finished reports: report `n` lies in buffer `n % 2`.
///
/// The guest writes the other buffer, then stores `n + 1`. A reader that finds the same count
/// before and after copying has a complete report.
pub const REPORT_TURN_WORD: u64 = 0;
/// Word of a report page that holds `page + 1` while that page is being rewritten, else 0.
pub const REPORT_WRITING_WORD: u64 = 1;
/// First word of the two report buffers.
pub const REPORT_BUFFERS_WORD: [u64; 2] = [64, 128];

macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name { $($(#[$field_meta])* pub $field: u64,)* }

        impl $name {
            /// Number of `u64` words in guest RAM.
            pub const WORDS: usize = [$(stringify!($field)),*].len();

            /// Returns the words in guest order.
            #[must_use]
            pub fn to_words(&self) -> [u64; Self::WORDS] {
                [$(self.$field),*]
            }

            /// Creates the structure from its words, the inverse of [`Self::to_words`].
            #[must_use]
            pub fn from_words(words: &[u64; Self::WORDS]) -> Self {
                let [$($field),*] = *words;
                Self { $($field),* }
            }
        }
    };
}

words! {
    /// Parameters that the host writes once, before the first instruction.
    ParamsPage {
        /// [`MAGIC`], by which the host recognizes a workload guest.
        magic,
        /// [`ABI_VERSION`] of the host that started the guest.
        version,
        /// Number of vCPUs that share the work, 1 to [`VCPUS_MAX`].
        vcpus,
        /// TSC ticks per second.
        tsc_hz,
        /// Seed of the content that guests of one image share.
        seed,
        /// Seed of all other content.
        own_seed,
        /// Pages of working memory, all vCPUs together.
        pages,
        /// Guest physical address of working page 0.
        low_gpa,
        /// How many working pages lie at `low_gpa`; the rest lie at `high_gpa`.
        low_pages,
        /// Guest physical address of working page `low_pages`.
        high_gpa,
        /// Share of stamped pages with random content, percent.
        random_percent,
        /// Share of stamped pages with compressible text, percent. The remaining pages are zero.
        text_percent,
        /// Share of pages whose first version is the image's, percent.
        image_percent,
        /// Length of a run of pages of one kind in the first version.
        run_pages,
        /// Share of rewrites that clear the page instead of stamping it, percent.
        zeroing_percent,
        /// Background check, pages per second, all vCPUs together.
        sweep_rate,
        /// Pages read at random, pages per second, all vCPUs together. This and the following
        /// fields are 0 in guests of older versions.
        read_rate,
        /// [`super::stamp::Shuffle`]: pages of a piece.
        piece_pages,
        /// [`super::stamp::Shuffle`]: number of pieces.
        pieces,
        /// [`super::stamp::Shuffle`]: its stride.
        stride,
    }
}

words! {
    /// Commands that the host writes at any time; the guest reads them at least every millisecond.
    ControlPage {
        /// Pages to rewrite per second, all vCPUs together; 0 rewrites nothing.
        dirty_rate,
        /// Pages that are rewritten, all vCPUs together, from the start of each vCPU's part.
        working_set_pages,
        /// Order of rewriting: an [`super::Order`] as number.
        order,
        /// A change resets the guest's longest stall.
        stall_epoch,
        /// A change makes the guest verify all its pages.
        verify_epoch,
        /// If not 0, the guest stops working and rings the doorbell.
        stop,
    }
}

words! {
    /// State and counters of one vCPU.
    ReportPage {
        /// 0 not started, 1 filling, 2 working, 3 stopped, 4 panicked.
        phase,
        /// Loop iterations; grows as long as the vCPU runs.
        tick,
        /// TSC at this report.
        tsc,
        /// Pages rewritten after the first fill.
        pages_written,
        /// Pages checked, for any reason.
        pages_checked,
        /// Background sweeps finished over this vCPU's part.
        sweeps,
        /// Longest time between two loop iterations since the last reset, TSC ticks.
        longest_stall,
        /// The `stall_epoch` that `longest_stall` belongs to.
        stall_epoch,
        /// Times that the TSC went backwards.
        tsc_backwards,
        /// The `verify_epoch` of the last finished verification.
        verified_epoch,
        /// Bad pages that this verification found.
        verified_bad,
        /// Total number of bad pages found.
        faults,
        /// First bad page: its number.
        fault_page,
        /// First bad page: a [`super::FaultKind`] as number, 0 for none.
        fault_kind,
        /// First bad page: sequence that it should have had.
        fault_expected,
        /// First bad page: sequence found in it.
        fault_found,
        /// First bad page: page number found in it.
        fault_found_page,
        /// Pages read at random; 0 in guests of older versions.
        pages_read,
    }
}

/// Returns the part of `total` that belongs to `vcpu` of `vcpus`: first item and count.
///
/// Parts are contiguous, differ by at most one, and cover everything.
#[must_use]
pub const fn share(total: u64, vcpu: u64, vcpus: u64) -> (u64, u64) {
    let first = total * vcpu / vcpus;
    (first, total * (vcpu + 1) / vcpus - first)
}
