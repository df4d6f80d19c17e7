//! Memory saved by lighter and by others who drive ksmd, with the same CPU time, on a host of
//! clones.
//!
//!     cargo bench --bench density [-- --guests 8] [--linux 2] [--memory-mib 256] [--runs 5]
//!         [--cases clustered-25,scattered-25,shuffled-25,shuffled-5,shuffled-0,linux]
//!         [--only lighter,default,ksmtuned,mom,advisor,fast] [--seed 7] [--cpu-seconds 2.5]
//!
//! A case is how the clones' pages lie and the share of zeros among them, in percent; `linux` has
//! no clones.
//!
//! For each contender guests of the same kind are started anew: clones of one image (the built-in
//! workload: pages of zeros, of the image, and of the guest itself), a quarter of them writing all
//! the time and another quarter reading, and guests of Linux that were booted once and are restored
//! from files. These have read one disk into their page caches, each in an order of its own. All
//! memory may be merged from the start, and consists of huge pages. Before the first round lighter
//! takes a turn that does not count: what its node, its surveys of guests' pages and ksmd take
//! together is what ksmd alone may take under each of the others (the median of lighter's turns so
//! far). In each round the order of turns is drawn by lot.
//!
//! What the guests' processes cost (PSS) is compared before and some seconds after, and so are the
//! pages that read-hot guests read for each CPU second of their vCPU. Then each guest checks all
//! its memory, and one that is damaged ends the benchmark. ksmd's settings are as before at the
//! end, also after Ctrl-C. Takes root.
//!
//! The kernel's advisor is skipped where the kernel has none (before Linux 6.8). `--cpu-seconds`
//! stands in for lighter's figure where lighter is left out. Start reading at [`contest`].

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
