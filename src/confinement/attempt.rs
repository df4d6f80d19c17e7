//! Tries something that a guest's process is not allowed to do, for the tests that expect a
//! refusal. `LIGHTER_ATTEMPT` names it.

use std::ffi::CString;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixStream;

use anyhow::{Result, anyhow};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use rustix::process::{Resource, Rlimit};
use tokio::runtime::Runtime;

use crate::output;

/// Makes the attempt in the main thread, in one of the runtime's and in a new one, and prints how
/// each ended.
///
/// # Errors
/// If a thread cannot be started.
pub(crate) fn run_requested(runtime: &Runtime) -> Result<()> {
    let Ok(what) = std::env::var("LIGHTER_ATTEMPT") else { return Ok(()) };
    report_attempt("main", &what);
    let other = what.clone();
    let task = runtime.spawn_blocking(move || report_attempt("runtime", &other));
    runtime.block_on(task)?;
    let thread = std::thread::Builder::new().spawn(move || report_attempt("new", &what))?;
    thread.join().map_err(|_| anyhow!("the attempt panicked"))
}

fn report_attempt(thread: &str, what: &str) {
    let outcome = match attempt(what) {
        Ok(()) => "done".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    output::note(format_args!("attempt in the {thread} thread: {what}: {outcome}"));
}

fn attempt(what: &str) -> Result<()> {
    let (kind, of) = what.split_once(':').unwrap_or((what, ""));
    match kind {
        "execute" => match nix::unistd::execv(&CString::new(of)?, &[CString::new(of)?]) {
            Ok(never) => match never {},
            Err(error) => Err(error.into()),
        },
        "kill" => Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(of.parse()?), None)?),
        "read" => Ok(File::open(of).map(drop)?),
        "write" => Ok(File::options().append(true).open(of).map(drop)?),
        "create" => Ok(File::create_new(of).map(drop)?),
        "process" => Ok(std::process::Command::new(of).spawn().map(drop)?),
        "packets" => {
            Ok(socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None).map(drop)?)
        }
        "netlink" => {
            let (raw, audit) = (SockType::Raw, SockProtocol::NetlinkAudit);
            Ok(socket(AddressFamily::Netlink, raw, SockFlag::empty(), audit).map(drop)?)
        }
        "connect" => Ok(UnixStream::connect(of).map(drop)?),
        "limits" => {
            let unlimited = Rlimit { current: None, maximum: None };
            let process = rustix::process::Pid::from_raw(of.parse()?);
            Ok(rustix::process::prlimit(process, Resource::Core, unlimited).map(drop)?)
        }
        "priority" => {
            let any = Rlimit { current: None, maximum: None };
            let limit = if of == "nice" { Resource::Nice } else { Resource::Rtprio };
            Ok(rustix::process::setrlimit(limit, any)?)
        }
        "tcp" => Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map(drop)?),
        _ => Err(anyhow!("no such attempt")),
    }
}
