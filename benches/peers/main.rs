//! lighter beside QEMU, in one run: the same Linux kernel, the same program in it, the same host.
//!
//!     cargo bench --bench peers [-- --runs 5] [--only lighter|qemu] [--memory-mib 512]
//!
//! One guest of each is booted (a minute or two where KVM emulates the guest's kernel) and then
//! migrated over and over: QEMU over TLS, lighter, QEMU over plain TCP, in turn, idle and while it
//! writes. While one is measured, the other stands still. Before each run the memory that a
//! destination will take is touched and freed ([`preheat`]), or the host's own paging is all that
//! shows. The guest says itself how long it stood still and whether its memory is intact; a run in
//! which it is not ends the benchmark.
//!
//! Start reading at [`contest`], which runs the rounds; [`peer`] is what it needs of each system.

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
