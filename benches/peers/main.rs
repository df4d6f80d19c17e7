//! lighter compared with QEMU, in one run: the same Linux kernel, the same program in it, the same
//! host.
//!
//!     cargo bench --bench peers [-- --runs 5] [--only lighter|qemu] [--memory-mib 512]
//!
//! One guest of each is booted (a minute or two where KVM emulates the guest's kernel) and then
//! migrated repeatedly: QEMU over TLS, lighter, QEMU over plain TCP, in turn, while idle and while
//! writing. While one is measured, the other is paused. Before each run, as much memory as a
//! destination will take is touched and freed ([`preheat`]); otherwise the results would show only
//! the paging of the underlying host. The guest itself reports its longest pause and whether its
//! memory is intact; a run that damages memory ends the benchmark.
//!
//! Start reading at [`contest`], which runs the rounds; [`peer`] is the interface of a system.

mod contest;
mod credentials;
mod guest;
mod lighter;
mod peer;
mod preheat;
mod qemu;
mod qmp;
mod settings;
mod table;

use anyhow::Result;
use support::bench::interruption;

fn main() -> Result<()> {
    let settings = settings::Settings::from_arguments(std::env::args().skip(1))?;
    interruption::watch()?;
    let folder = tempfile::tempdir()?;
    let outcome = contest::run(&settings, folder.path())?;
    println!("{}", table::markdown(&settings, &outcome));
    Ok(())
}
