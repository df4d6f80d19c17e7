//! lighter compared with QEMU, in one run: the same Linux kernel, the same program in it, the same
//! host.
//!
//!     cargo bench --bench peers [-- --runs 5] [--only lighter|qemu] [--memory-mib 512,3584]
//!         [--zeros 50] [--cpus 1,2,4] [--loads idle,slow,fast,hot,sparse]
//!         [--links loopback,100mbit,1gbit/10ms/0.1%] [--patience 600] [--postcopy | --estimate]
//!         [--on-stall throttle|force|postcopy] [--qemu-capabilities postcopy-preempt]
//!
//! One guest of each is booted (a minute or two where KVM emulates the guest's kernel) and then
//! migrated repeatedly: QEMU over TLS, lighter, QEMU over plain TCP, in turn, under each load and
//! over each link. While one is measured, the other is paused. Before each run, as much memory as a
//! destination will take is touched and freed, and a virtual host returns none of it meanwhile
//! ([`preheat`]); otherwise the results would show only the paging of the underlying host. The
//! guest itself reports its longest pause and whether its memory is intact; a run that damages
//! memory ends the benchmark.
//!
//! A link other than loopback is a cable between two network namespaces, which takes root, with a
//! [`wire`] in it for a round trip or loss. With `--beside-tcp` a TCP connection shares it; its
//! congestion control and QEMU's is that of this host (`sysctl net.ipv4.tcp_congestion_control`).
//! With `--halt` the program in the guests sleeps. With `--postcopy` guests are handed over after
//! the first round; with `--estimate` lighter alone is measured, with an estimate before each
//! migration. Each memory size and number of vCPUs takes guests of its own, and so do cables and
//! the load `sparse`.
//!
//! Start reading at [`contest`], which runs the rounds; [`peer`] is the interface of a system.

mod contest;
mod credentials;
mod estimates;
mod guest;
mod lighter;
mod link;
mod load;
mod packets;
mod peer;
mod place;
mod preheat;
mod qemu;
mod qmp;
mod settings;
mod statistics;
mod table;
mod tcp;
mod wire;

use anyhow::Result;
use clap::Parser;
use support::bench::interruption;

fn main() -> Result<()> {
    let settings = settings::Settings::parse();
    interruption::watch()?;
    let outcome = contest::run(&settings)?;
    let arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    println!("    cargo bench --bench peers -- {}\n", arguments.collect::<Vec<_>>().join(" "));
    println!("Congestion control of TCP: `{}`.\n", tcp::congestion_control()?);
    let report = match settings.mode() {
        settings::Mode::Estimate => estimates::markdown(&settings, &outcome),
        _ => table::markdown(&settings, &outcome),
    };
    println!("{report}");
    Ok(())
}
