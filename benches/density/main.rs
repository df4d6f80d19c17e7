//! Memory that lighter and other ways to drive ksmd save with the same CPU time, on a host of
//! clones.
//!
//!     cargo bench --bench density [-- --guests 8] [--linux 2] [--memory-mib 256] [--runs 5]
//!         [--cases clustered-25,scattered-25,shuffled-25,shuffled-5,shuffled-0,linux]
//!         [--only lighter,default,ksmtuned,mom,advisor,fast] [--seed 7] [--cpu-seconds 2.5]
//!
//! A case is the layout of the clones' pages and their share of zeros, in percent; `linux` has no
//! clones.
//!
//! For each contender the same kind of guests is started afresh: clones of one image (the built-in
//! workload: zero pages, pages of the image, and pages of the guest's own), a quarter of them
//! writing continuously and another quarter reading; and Linux guests that were booted once and are
//! restored from files. The latter have read one disk into their page caches, each in an order of
//! its own. All memory is mergeable from the start, and consists of huge pages. Before the first
//! round lighter takes a turn that does not count: the CPU time of its node, of its surveys of
//! guests' pages and of ksmd together is what ksmd alone may use for each of the others (the median
//! of lighter's turns so far). The order of turns in each round is random.
//!
//! The cost of the guests' processes (PSS) is compared before and some seconds after, and so are
//! the pages that read-hot guests read per CPU second of their vCPU. Then each guest checks all its
//! memory, and damage ends the benchmark. ksmd's settings are restored at the end, also after
//! Ctrl-C. Needs root.
//!
//! The kernel's advisor is skipped where the kernel has none (before Linux 6.8). `--cpu-seconds`
//! replaces lighter's figure if lighter does not take part. Start reading at [`contest`].

mod contender;
mod contest;
mod drive;
mod figures;
mod fleet;
mod knobs;
mod laws;
mod lighter;
mod linux;
mod reads;
mod settings;
mod table;
mod workload;

use anyhow::Result;
use support::bench::interruption;

fn main() -> Result<()> {
    let settings = settings::Settings::from_arguments(std::env::args().skip(1))?;
    interruption::watch()?;
    let folder = tempfile::tempdir()?;
    contest::run(&settings, folder.path(), |case, turns| {
        println!("{}\n", table::markdown(&settings, case, turns));
    })
}
