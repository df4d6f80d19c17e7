//! How quickly a guest under memory pressure gets its memory back: a Linux guest depends on its
//! page cache, its balloon holds the memory that the cache needs, and a node monitors it.
//!
//!     cargo bench --bench reaction [-- --runs 5]
//!
//! In each run the guest reads random pages of its disk through a mapping
//! (`tests/guest/check/cached.rs`), all of which fit into its cache. Then its balloon is inflated
//! until they do not, and the guest reads again: now it waits for its disk. Times count from the
//! guest's message that it begins, which is before the node can notice. The first run of the
//! benchmark builds a kernel that counts its page faults (ten minutes). Needs root.

mod linux;
mod round;
mod table;

use anyhow::Result;
use clap::Parser;

use linux::Linux;
use support::Pair;
use support::bench::interruption;

/// How soon a guest under pressure has its memory back.
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
