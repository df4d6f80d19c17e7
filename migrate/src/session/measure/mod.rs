//! The shell of an estimate: measures what a migration of a guest would meet, without moving it.
//!
//! It takes about three seconds, and up to five on a long path. `content` samples the guest's
//! pages. `path` encodes such pages and sends as many bytes to a sink of the destination's node,
//! and times how long the node takes to answer; `record` times changes of a record meanwhile. `log`
//! counts for two seconds how many pages the guest writes. A dry run of the pause measures the
//! rest. Errors of the path come first, before the guest notices anything.

mod content;
mod log;
mod path;
mod record;

use std::io;
use std::panic::resume_unwind;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use self::content::Content;
use self::log::Log;
use self::record::RecordTimes;
use super::source::{SourceSession, dry_run, flush_twice, run_state};
use super::thread::{StartError, build, connections_useful};
use crate::estimate::{DryRun, Estimate, Measured, Path, estimate as forecast};
use crate::front::FrontError;
use crate::guest::{GuestDescription, GuestError, RunState, SourceGuest};
use crate::memory::PAGE_BYTES;
use crate::quic::{LinkError, Tls};
use crate::record::{RecordError, RecordStore};
use crate::source::Probe;

/// Longest wait for the guest's disks to be flushed.
const FLUSH_PATIENCE: Duration = Duration::from_secs(10);

/// Why a migration could not be estimated.
#[derive(Debug, thiserror::Error)]
pub enum EstimateError {
    /// The destination's node could not be reached, or refuses to be measured.
    #[error(transparent)]
    Node(#[from] FrontError),
    /// The destination's node does not know how to be measured, and no rate was given.
    #[error(
        "the node there is of an earlier version, and cannot measure the path: give the rate of the link with --bandwidth, or \
         upgrade that node"
    )]
    Unmeasurable,
    /// Nothing that was sent arrived.
    #[error("nothing of what was sent to {0} has left this host")]
    NoData(String),
    /// The guest's memory, dirty log or pause could not be measured.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A disk does not answer.
    #[error(
        "cannot estimate the downtime: the disks of {0} were not flushed within {1:?}; try again when the host's storage answers"
    )]
    Disks(String, Duration),
    /// No record could be written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// No thread could be started.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl From<LinkError> for EstimateError {
    fn from(error: LinkError) -> Self {
        Self::Node(error.into())
    }
}

/// Estimates the migration `session` of `guest`, which stays where it is. Blocks for three to five
/// seconds. The guest is paused once for some milliseconds, as in the dry run of a migration, and
/// its writes are logged for two seconds.
///
/// # Errors
/// If the path or the guest cannot be measured. The guest runs as before, unless it could not be
/// resumed, as the error then says.
pub fn estimate(
    session: SourceSession,
    guest: &Arc<dyn SourceGuest>,
    tls: &Tls,
    records: &RecordStore,
) -> Result<Estimate, EstimateError> {
    let description = guest.describe();
    let connections = session.connections_wanted();
    let session = SourceSession { connections: Some(connections), ..session };
    let content = content::sample(&**guest, description.layout.chunks())?;
    let rehearsal = records.rehearse(&description.name, description.uuid)?;
    let runtime = build(connections.min(connections_useful())).map_err(StartError::Thread)?;
    let (path, record) = thread::scope(|scope| {
        let (under_way, over) = mpsc::channel();
        let changing = thread::Builder::new().name("estimate-record".into());
        let changing = changing.spawn_scoped(scope, move || record::change(rehearsal, &over))?;
        let path = runtime.block_on(path::measure(&session, guest, &content.chunks, tls));
        drop(under_way);
        let record = changing.join().unwrap_or_else(|panic| resume_unwind(panic));
        Ok::<_, io::Error>((path, record))
    })
    .map_err(StartError::Thread)?;
    drop(runtime);
    let (path, record) = (path?, record?);
    let log = log::sample(&**guest, description.chunks())?;
    let measured = measured(guest, &description, (content, path, log), record)?;
    Ok(forecast(measured, &session.config(description), session.bandwidth))
}

/// Makes the dry run, and puts all measurements together.
fn measured(
    guest: &Arc<dyn SourceGuest>,
    description: &GuestDescription,
    (content, path, log): (Content, Path, Log),
    record: RecordTimes,
) -> Result<Measured, EstimateError> {
    let flush = flush_in_time(guest, &description.name)?;
    let (was, probe) = rehearse_pause(&**guest, flush)?;
    let pages = |bytes: u64| bytes.div_ceil(PAGE_BYTES as u64);
    let allocated = description.disks.iter().map(|disk| disk.allocated_bytes.min(disk.bytes));
    Ok(Measured {
        is_running: was == RunState::Running,
        memory_pages: description.layout.pages(),
        zero_ratio: content.zero_ratio,
        compressible_ratio: content.compressible_ratio,
        zero_page_seconds: content.zero_page_seconds,
        disk_pages: pages(description.disk_bytes()),
        disk_content_pages: pages(allocated.fold(0, u64::saturating_add)),
        written: log.written,
        log_seconds: log.start.as_secs_f64(),
        collect_seconds: log.collect.as_secs_f64(),
        dry_run: DryRun {
            pause_and_save_seconds: probe.pause_and_save.as_secs_f64(),
            stood_seconds: probe.stood.as_secs_f64(),
            flush_seconds: probe.flush.as_secs_f64(),
            record_seconds: record.create.as_secs_f64(),
            record_change_seconds: record.change.as_secs_f64(),
        },
        path,
    })
}

/// Flushes the guest's disks on a thread that may hang with a disk, without keeping the estimate.
fn flush_in_time(guest: &Arc<dyn SourceGuest>, name: &str) -> Result<Duration, EstimateError> {
    let (done, flushed) = mpsc::channel();
    let guest = Arc::clone(guest);
    let flush = move || {
        let _ = done.send(flush_twice(&*guest));
    };
    let thread = thread::Builder::new().name("estimate-flush".into()).spawn(flush);
    thread.map_err(StartError::Thread)?;
    let in_time = flushed.recv_timeout(FLUSH_PATIENCE);
    Ok(in_time.map_err(|_| EstimateError::Disks(name.to_owned(), FLUSH_PATIENCE))??)
}

/// Pauses the guest and saves its state, as a migration does before its first round; resumes it if
/// it ran, also after an error.
fn rehearse_pause(
    guest: &dyn SourceGuest,
    flush: Duration,
) -> Result<(RunState, Probe), GuestError> {
    let was = run_state(guest);
    let error = match dry_run(guest, was, flush) {
        Ok(probe) => return Ok((was, probe)),
        Err(error) => error,
    };
    match was {
        RunState::Running => match guest.resume() {
            Ok(()) => Err(error),
            Err(stuck) => Err(GuestError::new(format!(
                "{error}; the guest stays paused, since it could not go on: {stuck}; `lighter resume` tries again"
            ))),
        },
        RunState::Paused => Err(error),
    }
}
