//! Memory saved by lighter and by others who drive ksmd, with the same CPU time, on a host of clones.
//!
//!     cargo bench --bench density [-- --guests 8] [--linux 2] [--memory-mib 256] [--runs 1] [--layout clustered,scattered]
//!         [--only lighter,default,ksmtuned,mom,fast] [--cpu-seconds 2.5]
//!
//! For each contender guests of the same kind are started anew: clones of one image (the built-in workload: pages of zeros,
//! of the image, and of the guest itself), a quarter of them hot, and guests of Linux that were booted once and are restored from files.
//! All their memory may be merged from the start, and consists of huge pages. lighter goes first: what its node, its looks
//! at guests' pages and ksmd take together is what ksmd alone may take under each of the others. What the guests' processes cost
//! (PSS) is compared before and some seconds after; then each guest checks all its memory, and one that is damaged ends the
//! benchmark. ksmd's settings are as before at the end, also after Ctrl-C. Takes root.
//!
//! `--cpu-seconds` stands in for lighter's figure where lighter is left out. Start reading at [`contest`].

mod contender;
mod contest;
mod drive;
mod figures;
mod fleet;
mod knobs;
mod laws;
mod lighter;
mod linux;
mod settings;
mod table;
mod workload;

#[path = "../../tests/e2e/host/api.rs"]
mod api;
#[path = "../peers/check_line.rs"]
mod check_line;
#[path = "../peers/console.rs"]
mod console;
#[path = "../peers/interruption.rs"]
mod interruption;
#[path = "../peers/lighter_console.rs"]
mod lighter_console;
#[path = "../peers/program.rs"]
#[expect(dead_code, reason = "the other benchmark uses the rest")]
mod program;
#[path = "../peers/usage.rs"]
#[expect(dead_code, reason = "the other benchmark uses the rest")]
mod usage;

use anyhow::Result;

fn main() -> Result<()> {
    let settings = settings::Settings::from_arguments(std::env::args().skip(1))?;
    interruption::watch()?;
    let folder = tempfile::tempdir()?;
    for (layout, runs) in contest::run(&settings, folder.path())? {
        println!("{}", table::markdown(&settings, layout, &runs));
    }
    Ok(())
}
