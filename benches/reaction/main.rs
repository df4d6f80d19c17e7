//! How soon a guest in pain has its memory back: Linux lives from its page cache, its balloon holds
//! what the cache needs, and a node watches.
//!
//!     cargo bench --bench reaction [-- --runs 5]
//!
//! In each run the guest reads pages of its disk at random through a mapping
//! (`tests/guest/check/cached.rs`), all of which its cache can hold. Then its balloon is inflated
//! until the cache cannot, and the guest reads again: now it waits for its disk. Times count from
//! when the guest says that it begins, which is before anybody can know. Builds a kernel that
//! counts its page faults the first time (ten minutes). Takes root.

mod linux;
mod round;
mod table;

use anyhow::Result;
use clap::Parser;

use linux::Linux;
use support::Pair;
use support::bench::interruption;

/// How soon a guest in pain has its memory back.
#[derive(Debug, Parser)]
struct Options {
    /// How often it is tried.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    interruption::watch()?;
    println!("{}", table::HEAD);
    for run in 1..=options.runs {
        interruption::check()?;
        eprintln!("run {run} of {}: booting a guest of Linux", options.runs);
        let mut pair = Pair::without_nodes();
        let linux = Linux::boot(&pair.a);
        println!("{}", table::row(run, &round::play(&mut pair.a, &linux)));
    }
    Ok(())
}
